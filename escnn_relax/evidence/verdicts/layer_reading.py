"""Reading one layer, or several as one: the subgroup that survives, at the gains that the evidence measures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor

from ...errors import ArgumentError, CoverageError
from ...nn.measured.kernel_symmetry import KernelSymmetry
from ...nn.measured.resolution import resolution
from ...nn.measured.stabiliser import stabiliser, subgroup_search
from ...symmetry.groups.lattice import Subgroup, common_subgroup, subgroup
from ...symmetry.kernels.subgroup_search import SubgroupSearch
from ..laplace_approximation import LaplaceApproximation
from .joint_curvature import JointCurvature
from .layer_survivor import LayerSurvivor
from .pixel_candidates import blurred
from .subgroup_cost import Demands

__all__ = ["BesideConvolution", "Gains", "bounded_survivor", "layer_survivor"]

#: Change of the log evidence if a subgroup is demanded of a layer (nats).
Gain = Callable[[KernelSymmetry, Subgroup], float]
#: Living pathways beside convolutions, by layer and name, with the groups that they keep.
BesideConvolution = dict[str, Subgroup]


class Gains:
    """What the evidence says to subgroups being demanded of layers, each asked once.

    Args:
        approximation: of the posterior.
        bounds: of the log precisions.
        joint: the curvature with its cross blocks, where it is known.
        slopes: of the negative log posterior at the weights, by parameter name (nats); ``None``: they are its mode.
    """

    def __init__(
        self,
        approximation: LaplaceApproximation,
        bounds: tuple[float, float],
        joint: JointCurvature | None = None,
        slopes: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._approximation, self._bounds, self._joint, self._slopes = approximation, bounds, joint, slopes
        self._demands: dict[str, Demands] = {}

    def __call__(self, symmetry: KernelSymmetry, demanded: Subgroup) -> float:
        """Nats, see :meth:`Demands.gain <escnn_relax.evidence.verdicts.subgroup_cost.Demands.gain>`."""
        if symmetry.name not in self._demands:
            factors, logs = self._approximation.estimate.factors, self._approximation.log_precision
            options = (self._bounds, self._joint, self._slopes)
            self._demands[symmetry.name] = Demands(symmetry, factors, logs, self._approximation.scale, *options)
        return self._demands[symmetry.name].gain(demanded)

    def coupled(self, layers: list[KernelSymmetry]) -> bool:
        """Whether cross blocks are in the gains of all these layers, as far as they were asked for."""
        return all(s.name in self._demands and self._demands[s.name].coupled for s in layers)


def layer_survivor(
    name: str, layers: list[KernelSymmetry], energy: float, gain: Gains | None, also: Gains | None
) -> LayerSurvivor:
    """The largest subgroup that survives in all of some layers; by energy alone where there are no gains, with a note.

    Args:
        energy: the largest share of a layer's energy that counts as switched off (fraction).
        gain: of demanding a subgroup.
        also: the same, read in another way.
    """
    note = "no curvature: pass a refreshed evidence"
    if gain is not None:
        try:
            return replace(_survivor(name, layers, energy, gain, also), coupled=gain.coupled(layers))
        except (ArgumentError, CoverageError) as error:
            note = f"by energy alone, {error}"
    survivor = _survivor(name, layers, energy, None, None, note)
    return survivor if gain is None else replace(survivor, coupled=gain.coupled(layers))


def _survivor(
    name: str, layers: list[KernelSymmetry], energy: float, gain: Gain | None, also: Gain | None, note: str = ""
) -> LayerSurvivor:
    survived, remainder, candidates = verdict = stabiliser(layers, energy, gain, also)
    search = subgroup_search(layers)
    dearest = None if gain is None else lambda h: -sum(gain(s, h) for s in layers)
    larger = search.larger(survived, lambda h: max(s.remainder(h) for s in layers), dearest)
    same, grid = resolution(layers, survived, search, candidates)
    if gain is None:
        return LayerSurvivor(name, survived, remainder, math.nan, larger, {}, note, alike=same, grid=grid)
    unsettled = also is not None and bool(candidates) and verdict != stabiliser(layers, energy, gain)
    total = sum(gain(s, survived) for s in layers)

    def cost(h: Subgroup) -> float:
        return sum(max(gain(s, survived) - gain(s, h), 0.0) for s in layers)

    costs = {h.name: cost(h) for h in larger}
    unseen = tuple(h for h in blurred(layers, survived, costs, larger, search, cost) if h not in candidates)
    if unseen:
        candidates = (*candidates, *unseen)
        same, grid = resolution(layers, survived, search, candidates)
    survivor = LayerSurvivor(name, survived, remainder, total, larger, costs, note, candidates=candidates)
    return replace(survivor, unsettled=unsettled, alike=same, grid=grid, blurred=unseen)


def bounded_survivor(survivor: LayerSurvivor, layers: list[KernelSymmetry], beside: BesideConvolution) -> LayerSurvivor:
    """What of a surviving subgroup the pathways beside the convolutions keep, too; the same object if all of it."""
    space = survivor.subgroup.gspace
    bounds = {name: bound for name, bound in beside.items() if bound.gspace.fibergroup == space.fibergroup}
    # the same group may act on another base space elsewhere in the network
    bounds = {n: bound if bound.gspace == space else subgroup(space, bound.id) for n, bound in bounds.items()}
    breaking = [f"{name} keeps {bound.name}" for name, bound in bounds.items() if not survivor.subgroup <= bound]
    if not breaking:
        return survivor
    common = common_subgroup(survivor.subgroup, *bounds.values())
    remainder = max(s.remainder(common) for s in layers)
    planar = type(space.fibergroup).__name__ in ("SO2", "O2")
    highest = max([*(s.search().highest for s in layers), common.order])
    search = SubgroupSearch(space, highest) if planar else subgroup_search(layers)
    larger = search.larger(common, lambda h: max(s.remainder(h) for s in layers))
    same, grid = resolution(layers, common, search)
    note = f"no margin: {', '.join(breaking)}"
    return LayerSurvivor(survivor.name, common, remainder, math.nan, larger, {}, note, alike=same, grid=grid)
