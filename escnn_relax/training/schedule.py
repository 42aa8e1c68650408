"""When a training run refreshes the curvature, and how much of the data it looks at then."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..curvature.distributed import processes
from ..curvature.enough_data import SAMPLES, Enough
from .loaders import LoaderPart, Onward

__all__ = ["Schedule", "first", "tested"]

#: From one refresh to the next the number of passes grows by this factor: early the weights change much, and the rate
#: of learning falls. Their number, and so their share of the training, falls as its length grows.
GROWTH = 1.4
#: Not nearer than so many epochs.
LEAST = 2
#: The first refresh waits for so many epochs, or this share of the training, if that is less.
BURN_IN, FIRST = 10, 1 / 4
#: The last of them comes where this part of the training is left, so that the weights follow it.
END = 0.1
#: A strict network trains for so many epochs before it is tested, or this part of the training, if that is less. At
#: random weights all asks to be broken that inputs or question break, whether the trained network gains by it or not;
#: what opens late is learned less well (``tests/benchmarks/gates.md``).
STRICT, STRICT_SHARE = 4, 1 / 10
#: It is tested again at each refresh up to the first past this part of the training: with few data what it needs is
#: seen for some epochs only, neither before it has learned anything nor when it knows its samples by heart.
AGAIN = 0.3
#: Not before so many times the epochs of the test before it.
APART = 1.25
#: Columns of the last refresh, by samples or by several for each: what the evidence says in the end is more precise
#: (1300 upright digits of MNIST: off by 0.5 % with 4000, 1 % with 1300).
LAST = 2000


class Look(NamedTuple):
    """What a refresh looks at."""

    data: Iterable[Any]
    enough: Enough | None


@dataclass(frozen=True)
class Schedule:
    """The epochs of the refreshes, and their parts of the data.

    Attributes:
        epochs: that end with a refresh.
        look: what the n-th of them looks at.
        last: what the refresh after the training looks at.

    >>> Schedule.plan([], 100).epochs, Schedule.plan([], 20).epochs, Schedule.plan([], 9, burn_in=2, every=3).epochs
    ((10, 14, 20, 27, 38, 54, 75, 90), (5, 7, 10, 14, 18), (2, 5, 8))
    """

    epochs: tuple[int, ...]
    look: Callable[[int], Look]
    last: Look

    def tests(self, total: int) -> tuple[int, ...]:
        """The refreshes of a training of so many epochs that end with another symmetry test.

        >>> Schedule.plan([], 100).tests(100), Schedule.plan([], 100, every=1).tests(100)
        ((10, 14, 20, 27, 38), (10, 13, 17, 22, 28, 35))
        """
        chosen: list[int] = []
        for epoch in self.epochs:
            if chosen and chosen[-1] >= AGAIN * total:
                break
            if epoch >= APART * (chosen[-1] if chosen else tested(total)):
                chosen.append(epoch)
        return tuple(chosen)

    @staticmethod
    def plan(
        loader: Iterable[Any],
        epochs: int,
        burn_in: int | None = None,
        every: int | None = None,
        share: float | None = None,
        num_data: int | None = None,
        held: bool = False,
    ) -> Schedule:
        """Where nothing is said: geometrically spaced, each as much of the data as
        :class:`~escnn_relax.curvature.enough_data.Enough` asks for.

        Args:
            share: of the batches; ``None`` for what is enough, which presupposes that ``num_data`` is known.
            held: whether the loader has just that many samples, so that the last refresh may read evenly spaced ones.
        """
        start = first(epochs) if burn_in is None else burn_in
        if every is not None:
            at = list(range(start, epochs, every))
        else:
            at, exact = [], float(start)
            end = math.floor((1 - END) * epochs)
            while round(exact) <= end - LEAST:
                at.append(round(exact))
                exact = max(exact * GROWTH, at[-1] + LEAST)
            at += [end] if start <= end < epochs else []
        divided = num_data is not None and share is None
        if share is not None and share < 1:
            LoaderPart(loader, share, 0)  # to fail before anything is trained
        several = processes()

        def look(index: int) -> Look:
            if divided:
                return Look(Onward(loader, index), Enough(SAMPLES / several))
            return Look(loader if share is None or share == 1 else LoaderPart(loader, share, index), None)

        last: Enough | None = None
        if divided and num_data is not None:
            total = math.ceil(num_data / several) if held else None
            last = Enough(math.inf, max(1, math.ceil(LAST / num_data)), total)
        return Schedule(tuple(at), look, Look(loader, last))


def tested(epochs: int) -> int:
    """The epoch that ends with the first symmetry test, counted from 0."""
    return min(STRICT, math.floor(STRICT_SHARE * epochs))


def first(epochs: int) -> int:
    """The first epoch that ends with a refresh, counted from 0."""
    return min(BURN_IN, math.ceil(FIRST * epochs))
