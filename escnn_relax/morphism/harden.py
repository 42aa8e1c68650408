"""``harden``: the network that was learned, without what was switched off, as plain modules."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Mapping, Optional, Union

import torch
from escnn.nn import EquivariantModule
from torch import nn

from ..errors import ArgumentError, UnsupportedModuleError
from ..nn.merged import MergedConvolution
from ..nn.mixed import MixedConvolution
from ..nn.relaxed import RelaxedConvolution
from ..nn.relaxed_translation import RelaxedTranslation
from ..nn.stabiliser import KernelSymmetry, stabiliser, stabilisers
from ..symmetry.pathway import EQUIVARIANT, SWITCHED_OFF
from ..symmetry.subgroups import Subgroup, subgroup
from .stabilise import by_depth, by_layer
from .strict_layer import strict_layer
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
        subgroup: name of the subgroup that the new layer is equivariant under; empty if it is none of escnn's.
    """

    name: str
    removed: tuple[str, ...]
    merged: tuple[str, ...]
    removed_energy: float
    kind: str
    subgroup: str = ""


def harden(
    model: nn.Module,
    *,
    to: Union[None, str, Mapping[str, Any]] = None,
    per: str = "depth",
    energy: float = SWITCHED_OFF,
    determined: float = 0.01,
) -> nn.Module:
    r"""A copy of a relaxed model in which switched-off pathways are gone and the rest of each layer is one kernel.

    Residual pathways count as switched off, the weakest first, while their shares of the kernel's energy add up to no more
    than ``energy`` and, where an evidence has measured it, the fraction of their dimension that the data determine is no
    more than ``determined``. A layer left
    with its equivariant pathway becomes a plain :class:`escnn.nn.R2Conv` with the same weights; one that broke its
    symmetry becomes a :class:`~escnn_relax.nn.MergedConvolution`, one fixed-size kernel on the same field types. Of a
    :class:`~escnn_relax.nn.RelaxedTranslation` the pathways that were switched off go, and with the last of them all but
    the convolution.

    Small shares can matter: a late layer that broke its symmetry may do so with 0.1 % of its energy. Larger values of
    ``energy`` return more layers to escnn; compare the outputs before and after. For each layer the kernel changes by at
    most :math:`\sqrt{e}\,|W|` with e its removed energy, which is reported in the result's attribute
    ``hardening``, a tuple of :class:`HardenedLayer`.

    With ``to="stabiliser"`` every layer becomes escnn's own of the largest subgroup H that survives in it, with H's
    coefficients and the kernel :math:`P_H W`, the nearest that is equivariant under H. The result is a plain escnn network
    that keeps H whatever it is trained on.

    Args:
        to: ``"stabiliser"``, or the subgroup of each relaxed layer by its name (ids as ``gspace.restrict`` takes them, or
            ``survivors(model, evidence).subgroups``, which weighs the evidence besides the energy).
        per: of ``to``. ``"depth"``: symmetry never grows with depth; the network is restricted from its input on, and again
            before each layer that keeps less (:func:`~escnn_relax.restrict` with ``from_layer``), so modules used on
            both sides of such a step, an activation shared by two layers say, need ``"network"``: one subgroup for all.
            ``"layer"``: each layer its own, between fields of G as before.
        energy: largest share of a layer's energy that is removed (fraction).
        determined: largest fraction of effective dimension that is removed.

    Raises:
        UnsupportedModuleError: a model without any relaxed layer.
        ArgumentError: another ``to`` or ``per``, a layer that ``to`` leaves out, or subgroups that grow with depth.
        EmptyBasisError: a kernel outside the span of escnn's, of a layer with ``basis="pixel"``.

    >>> from escnn import gspaces, nn as enn
    >>> from escnn_relax import relax
    >>> space = gspaces.rot2dOnR2(4)
    >>> gray, fields = enn.FieldType(space, [space.trivial_repr]), enn.FieldType(space, [space.regular_repr])
    >>> relaxed = relax(enn.SequentialModule(enn.R2Conv(gray, fields, 5), enn.ReLU(fields)))
    >>> hardened = harden(relaxed)
    >>> type(hardened[0]).__name__, hardened.hardening[0].removed
    ('R2Conv', ('irrep_1', 'irrep_2'))
    >>> _ = nn.init.normal_(relaxed[0].weights["irrep_2"])
    >>> on_c2 = harden(relaxed, to="stabiliser")
    >>> type(on_c2[0]).__name__, on_c2[0].in_type.gspace.fibergroup.name
    ('R2Conv', 'C2')
    """
    if per not in ("depth", "network", "layer"):
        raise ArgumentError("per", expected="'depth', 'network' or 'layer'", got=repr(per))
    if to is not None:
        return _to_subgroups(model, to, per, energy)
    records: list[HardenedLayer] = []

    def replacement(name: str, module: nn.Module) -> Optional[nn.Module]:
        if isinstance(module, RelaxedTranslation):
            inside = f"{name}.convolution" if name else "convolution"
            convolution = replacement(inside, module.convolution) or replace_modules(module.convolution, lambda *_: None)
            new, record = _harden_translation(name, module, convolution, energy, determined)
            records.append(record)
            return new
        if not isinstance(module, RelaxedConvolution) or isinstance(module, MixedConvolution):  # the latter: see merge
            return None
        new, record = _harden_layer(name, module, energy, determined)
        records.append(record)
        return new

    hardened: Any = replace_modules(model, replacement)
    if not records:
        raise UnsupportedModuleError(type(model).__name__, "no relaxed layer in it", remedy="there is nothing to harden")
    hardened.hardening = tuple(records)
    return hardened


