"""One cell of the benchmark, a question at a size, a degree of breaking and a seed, and what methods share in it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import escnn_relax
from torch import nn

from benchmark.networks import reinitialised, seeded
from benchmark.question import Data, Pairs, Question
from benchmark.training import Counted


#: Beyond this a target (standard deviations) is no physics.
LARGEST = 20.0


@dataclass
class Cell:
    """What a method is asked.

    Attributes:
        count: number of training samples.
        degree: of breaking (fraction).
        passes: over the training data, the same for all methods.
        kept: what one method leaves for another, by its name; with the seconds that it took.
    """

    question: Question
    count: int
    degree: float
    seed: int
    folder: Path | None = None
    passes: int = 0
    kept: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = self.question.passes
        self.passes = self.passes or known.get(self.count) or known[min(known, key=lambda n: abs(n - self.count))]

    @cached_property
    def data(self) -> Data:
        data = self.question.make(self.count, self.degree, self.seed, self.folder)
        largest = max(float(pairs.y.abs().max()) for pairs in data)
        if self.question.classes is None and not largest < LARGEST:
            raise ArithmeticError(f"the solver diverged: a target of {largest:g} standard deviations")
        return data

    @cached_property
    def split(self) -> tuple[Pairs, Pairs]:
        """Four fifths of the training data, and a fifth for those methods that validate."""
        cut = self.count - self.count // 5
        return self.data.train.part(slice(cut)), self.data.train.part(slice(cut, None))

    def loader(self, pairs: Pairs | None = None) -> Counted:
        return Counted(self.data.train if pairs is None else pairs, self.question.batch, self.seed)

    def strict(self, group: str | None = None, fields: int | None = None) -> nn.Module:
        """The strict network of a subgroup, its filters drawn by the seed."""
        group = group or self.question.group

        def build() -> nn.Module:
            net = self.question.network(fields or self.question.fields)
            if group != self.question.group:
                net = escnn_relax.restrict(net, self.question.statics[group])
            return reinitialised(net)

        return seeded(self.seed, build)


class Clock:
    """Processor seconds of a block.

    >>> with Clock() as clock:
    ...     pass
    >>> clock.seconds >= 0
    True
    """

    def __enter__(self) -> Clock:
        self.start = time.process_time()
        return self

    def __exit__(self, *problem: object) -> None:
        self.seconds = time.process_time() - self.start
