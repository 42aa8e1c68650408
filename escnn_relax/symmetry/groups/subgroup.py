"""A subgroup of the symmetry of a G-space: elements, membership, inclusion, cosets.

Ids are escnn's (see :mod:`escnn_relax.symmetry.groups.subgroup_ids`); names, inclusions and cosets are added here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from escnn import group as g
from escnn import gspaces

from ...deprecation import former_where
from ...errors import ArgumentError, SubgroupError
from .finite_groups import group_elements, group_order
from .subgroup_embedding import embedding
from .subgroup_ids import canonical_id
from .subgroup_lookup import lookup_id, moves, remedy
from .subgroup_names import subgroup_name

__all__ = ["Subgroup", "subgroup"]


_TABLES: dict[int, tuple[g.Group, dict[g.GroupElement, int]]] = {}


def _positions(group: g.Group) -> dict[g.GroupElement, int]:
    """Where each element stands in ``group.elements``; escnn's groups cannot be hashed, and are never freed."""
    if id(group) not in _TABLES:
        _TABLES[id(group)] = group, {e: i for i, e in enumerate(group_elements(group))}
    return _TABLES[id(group)][1]


def group_size(group: g.Group) -> tuple[int, int]:
    """Dimension and number of connected components (for a finite group its order)."""
    kind = type(group).__name__
    if kind in ("SO2", "O2", "SO3", "O3"):
        return (1 if kind.endswith("2") else 3), (2 if kind.startswith("O") else 1)
    if isinstance(group, g.DirectProductGroup):
        (a, m), (b, n) = group_size(group.G1), group_size(group.G2)
        return a + b, m * n
    return 0, group_order(group)


@dataclass(frozen=True)
class Subgroup:
    """A subgroup H of the symmetry group G of a G-space; made by :func:`subgroup`.

    Attributes:
        gspace: the G-space of G.
        id: escnn's id of H in G.
        name: readable and free of dots and spaces, so that it can name a parameter; ``"trivial"`` for {e}.
        group: H, an escnn group of its own.
        embed: the map H -> G.
        pull: the map G -> H, None outside H.

    >>> from escnn import gspaces
    >>> from escnn_relax.symmetry.groups.lattice import subgroup
    >>> flip = subgroup(gspaces.flipRot2dOnR2(4), (3, 1))
    >>> flip.name, flip.order, flip.index
    ('D1_45deg', 2, 4)
    """

    gspace: gspaces.GSpace
    id: Any
    name: str
    group: g.Group = field(repr=False, compare=False)
    embed: Callable[[g.GroupElement], g.GroupElement] = field(repr=False, compare=False)
    pull: Callable[[g.GroupElement], g.GroupElement | None] = field(repr=False, compare=False)

    @cached_property
    def order(self) -> int:
        """Number of elements, -1 for a continuous group."""
        return group_order(self.group)

    @cached_property
    def _finite(self) -> bool:
        """Whether G is finite; escnn's product groups build all their elements to answer that."""
        return not self.gspace.fibergroup.continuous

    @cached_property
    def index(self) -> int | float:
        """Number of cosets of H in G, ``math.inf`` when there are infinitely many."""
        (large, pieces), (small, components) = group_size(self.gspace.fibergroup), group_size(self.group)
        return math.inf if large > small else pieces // components

    @cached_property
    def _size(self) -> tuple[int, int]:
        return group_size(self.group)

    @cached_property
    def elements(self) -> tuple[g.GroupElement, ...]:
        """The elements of G that lie in H, the identity first.

        Raises:
            SubgroupError: H is continuous.
        """
        if self.order < 0:
            raise SubgroupError(self.name, "a continuous group has no list of elements", remedy="use testing_elements")
        elements = [self.embed(h) for h in group_elements(self.group)]
        identity = self.gspace.fibergroup.identity
        return tuple(sorted(elements, key=lambda e: e != identity))

    @cached_property
    def testing_elements(self) -> tuple[g.GroupElement, ...]:
        """The elements of G in H, or for a continuous H the ones that escnn tests with and some in general position."""
        if self.order > 0:
            return self.elements
        return tuple(self.embed(h) for h in [*self.group.testing_elements(), *_general(self.group)])

    @cached_property
    def _members(self) -> frozenset[int]:
        """Positions of the elements of a finite H in a finite G."""
        position = _positions(self.gspace.fibergroup)
        return frozenset(position[e] for e in self.elements)

    def contains(self, element: g.GroupElement) -> bool:
        """Whether this element of G lies in H."""
        if element.group != self.gspace.fibergroup:
            raise ArgumentError(
                self.name,
                expected=f"an element of {self.gspace.fibergroup}",
                got=f"one of {element.group}",
                remedy="take it from the same fibergroup",
            )
        if self.order > 0 and self._finite:
            return _positions(self.gspace.fibergroup)[element] in self._members
        if self.order > 0:
            return any(element == e for e in self.elements)
        return self.pull(element) is not None

    def __le__(self, other: Subgroup) -> bool:
        """Whether H is contained in the other subgroup of the same G."""
        if not isinstance(other, Subgroup):
            return NotImplemented
        if other.gspace is not self.gspace and other.gspace != self.gspace:
            return NotImplemented
        if self is other:
            return True
        if self._size[0] > other._size[0]:
            return False
        if self.order > 0 and other.order > 0 and other.order % self.order:
            return False
        if self._finite:
            return self._members <= other._members
        return all(other.contains(e) for e in self.testing_elements)

    def __lt__(self, other: Subgroup) -> bool:
        return self <= other and not other <= self

    def coset_representatives(self, side: str = "left") -> tuple[g.GroupElement, ...]:
        """One t out of each coset, the identity first: G = union of t H (``"left"``) or of H t (``"right"``).

        Raises:
            SubgroupError: H has infinitely many cosets.
            ArgumentError: another side.
        """
        if side not in ("left", "right"):
            raise ArgumentError(
                self.name, expected="side 'left' or 'right'", got=repr(side), remedy="leave it out for 'left'"
            )
        whole = self.gspace.fibergroup
        if self.index == math.inf:
            remedy = "ask for a subgroup of finite index, such as SO(2) in O(2)"
            raise SubgroupError(self.name, f"infinitely many cosets in {whole.name}", remedy=remedy)
        candidates = group_elements(whole) if self._finite else _component_representatives(whole)
        representatives = [whole.identity]
        for t in candidates:
            if len(representatives) == self.index:
                break
            if not any(self.contains(~s @ t if side == "left" else t @ ~s) for s in representatives):
                representatives.append(t)
        return tuple(representatives)

    def __reduce__(self) -> tuple[Any, ...]:
        return subgroup, (self.gspace, self.id)

    def __deepcopy__(self, memo: dict[Any, Any]) -> Subgroup:
        return self  # nothing in it changes, and escnn compares groups by identity

    def __str__(self) -> str:
        size = "continuous" if self.order < 0 else f"order {self.order}"
        return f"{self.name} ({size}) of {self.gspace.fibergroup.name}, id {short(self.id)}"


