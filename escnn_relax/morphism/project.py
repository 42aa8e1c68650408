"""Back to the larger group: the nearest equivariant kernels, and what is lost on the way."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import nn

from ..errors import FieldTypeError, UnsupportedModuleError
from ..nn.steerable import SteerableConvolution
from ..nn.translation.relaxed_translation import RelaxedTranslation
from ..nn.translation.sparse_convolution import SparseConvolution
from .module_tree import replace_modules
from .project_layer import ProjectedLayer, project_on_group, project_relaxed
from .restrict.layer import BETWEEN_POINTS, SAMPLED
from .trial_run import tried

__all__ = ["project"]


@overload
def project(
    module: nn.Module, like: nn.Module | None = None, *, example: Any = None, return_report: Literal[False] = False
) -> nn.Module: ...


@overload
def project(
    module: nn.Module, like: nn.Module | None = None, *, example: Any = None, return_report: Literal[True]
) -> tuple[nn.Module, tuple[ProjectedLayer, ...]]: ...


def project(
    module: nn.Module, like: nn.Module | None = None, *, example: Any = None, return_report: bool = False
) -> nn.Module | tuple[nn.Module, tuple[ProjectedLayer, ...]]:
    r"""The orthogonal projection of a layer or network on the equivariant kernels of the larger group.

    .. math:: PW = W \Phi^+ \Phi, \qquad \min_{W' \in \mathrm{span}\,\Phi} |W - W'|_F

    Args:
        module: a relaxed layer or a model with some; or a module on a subgroup.
        like: for a module on a subgroup, the module on G that it came from (or any of the same structure): it says
            which fields of G the channels are. It is left alone.
        example: an input of the module, or a tuple of arguments, on which the result is tried before it is returned,
            see below; ``False`` for no trial.
        return_report: return ``(module, layers)``, with a :class:`ProjectedLayer` for each layer that was projected.

    Returns:
        a new module on G of escnn's classes, with the other parameters and statistics of ``module``.

    Raises:
        UnsupportedModuleError: nothing to project, a convolution between points in ``like``, a sparse convolution that
            keeps less than G (one that keeps G is equivariant as it is, and stays), or a result that would not run.
        FieldTypeError: ``like`` does not correspond to ``module``.
        ArgumentError: an example on which the module does not run.

    The result is run beside the module before it is returned, on copies of both: on the example, or on a small input
    made of the first layer's type; where the module itself does not run on that, nothing is tried. Its function is
    another one, so it only has to run. In training mode both run a second time. That takes as long as two to four
    forward passes of two small images. Hooks of your own are left out where it runs without them; what a forward does
    outside its module, such as printing, it does then, too.

    >>> from escnn import gspaces, nn
    >>> from escnn_relax.morphism.restrict.network import restrict
    >>> space = gspaces.rot2dOnR2(8)
    >>> type = nn.FieldType(space, [space.regular_repr])
    >>> conv = nn.R2Conv(type, type, 5)
    >>> back, layers = project(restrict(conv, 4), like=conv, return_report=True)
    >>> layers[0].lost < 1e-5, bool((back.weights - conv.weights).abs().max() < 1e-5)
    (True, True)
    """
    records: list[ProjectedLayer] = []
    theirs = dict(module.named_modules())

    def replacement(name: str, submodule: nn.Module) -> nn.Module | None:
        if isinstance(submodule, RelaxedTranslation):
            problem = "its pathways between whole images have no nearest convolution here"
            raise UnsupportedModuleError(
                name or "model", problem, remedy="harden the model, or project part.convolution"
            )
        if isinstance(submodule, SparseConvolution) and (like is not None or submodule.subgroup.index != 1):
            problem = "a kernel interpolated from anchors has no nearest one in escnn's basis; "
            problem += f"it keeps {submodule.subgroup.name} of {submodule.space.fibergroup.name}"
            remedy = "project the parts of the network around it"
            raise UnsupportedModuleError(name or type(submodule).__name__, problem, remedy=remedy)
        if like is None:
            if not isinstance(submodule, SteerableConvolution):
                return None
            new, record = project_relaxed(name, submodule)
        else:
            if isinstance(submodule, BETWEEN_POINTS):
                raise UnsupportedModuleError(
                    name or type(submodule).__name__,
                    "its kernels are functions of all points, with no grid on which to measure what is lost",
                    remedy="project the parts of the network around it",
                )
            if type(submodule) not in SAMPLED:
                return None
            source = theirs.get(name)
            if type(source) is not type(submodule):
                raise FieldTypeError(
                    name,
                    expected=f"a {type(submodule).__name__} there as in like",
                    got=type(source).__name__,
                    remedy="pass like= the module that this one was restricted from",
                )
            new, record = project_on_group(name, source, submodule)
        records.append(record)
        return new

    result: Any = replace_modules(module if like is None else like, replacement)
    if not records:
        raise UnsupportedModuleError(
            type(module).__name__,
            "no layer in it can be projected",
            remedy="relax it first, or pass like=, the module on the larger group",
        )
    if like is not None:
        _adopt(result, theirs, {r.name for r in records})
        result.train(module.training)
    single = [r.name for r in records] if like is None else ()
    projected: nn.Module = tried(module, result, example, "projected", same=False, single=single)
    return (projected, tuple(records)) if return_report else projected


def _adopt(result: nn.Module, theirs: dict[str, nn.Module], projected: set[str]) -> None:
    """Parameters and statistics of everything that was not projected."""
    with torch.no_grad():
        for name, submodule in result.named_modules():
            if any(name == p or name.startswith(f"{p}.") or not p for p in projected):
                continue
            source = theirs.get(name)
            if source is None:
                raise FieldTypeError(name, "the module on the subgroup has no such part", remedy="pass its original")
            values = {**source._parameters, **source._buffers}
            for key, tensor in {**submodule._parameters, **submodule._buffers}.items():
                value = values.get(key)
                if tensor is None or value is None:
                    continue
                if value.shape != tensor.shape:
                    raise FieldTypeError(
                        f"{name}.{key}",
                        expected=f"shape {tuple(tensor.shape)}",
                        got=str(tuple(value.shape)),
                        remedy="pass like= the module that this one was restricted from",
                    )
                tensor.data = value.detach().clone()
