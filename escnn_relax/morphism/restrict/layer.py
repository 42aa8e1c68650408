"""One escnn layer on a subgroup: steerable layers rebuilt, the others given the restricted types."""

from __future__ import annotations

import torch
from escnn import nn as enn
from escnn.gspaces import GSpace
from escnn.nn import EquivariantModule, FieldType
from torch import nn

from ... import _escnn
from ...nn.translation.sparse_convolution import SparseConvolution
from ...nn.translation.sparse_layers import SparseR2Conv, SparseR3Conv
from ...symmetry.groups.lattice import Subgroup, subgroups
from ...symmetry.groups.restriction import Restriction
from ...symmetry.kernels.band_limit import frequency_limit
from ..module_tree import copy_module, map_values
from .intertwiner import bias_map, block_maps, carry_weights

__all__ = [
    *("STEERABLE", "SAMPLED", "BETWEEN_POINTS", "SPARSE", "RETYPED", "CONTAINERS"),
    *("restrict_steerable", "restrict_sparse", "restricted_value", "retype"),
]

#: Rebuilt: H's own coefficients, more of them, giving the same kernel.
SAMPLED = (enn.R2Conv, enn.R3Conv, enn.R2ConvTransposed, enn.R3ConvTransposed, enn.Linear)

#: Point convolutions, which escnn has only where torch_geometric is installed.
BETWEEN_POINTS = tuple(getattr(enn, name) for name in ("R2PointConv", "R3PointConv") if hasattr(enn, name))

STEERABLE = (*SAMPLED, *BETWEEN_POINTS)

#: Rebuilt with the same anchors, in the orbits of a smaller group.
SPARSE = (SparseR2Conv, SparseR3Conv)

#: Copied with the restricted types: their forward pass depends on the fields' sizes only.
RETYPED = tuple(
    getattr(enn, name)
    for name in (
        *("ReLU", "ELU", "LeakyReLU", "PointwiseNonLinearity", "ConcatenatedNonLinearity", "NormNonLinearity"),
        *("GatedNonLinearity1", "GatedNonLinearity2", "GatedNonLinearityUniform", "VectorFieldNonLinearity"),
        *("InducedNormNonLinearity", "InducedGatedNonLinearity1"),
        *("FourierPointwise", "FourierELU", "QuotientFourierPointwise", "QuotientFourierELU"),
        *("InnerBatchNorm", "NormBatchNorm", "InducedNormBatchNorm", "GNormBatchNorm"),
        *("IIDBatchNorm1d", "IIDBatchNorm2d", "IIDBatchNorm3d"),
        *("PointwiseMaxPool2D", "PointwiseMaxPool3D", "PointwiseMaxPoolAntialiased2D", "PointwiseMaxPoolAntialiased3D"),
        *("PointwiseAvgPool2D", "PointwiseAvgPool3D", "PointwiseAvgPoolAntialiased2D", "PointwiseAvgPoolAntialiased3D"),
        *("PointwiseAdaptiveAvgPool2D", "PointwiseAdaptiveAvgPool3D"),
        *("PointwiseAdaptiveMaxPool2D", "PointwiseAdaptiveMaxPool3D", "NormMaxPool"),
        *("PointwiseDropout", "FieldDropout", "R2Upsampling", "R3Upsampling", "MaskModule", "IdentityModule"),
        *(
            "GroupPooling",
            "NormPool",
            "InducedNormPool",
            "ReshuffleModule",
            "DisentangleModule",
            "HarmonicPolynomialR3",
        ),
        *("R3IcoConv", "R3IcoConvTransposed"),  # on orbits of the icosahedron, which no other group's basis contains
    )
    if hasattr(enn, name)
)

#: Their children are restricted, and their own types with them.
CONTAINERS = (enn.SequentialModule, enn.MultipleModule, enn.MergeModule, enn.BranchingModule)


def restrict_steerable(layer: EquivariantModule, change: Restriction) -> nn.Module:
    """A convolution or Linear on H with the same kernel and bias; see :mod:`escnn_relax.morphism.restrict.intertwiner`.

    Raises:
        EmptyBasisError: H's basis does not contain the layer's.
    """
    in_type, out_type = change.field_type(layer.in_type), change.field_type(layer.out_type)
    new = _escnn.rebuild(layer, in_type, out_type, frequency_limit)
    maps = block_maps(layer, new)
    weights = carry_weights(layer.weights, layer, new, maps)
    _escnn.convert(new, layer.weights)
    with torch.no_grad():
        if type(layer) in SAMPLED:
            blocks = dict(_escnn.block_modules(new.basisexpansion))
            for m in maps:
                blocks[m.new_pair].sampled_basis = m.basis.to(blocks[m.new_pair].sampled_basis)
        new.weights.copy_(weights)
        if layer.bias is not None:
            transfer, expansion = bias_map(layer, new)
            new.bias_expansion.copy_(expansion)
            new.bias.copy_(layer.bias.detach().double().cpu() @ transfer)
            new.bias.requires_grad_(layer.bias.requires_grad)
    new.weights.requires_grad_(layer.weights.requires_grad)
    with torch.no_grad():  # a filter kept with its graph could neither be copied nor used twice
        new.train(layer.training)
    return new


def restrict_sparse(layer: SparseConvolution, change: Restriction) -> SparseConvolution:
    """A sparse convolution on H with the same kernel and bias, which keeps of H what the layer kept."""
    in_type, out_type = change.field_type(layer.in_type), change.field_type(layer.out_type)
    return layer.between(in_type, out_type, _common(layer.subgroup, change))


def _common(subgroup: Subgroup, change: Restriction) -> Subgroup:
    """The largest subgroup of H, as escnn counts them, whose elements lie in a finite subgroup of G."""
    within = [h for h in subgroups(change.gspace, max(8, subgroup.order)) if h.order > 0]
    return max(
        (h for h in within if all(subgroup.contains(change.embed(e)) for e in h.elements)), key=lambda h: h.order
    )


def retype(module: nn.Module, change: Restriction) -> nn.Module:
    """A copy, statistics and parameters included, between the restricted field types."""
    new = copy_module(module)
    for submodule in new.modules():
        map_values(submodule, (FieldType, GSpace), lambda name, value: restricted_value(value, change))
    return new


def restricted_value(value: FieldType | GSpace, change: Restriction) -> FieldType | GSpace:
    """A field type or G-space of G on H."""
    return change.field_type(value) if isinstance(value, FieldType) else change.gspace
