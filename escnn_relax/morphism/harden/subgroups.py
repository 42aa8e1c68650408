"""``harden(to=)``: a relaxed network as plain escnn layers of the subgroups that survived."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from escnn.gspaces import GSpace
from torch import nn

from ...errors import ArgumentError, UnsupportedModuleError, naming, nearest
from ...nn.last_decision import remembered
from ...nn.measured.certificate import certify_weights, weights_norm
from ...nn.measured.kernel_symmetry import KernelSymmetry
from ...nn.measured.resolution import resolution
from ...nn.measured.stabiliser import stabiliser, stabilisers, subgroup_search
from ...nn.relaxed_convolution import RelaxedConvolution
from ...nn.translation.relaxed_translation import RelaxedTranslation
from ...symmetry.decision import Decided, Decides, Decision, Decisions, check_evidence
from ...symmetry.groups.lattice import Subgroup, subgroup
from ...symmetry.kernels.pathway import EQUIVARIANT
from ..trial_run import Trial
from .layer_report import HardenedLayer
from .subgroup_layer import by_depth, by_layer
from .translation import inside, only_living, refuse_living

__all__ = ["to_subgroups"]


#: What to do where the network around the layers cannot go along.
WAYS_OUT = {
    "depth": "per='network' keeps one subgroup in all layers",
    "network": "per='layer' leaves the fields between the layers on the whole group",
    "layer": "harden without to= leaves all fields as they are",
}


def to_subgroups(
    model: nn.Module,
    to: Any,
    evidence: Decides | None,
    data: Iterable[Any] | None,
    per: str,
    energy: float,
    determined: float,
    example: Any = None,
) -> tuple[nn.Module, list[HardenedLayer]]:
    """The network and what was done to its layers; see :func:`~escnn_relax.harden` for the arguments and errors."""
    position = {name: index for index, (name, _) in enumerate(model.named_modules())}
    decided = _decided(model, to, evidence, data, per, energy)
    records: tuple[HardenedLayer, ...] = ()
    if any(isinstance(module, RelaxedTranslation) for module in model.modules()):
        model, records = only_living(model, energy, determined)
    outer = {inside(r.name): r.name for r in records}
    symmetries = [KernelSymmetry(layer, name or "model") for name, layer in readable(model).items()]
    names = list(readable(model))
    if not symmetries and not records:
        raise UnsupportedModuleError(
            type(model).__name__, "no relaxed layer in it", remedy="there is nothing to harden"
        )
    titles = {r.name: inside(r.name) for r in records}  # a convolution that is left alone takes the place of the layer
    if decided is None:
        decided = _by_energy(symmetries, [titles.get(name, name) for name in names], per, energy)
    chosen_by = decided.select(per) if isinstance(decided, Decisions) else decided
    subgroups = _by_name(chosen_by, symmetries, [titles.get(name, name) for name in names])
    if per != "layer":  # one group may act on several base spaces: images, and features without any
        subgroups = [_subgroup(s, subgroups[0].gspace, k) for k, s in zip(subgroups, symmetries)]
    if per == "network" and any(not k <= subgroups[0] or not subgroups[0] <= k for k in subgroups):
        raise ArgumentError(
            "per", expected="one subgroup for all layers", got=[k.name for k in subgroups], remedy="per='depth'"
        )
    chosen = dict(zip(names, subgroups))
    refuse_living(model, chosen, everywhere=per != "layer")
    hardened: Any
    trial = Trial.prepare(model, example)
    example = False if trial is None else trial.example
    try:
        if per == "layer":
            hardened = by_layer(model, chosen)
        else:
            hardened, chosen = by_depth(model, chosen, example=example, flexible=isinstance(decided, Decisions))
        if trial is not None:
            trial.check(hardened, "hardened", same=False)
    except UnsupportedModuleError as error:
        problem = f"harden cannot take the network to these subgroups: {error.problem}"
        raise UnsupportedModuleError(
            error.where, problem, remedy=_way_out(isinstance(decided, Decisions), per)
        ) from error
    left = {name for name, module in model.named_modules() if isinstance(module, RelaxedTranslation)}
    hardened_layers = {name: _record(name, s, chosen[name]) for name, s in zip(names, symmetries)}
    if isinstance(decided, Decisions):
        reasons = {n: decided.record(titles.get(n, n)) for n in hardened_layers}
        hardened_layers = {
            n: replace(r, reasons=reasons[n].reasons, lost=reasons[n].lost) for n, r in hardened_layers.items()
        }
        for n, decision in zip(names, subgroups):
            if not decision <= chosen[n]:
                reason = (
                    f"{chosen[n].name} instead of {decision.name}, since its output meets that of layers that keep no"
                    " more"
                )
                hardened_layers[n] = replace(hardened_layers[n], reasons=(*hardened_layers[n].reasons, reason))
    relaxed = [replace(r, name=inside(n)) if n in outer.values() else r for n, r in hardened_layers.items()]
    beside = [
        replace(r, kind=hardened_layers[r.name].kind) if r.name in hardened_layers and r.name not in left else r
        for r in records
    ]
    return hardened, sorted([*relaxed, *beside], key=lambda r: position[outer.get(r.name, r.name)])


def readable(model: nn.Module) -> dict[str, Any]:
    """The layers that keep a subgroup, by name: all relaxed ones, and no mixtures, whose summands overlap."""
    return {name: module for name, module in model.named_modules() if isinstance(module, RelaxedConvolution)}


def _decided(
    model: nn.Module, to: Any, evidence: Decides | None, data: Iterable[Any] | None, per: str, energy: float
) -> None | Decisions | Mapping[str, Any]:
    """The decisions to follow; ``None`` where there are none yet."""
    if isinstance(to, Decided):
        to = to.decisions
        if to is None:
            remedy = "make the report with subgroups=True"
            raise ArgumentError("to", "a report without decisions", expected="one with subgroups", remedy=remedy)
    if to is not None and to != "stabiliser" and not isinstance(to, Mapping):
        remedy = "pass survivors(model, evidence), a report or a symmetry test, {layer: subgroup}, or 'stabiliser'"
        raise ArgumentError(
            "to", expected="'stabiliser' or a subgroup for each relaxed layer", got=repr(to), remedy=remedy
        )
    if isinstance(to, Decisions) and per != "layer" and not to.depth:
        raise ArgumentError("to", "the decisions are of single layers", expected="some by depth", remedy="per='layer'")
    if evidence is not None:
        if isinstance(to, Mapping):
            raise ArgumentError(
                "harden", "both decisions and an evidence to decide by", remedy="pass one: to= or evidence="
            )
        with naming("harden"):
            check_evidence(evidence, model)
        return evidence.decide(data, energy)
    if data is not None:
        raise ArgumentError("data", "data without an evidence", remedy="pass the evidence too: it knows the likelihood")
    if isinstance(to, Mapping):
        return to
    known = remembered(readable(model))
    usable = known is not None and known.energy == energy and (known.depth or per == "layer")
    return known if usable else None


def _by_energy(symmetries: list[KernelSymmetry], names: list[str], per: str, energy: float) -> Decisions:
    if per == "network":
        deep = len(symmetries) * [stabiliser(symmetries, energy)] if symmetries else []
    else:
        deep = stabilisers(symmetries, energy) if per == "depth" else [stabiliser([s], energy) for s in symmetries]
    made = []
    for name, s, survivor in zip(names, symmetries, deep):
        remainder = s.remainder(survivor.subgroup)
        reason = f"all but {remainder:.1e} of the kernel's energy is equivariant under {survivor.subgroup.name}"
        group = _subgroup(s, s.layer.space, survivor.subgroup)  # one group may act on several base spaces
        told = resolution([s], group, subgroup_search([s]))
        reasons, lost = (reason, *told.describe(group)), told.lost(group)
        made.append(Decision(name, survivor.subgroup, survivor.subgroup, "energy", reasons, remainder, lost=lost))
    return Decisions(tuple(made), energy)


def _way_out(flexible: bool, per: str) -> str:
    first = "give the layers that meet one subgroup; " if per == "depth" and not flexible else ""
    modes = list(WAYS_OUT)
    return first + ", ".join(WAYS_OUT[mode] for mode in modes[modes.index(per) :])


def _by_name(to: Mapping[str, Any], symmetries: list[KernelSymmetry], names: list[str]) -> list[Subgroup]:
    for name in names:
        if name not in to:
            got, remedy = sorted(to), f"add {name!r}, or pass survivors(model)"
            raise ArgumentError("to", expected=f"a subgroup for each of {names}", got=got, remedy=remedy)
    for name in to:
        if name not in names:
            raise ArgumentError("to", f"no relaxed layer {name!r} in the model", remedy=nearest(name, names))
    return [_subgroup(s, s.layer.space, to[name]) for s, name in zip(symmetries, names)]


def _subgroup(symmetry: KernelSymmetry, gspace: GSpace, id: Any) -> Subgroup:
    """The subgroup that an id says; errors name the layer."""
    with naming(symmetry.title):
        return subgroup(gspace, id)


def _record(name: str, symmetry: KernelSymmetry, group: Subgroup) -> HardenedLayer:
    norms = {n: float(w.norm()) for n, w in symmetry.projected_weights(group).items() if n != EQUIVARIANT.name}
    merged = tuple(n for n, norm in norms.items() if norm > 0 and norm**2 > 1e-14 * symmetry.energy)
    removed = tuple(n for n in norms if n not in merged)
    weights, before = symmetry.projected_weights(group), symmetry.layer.weights
    error = certify_weights(symmetry.layer, weights, name).bound
    lost = {n: before[n].detach().to("cpu", torch.float64) - w.to("cpu", torch.float64) for n, w in weights.items()}
    change = weights_norm(symmetry.layer, lost).bound
    kind = symmetry.layer._strict.__name__
    return HardenedLayer(name, removed, merged, symmetry.remainder(group), kind, group.name, error=error, change=change)
