"""Finite groups of rotations by their tables: escnn multiplies such elements one by one, through quaternions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from escnn import group as g
from numpy.typing import NDArray

__all__ = ["Embedding", "RotationTable", "group_elements", "group_order", "rotation_table", "table_embedding"]

#: A subgroup H, the map H -> G and the map G -> H (None outside H).
Embedding = tuple[g.Group, Callable[..., Any], Callable[..., Any]]

_ELEMENTS: dict[int, tuple[g.Group, tuple[g.GroupElement, ...]]] = {}
_TABLES: dict[int, RotationTable] = {}


def group_elements(group: g.Group) -> tuple[g.GroupElement, ...]:
    """The elements of a finite group, in escnn's order; escnn's product groups build them anew each time they are
    asked."""
    if id(group) not in _ELEMENTS:  # groups cannot be hashed, and are never freed
        _ELEMENTS[id(group)] = group, tuple(group.elements)
    return _ELEMENTS[id(group)][1]


def group_order(group: g.Group) -> int:
    """The number of elements, -1 for a continuous group, without building the elements of a product."""
    if isinstance(group, g.DirectProductGroup):
        orders = group_order(group.G1), group_order(group.G2)
        return -1 if min(orders) < 0 else orders[0] * orders[1]
    return int(group.order())


class RotationTable:
    """The elements of a platonic group as matrices, and their products, by position in ``group.elements``."""

    def __init__(self, group: g.Group) -> None:
        self.group = group
        self.elements = group_elements(group)
        self.matrices: NDArray[Any] = np.stack([np.asarray(e.to("MAT"), dtype=np.float64) for e in self.elements])
        self.identity = self.position(np.eye(3))

    def position(self, matrix: NDArray[Any]) -> int:
        """Where this rotation stands."""
        distances = ((self.matrices - matrix) ** 2).sum((1, 2))
        nearest = int(distances.argmin())
        if distances[nearest] > 1e-6:
            raise ValueError(f"{self.group.name} does not contain the rotation {matrix.tolist()}")
        return nearest

    @cached_property
    def product(self) -> NDArray[Any]:
        """``product[a, b]`` is the position of the a-th element times the b-th."""
        flat = self.matrices.reshape(len(self.matrices), 9)
        products = np.einsum("aij,bjk->abik", self.matrices, self.matrices).reshape(-1, 9)
        positions: NDArray[Any] = (products @ flat.T).argmax(1).reshape(2 * (len(flat),))
        return positions

    @cached_property
    def inverse(self) -> NDArray[Any]:
        """Positions of the inverses."""
        return np.argwhere(self.product == self.identity)[:, 1]

    def conjugate(self, positions: Sequence[int], conjugator: int) -> list[int]:
        """The positions of A^-1 h A."""
        return [int(self.product[self.product[self.inverse[conjugator], p], conjugator]) for p in positions]

    def powers(self, position: int) -> list[int]:
        """The cyclic group that an element generates, the identity first."""
        positions = [self.identity]
        while True:
            power = int(self.product[position, positions[-1]])
            if power == self.identity:
                return positions
            positions.append(power)


def rotation_table(group: g.Group) -> RotationTable:
    """The table of a platonic group, made once."""
    if id(group) not in _TABLES:
        _TABLES[id(group)] = RotationTable(group)
    return _TABLES[id(group)]


def table_embedding(subgroup: g.Group, images: Sequence[g.GroupElement]) -> Embedding:
    """The embedding that takes the elements of a finite group, in their order, to these."""
    elements = group_elements(subgroup)
    inclusion, inverse = dict(zip(elements, images)), dict(zip(images, elements))
    return subgroup, inclusion.__getitem__, inverse.get