def _switched_off(
    shares: Mapping[str, float], fractions: Mapping[str, float], energy: float, determined: float
) -> tuple[list[str], float]:
    """The names in ``fractions`` that may go, the weakest first, and the share of the energy that goes with them."""
    off, removed = [], 0.0
    for name in sorted(fractions, key=shares.__getitem__):
        if removed + shares[name] <= energy and (math.isnan(fractions[name]) or fractions[name] <= determined):
            off.append(name)
            removed += shares[name]
    return off, removed


def _harden_translation(
    title: str, layer: RelaxedTranslation, convolution: EquivariantModule, energy: float, determined: float
) -> tuple[EquivariantModule, HardenedLayer]:
    sizes = {name: sum(layer.get_parameter(w).numel() for w in of) for name, of in layer.pathway_weights().items()}
    fractions = {name: gamma / sizes[name] for name, gamma in zip(sizes, layer.effective_dimension.tolist())}
    off, removed = _switched_off(layer.energies(), fractions, energy, determined)
    on = tuple(name for name in layer.sites if name not in off)
    new = layer.reduced(convolution, on)
    return new, HardenedLayer(title, tuple(n for n in layer.sites if n in off), on, removed, type(new).__name__)


def _harden_layer(
    title: str, layer: RelaxedConvolution, energy: float, determined: float
) -> tuple[EquivariantModule, HardenedLayer]:
    shares = layer.energies(title)
    measured = dict(zip((p.name for p in layer.pathways), layer.effective_dimension.tolist()))
    fractions = {n: measured[n] / layer.kernel.dimensions[n] for n in measured if n != EQUIVARIANT.name}
    off, removed = _switched_off(shares, fractions, energy, determined)
    on = [p.name for p in layer.pathways if p != EQUIVARIANT and p.name not in off]
    off = [p.name for p in layer.pathways if p.name in off]
    with torch.no_grad():
        if on:
            kept = {n: w for n, w in layer.weights.items() if n not in off}
            kernel = layer._as_filter(layer.kernel(kept))
            bias = None if layer.bias is None else layer.bias_expansion @ layer.bias
            new = MergedConvolution.of(layer, kernel, bias)
        else:
            new = strict_layer(layer)
        new.train(layer.training)  # without gradients, or escnn's layer keeps a filter with a graph
    group = "" if on else layer.space.fibergroup.name
    return new, HardenedLayer(title, tuple(off), tuple(on), removed, type(new).__name__, group)


def _to_subgroups(model: nn.Module, to: Union[str, Mapping[str, Any]], per: str, energy: float) -> nn.Module:
    found = [
        KernelSymmetry(module, name or "model")
        for name, module in model.named_modules()
        if isinstance(module, RelaxedConvolution) and not isinstance(module, MixedConvolution)
    ]
    names = [name for name, module in model.named_modules() if any(module is s.layer for s in found)]
    if not found:
        raise UnsupportedModuleError(type(model).__name__, "no relaxed layer in it", remedy="there is nothing to harden")
    if isinstance(to, Mapping):
        kept = _given(to, found, names)
    elif to == "stabiliser":
        kept = {
            "depth": lambda: [s.subgroup for s in stabilisers(found, energy)],
            "network": lambda: len(found) * [stabiliser(found, energy).subgroup],
            "layer": lambda: [stabiliser([s], energy).subgroup for s in found],
        }[per]()
    else:
        raise ArgumentError("to", expected="'stabiliser' or a subgroup for each relaxed layer", got=repr(to))
    if per == "network" and any(not k <= kept[0] or not kept[0] <= k for k in kept):
        raise ArgumentError("per", expected="one subgroup for all layers", got=[k.name for k in kept], remedy="per='depth'")
    chosen = dict(zip(names, kept))
    hardened: Any = (by_layer if per == "layer" else by_depth)(model, chosen)
    hardened.hardening = tuple(_record(name, s, chosen[name]) for name, s in zip(names, found))
    return hardened


def _given(to: Mapping[str, Any], found: list[KernelSymmetry], names: list[str]) -> list[Subgroup]:
    missing = [name for name in names if name not in to] + [name for name in to if name not in names]
    if missing:
        raise ArgumentError("to", expected=f"a subgroup for each of {names}", got=sorted(to))
    ids = [to[name].id if isinstance(to[name], Subgroup) else to[name] for name in names]
    return [subgroup(s.layer.space, id, s.where) for s, id in zip(found, ids)]


def _record(name: str, symmetry: KernelSymmetry, kept: Subgroup) -> HardenedLayer:
    parts = {n: float(w.norm()) for n, w in symmetry.kept(kept).items() if n != EQUIVARIANT.name}
    merged = tuple(n for n, norm in parts.items() if norm > 0 and norm**2 > 1e-14 * symmetry.energy)
    removed = tuple(n for n in parts if n not in merged)
    return HardenedLayer(name, removed, merged, symmetry.remainder(kept), symmetry.layer._strict.__name__, kept.name)
