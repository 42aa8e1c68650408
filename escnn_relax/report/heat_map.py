"""A report as a heat map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import ArgumentError
from ..symmetry.kernels.pathway import SWITCHED_OFF
from .records import LayerReport
from .table import percent_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["heat_map"]

#: More layers than these are named in one line each.
MANY = 12


def heat_map(layers: Sequence[LayerReport], axes: Axes | None, title: str, quantity: str) -> Axes:
    """See :meth:`escnn_relax.report.Report.plot`."""
    import matplotlib.pyplot as plt
    from matplotlib.colors import LogNorm, Normalize

    if quantity not in ("energy", "fraction"):
        raise ArgumentError(
            "quantity", expected="'energy' or 'fraction'", got=repr(quantity), remedy="leave it out for 'energy'"
        )
    label = "share of kernel energy" if quantity == "energy" else "effective dimension / dimension"
    names = list(dict.fromkeys(p.name for layer in layers for p in layer.pathways))
    many = len(layers) > MANY
    if axes is None:
        size = (2.4 + 1.25 * len(names), 1.4 + 0.6 * len(layers))
        if many:
            size = (3.6 + 0.9 * len(names), 1.4 + 0.26 * len(layers))
        _, axes = plt.subplots(figsize=size, layout="constrained")
    small = 7 if many else 9
    table = [
        [{p.name: getattr(p, quantity) for p in layer.pathways}.get(n, math.nan) for n in names] for layer in layers
    ]
    norm, floor = (LogNorm(1e-6, 1), 1e-6) if quantity == "energy" else (Normalize(0, 1), 0.0)
    image = axes.imshow([[max(e, floor) for e in row] for row in table], norm=norm, cmap="cividis", aspect="auto")
    for y, row in enumerate(table):
        for x, value in enumerate(row):
            off = quantity == "energy" and value <= SWITCHED_OFF
            text = "–" if math.isnan(value) else "off" if off else percent_text(value, 1)
            bright = not math.isnan(value) and float(norm(max(value, floor))) > 0.6
            axes.text(x, y, text, ha="center", va="center", color="black" if bright else "white", fontsize=small)
    axes.set_xticks(range(len(names)), names, rotation=20 if len(names) > 4 else 0)
    apart = ": " if many else "\nkeeps "
    named = [f"{layer.name}{apart}{layer.survivor}" if layer.survivor else layer.name for layer in layers]
    axes.set_yticks(range(len(layers)), named, fontsize=small if many else None)
    axes.set_xlabel("pathway")
    axes.set_ylabel("layer: what it keeps" if many else "layer")
    axes.set_title(title or label)
    axes.figure.colorbar(image, ax=axes, label=label, aspect=max(20, len(layers)))
    return axes
