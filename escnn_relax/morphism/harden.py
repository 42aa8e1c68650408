"""``harden``: the network that was learned, without what was switched off, as plain modules."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Optional

import torch
from torch import nn

from .. import _escnn
from ..errors import UnsupportedModuleError
from ..nn.merged import MergedConvolution
from ..nn.mixed import MixedConvolution
from ..nn.relaxed import RelaxedConvolution
from ..symmetry.band import Band
from ..symmetry.pathway import EQUIVARIANT, SWITCHED_OFF
from .walk import replace_modules

__all__ = ["harden", "HardenedLayer"]


@dataclass(frozen=True)
class HardenedLayer:
    """What :func:`harden` did to one layer.

    Attributes:
        name: the layer's name in the model.
        removed: pathways that were switched off.
        merged: residual pathways that stayed, now part of one kernel.
        removed_energy: share of the kernel's energy in the removed pathways (fraction).
        kind: class of the new layer.
    """

    name: str
    removed: tuple[str, ...]
    merged: tuple[str, ...]
    removed_energy: float
    kind: str


def harden(model: nn.Module, *, energy: float = SWITCHED_OFF, determined: float = 0.01) -> nn.Module:
    r"""A copy of a relaxed model in which switched-off pathways are gone and the rest of each layer is one kernel.

    Residual pathways count as switched off, the weakest first, while their shares of the kernel's energy add up to no more
    than ``energy`` and, where an evidence has measured it, the fraction of their dimension that the data determine is no
    more than ``determined``. A layer left
    with its equivariant pathway becomes a plain :class:`escnn.nn.R2Conv` with the same weights; one that broke its
    symmetry becomes a :class:`~escnn_relax.nn.MergedConvolution`, one fixed-size kernel on the same field types.

    Small shares can matter: a late layer that broke its symmetry may do so with 0.1 % of its energy. Larger values of
    ``energy`` return more layers to escnn; compare the outputs before and after. For each layer the kernel changes by at most :math:`\sqrt{e}\,|W|` with e its removed energy, which is reported in the
    result's attribute ``hardening``, a tuple of :class:`HardenedLayer`.

    Args:
        energy: largest share of a layer's energy that is removed (fraction).
        determined: largest fraction of effective dimension that is removed.

    Raises:
        UnsupportedModuleError: a model without any relaxed layer.

    >>> from escnn import gspaces, nn as enn
    >>> from escnn_relax import relax
    >>> space = gspaces.rot2dOnR2(4)
    >>> gray, fields = enn.FieldType(space, [space.trivial_repr]), enn.FieldType(space, [space.regular_repr])
    >>> relaxed = relax(enn.SequentialModule(enn.R2Conv(gray, fields, 5), enn.ReLU(fields)))
    >>> hardened = harden(relaxed)
    >>> type(hardened[0]).__name__, hardened.hardening[0].removed
    ('R2Conv', ('irrep_1', 'irrep_2'))
    """
    records: list[HardenedLayer] = []

    def replacement(name: str, module: nn.Module) -> Optional[nn.Module]:
        if not isinstance(module, RelaxedConvolution) or isinstance(module, MixedConvolution):  # the latter: see merge
            return None
        new, record = _harden_layer(name, module, energy, determined)
        records.append(record)
        return new

    hardened = replace_modules(model, replacement)
    if not records:
        raise UnsupportedModuleError(type(model).__name__, "no relaxed layer in it", remedy="there is nothing to harden")
    hardened.hardening = tuple(records)
    return hardened


def _harden_layer(title: str, layer: RelaxedConvolution, energy: float, determined: float):
    shares = layer.energies(title)
    measured = dict(zip((p.name for p in layer.pathways), layer.effective_dimension.tolist()))
    off, removed = [], 0.0
    for name in sorted(set(shares) - {EQUIVARIANT.name}, key=shares.__getitem__):
        fraction = measured[name] / layer.kernel.dimensions[name]
        if removed + shares[name] <= energy and (math.isnan(fraction) or fraction <= determined):
            off.append(name)
            removed += shares[name]
    on = [p.name for p in layer.pathways if p != EQUIVARIANT and p.name not in off]
    off = [p.name for p in layer.pathways if p.name in off]
    with torch.no_grad():
        if on:
            kept = {n: w for n, w in layer.weights.items() if n not in off}
            kernel = layer._as_filter(layer.kernel(kept))
            bias = None if layer.bias is None else layer.bias_expansion @ layer.bias
            new = MergedConvolution.of(layer, kernel, bias)
        else:
            new = _strict(layer)
        new.train(layer.training)  # without gradients, or escnn's layer keeps a filter with a graph
    return new, HardenedLayer(title, tuple(off), tuple(on), removed, type(new).__name__)


def _strict(layer: RelaxedConvolution) -> nn.Module:
    """The escnn layer that a relaxed layer's equivariant pathway is."""
    weights = layer.weights[EQUIVARIANT.name]
    options = {name: getattr(layer, name) for name in layer._geometry}
    if isinstance(layer.band, Band):
        options |= {
            "sigma": list(layer.band.sigma),
            "frequencies_cutoff": layer.band.cutoff,
            "rings": list(layer.band.rings),
        }
    with _escnn.single_precision():
        # recompute: a block of its own, since moving it to another dtype or device must not move other layers'
        strict = layer._strict(
            layer.in_type, layer.out_type, **options, bias=layer.bias is not None, recompute=True, initialize=False
        )
    strict.to(weights)
    if strict.weights.shape != weights.shape:
        raise UnsupportedModuleError(type(layer).__name__, "escnn builds another basis here than where the layer was made")
    strict.weights.copy_(weights)
    for (_, _, basis, _), block in zip(_escnn.blocks(strict.basisexpansion), layer.kernel.blocks[EQUIVARIANT.name]):
        basis.copy_(layer.kernel.basis(block))
    if layer.bias is not None:
        strict.bias.copy_(layer.bias)
    return strict
