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
    """Questions whose targets are fields on the left, those of labels on the right."""
    import matplotlib.pyplot as plt

    is_field = lambda place: QUESTIONS[place.question].classes is None
    kinds = {"fields": {p: c for p, c in cells.items() if is_field(p)}}
    kinds["labels"] = {p: c for p, c in cells.items() if not is_field(p)}
    kinds = {kind: part for kind, part in kinds.items() if part}
    height = 0.42 * len(order()) + 1.6
    figure, panels = plt.subplots(1, len(kinds), figsize=(8 * len(kinds), height), layout="constrained", squeeze=False)
    for axes, (kind, part) in zip(panels[0], kinds.items()):
        image = panel(axes, part)
        axes.set_title(f"targets are {kind}: {', '.join(dict.fromkeys(place.question for place in part))}")
    sizes = "fewer samples left of the line, four times as many right of it"
    figure.supxlabel(f"degree of breaking; {sizes}; all: mean of the row, where it has runs everywhere")
    figure.suptitle(
        "Regret against the best static network in hindsight, % of the static networks' range, mean over questions"
    )
    figure.colorbar(
        image, ax=panels[0], pad=0.01, label="regret, %: blue is better than all of them, blank was not run"
    )
    figure.savefig(path, dpi=100)
    plt.close(figure)


def panel(axes, cells: Cells):
    """One heat map with its numbers."""
    names, places, table = mean_regrets(cells)
    table = np.concatenate([table, table.mean(1, keepdims=True)], 1)  # nothing where a place lacks runs
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
    return image
