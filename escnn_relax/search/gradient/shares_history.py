r"""How the shares :math:`\pi` of each layer moved during a search: records, table, figure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from ...deprecation import former_keyword
from ...errors import ArgumentError
from ...symmetry.html_table import html_table

#: Panels in a row.
COLUMNS = 8

__all__ = ["SearchEpoch", "SharesHistory"]


@dataclass(frozen=True)
class SearchEpoch:
    """One epoch of a differentiable search.

    Attributes:
        phase: ``"search"`` or ``"retrain"``.
        epoch: counted from 0 within its phase.
        loss: training loss averaged over samples (nats; with the penalty where the evidence decides).
        architecture_loss: the loss that the architecture weights descended, averaged over their steps; NaN without any.
        log_evidence: log evidence / N (nats a sample), where the evidence decides.
        note: what happened out of the ordinary.

    >>> SearchEpoch("search", 0, loss=1.2).log_evidence is None  # the evidence had no say
    True
    """

    phase: str
    epoch: int
    loss: float
    architecture_loss: float = math.nan
    log_evidence: float | None = None
    note: str = ""


@dataclass(frozen=True)
class SharesHistory:
    """Shares by layer and step.

    Attributes:
        groups: for each mixed layer the names of the groups in its mixture.
        steps: the steps at which shares were recorded, 0 before the first.
        shares: for each layer one tuple of shares a recorded step, in the order of its groups (fractions).
        epochs: what happened in each epoch.

    >>> epochs = (SearchEpoch("search", 0, 1.2),)
    >>> moved = SharesHistory({"conv": ("C4", "C1")}, (0, 1), {"conv": ((0.5, 0.5), (0.9, 0.1))}, epochs)
    >>> moved.final()
    {'conv': {'C4': 0.9, 'C1': 0.1}}
    >>> print(moved)
    layer             C4             C1
    conv     50% → 90.0%    50% → 10.0%
    """

    groups: dict[str, tuple[str, ...]]
    steps: tuple[int, ...]
    shares: dict[str, tuple[tuple[float, ...], ...]]
    epochs: tuple[SearchEpoch, ...]

    def final(self) -> dict[str, dict[str, float]]:
        """The last recorded shares, by layer and group."""
        return {layer: dict(zip(self.groups[layer], shares[-1])) for layer, shares in self.shares.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for machines."""
        return asdict(self)

    def table(self) -> str:
        """The first and the last shares of each layer, one line a layer."""
        names = list(dict.fromkeys(group for groups in self.groups.values() for group in groups))
        width, column = max([5, *(len(layer) for layer in self.groups)]), max([13, *(len(n) for n in names)])
        lines = [f"{'layer':<{width}}  " + "  ".join(f"{name:>{column}}" for name in names)]
        for layer, *cells in self._rows(names):
            lines.append(f"{layer:<{width}}  " + "  ".join(f"{cell:>{column}}" for cell in cells))
        return "\n".join(lines)

    def _rows(self, names: list[str]) -> list[list[str]]:
        rows = []
        for layer, groups in self.groups.items():
            cells = []
            for name in names:
                if name not in groups:
                    cells.append("–")
                    continue
                index = groups.index(name)
                before, after = self.shares[layer][0][index], self.shares[layer][-1][index]
                cells.append(f"{before:.0%} → {after:.1%}")
            rows.append([layer, *cells])
        return rows

    def to_html(self, notes: Iterable[str] = ()) -> str:
        """The table for notebooks, with paragraphs below it."""
        names = list(dict.fromkeys(group for groups in self.groups.values() for group in groups))
        return html_table(["layer", *names], self._rows(names), notes, words=1)

    def _repr_html_(self) -> str:
        return self.to_html()

    __str__ = table

    @former_keyword("axes", "ax")
    def plot(self, ax: Any = None) -> Any:
        """Shares over the steps, one panel a layer, stacked; returns the array of matplotlib axes.

        Args:
            ax: as many matplotlib axes as there are layers, in any form; a new figure by default.

        Raises:
            ArgumentError: fewer of them.
        """
        import matplotlib.pyplot as plt
        import numpy as np
        from matplotlib.patches import Rectangle

        if ax is None:
            columns = min(len(self.groups), COLUMNS)
            rows = math.ceil(len(self.groups) / columns)
            size = (2.6 * columns + 1.4, 3.0 if rows == 1 else 1.9 * rows)
            _, ax = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False, layout="constrained")
            for unused in ax.flatten()[len(self.groups) :]:
                unused.remove()
            ax = ax.flatten()[: len(self.groups)]
        axes = np.atleast_1d(np.asarray(ax, dtype=object)).flatten()
        if len(axes) < len(self.groups):
            remedy = "leave ax out for a new figure"
            raise ArgumentError("plot", expected=f"{len(self.groups)} axes", got=len(axes), remedy=remedy)
        names = list(dict.fromkeys(group for groups in self.groups.values() for group in groups))
        colors = {name: plt.get_cmap("cividis")(n / max(len(names) - 1, 1)) for n, name in enumerate(names)}
        for panel, (layer, groups) in zip(axes, self.groups.items()):
            by_group = list(zip(*self.shares[layer]))
            panel.stackplot(self.steps, by_group, colors=[colors[name] for name in groups], linewidth=0)
            panel.set_title(layer, fontsize=10 if len(layer) < 24 else 8)
            if panel in axes[max(0, len(self.groups) - COLUMNS) :]:
                panel.set_xlabel("step")
            panel.set_ylim(0, 1)
            panel.set_xlim(self.steps[0], max(self.steps[-1], self.steps[0] + 1))
        for panel in axes[: len(self.groups) : COLUMNS]:
            panel.set_ylabel("share π")
        handles = [Rectangle((0, 0), 1, 1, color=colors[name]) for name in names]
        axes[0].figure.legend(handles, names, loc="outside right center", frameon=False)
        return axes
