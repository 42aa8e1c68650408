"""Two things that the uses of layers do not show, tried on one minibatch: weights that are used beside them, and
samples that know of each other. Either would make the curvature wrong without a word."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from escnn.nn import GeometricTensor
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from ...errors import UnsupportedModuleError
from ..batch_format import map_tensors

__all__ = ["check_samples", "probe"]


def check_samples(model: nn.Module) -> None:
    """Raise ``UnsupportedModuleError`` for a module that mixes the samples of a batch even in evaluation mode."""
    for name, module in model.named_modules():
        if isinstance(module, _InstanceNorm) or not (
            "BatchNorm" in type(module).__name__ or isinstance(module, _BatchNorm)
        ):
            continue
        if getattr(module, "track_running_stats", True) is False or getattr(module, "running_mean", 0) is None:
            raise UnsupportedModuleError(
                name,
                f"{type(module).__name__} without running statistics mixes the samples of a batch, "
                "so that none has a gradient of its own",
                remedy="keep running statistics, or use a normalisation of single samples",
            )


def probe(
    layers: Mapping[str, nn.Module], covered: Mapping[str, nn.Parameter], forward: Callable[[Any], Tensor], input: Any
) -> None:
    """Raise ``UnsupportedModuleError`` for weights used beside their layers, and for samples that change the outputs of
    others.

    Each layer runs with its weights held, so that a gradient that arrives at them came another way. Then every other
    sample is replaced by one of those between, which must leave the outputs of these.

    Args:
        layers: whose uses count, by name.
        covered: their weights, by name; none requires a gradient on entry, nor afterwards.
        forward: the network, from an input to its output ``(N, C, ...)``.
    """
    random = _random()  # what a network draws is the same each time, and the pass draws what it would have drawn
    try:
        with torch.enable_grad(), _weights_frozen_inside(layers, covered):
            output = forward(map_tensors(input, _copy))
            _refuse_strays(output, covered)
        if len(output) > 1:
            _refuse_mixtures(output.detach(), forward, input, random)
    finally:
        _set_random(random)


def _copy(part: Any) -> Any:
    """The network may change it in place."""
    if isinstance(part, GeometricTensor):
        return GeometricTensor(part.tensor.detach().clone(), part.type, part.coords)
    return part.detach().clone()


def _refuse_strays(output: Tensor, covered: Mapping[str, nn.Parameter]) -> None:
    try:
        gradients = torch.autograd.grad(output.sum(), list(covered.values()), allow_unused=True)
    except RuntimeError as error:
        if "reentrant" not in str(error):
            raise
        return  # no gradient passes such a checkpoint, and the extraction names the layers in it
    stray = next((name for name, gradient in zip(covered, gradients) if gradient is not None), None)
    if stray is not None:
        raise UnsupportedModuleError(
            stray,
            "the network uses this weight as a tensor too, beside the layer that holds it, where its curvature is not"
            " seen",
            remedy="call the layer itself, or freeze the weight by requires_grad_(False)",
        )


@torch.no_grad()
def _refuse_mixtures(output: Tensor, forward: Callable[[Any], Tensor], input: Any, random: list[Tensor]) -> None:
    for parity in (0, 1):

        def neighbour(part: Any) -> Any:
            copied = _copy(part)
            tensor = copied.tensor if isinstance(copied, GeometricTensor) else copied
            if tensor.dim() and len(tensor) == len(output):
                changed, source = torch.arange(1 - parity, len(tensor), 2), torch.arange(parity, len(tensor), 2)
                tensor[changed] = tensor[source[torch.arange(len(changed)) % len(source)]]
            return copied

        _set_random(random)
        again = forward(map_tensors(input, neighbour))[parity::2]
        before = output[parity::2]
        rounding = torch.finfo(output.dtype).eps ** 0.5 * before.abs().max()
        if again.shape != before.shape or ((again - before).abs() > rounding).any():
            raise UnsupportedModuleError(
                "model",
                "the output of a sample depends on other samples of its batch, so that none has a gradient of its own",
                remedy=(
                    "look for means, sorts or normalisations over dimension 0, and for a batch dimension that is not"
                    " first"
                ),
            )


@contextmanager
def _weights_frozen_inside(layers: Mapping[str, nn.Module], covered: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Covered weights require gradients, except while one of the layers runs."""
    parameters, depth = list(covered.values()), 0
    before: dict[nn.Module, tuple[bool, Any]] = {m: ("forward" in vars(m), m.forward) for m in layers.values()}

    def frozen(forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal depth
            depth += 1
            _require(parameters, False)
            try:
                return forward(*args, **kwargs)
            finally:
                depth -= 1
                _require(parameters, depth == 0)

        return run

    try:
        for module in layers.values():
            module.forward = frozen(module.forward)
        _require(parameters, True)
        yield
    finally:
        _require(parameters, False)
        for module, (patched, forward) in before.items():
            if patched:
                module.forward = forward
            else:
                vars(module).pop("forward", None)


def _require(parameters: Sequence[nn.Parameter], requires_grad: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(requires_grad)


def _random() -> list[Tensor]:
    """States of torch's generators, of the processor and of the present GPU."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])]


def _set_random(states: Sequence[Tensor]) -> None:
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.cuda.set_rng_state(state)
