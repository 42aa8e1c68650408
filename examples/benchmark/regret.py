"""How much worse than the best network of fixed symmetry, chosen with hindsight, a method is in one cell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from benchmark.methods import static


class Place(NamedTuple):
    """A question at a number of samples and a degree of breaking: the runs of all seeds and methods in it."""

    question: str
    count: int
    degree: float


#: Method, then seed, to the stored line of a run that did not fail.
Cells = dict[Place, dict[str, dict[int, dict]]]


def gathered(lines: Iterable[dict]) -> Cells:
    """Stored runs by cell, those that failed left out."""
    cells: Cells = {}
    for line in lines:
        if "failed" not in line:
            place = Place(line["question"], line["count"], line["degree"])
            cells.setdefault(place, {}).setdefault(line["method"], {})[line["seed"]] = line
    return cells


@dataclass(frozen=True)
class Regret:
    """One method in one cell.

    Attributes:
        value: (error - error of the best static network) / (largest - least error of static networks), a fraction;
            negative where it is better than all of them. Errors are means over seeds, so that the best is one network
            for all of them.
        error, best: the errors behind it.
        seeds: that the method and all static networks have.
        choice: name of the best static network.
    """

    value: float
    error: float
    best: float
    seeds: tuple[int, ...]
    choice: str


def regret(errors: Mapping[str, Mapping[int, float]], method: str) -> Regret | None:
    """Of one method, from the errors of all by seed; None without a seed that it shares with all static networks.

    >>> errors = {"CNN": {0: 0.2}, "strict C4": {0: 0.4}, "fit": {0: 0.25}}
    >>> round(regret(errors, "fit").value, 9)
    0.25
    """
    statics = [name for name in errors if static(name)]
    shared = set(errors.get(method, {}))
    for name in statics:
        shared &= set(errors[name])
    if not shared or len(statics) < 2:
        return None
    seeds = tuple(sorted(shared))
    mean = {name: float(np.mean([errors[name][seed] for seed in seeds])) for name in {*statics, method}}
    choice = min(statics, key=mean.__getitem__)
    span = max(mean[name] for name in statics) - mean[choice]
    value = (mean[method] - mean[choice]) / span if span else 0.0
    return Regret(value, mean[method], mean[choice], seeds, choice)


def regrets(cells: Cells, measure: str = "error") -> dict[str, dict[Place, Regret]]:
    """Of every method in every cell."""
    found: dict[str, dict[Place, Regret]] = {}
    for place, runs in cells.items():
        errors = {name: {seed: line[measure] for seed, line in of.items()} for name, of in runs.items()}
        for name in runs:
            value = regret(errors, name)
            if value is not None:
                found.setdefault(name, {})[place] = value
    return found
