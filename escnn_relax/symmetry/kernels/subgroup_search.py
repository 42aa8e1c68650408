"""The subgroups under which kernels of a relaxed layer may still be equivariant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

from escnn.group import Group
from escnn.gspaces import GSpace

from ..groups.irreps import frequency
from ..groups.lattice import subgroups
from ..groups.subgroup import Subgroup
from .mirror_axis import PlanarSearch
from .pathway import Pathway
from .position_search import TurningKernels
from .positions import Positions

__all__ = ["SubgroupSearch"]


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
        kind = type(gspace.fibergroup).__name__
        self.planar = PlanarSearch(gspace, highest) if kind in ("SO2", "O2") else None
        self.positions = Positions(gspace, kernels, highest) if kernels and kind in ("SO3", "O3") else None

    @cached_property
    def members(self) -> tuple[Subgroup, ...]:
        """The subgroups that are asked for, large to small; of SO(2) and O(2) none is known beforehand."""
        if self.planar is not None:
            return ()
        if self.positions is not None:
            return tuple(place.subgroup for place in self.positions.places)
        return tuple(reversed(list(subgroups(self.gspace))))

    @property
    def unlisted(self) -> str:
        """What is not looked for, in words; empty where that is nothing that the kernels could tell."""
        if self.planar is not None or self.positions is not None:
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
        if self.planar is not None:
            return self.planar.maximal(remainder, survives, cost)
        if self.positions is not None:
            return self.positions.maximal(survives)
        maximal: list[Subgroup] = []
        for member in self.members:
            if not any(member <= larger for larger in maximal) and survives(member):
                maximal.append(member)
        return maximal

    def smaller(self, upper: Subgroup) -> tuple[Subgroup, ...]:
        """All subgroups of ``upper``, small to large; in a continuous group those that the irreps tell apart."""
        if self.planar is not None:
            return self.planar.smaller(upper)
        if self.positions is not None:
            return self.positions.smaller(upper)
        return tuple(m for m in reversed(self.members) if m < upper)

    def unresolved(self, member: Subgroup) -> tuple[Subgroup, ...]:
        """For a subgroup with all turns of the plane that of the fewest turns which the irreps do not tell from it."""
        return () if self.planar is None else self.planar.unresolved(member)

    def larger(
        self, member: Subgroup, remainder: Callable[[Subgroup], float], cost: Callable[[Subgroup], float] | None = None
    ) -> tuple[Subgroup, ...]:
        """The next larger subgroups: those that contain ``member`` and nothing between; none above G itself. See
        :meth:`maximal`."""
        if self.planar is not None:
            return self.planar.larger(member, remainder, cost)
        if self.positions is not None:
            return self.positions.larger(member)
        larger = [m for m in self.members if member < m]
        return tuple(m for m in larger if not any(n < m for n in larger))

    @staticmethod
    def top_frequency(group: Group, pathways: Sequence[Pathway], frequencies: int | None) -> int:
        """The highest frequency of the irreps of some pathways of a continuous group."""
        values = [frequency(group, p.irrep or ()) or 0 for p in pathways if p.kind == "irrep"]
        return max([*values, 0 if frequencies is None else frequencies])
