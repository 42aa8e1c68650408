"""Which subgroup survived in each layer of a trained network, and by how many nats."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from ...curvature.layers.coverage import join
from ...curvature.layers.wrappers import unwrapped
from ...errors import ArgumentError, CoverageError, UnsupportedModuleError
from ...nn.last_decision import remember
from ...nn.measured.resolution import Alike, Resolution, resolution
from ...nn.measured.stabiliser import INDIFFERENT, REFUTED, KernelSymmetry, stabiliser, subgroup_search
from ...nn.relaxed_convolution import RelaxedConvolution
from ...nn.translation.layer import CONVOLUTION, RelaxedTranslation
from ...symmetry.decision import Decision, Decisions, check_evidence
from ...symmetry.equal_records import equal_records
from ...symmetry.groups.lattice import Subgroup, common_subgroup, subgroup
from ...symmetry.kernels.fixed_kernels import SubgroupSearch
from ...symmetry.kernels.grid_loss import GridLoss
from ...symmetry.kernels.pathway import SWITCHED_OFF
from ..evidence import CONSTANT, Evidence
from .blurred import blurred
from .joint_curvature import JointCurvature
from .projection_loss import ProjectionLoss
from .subgroup_cost import Demands

__all__ = ["LayerSurvivor", "Survivors", "survivors"]

#: Seconds after which a progress bar appears.
PATIENCE = 3.0

Measure = Callable[[KernelSymmetry, Subgroup], float]
#: Living pathways beside convolutions, by layer and name, with the groups that they keep.
Beside = dict[str, Subgroup]


@dataclass(frozen=True)
class LayerSurvivor:
    """The largest subgroup that survives in a layer, or in several.

    Attributes:
        name: the layer's, as in ``model.named_modules()``; empty for the whole network.
        subgroup: the subgroup H.
        remainder: share of the kernel's energy that H does not fix (fraction); of several layers the largest.
        gain: change of the log evidence if exactly H were demanded (nats), each side at the precisions that suit it
            best: about 0 or more where what H does not fix was switched off, for then it makes no difference. NaN
            without an evidence.
        larger: the next larger subgroups.
        costs: what demanding each of them instead would cost, by name (nats), added up over the layers in which the
            evidence prefers H; empty without an evidence. Read off the curvature at the present weights: next to
            nothing where the data are fitted so well that there is none.
        losses: what of the log-likelihood of ``data`` goes if the kernels are projected on each of them, by name
            (nats), see :class:`~escnn_relax.evidence.verdicts.projection_loss.ProjectionLoss`; empty without data.
        candidates: subgroups that may survive as well, for all that the evidence knows: it neither refutes them nor
            prefers them, and what they contradict is alive. With any, H is what is certain, and the answer is "cannot
            tell".
        note: why there are no nats, empty if there are.
        coupled: whether gain and costs come from the curvature with its cross blocks; else pathways count as
            independent, see :mod:`escnn_relax.evidence.verdicts.joint_curvature`.
        unsettled: whether it cannot be told because the training ended too early: by what is left of the way, other
            subgroups survive.
        alike: smaller subgroups that have the same kernels as H in these layers, and what would tell them apart: the
            kernel is equivariant under H, but with larger kernels might not be.
        grid: what the pixels lose of the difference between H and smaller subgroups, or candidates, the most first;
            empty where H and these move pixels to pixels.
        blurred: candidates that the evidence prefers H to, by no more than the pixels may have lost, see
            :mod:`escnn_relax.evidence.verdicts.blurred`.

    >>> from escnn import gspaces
    >>> from escnn_relax.symmetry.groups.lattice import subgroup
    >>> c2, c4 = (subgroup(gspaces.rot2dOnR2(4), n) for n in (2, 4))
    >>> LayerSurvivor("conv", c2, 1e-5, gain=3.0, larger=(c4,), costs={"C4": 21.5}).margin
    21.5
    """

    name: str
    subgroup: Subgroup
    remainder: float
    gain: float
    larger: tuple[Subgroup, ...]
    costs: dict[str, float]
    note: str = ""
    losses: dict[str, float] = field(default_factory=dict)
    candidates: tuple[Subgroup, ...] = ()
    coupled: bool = False
    alike: tuple[Alike, ...] = ()
    unsettled: bool = False
    grid: tuple[GridLoss, ...] = ()
    blurred: tuple[Subgroup, ...] = ()
    __eq__ = equal_records

    @property
    def lost(self) -> float:
        """The most that the pixels lose of the difference between H and a smaller subgroup (fraction): 1 where all
        is lost."""
        return Resolution(self.alike, self.grid).lost(self.subgroup)

    @property
    def doubts(self) -> tuple[str, ...]:
        """What cannot be told, or not fully, in words."""
        names = ", ".join(h.name for h in self.candidates)
        why = ": the training had not settled, more epochs may tell" if self.unsettled else ""
        unsure = (f"cannot tell whether {names} survives as well{why}",) if names else ()
        return (*unsure, *Resolution(self.alike, self.grid).said_of(self.subgroup))

    @property
    def loss(self) -> float:
        """The least of the losses (nats); infinite for H = G, NaN without data."""
        return min(self.losses.values(), default=math.nan if self.larger else math.inf)

    @property
    def margin(self) -> float:
        """The least of the costs (nats), never negative: by how much the evidence prefers H to more symmetry; infinite
        for H = G, above which there is nothing, NaN without an evidence."""
        if math.isnan(self.gain):
            return math.nan
        return min(self.costs.values(), default=math.inf)


@dataclass(frozen=True)
class Survivors:
    """The surviving subgroups of a network.

    Attributes:
        layers: each layer by itself, in the order of the model.
        by_depth: for each layer the largest subgroup that survives in it and in all before it; ``gain`` and ``costs``
            add up those of these layers. Symmetry lost early is not found again, so it never grows.
        network: the last of these, that of the whole network.
        energy: the largest share of a layer's energy that counted as none (fraction).
        depth: whether the network was read by depth; else ``by_depth`` repeats ``layers``.
        note: why no verdict is given, empty if one is: the network is no better than a constant output.

    >>> from escnn import gspaces, nn as enn
    >>> from escnn_relax import relax
    >>> space = gspaces.rot2dOnR2(4)
    >>> fields = enn.FieldType(space, [space.regular_repr])
    >>> print(survivors(relax(enn.SequentialModule(enn.R2Conv(fields, fields, 3)))))
    layer  subgroup  remainder    margin  by depth    margin
    0      C4          0.0e+00         –  C4               –
    """

    layers: tuple[LayerSurvivor, ...]
    by_depth: tuple[LayerSurvivor, ...]
    energy: float = SWITCHED_OFF
    depth: bool = True
    note: str = ""
    unlisted: str = ""

    @property
    def network(self) -> LayerSurvivor:
        return self.by_depth[-1]

    @property
    def subgroups(self) -> dict[str, Subgroup]:
        """By depth, the subgroup of each layer by its name, as ``harden(model, to=...)`` takes them."""
        return {own.name: depth.subgroup for own, depth in zip(self.layers, self.by_depth)}

    @property
    def decisions(self) -> Decisions:
        """The record that :func:`~escnn_relax.harden` and :func:`~escnn_relax.report` take."""
        made = (_decision(own, depth) for own, depth in zip(self.layers, self.by_depth))
        return Decisions(tuple(made), self.energy, self.depth)

    def __str__(self) -> str:
        width = max([5, *(len(s.name) for s in self.layers)])
        names = max([8, *(len(s.subgroup.name) for s in (*self.layers, *self.by_depth))])
        measured = any(one.losses for one in self.layers + self.by_depth)
        nats = "    margin" + ("   in data" if measured else "")
        lines = [f"{'layer':<{width}}  {'subgroup':<{names}}  remainder{nats}  {'by depth':<{names}}{nats}"]
        for own, depth in zip(self.layers, self.by_depth):
            first, second = ("?" if self.note else one.subgroup.name for one in (own, depth))
            line = f"{own.name:<{width}}  {first:<{names}}  {own.remainder:9.1e}"
            for name, one in (("", own), (f"  {second:<{names}}", depth)):
                line += f"{name}  {_nats(one.margin)}" + (f"  {_nats(one.loss)}" if measured else "")
            lines.append(line)
        lines += [f"{own.name or 'model'}: {doubt}" for own in self.layers for doubt in own.doubts]
        if self.unlisted:
            lines.append(f"not looked for: {self.unlisted}")
        return "\n".join([*lines, self.note] if self.note else lines)


def survivors(
    model: nn.Module,
    evidence: Evidence | None = None,
    *,
    data: Iterable[Any] | None = None,
    energy: float = SWITCHED_OFF,
    depth: bool = True,
    progress: bool = True,
) -> Survivors:
    """The largest subgroups that survive in a model's relaxed layers: the stabilisers of the learned kernels.

    A subgroup survives in a layer if no more than ``energy`` of the kernel is not equivariant under it, or if the
    evidence gains by demanding it; see :func:`~escnn_relax.nn.measured.stabiliser.stabiliser` for when these differ.
    Each subgroup is judged by its own kernels as the pixel grid has them, with the precisions that suit these best. For
    SO(2) and O(2) the discrete subgroups are found from the frequencies that are alive, and the axis of a reflection
    from the coefficients; for SO(3) and O(3) each kind of subgroup is looked for in all positions. What was not looked
    for is said in the last line. Of a convolution with pathways beside it that are not switched off
    (:meth:`escnn_relax.nn.RelaxedTranslation.living`), only what these keep as well survives; where that is less, there
    are no margins: they would be those of the kernel alone. By depth such pathways count wherever they are, those after
    the last relaxed convolution for this one.

    What was found is kept with the layers while their weights are what they are: ``harden(model, to="stabiliser")``
    follows it.

    Args:
        model: any model with relaxed layers.
        evidence: of this model, refreshed; gives the margins in nats.
        data: yields ``(input, target)``; re-iterable. With it, what each larger subgroup would cost is measured as
            well, by a pass over the data for each of them, layer by layer and by depth: the margins come from the
            curvature, which knows nothing of what lies further away, and vanishes where a network fits its data without
            error. The margins, too, are better with data: they then know what pathways, biases and other layers explain
            together, as far as no more than 2000 weights are concerned
            (:mod:`escnn_relax.evidence.verdicts.joint_curvature`).
        energy: the largest share of a layer's energy that counts as switched off (fraction).
        depth: read the network as a whole, too; layers of different groups have no common reading.
        progress: show a progress bar if it takes more than some seconds.

    Raises:
        UnsupportedModuleError: no relaxed layer, or with ``depth`` layers of different groups.
        ArgumentError: an evidence of another model; data without an evidence, whose likelihood they need.
        DataError: data that are not finite or not pairs, or no data.

    >>> from escnn import gspaces, nn as enn
    >>> from escnn_relax import relax
    >>> space = gspaces.flipRot2dOnR2(4)
    >>> gray, fields = enn.FieldType(space, [space.trivial_repr]), enn.FieldType(space, [space.regular_repr])
    >>> first, last = enn.R2Conv(gray, fields, 5), enn.R2Conv(fields, fields, 3)
    >>> model = relax(enn.SequentialModule(first, enn.ReLU(fields), last))
    >>> _ = nn.init.normal_(model[2].weights["irrep_0,2"])
    >>> [s.subgroup.name for s in survivors(model).layers]
    ['D4', 'D2_0deg']
    """
    model = unwrapped(model)
    check_evidence(evidence, model, "survivors")
    if data is not None and evidence is None:
        raise ArgumentError(
            "survivors", "data without an evidence", remedy="pass the evidence too: it knows the likelihood"
        )
    found: list[KernelSymmetry] = []
    own: list[Beside] = []
    before: list[Beside] = []
    living: dict[str, Beside] = {"": {}}  # by the name of the convolution
    for name, module in model.named_modules():
        if isinstance(module, RelaxedTranslation):
            kept = module.living(energy, where=name).items()
            living[f"{name}.{CONVOLUTION}".lstrip(".")] = {f"{n} of {name or 'model'}": of for n, of in kept}
        elif isinstance(module, RelaxedConvolution) and hasattr(module, "relaxation"):
            found.append(KernelSymmetry(module, name))
            own.append(living.get(name, {}))
            before.append({n: of for others in living.values() for n, of in others.items()})
    if not found:
        raise UnsupportedModuleError(type(model).__name__, "no relaxed layer in it", remedy="relax it first")
    joint = None if evidence is None or data is None or evidence.estimate is None else JointCurvature(evidence, data)
    measure, demands = _measure(evidence, joint)
    slopes = None if evidence is None or evidence.slopes is None else evidence.slopes.read()
    also = None if joint is None and slopes is None else _measure(evidence, joint, slopes or {})[0]
    projected = None if evidence is None or data is None else ProjectionLoss(evidence, data)

    before[-1] = {n: of for others in living.values() for n, of in others.items()}

    gammas = {} if projected is None or evidence is None else evidence.effective_dimension()
    left = 0.0 if projected is None or evidence is None or evidence.slopes is None else evidence.slopes.left()

    def freedom(of: list[KernelSymmetry]) -> float:
        """Nats: so much likeliness the residual weights of these layers gain at most by following the noise (Akaike),
        and what a network could still learn without them."""
        return left + sum(gammas.get(join(s.name, f"weights.{p.name}"), 0.0) for s in of for p in s.residual)

    def read(name: str, layers: list[KernelSymmetry], beside: Beside) -> LayerSurvivor:
        one = _survivor(name, layers, energy, measure, also)
        one = replace(one, coupled=bool(demands) and all(s.name in demands and demands[s.name].coupled for s in layers))
        bounded = _within(one, layers, beside)
        if projected is None or bounded is not one:
            return bounded
        losses = {h.name: projected(layers, h) for h in one.larger}
        refuted = [
            h for h in one.larger if losses[h.name] > REFUTED + freedom(layers)
        ]  # the data tell what their curvature could not
        possible = tuple(h for h in one.candidates if h in one.blurred or not any(small <= h for small in refuted))
        grid = tuple(of for of in one.grid if of.larger == one.subgroup or of.larger in possible)
        return replace(one, losses=losses, candidates=possible, grid=grid)

    readings = [(s.name, [s], of) for s, of in zip(found, own)]
    readings += [("", found[: n + 1], of) for n, of in enumerate(before)] if depth else []
    read_off = [read(*reading) for reading in _bar(readings, progress)]
    layers = tuple(read_off[: len(found)])
    by_depth = tuple(read_off[len(found) :]) if depth else layers
    note = "" if evidence is None or evidence.learned else f"no verdict: the network is {CONSTANT}"
    if note:
        layers, by_depth = (
            tuple(replace(one, note=f"{one.note}; {note}" if one.note else note) for one in of)
            for of in (layers, by_depth)
        )
    unlisted = "; ".join(dict.fromkeys(u for u in (subgroup_search([s]).unlisted for s in found) if u))
    survived = Survivors(layers, by_depth, energy, depth, note, unlisted)
    remember({s.name: s.layer for s in found}, survived.decisions)
    return survived


def _bar(readings: list[tuple[str, list[KernelSymmetry], Beside]], progress: bool) -> Any:
    from tqdm import tqdm

    return tqdm(readings, desc="survivors", unit="reading", delay=PATIENCE, leave=False, disable=not progress)


def _measure(
    evidence: Evidence | None, joint: JointCurvature | None, slopes: Mapping[str, Tensor] | None = None
) -> tuple[Measure | None, dict[str, Demands]]:
    known: dict[str, Demands] = {}
    if evidence is None or evidence.estimate is None:
        return None, known
    approximation, bounds = evidence.approximation("survivors", complete=False), evidence.prior.bounds
    factors, logs, scale = approximation.estimate.factors, approximation.log_precision, approximation.scale

    def gain(symmetry: KernelSymmetry, kept: Subgroup) -> float:
        if symmetry.name not in known:
            known[symmetry.name] = Demands(symmetry, factors, logs, scale, bounds, joint, slopes)
        return known[symmetry.name].gain(kept)

    return gain, known


def _survivor(
    name: str, layers: list[KernelSymmetry], energy: float, measure: Measure | None, also: Measure | None
) -> LayerSurvivor:
    note = "no curvature: pass a refreshed evidence" if measure is None else ""
    if measure is not None:
        try:
            return _read(name, layers, energy, measure, also)
        except (ArgumentError, CoverageError) as error:
            note = f"by energy alone, {error}"
    return _read(name, layers, energy, None, None, note)


def _read(
    name: str,
    layers: list[KernelSymmetry],
    energy: float,
    measure: Measure | None,
    also: Measure | None,
    note: str = "",
) -> LayerSurvivor:
    kept, remainder, candidates = found = stabiliser(layers, energy, measure, also)
    search = subgroup_search(layers)
    dear = None if measure is None else lambda h: -sum(measure(s, h) for s in layers)
    larger = search.larger(kept, lambda h: max(s.remainder(h) for s in layers), dear)
    same, grid = resolution(layers, kept, search, candidates)
    if measure is None:
        return LayerSurvivor(name, kept, remainder, math.nan, larger, {}, note, alike=same, grid=grid)
    unsettled = also is not None and bool(candidates) and found != stabiliser(layers, energy, measure)
    gain = sum(measure(s, kept) for s in layers)

    def cost(h: Subgroup) -> float:
        return sum(max(measure(s, kept) - measure(s, h), 0.0) for s in layers)

    costs = {h.name: cost(h) for h in larger}
    unseen = tuple(h for h in blurred(layers, kept, costs, larger, search, cost) if h not in candidates)
    if unseen:
        candidates = (*candidates, *unseen)
        same, grid = resolution(layers, kept, search, candidates)
    one = LayerSurvivor(name, kept, remainder, gain, larger, costs, note, candidates=candidates, unsettled=unsettled)
    return replace(one, alike=same, grid=grid, blurred=unseen)


def _within(one: LayerSurvivor, layers: list[KernelSymmetry], beside: Beside) -> LayerSurvivor:
    """What of a surviving subgroup the pathways beside the convolutions keep, too."""
    space = one.subgroup.gspace
    bounds = {n: of for n, of in beside.items() if of.gspace.fibergroup == space.fibergroup}
    # the same group may act on another base space elsewhere in the network
    bounds = {n: of if of.gspace == space else subgroup(space, of.id) for n, of in bounds.items()}
    breaking = [f"{name} keeps {of.name}" for name, of in bounds.items() if not one.subgroup <= of]
    if not breaking:
        return one
    kept = common_subgroup(one.subgroup, *bounds.values())
    remainder = max(s.remainder(kept) for s in layers)
    planar = type(space.fibergroup).__name__ in ("SO2", "O2")
    highest = max([*(s.search().highest for s in layers), kept.order])
    search = SubgroupSearch(space, highest) if planar else subgroup_search(layers)
    larger = search.larger(kept, lambda h: max(s.remainder(h) for s in layers))
    same, grid = resolution(layers, kept, search)
    note = f"no margin: {', '.join(breaking)}"
    return LayerSurvivor(one.name, kept, remainder, math.nan, larger, {}, note, alike=same, grid=grid)


def _decision(own: LayerSurvivor, depth: LayerSurvivor) -> Decision:
    name = own.subgroup.name
    reasons = [f"all but {own.remainder:.1e} of the kernel's energy is equivariant under {name}"]
    if math.isfinite(own.margin):
        rival = min(own.costs, key=own.costs.__getitem__)
        indifferent = f"the evidence hardly tells it from {rival} ({own.margin:+.1f} nats)"
        word = (
            indifferent if own.margin < INDIFFERENT else f"the evidence prefers it to {rival} by {own.margin:.1f} nats"
        )
        reasons.append(word if own.coupled else f"{word}, its pathways taken as independent")
    if math.isfinite(own.loss):
        rival = min(own.losses, key=own.losses.__getitem__)
        reasons.append(f"{rival} would cost {own.loss:.1f} nats in the data")
    if own.note:
        reasons.append(own.note)
    reasons += own.doubts
    source = "energy" if math.isnan(own.gain) else "evidence"
    numbers = {
        "remainder": own.remainder,
        "margin": own.margin,
        "loss": own.loss,
        "margin_by_depth": depth.margin,
        "lost": own.lost,
    }
    return Decision(own.name, own.subgroup, depth.subgroup, source, tuple(reasons), **numbers)


def _nats(value: float) -> str:
    return f"{'–':>8}" if math.isnan(value) or math.isinf(value) else f"{value:8.1f}"
