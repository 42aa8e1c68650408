"""Where in space the subgroups of SO(3) and O(3) stand that leave given kernels as they are: one place for each kind,
found by :mod:`escnn_relax.symmetry.kernels.position_search`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from escnn.gspaces import GSpace
from torch import Tensor

from ..groups.conjugation import conjugate, smaller_subgroups
from ..groups.lattice import subgroups
from ..groups.subgroup import Subgroup
from .graded import fixed_vectors
from .position_search import PositionSearch, TurningKernels

__all__ = ["Place", "Positions"]

#: Subspaces of irreps whose sines are below this are the same.
ALIKE = 1e-3


@dataclass(frozen=True)
class Place:
    """One kind of subgroup where it leaves least of the kernels.

    Attributes:
        kind: the subgroup in escnn's position.
        vector: the turn A that takes it to its place, A^-1 H A (axis times radians).
        fixed: the vectors of each irrep that it leaves as they are there, as orthonormal rows.
        remainder: what of the kernels it leaves (fraction, summed over layers).
    """

    kind: Subgroup
    vector: Tensor
    fixed: dict[Any, Tensor]
    remainder: float

    @cached_property
    def subgroup(self) -> Subgroup:
        """The subgroup at its place."""
        return conjugate(self.kind, self.vector)


class Positions:
    """The best place of each kind of subgroup.

    Args:
        gspace: a G-space of SO(3) or O(3).
        kernels: what the subgroups are to leave as it is.
        highest: the highest frequency of the irreps, beyond which turns cannot be told apart.
    """

    def __init__(self, gspace: GSpace, kernels: Sequence[TurningKernels], highest: int) -> None:
        self.gspace, self.highest = gspace, highest
        self._search = PositionSearch(kernels)

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """One for each kind of subgroup, large to small, the whole group and the trivial one among them."""
        return tuple(self._place(member) for member in reversed(list(subgroups(self.gspace, max(1, self.highest)))))

    def maximal(self, survives: Callable[[Subgroup], bool]) -> list[Subgroup]:
        """The subgroups that survive at their places and lie in no other one that does, large to small."""
        maximal_places: list[Place] = []
        for place in self.places:
            if not any(self.contains(larger, place) for larger in maximal_places) and survives(place.subgroup):
                maximal_places.append(place)
        return [place.subgroup for place in maximal_places]

    def smaller(self, member: Subgroup) -> tuple[Subgroup, ...]:
        """Smaller subgroups, small to large: of H those where it stands, and the best places that lie in it."""
        outer = self.place(member)
        inside = [place.subgroup for place in reversed(self.places) if self._is_smaller(outer, place)]
        return tuple(
            {
                h.id: h for h in [*(() if member.index == 1 else smaller_subgroups(member, self.highest)), *inside]
            }.values()
        )

    def larger(self, member: Subgroup) -> tuple[Subgroup, ...]:
        """The next larger of the best places."""
        inner = self.place(member)
        larger = [place for place in self.places if self._is_smaller(place, inner)]
        return tuple(m.subgroup for m in larger if not any(self._is_smaller(m, n) for n in larger))

    def _is_smaller(self, larger: Place, inner: Place) -> bool:
        return self.contains(larger, inner) and not self.contains(inner, larger)

    def place(self, member: Subgroup) -> Place:
        """A subgroup where it stands."""
        for candidate in self.places:
            if candidate.subgroup == member:
                return candidate
        return Place(member, torch.zeros(3, dtype=torch.float64), self._fixed_vectors(member), float("nan"))

    def contains(self, larger: Place, smaller: Place) -> bool:
        """Whether the smaller fixes all that the larger fixes, as far as these irreps tell."""
        return all(
            float((vectors - vectors @ smaller.fixed[id].T @ smaller.fixed[id]).norm()) < ALIKE
            for id, vectors in larger.fixed.items()
        )

    def _fixed_vectors(self, member: Subgroup) -> dict[Any, Tensor]:
        return {psi.id: fixed_vectors(psi, member) for psi in self._search.irreps}

    def _place(self, member: Subgroup) -> Place:
        fixed = self._fixed_vectors(member)
        vector = self._search.best_turn(fixed)
        return Place(member, vector, self._search.turn(fixed, vector), self._search.remainder(fixed, vector))
