r"""The subgroups under which kernels of a relaxed layer may still be equivariant, and their part of the residual
kernels.

A kernel is fixed by H if it lies in the span of the equivariant kernels and of the H-fixed vectors of all irreps
(:mod:`escnn_relax.symmetry.kernels.graded`). Residual kernels of a layer are orthonormal on the pixel grid, so the
H-fixed ones become a subspace of their coefficients, and the nearest H-equivariant kernel of the layer an orthogonal
projection there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from escnn.group import Group, IrreducibleRepresentation, Representation
from escnn.gspaces import GSpace
from scipy.optimize import minimize_scalar
from torch import Tensor

from ..grid.kernel_action import grid_permutation, isotypic_projection
from ..groups.irreps import frequency, irreps_up_to
from ..groups.lattice import subgroups
from ..groups.subgroup import Subgroup, subgroup
from .graded import fixed_kernels, fixed_vectors, isotypic_tuples
from .linear_algebra import orthonormal, orthonormal_sections, singular_values
from .pathway import Pathway
from .positions import Positions, TurningKernels
from .relaxation import Relaxation
from .sampling import Band, FiberBand

__all__ = ["FixedKernels", "SubgroupSearch"]

#: Cosine from which on a kernel of the layer counts as one of the subgroup's. Kernels are sampled in float32, which
#: leaves 1e-7; those that only overlap with the subgroup's have been seen up to 0.9.
CONTAINED = 1 - 1e-5

#: A share of the kernel's energy below which no other axis of a reflection is looked for (fraction): that of the
#: rounding.
NEGLIGIBLE = 1e-8
#: How far from the axis that leaves least of a kernel the evidence may move it (radians), and how many nats it may cost
#: to take a mirror of the pixels instead, which is none worth another name.
REFINEMENT, CHANCE = 0.1, 1.0


class FixedKernels:
    """The part of the residual kernels between one pair of representations that each subgroup fixes.

    Args:
        rule: the pathways of the layer.
        band: its sampling rule.
        equivariant: the layer's equivariant kernels, shape ``(K, out size, in size, S)``.
        residual: orthonormal kernels of each residual pathway ``(K_p, out size, in size, S)``, in the order of the
            pathways; ``K_p`` may be 0.
    """

    def __init__(
        self,
        rule: Relaxation,
        band: Band | FiberBand,
        in_repr: Representation,
        out_repr: Representation,
        equivariant: Tensor,
        residual: Sequence[tuple[Pathway, Tensor]],
    ) -> None:
        self._rule, self._band, self._pair = rule, band, (in_repr, out_repr)
        self._equivariant = equivariant.detach().to("cpu", torch.float64)
        self._rows = torch.cat([kernels.detach().to("cpu", torch.float64) for _, kernels in residual]).flatten(1)
        self.pathways = tuple(p for p, _ in residual)
        ends = np.cumsum([0, *(len(kernels) for _, kernels in residual)]).tolist()
        #: where each pathway's coefficients stand among those of the pair
        self.sections = tuple(slice(a, b) for a, b in zip(ends, ends[1:]))
        self._coordinates: list[tuple[IrreducibleRepresentation, Tensor]] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def fixed(self, subgroup: Subgroup) -> Tensor:
        """Orthonormal coefficient vectors of the kernels that the subgroup fixes, shape ``(f, number of residual
        kernels)``.

        Where the sampling grid does not mix irreps, each vector belongs to one pathway only.
        """
        if not len(self._rows):
            return self._rows.new_zeros(0, 0)
        if subgroup.order == 1:
            return torch.eye(len(self._rows), dtype=torch.float64)
        if self._rule.basis == "pixel":
            average = self._average(subgroup)
            if average is not None:
                return self._coefficients(average)
        if any(p.kind == "subgroup" for p in self.pathways):
            irreps = irreps_up_to(self._rule.gspace.fibergroup, self._rule.frequencies)
            return self._coefficients(
                fixed_kernels(self._band, self._rule.gspace, *self._pair, subgroup, irreps).flatten(1)
            )
        vectors = [self._rows.new_zeros(0, len(self._rows))]
        for psi, coordinates in self._tuples():
            vectors.append(torch.einsum("fa,kac->fkc", fixed_vectors(psi, subgroup), coordinates).flatten(0, 1))
        return orthonormal_sections(torch.cat(vectors), list(self.sections), reference=vectors[0])

    @property
    def irreps_only(self) -> bool:
        """Whether all residual kernels belong to irreps, so that tuples of these say what any subgroup fixes."""
        return self._rule.basis != "pixel" and all(p.kind == "irrep" for p in self.pathways)

    def turning_kernels(self, weights: Tensor) -> TurningKernels:
        """Coefficients of these kernels, ``(fields, number of residual kernels)``, with the irreps that they turn
        by."""
        return TurningKernels(weights, tuple(self._tuples()) if len(self._rows) else ())

    def _tuples(self) -> list[tuple[IrreducibleRepresentation, Tensor]]:
        """Coefficients of the tuples of each irrep that has a pathway, ``(K, dim psi, number of residual kernels)``."""
        if self._coordinates is None:
            group, coordinates = self._rule.gspace.fibergroup, []
            for pathway, section in zip(self.pathways, self.sections):
                if pathway.kind != "irrep" or section.start == section.stop:
                    continue
                psi = group.irrep(*(pathway.irrep or ()))
                tuples = isotypic_tuples(self._band, self._rule.gspace, *self._pair, psi)
                coordinates.append((psi, tuples.flatten(2) @ self._rows.T))
            self._coordinates = coordinates
        return self._coordinates

    def _average(self, subgroup: Subgroup) -> Tensor | None:
        """All kernels of the grid averaged over a subgroup that moves pixels to pixels, as rows; ``None`` for
        others."""
        if subgroup.order < 0:
            return None
        gspace, points = self._rule.gspace, self._band.points
        permutations = {g: grid_permutation(gspace, g, points) for g in subgroup.elements}
        moves = {g: move for g, move in permutations.items() if move is not None}
        if len(moves) < len(permutations):
            return None
        # the layer has all kernels of the grid, so it is enough to average its own
        kernels = torch.cat([self._equivariant, self._rows.view(-1, *self._equivariant.shape[1:])])
        return isotypic_projection(kernels, *self._pair, moves).flatten(1)

    def _coefficients(self, rows: Tensor) -> Tensor:
        """Coefficients of the residual kernels that lie in the span of these rows and the equivariant kernels."""
        first = orthonormal(self._equivariant.flatten(1))
        basis = orthonormal(rows, reference=first)
        _, values, vectors = singular_values(basis @ self._rows.T)
        return vectors[values > CONTAINED]


class SubgroupSearch:
    """The subgroups of a G-space in the order in which one asks whether they survive, large to small.

    Of a finite group these are all that escnn has ids for, conjugates included; of SO(2) and O(2) those that irreps up
    to ``highest`` can tell apart, with the axis of a reflection found from the kernels; of SO(3) and O(3) each kind
    that :func:`~escnn_relax.symmetry.groups.lattice.subgroups` lists up to so many turns, where it leaves least of the
    kernels (:mod:`escnn_relax.symmetry.kernels.positions`); of other continuous groups those that it lists, in their
    standard position.

    Args:
        gspace: the G-space.
        highest: the highest frequency of the irreps at hand, for a continuous group.
        kernels: of SO(3) and O(3), the kernels that are to be left as they are; without any, subgroups are looked for
            in their standard position only.
    """

    def __init__(self, gspace: GSpace, highest: int = 0, kernels: Sequence[TurningKernels] = ()) -> None:
        self.gspace, self.highest = gspace, highest
        self.kind = type(gspace.fibergroup).__name__
        self.positions = Positions(gspace, kernels, highest) if kernels and self.kind in ("SO3", "O3") else None

    @cached_property
    def members(self) -> tuple[Subgroup, ...]:
        """The subgroups that are asked for, large to small; of SO(2) and O(2) none is known beforehand."""
        if self.kind in ("SO2", "O2"):
            return ()
        if self.positions is not None:
            return tuple(place.subgroup for place in self.positions.places)
        return tuple(reversed(list(subgroups(self.gspace))))

    @property
    def unlisted(self) -> str:
        """What is not looked for, in words; empty where that is nothing that the kernels could tell."""
        if self.kind in ("SO2", "O2") or self.positions is not None:
            return ""
        return subgroups(self.gspace).unlisted

    def maximal(
        self,
        remainder: Callable[[Subgroup], float],
        survives: Callable[[Subgroup], bool],
        cost: Callable[[Subgroup], float] | None = None,
    ) -> list[Subgroup]:
        """The subgroups that survive and lie in no other one that does, large to small; the trivial one has to survive.

        Args:
            cost: by which an axis of O(2) is refined, near the one that leaves least of the kernels.
        """
        if self.kind in ("SO2", "O2"):
            return self._maximal_planar(remainder, survives, cost)
        if self.positions is not None:
            return self.positions.maximal(survives)
        maximal: list[Subgroup] = []
        for member in self.members:
            if not any(member <= larger for larger in maximal) and survives(member):
                maximal.append(member)
        return maximal

    def smaller(self, upper: Subgroup) -> tuple[Subgroup, ...]:
        """All subgroups of ``upper``, small to large; in a continuous group those that the irreps tell apart."""
        if self.positions is not None:
            return self.positions.smaller(upper)
        if self.kind not in ("SO2", "O2"):
            return tuple(m for m in reversed(self.members) if m < upper)
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
        """For a subgroup with all turns of the plane that of the fewest turns which the irreps do not tell from it."""
        if self.kind not in ("SO2", "O2") or member.order > 0:
            return ()
        turns = self.highest + 1
        if self.kind == "SO2":
            return (subgroup(self.gspace, turns),)
        return (subgroup(self.gspace, (None, turns) if member.id[0] is None else (0.0, turns)),)

    def larger(
        self, member: Subgroup, remainder: Callable[[Subgroup], float], cost: Callable[[Subgroup], float] | None = None
    ) -> tuple[Subgroup, ...]:
        """The next larger subgroups: those that contain ``member`` and nothing between; none above G itself. See
        :meth:`maximal`."""
        if self.kind in ("SO2", "O2"):
            return self._larger_planar(member, remainder, cost)
        if self.positions is not None:
            return self.positions.larger(member)
        larger = [m for m in self.members if member < m]
        return tuple(m for m in larger if not any(n < m for n in larger))

    def _id(self, turns: int, axis: float | None = None) -> Any:
        turns = -1 if turns > self.highest else turns
        if self.kind == "SO2":
            return turns
        return (None, turns) if axis is None else (0.0 if turns == -1 else float(axis), turns)

    def _member(self, turns: int, axis: float | None = None) -> Subgroup:
        return subgroup(self.gspace, self._id(turns, axis))

    def _maximal_planar(
        self,
        remainder: Callable[[Subgroup], float],
        survives: Callable[[Subgroup], bool],
        cost: Callable[[Subgroup], float] | None,
    ) -> list[Subgroup]:
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

    def _larger_planar(
        self, member: Subgroup, remainder: Callable[[Subgroup], float], cost: Callable[[Subgroup], float] | None
    ) -> tuple[Subgroup, ...]:
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

    @staticmethod
    def top_frequency(group: Group, pathways: Sequence[Pathway], frequencies: int | None) -> int:
        """The highest frequency of the irreps of some pathways of a continuous group."""
        values = [frequency(group, p.irrep or ()) or 0 for p in pathways if p.kind == "irrep"]
        return max([*values, 0 if frequencies is None else frequencies])
