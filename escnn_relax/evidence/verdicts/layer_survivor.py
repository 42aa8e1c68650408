"""Which subgroup survived in one layer, or in several, and by how many nats."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ...nn.measured.resolution import Alike, Resolution
from ...nn.measured.stabiliser import INDIFFERENT
from ...symmetry.decision import Decision
from ...symmetry.equal_records import equal_records
from ...symmetry.groups.lattice import Subgroup
from ...symmetry.kernels.grid_loss import GridLoss

__all__ = ["LayerSurvivor"]


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
            :mod:`escnn_relax.evidence.verdicts.pixel_candidates`.

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
        return (*unsure, *Resolution(self.alike, self.grid).describe(self.subgroup))

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

    def decision(self, depth: LayerSurvivor) -> Decision:
        """The record that morphisms and reports take; ``depth`` is the layer's reading by depth."""
        name = self.subgroup.name
        reasons = [f"all but {self.remainder:.1e} of the kernel's energy is equivariant under {name}"]
        if math.isfinite(self.margin):
            rival = min(self.costs, key=self.costs.__getitem__)
            word = f"the evidence prefers it to {rival} by {self.margin:.1f} nats"
            if self.margin < INDIFFERENT:
                word = f"the evidence hardly tells it from {rival} ({self.margin:+.1f} nats)"
            reasons.append(word if self.coupled else f"{word}, its pathways taken as independent")
        if math.isfinite(self.loss):
            rival = min(self.losses, key=self.losses.__getitem__)
            reasons.append(f"{rival} would cost {self.loss:.1f} nats in the data")
        if self.note:
            reasons.append(self.note)
        reasons += self.doubts
        return Decision(
            self.name,
            self.subgroup,
            depth.subgroup,
            "energy" if math.isnan(self.gain) else "evidence",
            tuple(reasons),
            remainder=self.remainder,
            margin=self.margin,
            loss=self.loss,
            margin_by_depth=depth.margin,
            lost=self.lost,
        )
