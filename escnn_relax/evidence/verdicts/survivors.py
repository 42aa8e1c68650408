"""The largest subgroups that survive in a trained network's relaxed layers, and by how many nats.

The rule that decides on one layer is :func:`escnn_relax.nn.measured.stabiliser.stabiliser`, which needs no evidence.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

from torch import nn

from ...curvature.layers.coverage import join
from ...curvature.layers.wrappers import unwrap
from ...errors import ArgumentError, UnsupportedModuleError, naming
from ...nn.last_decision import remember
from ...nn.measured.kernel_symmetry import KernelSymmetry
from ...nn.measured.stabiliser import REFUTED, subgroup_search
from ...nn.relaxed_convolution import RelaxedConvolution
from ...nn.translation.relaxed_translation import CONVOLUTION, RelaxedTranslation
from ...symmetry.decision import check_evidence
from ...symmetry.kernels.pathway import SWITCHED_OFF
from ..evidence_view import EvidenceView
from .joint_curvature import JointCurvature
from .layer_reading import BesideConvolution, Gains, bounded_survivor, layer_survivor
from .layer_survivor import LayerSurvivor
from .network_survivors import Survivors
from .projection_loss import ProjectionLoss

__all__ = ["LayerSurvivor", "Survivors", "survivors"]

#: Seconds after which a progress bar appears.
PATIENCE = 3.0


def survivors(
    model: nn.Module,
    evidence: EvidenceView | None = None,
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
    model = unwrap(model)
    with naming("survivors"):
        check_evidence(evidence, model)
    if data is not None and evidence is None:
        raise ArgumentError(
            "survivors", "data without an evidence", remedy="pass the evidence too: it knows the likelihood"
        )
    alone, together = _readings(model, energy)
    if not alone:
        raise UnsupportedModuleError(type(model).__name__, "no relaxed layer in it", remedy="relax it first")
    reader = _Reader(evidence, data, energy)
    readings = alone + together if depth else alone
    survived = [reader(*reading) for reading in _bar(readings, progress)]
    note = "" if evidence is None or not evidence.doubt else f"no verdict: {evidence.doubt}"
    if note:
        survived = [replace(s, note=f"{s.note}; {note}" if s.note else note) for s in survived]
    symmetries = [reading.layers[0] for reading in alone]
    layers = tuple(survived[: len(alone)])
    by_depth = tuple(survived[len(alone) :]) if depth else layers
    unlisted = "; ".join(dict.fromkeys(u for u in (subgroup_search([s]).unlisted for s in symmetries) if u))
    result = Survivors(layers, by_depth, energy, depth, note, unlisted)
    remember({s.name: s.layer for s in symmetries}, result.decisions)
    return result


class _Reading(NamedTuple):
    """What is read together.

    Attributes:
        name: of the layer; empty for those up to a depth.
        layers: in the order of the model.
        beside: the pathways beside them.
    """

    name: str
    layers: list[KernelSymmetry]
    beside: BesideConvolution


def _readings(model: nn.Module, energy: float) -> tuple[list[_Reading], list[_Reading]]:
    """Each relaxed layer by itself, and each together with all before it."""
    alone: list[_Reading] = []
    before: list[BesideConvolution] = []
    living: dict[str, BesideConvolution] = {"": {}}  # by the name of the convolution
    for name, module in model.named_modules():
        if isinstance(module, RelaxedTranslation):
            with naming(name or type(module).__name__):
                pathways = module.living(energy).items()
            beside = {f"{pathway} of {name or 'model'}": bound for pathway, bound in pathways}
            living[f"{name}.{CONVOLUTION}".lstrip(".")] = beside
        elif isinstance(module, RelaxedConvolution):
            alone.append(_Reading(name, [KernelSymmetry(module, name)], living.get(name, {})))
            before.append(_all(living))
    before[-1:] = [_all(living)] if before else []
    symmetries = [reading.layers[0] for reading in alone]
    return alone, [_Reading("", symmetries[: n + 1], beside) for n, beside in enumerate(before)]


def _all(living: dict[str, BesideConvolution]) -> BesideConvolution:
    return {name: bound for beside in living.values() for name, bound in beside.items()}


class _Reader:
    """Reads layers by whatever is known: energy, evidence, data."""

    def __init__(self, evidence: EvidenceView | None, data: Iterable[Any] | None, energy: float) -> None:
        self.energy = energy
        self.gain: Gains | None = None
        self.also: Gains | None = None
        self.projected: ProjectionLoss | None = None
        self.gammas: dict[str, float] = {}
        self.left = 0.0
        if evidence is None:
            return
        slopes = None if evidence.slopes is None else evidence.slopes.read()
        if evidence.estimate is not None:
            joint = None if data is None else JointCurvature(evidence, data)
            approximation = evidence.approximation(complete=False)
            self.gain = Gains(approximation, evidence.prior.bounds, joint)
            if joint is not None or slopes is not None:
                self.also = Gains(approximation, evidence.prior.bounds, joint, slopes or {})
        if data is not None:
            self.projected = ProjectionLoss(evidence, data)
            self.gammas = evidence.effective_dimension()
            self.left = 0.0 if evidence.slopes is None else evidence.slopes.left()

    def __call__(self, name: str, layers: list[KernelSymmetry], beside: BesideConvolution) -> LayerSurvivor:
        survivor = layer_survivor(name, layers, self.energy, self.gain, self.also)
        bounded = bounded_survivor(survivor, layers, beside)
        if self.projected is None or bounded is not survivor:
            return bounded
        losses = {h.name: self.projected(layers, h) for h in survivor.larger}
        # the data tell what their curvature could not
        refuted = [h for h in survivor.larger if losses[h.name] > REFUTED + self._freedom(layers)]
        possible = tuple(
            h for h in survivor.candidates if h in survivor.blurred or not any(small <= h for small in refuted)
        )
        shown = (survivor.subgroup, *possible)
        grid = tuple(loss for loss in survivor.grid if loss.larger in shown)
        return replace(survivor, losses=losses, candidates=possible, grid=grid)

    def _freedom(self, layers: list[KernelSymmetry]) -> float:
        """Nats: so much likeliness the residual weights of these layers gain at most by following the noise (Akaike),
        and what a network could still learn without them."""
        names = (join(s.name, f"weights.{p.name}") for s in layers for p in s.residual)
        return self.left + sum(self.gammas.get(name, 0.0) for name in names)


def _bar(readings: list[_Reading], progress: bool) -> Any:
    from tqdm import tqdm

    return tqdm(readings, desc="survivors", unit="reading", delay=PATIENCE, leave=False, disable=not progress)
