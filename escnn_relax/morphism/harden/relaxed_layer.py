"""One relaxed layer without its switched-off pathways: escnn's own, or one kernel where it broke its symmetry.

Layers that go to a subgroup's fields are in :mod:`~escnn_relax.morphism.harden.subgroup_layer`.
"""

from __future__ import annotations

import torch
from escnn.nn import EquivariantModule

from ...nn.evidence_record import switched_off
from ...nn.measured.certificate import certify_without, weights_norm
from ...nn.merged import MergedConvolution
from ...nn.relaxed_convolution import RelaxedConvolution
from ...nn.strict_layer import strict_layer
from ...symmetry.kernels.pathway import EQUIVARIANT
from .layer_report import HardenedLayer

__all__ = ["harden_relaxed"]


def harden_relaxed(
    title: str, layer: RelaxedConvolution, energy: float, determined: float
) -> tuple[EquivariantModule, HardenedLayer]:
    """The layer that takes a relaxed one's place, on the same fields, and the record of it.

    Args:
        title: the layer's name in the report.
        layer: is left alone.
        energy: largest share of its energy that is removed (fraction).
        determined: largest fraction of effective dimension that is removed.
    """
    shares = layer.energies()
    measured = dict(zip((p.name for p in layer.pathways), layer.effective_dimension.tolist()))
    fractions = {n: measured[n] / layer.kernel.dimensions[n] for n in measured if n != EQUIVARIANT.name}
    off, removed = switched_off(shares, fractions, energy, determined)
    on = [p.name for p in layer.pathways if p != EQUIVARIANT and p.name not in off]
    off = [p.name for p in layer.pathways if p.name in off]
    with torch.no_grad():
        if on:
            weights = {n: w for n, w in layer.weights.items() if n not in off}
            kernel = layer._as_filter(layer.kernel(weights))
            bias = None if layer.bias is None else layer.bias_expansion @ layer.bias
            new = MergedConvolution.from_layer(layer, kernel, bias)
        else:
            new = strict_layer(layer)
        new.train(layer.training)  # without gradients, or escnn's layer keeps a filter with a graph
    group = "" if on else layer.space.fibergroup.name
    error = certify_without(layer, off, title).bound
    change = weights_norm(layer, {n: w for n, w in layer.weights.items() if n in off}).bound
    return new, HardenedLayer(
        title, tuple(off), tuple(on), removed, type(new).__name__, group, error=error, change=change
    )
