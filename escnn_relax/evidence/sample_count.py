"""How many training samples a refresh says there are, where nobody did."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ..curvature.distributed import distributed, several
from .distinct_samples import draws
from .recurring_samples import Recurring

__all__ = ["SampleCount"]

Progress = Callable[[Iterable[Any]], Iterable[Any]]


class SampleCount:
    """Watches one pass over a loader: a sample that is drawn again says nothing new.

    Args:
        loader: of the pass.

    >>> SampleCount(["a batch"]).number(32)
    32
    """

    def __init__(self, loader: Iterable[Any]) -> None:
        self.draws = (
            None if several() and distributed(loader) else draws(loader)
        )  # those of a distributed sampler were counted once already
        self.watch = Recurring() if self.draws is None and not several() else None

    def through(self, progress: Progress | None) -> Progress | None:
        """What the loader has to go through, ``progress`` included."""
        watch = self.watch
        if watch is None:
            return progress
        return lambda loader: watch.through(progress(loader) if progress else loader)

    def number(self, seen: int) -> int:
        """Of different samples, after a pass that saw so many; warns where it cannot be sure."""
        if self.watch is not None:
            self.watch.warn(stacklevel=4)
        return seen if self.draws is None else round(seen * self.draws.distinct / self.draws.drawn)
