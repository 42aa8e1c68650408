"""What the benchmark was made to show, each claim with the numbers that decide it. None is left out where it fails."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from benchmark.methods import FIT, LATER, RPP, TESTED
from benchmark.regret import Cells, Place, Regret, regrets


class Claim(NamedTuple):
    """A sentence, whether it holds, and the numbers."""

    words: str
    holds: bool
    numbers: str


def claims(cells: Cells) -> list[Claim]:
    """Of runs that hold ``fit`` and the static networks at least."""
    found = regrets(cells)
    ours = found.get(FIT, {})
    if not ours:
        return []
    return [*of_regret(ours), *of_breaking(ours), *of_rivals(found), *of_cost(cells, found)]


def of_regret(ours: dict[Place, Regret]) -> list[Claim]:
    values = {place: one.value for place, one in ours.items()}
    mean, worst = float(np.mean(list(values.values()))), max(values, key=values.__getitem__)
    place = f"{100 * values[worst]:.0f} % ({worst.question}, N = {worst.count}, degree {worst.degree:g})"
    return [
        Claim(
            "mean regret of `fit` over all cells at most 1 %",
            mean <= 0.01,
            f"{100 * mean:.1f} %; median {100 * float(np.median(list(values.values()))):.1f} %",
        ),
        Claim(
            "regret of `fit` at most 5 % in each cell",
            values[worst] <= 0.05,
            f"{sum(v <= 0.05 for v in values.values())} of {len(values)} cells; worst {place}",
        ),
    ]


def of_breaking(ours: dict[Place, Regret]) -> list[Claim]:
    between = [one for place, one in ours.items() if 0 < place.degree < 1]
    better = sum(one.value < 0 for one in between)
    words = "`fit` strictly better than the best static network in a third of the cells of intermediate breaking"
    return [Claim(words, bool(between) and 3 * better >= len(between), f"{better} of {len(between)}")]


def of_rivals(found: dict[str, dict[Place, Regret]]) -> list[Claim]:
    """Where both have runs."""
    both = [place for place in found[FIT] if place in found.get(RPP, {})]
    if not both:
        return []
    ours, theirs = (np.array([found[name][place].value for place in both]) for name in (FIT, RPP))
    wins = int((ours < theirs).sum())
    numbers = f"mean regret {100 * ours.mean():.1f} % against {100 * theirs.mean():.1f} %"
    numbers += f"; better in {wins} of {len(both)} cells"
    return [Claim("`fit` better than tuned RPP, without validation data", ours.mean() < theirs.mean(), numbers)]


def of_cost(cells: Cells, found: dict[str, dict[Place, Regret]]) -> list[Claim]:
    result = []
    for name in (TESTED, LATER):
        both = [place for place in found[FIT] if place in found.get(name, {})]
        if not both:
            continue
        errors = [max(found[name][p].error, 1e-3) / max(found[FIT][p].error, 1e-3) for p in both]
        worse = float(np.exp(np.mean(np.log(errors))) - 1)
        cost = float(np.median([relative_cost(cells[place], name) for place in both]))
        words = f"“{name}” within 10 % of `fit`'s error, at the cost of a strict training (at most 1.25 times)"
        result.append(Claim(words, worse <= 0.1 and cost <= 1.25, f"error {100 * worse:+.0f} %, cost {cost:.2f}"))
    return result


def relative_cost(runs: dict[str, dict[int, dict]], method: str) -> float:
    """Processor seconds of a method over those of the strict network of the whole group, which comes first, in the same
    cell."""
    whole = next(name for name in runs if name.startswith("strict "))
    shared = set(runs[method]) & set(runs[whole])
    seconds = [np.mean([runs[name][seed]["seconds"] for seed in shared]) for name in (method, whole)]
    return float(seconds[0] / max(seconds[1], 1e-9))
