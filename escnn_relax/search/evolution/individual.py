"""One network of an evolutionary search, and which of several none other beats."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .genome import Genome

__all__ = ["Individual", "pareto_front"]


@dataclass(frozen=True)
class Individual:
    """One network of a search.

    Attributes:
        id: in the order of creation.
        parent: id of the one it comes from, ``None`` for the first.
        generation: counted from 0, the initial network.
        genome: its group at each stage.
        change: the move that made it.
        parameters: number of trainable weights.
        loss: mean training loss in its generation (NaN without training).
        score: of the user's function (NaN if it failed or there is none).
        log_evidence: log evidence / N (nats a sample; NaN unless selected by it).
        survived: whether it was selected.
        note: what went wrong.

    >>> one = Individual(1, 0, 1, ("D4", "D4", "C4"), "2: D4 → C4", 120, 0.3, 0.9, math.nan, True)
    >>> one.groups
    'D4² C4'
    """

    id: int
    parent: int | None
    generation: int
    genome: Genome
    change: str
    parameters: int
    loss: float
    score: float
    log_evidence: float
    survived: bool
    note: str = ""

    @property
    def groups(self) -> str:
        """The genome in short, e.g. ``"D4³ C4 C1²"``."""
        runs: list[list[Any]] = []
        for name in self.genome:
            if runs and runs[-1][0] == name:
                runs[-1][1] += 1
            else:
                runs.append([name, 1])
        return " ".join(
            n if k == 1 else n + str(k).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")) for n, k in runs
        )


def pareto_front(candidates: Iterable[tuple[int, float, float]]) -> list[int]:
    """Ids of the candidates ``(id, value, cost)`` that none other beats: as good and cheaper, or better and as cheap.

    >>> pareto_front([(0, 0.9, 10), (1, 0.8, 5), (2, 0.8, 7), (3, 0.7, 5)])
    [0, 1]
    """
    candidates = [c for c in candidates if math.isfinite(c[1])]
    return [
        id
        for id, value, cost in candidates
        if not any(v >= value and c <= cost and (v > value or c < cost) for _, v, c in candidates)
    ]
