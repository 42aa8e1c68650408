"""The family tree of an evolutionary search, and its last front, as a figure."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

from .individual import Individual

__all__ = ["LABELS", "plot_family_tree"]

#: What the individuals were ordered by, in words.
LABELS = {"score": "score", "log_evidence": "log evidence / N (nats)"}
#: Characters of a label; longer ones are cut in the middle.
LONGEST = 18


def plot_family_tree(
    individuals: Sequence[Individual],
    lineage: Sequence[Individual],
    front_ids: Collection[int],
    criterion: str,
    axes: Any = None,
) -> Any:
    """Generations downwards, and the last front beside them; returns the two matplotlib axes.

    Args:
        lineage: the winner's, drawn in black.
        front_ids: ids of the last front.
        criterion: what the individuals were ordered by.
    """
    import matplotlib.pyplot as plt

    if axes is None:
        height = max(4.5, 0.45 * (individuals[-1].generation + 2))
        _, axes = plt.subplots(1, 2, figsize=(11, height), layout="constrained", width_ratios=(3, 2))
    tree, front = axes
    places, line = {}, {individual.id for individual in lineage}
    for generation in range(individuals[-1].generation + 1):
        row = [individual for individual in individuals if individual.generation == generation]
        for n, individual in enumerate(row):
            places[individual.id] = ((n + 0.5) / len(row), generation)
    for individual in individuals:
        if individual.parent is not None:
            (x, y), (u, v) = places[individual.parent], places[individual.id]
            on = individual.id in line
            style = {"color": "black", "linewidth": 1.6} if on else {"color": "0.8", "linewidth": 0.6}
            tree.plot([x, u], [y, v], **style, zorder=2 if on else 1)
    values = [getattr(individual, criterion) for individual in individuals]
    finite = [v for v in values if math.isfinite(v)]
    survived = [individual.survived for individual in individuals]
    xs, ys = zip(*(places[individual.id] for individual in individuals))
    dots = tree.scatter(
        xs, ys, c=values, cmap="cividis", s=[70 if s else 18 for s in survived], zorder=3, plotnonfinite=True,
        edgecolors=["black" if s else "none" for s in survived], vmin=min(finite), vmax=max(finite),
    )  # fmt: skip
    for individual in lineage:
        if individual.change != "clone":
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}
            right = places[individual.id][0] > 0.6
            offset: dict[str, Any] = {"xytext": (-7 if right else 7, 6), "textcoords": "offset points"}
            offset["ha"] = "right" if right else "left"
            tree.annotate(_short(individual.groups), places[individual.id], **offset, fontsize=8, bbox=box, zorder=4)
    tree.figure.colorbar(dots, ax=tree, label=LABELS[criterion])
    tree.set(xticks=[], ylabel="generation", title="family tree (outlined: selected; black: the winner's line)")
    tree.set_yticks(range(individuals[-1].generation + 1))
    tree.invert_yaxis()
    last = [individual for individual in individuals if individual.generation == individuals[-1].generation]
    front.scatter(
        [individual.parameters for individual in last],
        [getattr(individual, criterion) for individual in last],
        color="0.7",
        s=25,
    )
    best = sorted(
        (individual for individual in last if individual.id in front_ids),
        key=lambda individual: individual.parameters,
    )
    front.plot(
        [individual.parameters for individual in best],
        [getattr(individual, criterion) for individual in best],
        "o-",
        color="black",
    )
    for individual in best:
        place = individual.parameters, getattr(individual, criterion)
        front.annotate(_short(individual.groups), place, xytext=(5, -11), textcoords="offset points", fontsize=8)
    front.set(xlabel="parameters", ylabel=LABELS[criterion], title="last generation and its front")
    front.margins(x=0.25, y=0.15)
    return axes


def _short(groups: str) -> str:
    """A label that leaves room for others."""
    words = groups.split()
    if len(groups) <= LONGEST or len(words) < 3:
        return groups
    while len(words) > 2 and len(" ".join(words)) + 2 > LONGEST:
        del words[-2]
    return f"{' '.join(words[:-1])} … {words[-1]}"
