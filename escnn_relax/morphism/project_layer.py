"""One layer's nearest equivariant kernel of the larger group, and what is lost on the way."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from escnn.nn import EquivariantModule, FieldType
from torch import Tensor, nn

from .. import _escnn
from ..errors import FieldTypeError
from ..nn.mixed.convolution import MixedConvolution
from ..nn.steerable import SteerableConvolution
from ..nn.strict_layer import strict_layer
from ..symmetry.equivariance.error_record import relative
from ..symmetry.kernels.band_limit import frequency_limit
from ..symmetry.kernels.linear_algebra import pseudo_inverse
from ..symmetry.kernels.pathway import EQUIVARIANT

__all__ = ["ProjectedLayer", "project_on_group", "project_relaxed"]


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


def project_relaxed(name: str, layer: SteerableConvolution) -> tuple[nn.Module, ProjectedLayer]:
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


def project_on_group(
    name: str, source: EquivariantModule, target: EquivariantModule
) -> tuple[nn.Module, ProjectedLayer]:
    """A layer on a subgroup as one of the larger group; ``FieldTypeError`` where the fields do not correspond.

    Args:
        source: the layer on the subgroup.
        target: the layer of the larger group that it came from.
    """
    for side in ("in_type", "out_type"):
        source_fields, fields = getattr(source, side), getattr(target, side)
        if [r.size for r in source_fields.representations] != [r.size for r in fields.representations]:
            remedy = "pass like= the module that this one was restricted from"
            raise FieldTypeError(
                name, expected=f"{side} with the field sizes of {fields}", got=str(source_fields), remedy=remedy
            )
    new = _escnn.rebuild(target, target.in_type, target.out_type, frequency_limit)
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