def short(id: Any) -> str:
    """An id on one line: a conjugating element is shown as ``A``."""
    if isinstance(id, g.GroupElement):
        return "A"
    if isinstance(id, tuple):
        return "(" + ", ".join(short(i) for i in id) + ")"
    return f"{id:.4g}" if isinstance(id, float) else repr(id)


def _general(group: g.Group) -> list[g.GroupElement]:
    """Elements in general position, which no finite subgroup contains."""
    kind = type(group).__name__
    if kind == "SO2":
        return [group.element(0.7)]
    if kind == "O2":
        return [group.element((0, 0.7)), group.element((1, 0.7))]
    if isinstance(group, g.DirectProductGroup):
        elements = [group.inclusion1(a) for a in _general(group.G1)]
        return elements + [group.inclusion2(b) for b in _general(group.G2)]
    return []


def _component_representatives(group: g.Group) -> list[g.GroupElement]:
    """One element out of each connected component of a continuous group."""
    kind = type(group).__name__
    if kind == "O2":
        return [group.identity, group.element((1, 0.0))]
    if kind == "O3":
        return [group.identity, group.inversion]
    if isinstance(group, g.DirectProductGroup):
        components = [p.elements if p.order() > 0 else _component_representatives(p) for p in (group.G1, group.G2)]
        return [group.pair_elements(a, b) for a in components[0] for b in components[1]]
    return [group.identity]


@former_where
def subgroup(gspace: gspaces.GSpace, id: Any) -> Subgroup:
    """The subgroup of ``gspace.fibergroup`` that an id, a printed name or a :class:`Subgroup` says; the trivial one and
    G itself are valid. Wherever this package takes a subgroup, it takes all three.

    Args:
        gspace: a G-space of escnn.
        id: in the form that the group takes, see :mod:`escnn_relax.symmetry.groups.subgroup_ids`; or a name, as reports
            and ``print(subgroups(gspace))`` have them; or a subgroup of the same group, on this G-space or another.

    Raises:
        SubgroupError: the id has the wrong form for this group, or names no subgroup of it.

    >>> from escnn import gspaces
    >>> subgroup(gspaces.rot2dOnR2(8), 4).name, subgroup(gspaces.rot2dOnR2(8), "C2").id
    ('C4', 2)
    >>> subgroup(gspaces.rot2dOnR2(8), 3)
    Traceback (most recent call last):
    ...
    escnn_relax.errors.SubgroupError: C8 has no such subgroup in escnn, expected an int out of [1, 2, 4, 8], \
got 3 of type int; names are trivial, C2, C4, C8; ...
    """
    whole = gspace.fibergroup
    if isinstance(id, Subgroup):
        if id.gspace is gspace or id.gspace == gspace:
            return id
        if id.gspace.fibergroup != whole:
            raise SubgroupError(
                "",
                expected=f"a subgroup of {whole.name}",
                got=f"{id.name}, one of {id.gspace.fibergroup.name}",
                remedy=f"make it by subgroup(gspace, id) with gspace = {gspace}",
            )
        id = id.id
    if isinstance(id, str):
        id = lookup_id(gspace, id)
    try:
        group, embed, pull = embedding(whole, id)
    except SubgroupError as error:
        raise SubgroupError(
            "", error.problem, expected=error.expected, got=error.got, remedy=remedy(gspace, id)
        ) from None
    id = canonical_id(whole, id)
    action = moves(gspace, embed)
    return Subgroup(gspace, id, subgroup_name(group, id, whole, action), group, embed, pull)
