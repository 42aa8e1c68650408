"""The records of a symmetry test as a heat map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .pathway_test import PathwayTest

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["heat_map"]

#: More layers than these are drawn in narrow rows.
MANY = 12


def heat_map(tests: Sequence[PathwayTest], title: str, ax: Axes | None) -> Axes:
    """See :meth:`~escnn_relax.diagnosis.SymmetryTest.plot`."""
    import matplotlib.pyplot as plt
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle

    layers = list(dict.fromkeys(t.layer for t in tests))
    pathways = list(dict.fromkeys(t.pathway for t in tests))
    if ax is None:
        size = (2.5 + 1.1 * len(pathways), 1.8 + (0.26 if len(layers) > MANY else 0.5) * len(layers))
        ax = plt.subplots(figsize=size, layout="constrained")[1]
    small = 7 if len(layers) > MANY else 9
    values = [[math.nan] * len(pathways) for _ in layers]
    for t in tests:
        x, y = pathways.index(t.pathway), layers.index(t.layer)
        if t.testable:
            values[y][x] = min(max(t.ratio, 1.0), 100.0)
            text = f"{t.ratio:.1f}{' *' if t.broken else ''}"
            ax.text(x, y, text, ha="center", va="center", color="white" if t.ratio < 6 else "black", fontsize=small)
        else:
            hatch = "xx" if t.exact is False else "///"
            box = Rectangle(
                (x - 0.5, y - 0.5), 1, 1, facecolor="#eeeeee", edgecolor="#888888", hatch=hatch, linewidth=0
            )
            ax.add_patch(box)
    image = ax.imshow(values, cmap="cividis", norm=LogNorm(1, 100), aspect="auto")
    ax.figure.colorbar(image, ax=ax, label="statistic / mean under symmetry", aspect=max(20, len(layers)))
    ax.set_xticks(range(len(pathways)), pathways, rotation=20 if len(pathways) > 4 else 0)
    ax.set_yticks(range(len(layers)), layers, fontsize=small if len(layers) > MANY else None)
    ax.set_title(title, fontsize=10)
    return ax
