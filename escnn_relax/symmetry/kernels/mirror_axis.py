"""The subgroups of SO(2) and O(2) that kernels may have: how many turns, and the axis of a reflection."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from escnn.gspaces import GSpace
from scipy.optimize import minimize_scalar

from ..groups.subgroup import Subgroup, subgroup

__all__ = ["PlanarSearch"]

#: A share of the kernel's energy below which no other axis of a reflection is looked for (fraction): that of the
#: rounding.
NEGLIGIBLE = 1e-8

#: How far from the axis that leaves least of a kernel the evidence may move it (radians), and how many nats it may cost
#: to take a mirror of the pixels instead, which is none worth another name.
REFINEMENT, CHANCE = 0.1, 1.0


class PlanarSearch:
    """The subgroups that irreps up to a frequency tell apart; none is known beforehand.

    Args:
        gspace: a G-space of SO(2) or O(2).
        highest: the highest frequency of the irreps.
    """

    def __init__(self, gspace: GSpace, highest: int) -> None:
        self.gspace, self.highest = gspace, highest
        self.kind = type(gspace.fibergroup).__name__

    def maximal(
        self,
        remainder: Callable[[Subgroup], float],
        survives: Callable[[Subgroup], bool],
        cost: Callable[[Subgroup], float] | None,
    ) -> list[Subgroup]:
        """The subgroups that survive and lie in no other one that does, large to small."""
        # if a reflection and some turns survive, so does what they generate: one question for the turns, one for the
        # axis
        turns: list[int] = []
        for m in range(self.highest + 1, 0, -1):
            inside = any(n > self.highest or n % m == 0 for n in turns)
            if not inside and survives(self._member(m)):
                turns.append(m)
        maximal = []
        for m in turns:
            dihedral = self._best_dihedral(m, remainder, cost) if self.kind == "O2" else None
            maximal.append(dihedral if dihedral is not None and survives(dihedral) else self._member(m))
        return maximal

    def smaller(self, upper: Subgroup) -> tuple[Subgroup, ...]:
        """The subgroups of ``upper`` that the irreps tell apart, small to large."""
        axis, turns = upper.id if self.kind == "O2" else (None, upper.id)
        reach = self.highest + 1
        fewer = [m for m in range(1, reach + 1) if turns == -1 or turns % m == 0]
        members = [self._member(m) for m in fewer if axis is not None or m != (reach if turns == -1 else turns)]
        if axis is not None:  # its own axes; of all axes of O(2), escnn's first
            for m in fewer:
                copies = 1 if turns == -1 else turns // m
                if m != (reach if turns == -1 else turns):
                    members += [
                        self._member(m, (axis + 2 * math.pi * k / turns) % (2 * math.pi / m)) for k in range(copies)
                    ]
        return tuple(members)

    def unresolved(self, member: Subgroup) -> tuple[Subgroup, ...]:
        """For a subgroup with all turns that of the fewest turns which the irreps do not tell from it."""
        if member.order > 0:
            return ()
        turns = self.highest + 1
        if self.kind == "SO2":
            return (subgroup(self.gspace, turns),)
        return (subgroup(self.gspace, (None, turns) if member.id[0] is None else (0.0, turns)),)

    def larger(
        self, member: Subgroup, remainder: Callable[[Subgroup], float], cost: Callable[[Subgroup], float] | None
    ) -> tuple[Subgroup, ...]:
        """The next larger subgroups; the axis of a reflection is looked for."""
        id = member.id if self.kind == "O2" else (None, member.id)
        axis, turns = id
        if turns == -1:
            return () if axis is not None or self.kind == "SO2" else (self._member(self.highest + 1, 0.0),)
        reach = self.highest + 1
        primes = [p for p in range(2, reach + 1) if all(p % q for q in range(2, p))]
        wider = {min(turns * p, reach) for p in primes} or {reach}
        larger = [self._member(m, axis) for m in sorted(wider)]
        finite = [f for f in larger if f.order > 0]
        larger = finite + [f for f in larger if f.order < 0 and not finite]
        if self.kind == "O2" and axis is None:
            larger.append(self._best_dihedral(turns, remainder, cost))
        return tuple(larger)

    def _id(self, turns: int, axis: float | None = None) -> Any:
        turns = -1 if turns > self.highest else turns
        if self.kind == "SO2":
            return turns
        return (None, turns) if axis is None else (0.0 if turns == -1 else float(axis), turns)

    def _member(self, turns: int, axis: float | None = None) -> Subgroup:
        return subgroup(self.gspace, self._id(turns, axis))

    def _best_dihedral(
        self, turns: int, remainder: Callable[[Subgroup], float], nats: Callable[[Subgroup], float] | None = None
    ) -> Subgroup:
        """The dihedral subgroup of so many turns on the axis that leaves least of the kernels, or near it costs
        least."""
        if turns > self.highest:
            return self._member(turns, 0.0)
        period = 2 * math.pi / turns

        def cost(axis: float) -> float:
            return remainder(self._member(turns, axis % period))

        def evidence(axis: float) -> float:
            return nats(self._member(turns, axis % period)) if nats is not None else 0.0

        # a trigonometric polynomial of no higher degree than the irreps; where a low frequency is weak, the wells of a
        # high one are nearly as deep as the deepest, so each is looked into
        starts = np.linspace(0, period, 4 * (self.highest // turns) + 4, endpoint=False)
        costs = np.array([cost(axis) for axis in starts])
        wells = np.flatnonzero((costs <= np.roll(costs, 1)) & (costs <= np.roll(costs, -1)))
        step, axis, least = starts[1], starts[0], math.inf
        for well in sorted(wells, key=costs.__getitem__):
            bounds = starts[well] - step, starts[well] + step
            optimum = minimize_scalar(cost, bounds=bounds, method="bounded", options={"xatol": 1e-4})
            angle, value = min((optimum.x, optimum.fun), (starts[well], costs[well]), key=lambda pair: pair[1])
            if value < least:
                axis, least = angle, value
            if least < NEGLIGIBLE or np.ptp(costs) < NEGLIGIBLE:
                break
        if nats is not None and NEGLIGIBLE < least < np.ptp(costs):
            # directions that the data leave open have energy, too, which would turn the axis: the evidence knows them
            bounds = axis - REFINEMENT, axis + REFINEMENT
            optimum = minimize_scalar(evidence, bounds=bounds, method="bounded", options={"xatol": 2e-3})
            standard = round(axis / (math.pi / 4)) * (math.pi / 4)  # the mirrors of the pixels
            candidates = [(evidence(axis), axis), (optimum.fun, optimum.x)]
            best = min(candidates)
            if bounds[0] <= standard <= bounds[1] and evidence(standard) <= best[0] + CHANCE:
                best = evidence(standard), standard
            axis = best[1]
        return self._member(turns, axis % period)
