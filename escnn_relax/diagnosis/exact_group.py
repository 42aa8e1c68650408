"""The elements of a network's group that move pixels onto pixels: those by which a test can randomise exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from escnn.group import GroupElement
from escnn.gspaces import GSpace
from torch import Tensor

from ..errors import UnsupportedModuleError
from ..symmetry.grid.field_action import acts_on_grid
from ..symmetry.groups.lattice import Subgroup, subgroups

__all__ = ["ExactGroup", "exact_group", "products", "random_elements"]

#: Cyclic subgroups of a continuous group that acts on no grid are listed up to this order.
LARGEST_ORDER = 16


@dataclass(frozen=True)
class ExactGroup:
    """A finite group of elements that act exactly, the identity first.

    Attributes:
        gspace: where the elements come from.
        elements: of its fibergroup.
        quotients: position of :math:`g_i^{-1} g_j`, shape ``(order, order)``.
    """

    gspace: GSpace
    elements: tuple[GroupElement, ...]
    quotients: Tensor

    @property
    def order(self) -> int:
        return len(self.elements)

    @property
    def whole(self) -> bool:
        """Whether these are all elements of the layer's group."""
        return bool(self.gspace.fibergroup.order() == self.order)

    def counterparts(self, gspace: GSpace) -> tuple[GroupElement, ...]:
        """The same elements in the group of another layer.

        Raises:
            UnsupportedModuleError: a layer of another group in which they are not known.
        """
        if gspace.fibergroup == self.gspace.fibergroup:
            return self.elements
        problem = (
            f"its group {gspace.fibergroup.name} and {self.gspace.fibergroup.name} of other layers have no known"
            " embedding"
        )
        error = UnsupportedModuleError("", problem, remedy="leave the layer out by layers=")
        if not gspace.dimensionality or gspace.dimensionality != self.gspace.dimensionality:
            raise error
        candidates = exact_group(gspace).elements
        elements = []
        for g in self.elements:
            matrix = np.asarray(self.gspace.basespace_action(g))
            alike = [h for h in candidates if np.abs(np.asarray(gspace.basespace_action(h)) - matrix).max() < 1e-6]
            if len(alike) != 1:
                raise error
            elements.append(alike[0])
        return tuple(elements)

    @cached_property
    def subgroups(self) -> tuple[tuple[Subgroup, tuple[int, ...]], ...]:
        """The subgroups that lie inside, large to small, with the positions of their elements."""
        members = []
        for member in subgroups(self.gspace):
            if 0 < member.order <= self.order:
                positions = [_position(self.elements, g) for g in member.elements]
                if all(p is not None for p in positions):
                    members.append((member, tuple(p for p in positions if p is not None)))
        return tuple(sorted(members, key=lambda entry: -len(entry[1])))


def exact_group(*gspaces: GSpace) -> ExactGroup:
    """The largest finite group that acts exactly on the grids of all these G-spaces.

    >>> from escnn import gspaces
    >>> [exact_group(space).order for space in (gspaces.rot2dOnR2(8), gspaces.flipRot2dOnR2(-1), gspaces.rot2dOnR2(3))]
    [4, 8, 1]
    """
    candidates = [space for space in gspaces if space.dimensionality] or list(gspaces)
    base = min(candidates, key=lambda space: space.fibergroup.order() if space.fibergroup.order() > 0 else 10**9)
    group = base.fibergroup
    if group.order() > 0:
        elements = [g for g in group.elements if acts_on_grid(base, g)]
    else:
        bound = 8 if base.dimensionality else LARGEST_ORDER
        finite = [h for h in subgroups(base, bound) if h.order > 0 and all(acts_on_grid(base, g) for g in h.elements)]
        elements = list(max(finite, key=lambda h: h.order).elements)
    elements = sorted(elements, key=lambda g: g != group.identity)
    positions: Any = {g: n for n, g in enumerate(elements)} if group.order() > 0 else None
    table = [[positions[~g @ h] if positions else _position(elements, ~g @ h) for h in elements] for g in elements]
    return ExactGroup(base, tuple(elements), torch.tensor(table))


def random_elements(gspace: GSpace, count: int, generator: torch.Generator) -> list[GroupElement]:
    """Elements of a G-space's group, exact on the grid or not: of a finite group in random order, each as often as the
    others; of a continuous one by Haar's measure."""
    group = gspace.fibergroup
    if group.order() > 0:
        return [
            group.elements[n]
            for n in (torch.randperm(max(count, group.order()), generator=generator) % group.order())[:count]
        ]
    state = np.random.get_state()  # escnn draws from numpy's global generator
    np.random.seed(int(torch.randint(2**31, (1,), generator=generator)))
    try:
        return [group.sample() for _ in range(count)]
    finally:
        np.random.set_state(state)


def products(elements: Sequence[GroupElement]) -> dict[int, tuple[int, int] | None]:
    """A finite group out of few generators: for each position two others whose product it is, ``None`` for a generator.

    Factors come before their product; the identity is a product, too, unless it is alone.

    >>> from escnn.group import dihedral_group
    >>> factors = products(dihedral_group(4).elements)
    >>> len(factors), sum(pair is None for pair in factors.values())
    (8, 2)
    """
    factors: dict[int, tuple[int, int] | None] = {}
    positions = {g: n for n, g in enumerate(elements)} if elements[0].group.order() > 0 else None
    for generator in sorted(range(len(elements)), key=lambda n: -_order(elements[n])):
        if generator in factors:
            continue
        factors[generator] = None
        new = [generator]
        while new:
            fresh: list[int] = []
            for a in list(factors):
                for b in new:
                    for first, second in ((a, b), (b, a)):
                        product = elements[first] @ elements[second]
                        n = positions.get(product) if positions is not None else _position(elements, product)
                        if n is not None and n not in factors:
                            factors[n] = first, second
                            fresh.append(n)
            new = fresh
    return factors


def _order(element: GroupElement) -> int:
    power, n = element, 1
    while power != element.group.identity and n < 10**4:
        power, n = power @ element, n + 1
    return n


def _position(elements: Sequence[GroupElement], element: GroupElement) -> int | None:
    return next((n for n, g in enumerate(elements) if g == element), None)
