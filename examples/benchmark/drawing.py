"""The figure: degree of breaking × number of samples → regret of each method."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmark.questions import QUESTIONS
from benchmark.regret import Cells
from benchmark.tables import by_method, order

#: Beyond this regret (%) the colour says no more; the number does.
LIMIT = 60


def mean_regrets(cells: Cells) -> tuple[list[str], list[tuple[int, float]], np.ndarray]:
    """Methods, places (0 for the smaller number of samples, 1 for the larger; degree), mean regret over questions
    (%)."""
    found = by_method(cells)
    size = lambda place: QUESTIONS[place.question].sizes.index(place.count)
    known = [place for place in cells if place.count in QUESTIONS[place.question].sizes]
    places = sorted({(size(place), place.degree) for place in known})
    names = [name for name in order() if name in found]
    table = np.full((len(names), len(places)), np.nan)
    for i, name in enumerate(names):
        for j, (number, degree) in enumerate(places):
            values = [
                100 * one.value
                for place, (one, _) in found[name].items()
                if place in known and (size(place), place.degree) == (number, degree)
            ]
            if values:
                table[i, j] = np.mean(values)
    return names, places, table


def draw(cells: Cells, path: Path) -> None:
    import matplotlib.pyplot as plt

    names, places, table = mean_regrets(cells)
    table = np.concatenate([table, np.nanmean(table, 1, keepdims=True)], 1)
    figure, axes = plt.subplots(figsize=(11, 0.42 * len(names) + 1.6), layout="constrained")
    image = axes.imshow(table, cmap="RdBu_r", vmin=-LIMIT, vmax=LIMIT, aspect="auto")
    for (i, j), value in np.ndenumerate(table):
        if np.isfinite(value):
            colour = "white" if abs(value) > 0.6 * LIMIT else "black"
            axes.text(j, i, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=9)
    axes.set_yticks(range(len(names)), names)
    axes.set_xticks(range(len(places) + 1), [*(f"{degree:g}" for _, degree in places), "all"])
    turn = sum(number == 0 for number, _ in places)
    for edge in {turn, len(places)} - {0}:
        axes.axvline(edge - 0.5, color="black", linewidth=2)
    for label in axes.get_yticklabels():
        if label.get_text() == "fit":
            label.set_fontweight("bold")
    axes.set_xlabel("degree of breaking: fewer samples left, four times as many right")
    axes.set_title(
        "Regret against the best static network in hindsight, % of the static networks' range, mean over questions"
    )
    figure.colorbar(image, ax=axes, pad=0.01, label="regret, %: blue is better than all of them")
    figure.savefig(path, dpi=110)
    plt.close(figure)
