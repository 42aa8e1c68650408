"""``harden(to=)``: a relaxed network as plain escnn layers of the subgroups that survived."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Mapping, Union

from torch import nn

from ..errors import ArgumentError, UnsupportedModuleError
from ..nn.mixed import MixedConvolution
from ..nn.relaxed import RelaxedConvolution
from ..nn.relaxed_translation import RelaxedTranslation
from ..nn.stabiliser import KernelSymmetry, stabiliser, stabilisers
from ..symmetry.pathway import EQUIVARIANT
from ..symmetry.subgroups import Subgroup, subgroup
from .harden_translation import inside, only_living, refuse_living
from .hardened_layer import HardenedLayer
from .stabilise import by_depth, by_layer

__all__ = ["to_subgroups"]


def to_subgroups(
    model: nn.Module, to: Union[str, Mapping[str, Any]], per: str, energy: float, determined: float
) -> nn.Module:
    """See :func:`~escnn_relax.harden` for the arguments and errors."""
    position = {name: index for index, (name, _) in enumerate(model.named_modules())}
    records: tuple[HardenedLayer, ...] = ()
    if any(isinstance(module, RelaxedTranslation) for module in model.modules()):
        model, records = only_living(model, energy, determined)
    outer = {inside(r.name): r.name for r in records}
    found = [
        KernelSymmetry(module, name or "model")
        for name, module in model.named_modules()
        if isinstance(module, RelaxedConvolution) and not isinstance(module, MixedConvolution)
    ]
    names = [name for name, module in model.named_modules() if any(module is s.layer for s in found)]
    if not found and not records:
        raise UnsupportedModuleError(type(model).__name__, "no relaxed layer in it", remedy="there is nothing to harden")
    if isinstance(to, Mapping):
        titles = {r.name: inside(r.name) for r in records}  # a convolution that is left alone takes the place of the layer
        kept = _given(to, found, [titles.get(name, name) for name in names])
    elif to == "stabiliser":
        kept = {
            "depth": lambda: [s.subgroup for s in stabilisers(found, energy)],
            "network": lambda: len(found) * [stabiliser(found, energy).subgroup] if found else [],
            "layer": lambda: [stabiliser([s], energy).subgroup for s in found],
        }[per]()
    else:
        raise ArgumentError("to", expected="'stabiliser' or a subgroup for each relaxed layer", got=repr(to))
    if per == "network" and any(not k <= kept[0] or not kept[0] <= k for k in kept):
        raise ArgumentError("per", expected="one subgroup for all layers", got=[k.name for k in kept], remedy="per='depth'")
    chosen = dict(zip(names, kept))
    refuse_living(model, chosen, everywhere=per != "layer")
    hardened: Any = (by_layer if per == "layer" else by_depth)(model, chosen)
    left = {name for name, module in model.named_modules() if isinstance(module, RelaxedTranslation)}
    own = {name: _record(name, s, chosen[name]) for name, s in zip(names, found)}
    relaxed = [replace(r, name=inside(n)) if n in outer.values() else r for n, r in own.items()]
    beside = [replace(r, kind=own[r.name].kind) if r.name in own and r.name not in left else r for r in records]
    hardened.hardening = tuple(sorted([*relaxed, *beside], key=lambda r: position[outer.get(r.name, r.name)]))
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
