"""One run of a network, on an example or on what its field types promise, that leaves it as it was."""

from __future__ import annotations

from typing import Any

import torch
from escnn.nn import EquivariantModule, FieldType, GeometricTensor
from torch import Tensor, nn

from ..errors import ArgumentError, RelaxError, UnsupportedModuleError

__all__ = ["example_of", "fitted", "run_once", "try_result"]

#: Sides of the images that are tried where no example is given: enough for a few halvings.
SIDES = {2: (33, 32, 64), 3: (17, 16), 0: (1,), 1: (33,)}


def run_once(model: nn.Module, example: Any) -> Any:
    """The output for the example: a tensor, a GeometricTensor, or a tuple of arguments. Mode, running statistics, gradients
    and the state of the random numbers are left as they are."""
    state = [(b, b.detach().clone()) for b in model.buffers()]
    arguments = example if isinstance(example, tuple) else (example,)
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.is_cuda})
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(0)
            return model(*arguments)
    finally:
        with torch.no_grad():
            for buffer, before in state:
                buffer.copy_(before)


def example_of(model: nn.Module, in_type: FieldType) -> Any:
    """An input on which the model runs, made of the type of its first layer; ``None`` where none is found."""
    like = next(iter(model.parameters()), torch.zeros(()))
    d = in_type.gspace.dimensionality
    generator = torch.Generator().manual_seed(0)
    for side in SIDES.get(d, ()):
        values = torch.randn(2, in_type.size, *(side,) * d, generator=generator)
        values = values.to(device=like.device, dtype=like.dtype if like.is_floating_point() else values.dtype)
        geometric = isinstance(model, EquivariantModule)
        for example in (GeometricTensor(values, in_type), values) if geometric else (values,):
            try:
                run_once(model, example)
            except Exception:  # whatever the user's own code raises for an input that is not meant for it
                continue
            return example
    return None


def try_result(
    model: nn.Module, result: nn.Module, example: Any, where: str, *, cause: str = "", remedy: str = "", same: bool = True
) -> None:
    """Run what a morphism made beside what it was made of.

    Args:
        example: on which ``model`` runs; a GeometricTensor is read as the result's ``in_type`` where that has its size.
        cause: what may be the cause, for the message.
        remedy: what to do.
        same: whether in eval mode the outputs have to be the same, to 1 % of their norm.

    Raises:
        ArgumentError: the model itself does not run on the example.
        UnsupportedModuleError: the result does not, or has to compute the same and does not.
    """
    try:
        before = run_once(model, example)
    except RelaxError:
        raise
    except Exception as error:
        raise ArgumentError(
            where, f"the model itself does not run on the example ({_said(error)})", remedy="pass an input as in training"
        ) from error
    try:
        after = run_once(result, fitted(example, result))
    except Exception as error:
        name = failing(result, error)
        raise UnsupportedModuleError(
            f"{where}.{name}" if name else where, f"the result would not run ({_said(error)}){cause}", remedy=remedy
        ) from error
    pairs = list(zip(_outputs(before), _outputs(after)))
    for a, b in pairs if same and not any(part.training for part in model.modules()) else ():
        if a.shape != b.shape or float((a - b).norm()) > 1e-2 * float(a.norm()) + 1e-6:
            problem = f"the result would compute something else than the model{cause}"
            raise UnsupportedModuleError(where, problem, remedy=remedy)


def fitted(example: Any, model: nn.Module) -> Any:
    """The example for a morphism's result: a GeometricTensor is read as the result's ``in_type`` where that has its size."""
    wanted = getattr(model, "in_type", None)
    values = example if isinstance(example, tuple) else (example,)
    read = tuple(
        GeometricTensor(v.tensor, wanted, v.coords)
        if isinstance(v, GeometricTensor) and isinstance(wanted, FieldType) and wanted.size == v.type.size
        else v
        for v in values
    )
    return read if isinstance(example, tuple) else read[0]


def failing(model: nn.Module, error: BaseException) -> str:
    """The name of the innermost of the model's own modules in whose code the error was raised."""
    names = {id(part): name for name, part in model.named_modules()}
    found, step = "", error.__traceback__
    while step is not None:
        owner = step.tb_frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and names.get(id(owner)):
            found = names[id(owner)]
        step = step.tb_next
    return found


def _said(error: BaseException) -> str:
    text = str(error).strip().split("\n")[0][:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _outputs(value: Any) -> list[Tensor]:
    if isinstance(value, GeometricTensor):
        return [value.tensor.double()]
    if isinstance(value, Tensor):
        return [value.double()] if value.is_floating_point() else []
    if isinstance(value, dict):
        value = list(value.values())
    return [t for item in value for t in _outputs(item)] if isinstance(value, list | tuple) else []

