"""Back to the larger group: the nearest equivariant kernels, and what is lost on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
from escnn.nn import EquivariantModule, FieldType
from torch import Tensor, nn

from .. import _escnn
from ..errors import FieldTypeError, UnsupportedModuleError
from ..nn.mixed.convolution import MixedConvolution
from ..nn.steerable import SteerableConvolution
from ..nn.strict_layer import strict_layer
from ..nn.translation.layer import RelaxedTranslation
from ..nn.translation.sparse_convolution import SparseConvolution
from ..symmetry.equivariance.error_record import relative
from ..symmetry.kernels.linear_algebra import pseudo_inverse
from ..symmetry.kernels.pathway import EQUIVARIANT
from .module_tree import replace_modules
from .restrict.layer import BETWEEN_POINTS, SAMPLED
from .trial_run import tried

__all__ = ["ProjectedLayer", "project"]


@dataclass(frozen=True)
class ProjectedLayer:
    """What :func:`project` did to one layer.

    Attributes:
        name: the layer's name in the model.
        norm: Frobenius norm of its kernel before.
        lost: :math:`|W - PW| / |W|`, the fraction of the norm that was not equivariant.
        lost_bias: the same for the bias; 0 without one.
    """

    name: str
    norm: float
    lost: float
    lost_bias: float = 0.0


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

    def replacement(name: str, part: nn.Module) -> nn.Module | None:
        if isinstance(part, RelaxedTranslation):
            problem = "its pathways between whole images have no nearest convolution here"
            raise UnsupportedModuleError(
                name or "model", problem, remedy="harden the model, or project part.convolution"
            )
        if isinstance(part, SparseConvolution) and (like is not None or part.subgroup.index != 1):
            problem = "a kernel interpolated from anchors has no nearest one in escnn's basis; "
            problem += f"it keeps {part.subgroup.name} of {part.space.fibergroup.name}"
            remedy = "project the parts of the network around it"
            raise UnsupportedModuleError(name or type(part).__name__, problem, remedy=remedy)
        if like is None:
            if not isinstance(part, SteerableConvolution):
                return None
            new, record = _relaxed(name, part)
        else:
            if isinstance(part, BETWEEN_POINTS):
                raise UnsupportedModuleError(
                    name or type(part).__name__,
                    "its kernels are functions of all points, with no grid on which to measure what is lost",
                    remedy="project the parts of the network around it",
                )
            if type(part) not in SAMPLED:
                return None
            source = theirs.get(name)
            if type(source) is not type(part):
                raise FieldTypeError(
                    name,
                    expected=f"a {type(part).__name__} there as in like",
                    got=type(source).__name__,
                    remedy="pass like= the module that this one was restricted from",
                )
            new, record = _on_group(name, source, part)
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


def _relaxed(name: str, layer: SteerableConvolution) -> tuple[nn.Module, ProjectedLayer]:
    """The residual kernels are orthogonal to the equivariant ones, so projecting leaves them out; a mixture's are
    not."""
    with torch.no_grad():
        kernel = layer.expand_parameters()[0]
        new = strict_layer(layer.nearest(EQUIVARIANT.name) if isinstance(layer, MixedConvolution) else layer)
        new.train(layer.training)
    return new, ProjectedLayer(name, float(kernel.norm()), layer.breaking_energy**0.5)


def _slices(type: FieldType) -> list[slice]:
    ends, position = [], 0
    for r in type.representations:
        ends.append(slice(position, position + r.size))
        position += r.size
    return ends


def _on_group(name: str, source: EquivariantModule, target: EquivariantModule) -> tuple[nn.Module, ProjectedLayer]:
    for side in ("in_type", "out_type"):
        ours, wanted = getattr(source, side), getattr(target, side)
        if [r.size for r in ours.representations] != [r.size for r in wanted.representations]:
            remedy = "pass like= the module that this one was restricted from"
            raise FieldTypeError(
                name, expected=f"{side} with the field sizes of {wanted}", got=str(ours), remedy=remedy
            )
    new = _escnn.rebuild(target, target.in_type, target.out_type)
    dtype = source.weights.dtype
    new = new.to(device=source.weights.device, dtype=dtype)
    with torch.no_grad():
        kernel = source.basisexpansion(source.weights).double().cpu()
        outs, ins = _slices(target.out_type), _slices(target.in_type)
        named_out = [r.name for r in target.out_type.representations]
        named_in = [r.name for r in target.in_type.representations]
        blocks = dict(_escnn.block_modules(target.basisexpansion))
        weights = torch.zeros(new.weights.shape, dtype=torch.float64)
        for pair, block in _escnn.block_modules(new.basisexpansion):
            block.sampled_basis = blocks[pair].sampled_basis.detach().clone().to(block.sampled_basis)
            rows = block.sampled_basis.double().cpu().flatten(1)
            # grouped layers hold fewer fields than their types on one side
            pieces = [
                kernel[o, i].flatten()
                for a, o in zip(named_out, outs)
                for b, i in zip(named_in, ins)
                if (b, a) == pair and o.stop <= kernel.shape[0] and i.stop <= kernel.shape[1]
            ]
            start, stop = _escnn.weight_range(new.basisexpansion, pair)
            weights[start:stop] = (torch.stack(pieces) @ pseudo_inverse(rows, 1e-5)).flatten()
        new.weights.copy_(weights)
        after = new.basisexpansion(new.weights).double().cpu()
        lost_bias = _project_bias(source, target, new)
        new.train(source.training)
    norm = float(kernel.norm())
    lost = relative(float((kernel - after).norm()), norm)
    return new, ProjectedLayer(name, norm, lost, lost_bias)


def _project_bias(source: EquivariantModule, target: EquivariantModule, new: EquivariantModule) -> float:
    if new.bias is None:
        return 1.0 if source.bias is not None and bool(source.bias.any()) else 0.0
    new.bias_expansion.copy_(target.bias_expansion)
    if source.bias is None:
        return 0.0
    bias: Tensor = source.bias_expansion.double() @ source.bias.double()
    expansion = new.bias_expansion.double()
    new.bias.copy_(torch.linalg.pinv(expansion) @ bias)
    return relative(float((bias - expansion @ new.bias.double()).norm()), float(bias.norm()))


def _adopt(result: nn.Module, theirs: dict[str, nn.Module], projected: set[str]) -> None:
    """Parameters and statistics of everything that was not projected."""
    with torch.no_grad():
        for name, part in result.named_modules():
            if any(name == p or name.startswith(f"{p}.") or not p for p in projected):
                continue
            source = theirs.get(name)
            if source is None:
                raise FieldTypeError(name, "the module on the subgroup has no such part", remedy="pass its original")
            values = {**source._parameters, **source._buffers}
            for key, tensor in {**part._parameters, **part._buffers}.items():
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
