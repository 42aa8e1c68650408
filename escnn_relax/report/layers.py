"""One layer's report, read off the layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from escnn.nn import FieldType

from ..errors import naming
from ..nn.evidence_record import Recorded
from ..nn.measured.certificate import certify
from ..nn.mixed.convolution import MixedConvolution
from ..nn.steerable import SteerableConvolution
from ..nn.translation.relaxed_translation import RelaxedTranslation
from ..symmetry.equivariance.model_error import grid_elements, kernel_equivariance_error
from .records import LayerReport, PathwayReport

__all__ = ["layer_report"]


def layer_report(name: str, layer: Any) -> LayerReport:
    """What a layer with pathways learned; ``DataError`` for weights that are not finite.

    Args:
        name: its name in the model, ``""`` for the model itself.
        layer: a :class:`~escnn_relax.nn.steerable.SteerableConvolution` or a
            :class:`~escnn_relax.nn.translation.relaxed_translation.RelaxedTranslation`.
    """
    with naming(name or type(layer).__name__):
        return (_translation if isinstance(layer, RelaxedTranslation) else _steerable)(name, layer)


def _steerable(name: str, layer: SteerableConvolution) -> LayerReport:
    elements = [g for g in grid_elements(layer.space) if g != layer.space.fibergroup.identity]
    error = math.nan
    if elements:
        # in a grouped convolution the kernel maps from one group's fields, and all groups have the same
        in_type, out_type = (FieldType(layer.space, list(reprs)) for reprs in layer._kernel_fields())
        with torch.no_grad():
            kernel = layer.kernel(layer.weights)
        kernel = kernel.view(*kernel.shape[:2], *(layer.kernel_size,) * layer.d) if layer.d else kernel.squeeze(-1)
        error = kernel_equivariance_error(kernel, in_type, out_type, elements=elements).max
    certified = certify(layer, name)
    return LayerReport(
        name or "model",
        layer.space.fibergroup.name,
        _pathways(layer, layer.energies(), {p.name: p.breaks for p in layer.pathways}),
        layer.breaking_energy,
        error,
        empty=() if isinstance(layer, MixedConvolution) else tuple(p.name for p in layer.empty_pathways),
        error_bound=certified.bound,
        error_reached=certified.reached,
        norm=certified.norm.reached,
    )


def _translation(name: str, layer: RelaxedTranslation) -> LayerReport:
    energies, stationary = layer.energies(), layer.stationary()
    pathways = _pathways(layer, energies, {n: n not in stationary for n in energies})
    breaking = sum(p.energy for p in pathways if p.breaks)
    return LayerReport(name or "model", "translations", pathways, breaking, math.nan)


def _pathways(layer: Recorded, energies: Mapping[str, float], breaks: Mapping[str, bool]) -> tuple[PathwayReport, ...]:
    """One record for each pathway, in the order of the layer's own records."""
    module: Any = layer
    sizes = {
        name: sum(module.get_parameter(w).numel() for w in weights) for name, weights in layer.pathway_weights().items()
    }
    gammas = layer.effective_dimension.tolist()
    fractions = [gamma / size for gamma, size in zip(gammas, sizes.values())]
    total = sum(fractions)
    closed: frozenset[str] = getattr(layer, "closed", frozenset())
    return tuple(
        PathwayReport(
            name,
            breaks[name],
            sizes[name],
            delta,
            gamma,
            fraction,
            fraction / total if total else math.nan,
            energies[name],
            closed=name in closed,
        )
        for name, delta, gamma, fraction in zip(sizes, layer.log_precision.tolist(), gammas, fractions)
    )
