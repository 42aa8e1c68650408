"""The lattice of subgroups of a G-space.

Ids are escnn's, see :mod:`escnn_relax.symmetry.groups.subgroup_ids`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from escnn import gspaces

from ...deprecation import former_method
from ...errors import ArgumentError, SubgroupError
from ..html_table import html_table
from .subgroup import Subgroup, group_size, short, subgroup
from .subgroup_list import listed_ids, unlisted

__all__ = ["Subgroup", "SubgroupLattice", "common_subgroup", "subgroup", "subgroups"]


class SubgroupLattice:
    """The subgroups of a G-space, small to large; made by :func:`subgroups`.

    Iterates over :class:`Subgroup`; ``lattice["C4"]`` and ``lattice[id]`` look one up.

    Attributes:
        gspace: the G-space.
        members: the subgroups.
        unlisted: what there is besides, in words; empty where the lattice is complete.
    """

    def __init__(self, gspace: gspaces.GSpace, members: list[Subgroup], max_order: int = 8) -> None:
        self.gspace, self.max_order = gspace, max_order
        self.members = tuple(members)
        self.unlisted = unlisted(gspace.fibergroup, max_order)

    def __iter__(self) -> Iterator[Subgroup]:
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, key: Any) -> Subgroup:
        for member in self.members:
            if isinstance(key, str) and member.name == key:
                return member
        try:
            target = subgroup(self.gspace, key)
        except SubgroupError as error:
            raise SubgroupError(
                str(self.gspace), f"no subgroup {key!r}", remedy=f"names: {', '.join(m.name for m in self)}; {error}"
            ) from None
        for member in self.members:
            if target <= member and member <= target:
                return member
        return target

    def __contains__(self, key: Any) -> bool:
        try:
            return self[key] is not None
        except SubgroupError:
            return False

    def maximal_subgroups(self, upper: Subgroup) -> tuple[Subgroup, ...]:
        """The maximal subgroups of ``upper`` within the lattice: one step of symmetry breaking."""
        proper = [m for m in self.members if m < upper]
        return tuple(m for m in proper if not any(m < larger for larger in proper))

    below = former_method("below", "maximal_subgroups")

    def __str__(self) -> str:
        width = max(len(m.name) for m in self.members)
        lines = [f"{len(self)} subgroups of {self.gspace}"]
        for member in self.members:
            size = "continuous" if member.order < 0 else f"order {member.order}"
            line = f"  {member.name:<{width}}  {size:<10}  id {short(member.id)}"
            children = ", ".join(m.name for m in self.maximal_subgroups(member))
            lines.append(f"{line}  > {children}" if children else line)
        if self.unlisted:
            lines.append(f"not listed: {self.unlisted}")
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = []
        for member in self.members:
            children = ", ".join(m.name for m in self.maximal_subgroups(member))
            order = "continuous" if member.order < 0 else str(member.order)
            rows.append([member.name, str(short(member.id)), children, order])
        notes = [f"{len(self)} subgroups of {self.gspace}", self.unlisted and f"not listed: {self.unlisted}"]
        return html_table(["subgroup", "id", "maximal subgroups", "order"], rows, notes, words=3)


def subgroups(gspace: gspaces.GSpace, max_order: int = 8) -> SubgroupLattice:
    """The lattice of subgroups, from the trivial one to G itself.

    Complete, with all conjugates, for C_N and D_N (every reflection axis), for the tetrahedral, octahedral and
    icosahedral groups, and for each of these with the inversion: 30 subgroups of the octahedral group, 98 of the full
    one. Of another product those are listed that are products themselves. Of a continuous group the families are listed
    up to ``max_order`` turns, in the plane reflections along the axes at multiples of 45 degrees; any other axis,
    position and order is a valid id nevertheless. What is left out is said in ``unlisted``, and printed.

    >>> from escnn import gspaces
    >>> print(subgroups(gspaces.flipRot2dOnR2(2)))
    5 subgroups of D2_on_R2[(3.141592653589793, 2)]
      trivial   order 1     id (None, 1)
      C2        order 2     id (None, 2)  > trivial
      D1_90deg  order 2     id (0, 1)  > trivial
      D1_0deg   order 2     id (1, 1)  > trivial
      D2        order 4     id (0, 2)  > C2, D1_90deg, D1_0deg
    """
    if max_order < 1:
        raise ArgumentError("subgroups", expected="max_order of 1 or more", got=max_order, remedy="leave it out for 8")
    for lattice in _LISTED:
        if lattice.max_order == max_order and (lattice.gspace is gspace or lattice.gspace == gspace):
            return lattice
    lattice = _list_subgroups(gspace, max_order)
    _LISTED.append(lattice)
    del _LISTED[:-MOST]
    return lattice


#: Lattices that were listed before: naming a subgroup takes milliseconds, and a report asks for all at each layer
#: several times. Searched one by one, since escnn's G-spaces can be compared but not all be hashed.
_LISTED: list[SubgroupLattice] = []

#: How many are kept.
MOST = 64


def _list_subgroups(gspace: gspaces.GSpace, max_order: int) -> SubgroupLattice:
    whole = gspace.fibergroup
    members: list[Subgroup] = []
    element_sets: set[frozenset[Any]] = set()
    for id in listed_ids(whole, max_order):
        member = subgroup(gspace, id)
        if not whole.continuous:
            if member._members in element_sets:
                continue
            element_sets.add(member._members)
        elif any(member.order == m.order and member <= m and m <= member for m in members):
            continue
        members.append(member)
    members.sort(key=lambda m: group_size(m.group))
    return SubgroupLattice(gspace, members, max_order)


def common_subgroup(first: Subgroup, *rest: Subgroup) -> Subgroup:
    """The largest subgroup in all of these, of one G-space; of a continuous group the largest that :func:`subgroups`
    lists, unless it is one of them.

    >>> from escnn import gspaces
    >>> lattice = subgroups(gspaces.flipRot2dOnR2(4))
    >>> common_subgroup(lattice["C4"], lattice["D2_0deg"]).name
    'C2'
    """
    groups = (first, *rest)
    candidates = [*groups, *reversed(list(subgroups(first.gspace)))]
    return next(h for h in candidates if all(h <= group for group in groups))
