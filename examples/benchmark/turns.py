"""Quarter turns and mirrors of images, of fields of vectors, and of their targets: exact on pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Element(NamedTuple):
    """First mirrored left to right, or not, then turned by so many quarters against the clock."""

    quarters: int = 0
    mirrored: bool = False


TURNS = tuple(Element(k) for k in range(4))
HALF = (Element(0), Element(2))
NOTHING = (Element(0),)
MIRROR = (Element(0), Element(0, True))
#: By name, those of C4 and of D4 that the benchmark trains strict networks for.
OF_C4 = {"C4": TURNS, "C2": HALF, "C1": NOTHING}
OF_D4 = {"D4": (*TURNS, *(Element(k, True) for k in range(4))), "C4": TURNS, "D1": MIRROR, "C1": NOTHING}
IDS_OF_C4 = {"C4": 4, "C2": 2, "C1": 1}
IDS_OF_D4 = {"D4": (0, 4), "C4": (None, 4), "D1": (0, 1), "C1": (None, 1)}


def moved(field: Tensor, element: Element, vectors: Sequence[int] = ()) -> Tensor:
    """A field ``(n, c, side, side)`` moved by an element of D4.

    Args:
        vectors: channels that hold the first component (to the right) of a vector; the next one holds the second (up).
            All other channels are scalars.
    """
    if element.mirrored:
        field = field.flip(-1)
    field = torch.rot90(field, element.quarters, (-2, -1))
    if not vectors or element == Element():
        return field
    channels = list(field.unbind(1))
    for first in vectors:
        right, up = channels[first], channels[first + 1]
        if element.mirrored:
            right = -right
        for _ in range(element.quarters % 4):
            right, up = -up, right
        channels[first], channels[first + 1] = right, up
    return torch.stack(channels, 1)


class Moves(NamedTuple):
    """How elements move inputs and targets: which channels are vectors, and whether targets are labels that stay."""

    input_vectors: tuple[int, ...] = ()
    target_vectors: tuple[int, ...] = ()
    labels: bool = True

    def input(self, x: Tensor, element: Element) -> Tensor:
        return moved(x, element, self.input_vectors)

    def target(self, y: Tensor, element: Element) -> Tensor:
        return y if self.labels else moved(y, element, self.target_vectors)


def scattered(x: Tensor, y: Tensor, moves: Moves, elements: Sequence[Element], generator: torch.Generator):
    """Each sample moved by an element drawn for it."""
    drawn = torch.randint(len(elements), (len(x),), generator=generator)
    x, y = x.clone(), y.clone()
    for number, element in enumerate(elements):
        chosen = drawn == number
        if chosen.any():
            x[chosen], y[chosen] = moves.input(x[chosen], element), moves.target(y[chosen], element)
    return x, y
