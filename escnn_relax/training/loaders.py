"""What a training run must know of its loaders: how many samples they hold, and in which parts and orders they yield
them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sized
from itertools import islice
from typing import Any

import torch
from torch.utils.data import SequentialSampler

from ..curvature.checked_batches import batches, check_iterable
from ..curvature.distributed import check_batches, distributed, sum_processes
from ..errors import ArgumentError, DataError
from ..evidence.distinct_samples import draws
from ..evidence.random_state import generators, random_state, set_random_state
from ..evidence.recurring_samples import Recurring

__all__ = ["Onward", "LoaderPart", "Replayed", "data_size"]


#: The golden section, whose multiples fill the circle evenly.
GOLDEN = (5**0.5 - 1) / 2


class LoaderPart:
    """A part of a loader's batches: the ``index``-th of equal parts, one after the other and around the end, so that in
    the long run all batches are looked at equally often.

    Args:
        loader: re-iterable, with a length.
        share: how large a part (fraction); at least one batch is taken.

    >>> [list(LoaderPart(range(5), 0.4, index)) for index in range(4)]
    [[0, 1], [2, 3], [0, 4], [1, 2]]
    """

    def __init__(self, loader: Iterable[Any], share: float, index: int) -> None:
        if not isinstance(loader, Sized):
            remedy = "give the loader a length, or take a share of 1"
            raise ArgumentError("share", "the number of batches is not known", got=type(loader).__name__, remedy=remedy)
        self.loader, self.length = loader, max(1, len(loader))
        self.size = max(1, math.ceil(share * len(loader)))
        self.start = index * self.size % self.length

    def __iter__(self) -> Iterator[Any]:
        # in the order of the loader: what is around the end comes first
        beyond = self.start + self.size - self.length
        for position, batch in enumerate(islice(iter(self.loader), min(self.length, self.start + self.size))):
            if position < beyond or position >= self.start:
                yield batch


class Onward:
    """A loader's batches from another one on, and around the end; so that passes that end early look at other batches
    each time.

    The starts of successive passes lie as far apart as they can, at multiples of the golden section. One that shuffles
    is not turned, and neither is one without a length.

    >>> [list(Onward(range(5), index)) for index in range(3)]
    [[0, 1, 2, 3, 4], [3, 4, 0, 1, 2], [1, 2, 3, 4, 0]]
    """

    def __init__(self, loader: Iterable[Any], index: int) -> None:
        self.loader = loader
        in_order = isinstance(getattr(loader, "sampler", None), (SequentialSampler, type(None)))
        length = len(loader) if isinstance(loader, Sized) and in_order else 0
        self.start = math.floor(index * GOLDEN % 1 * length)

    def __iter__(self) -> Iterator[Any]:
        yield from islice(iter(self.loader), self.start, None)
        yield from islice(iter(self.loader), self.start)


class Replayed:
    """A loader that yields the same each time, however it shuffles or augments: it starts from the same random state.

    Args:
        loader: re-iterable.
        source: the loader with random generators of its own, where ``loader`` is a part of it.
        device: whose global generator counts beside the processor's.

    >>> from torch.utils.data import DataLoader
    >>> shuffled = Replayed(DataLoader(range(100), 100, shuffle=True))
    >>> torch.equal(next(iter(shuffled)), next(iter(shuffled)))
    True
    """

    def __init__(
        self, loader: Iterable[Any], source: Iterable[Any] | None = None, device: torch.device = torch.device("cpu")
    ) -> None:
        self.loader, self.device = loader, device
        self.generators = list(generators(loader if source is None else source))
        self.start: tuple[Any, list[torch.Tensor]] | None = None

    def __iter__(self) -> Iterator[Any]:
        if self.start is None:
            self.start = random_state(self.device), [g.get_state() for g in self.generators]
        else:
            set_random_state(self.start[0], self.device)
            for generator, state in zip(self.generators, self.start[1]):
                generator.set_state(state)
        return iter(self.loader)


def data_size(loader: Iterable[Any]) -> int:
    """Number of different samples that a loader draws from: what :func:`~.distinct.draws` finds, else by counting, with
    a warning where many are the same (:mod:`.recurring`); of all processes together, where there are several."""
    check_iterable(loader)
    if iter(loader) is loader:
        remedy = "pass a DataLoader or a list, something that can be gone through again"
        raise DataError("train_loader", "an iterator can be gone through only once", remedy=remedy)
    known = draws(loader)
    whole = known is not None and distributed(loader)  # of all processes
    if known is None:
        watch = Recurring()
        count = sum(len(target) for _, target in batches(loader, torch.device("cpu"), watch.through))
        watch.warn()
    else:
        count = known.distinct
    check_batches(count)
    if not count:
        raise DataError("train_loader", "it yields no batch", remedy="pass a non-empty, re-iterable loader")
    together = int(sum_processes(torch.tensor(0 if whole else count)))  # asked of all, whatever the others' loaders are
    return count if whole else together
