"""How the cost of a refresh and of a training step grows, as a figure: ``growth.png`` from ``growth.jsonl``.

    python tests/benchmarks/draw_growth.py

The numbers are those of ``bench_width.py growth outputs --write``; each line's exponent is that of its last two points.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

HERE = Path(__file__).parent
PANELS = {
    "fields": "regular fields of C8, 3×3",
    "kernel size": "kernel size, 12 fields of C8",
    "order of the group": "order of the group, 12 fields, 5×5",
    "outputs": "classes, 2 fields of C8, 3×3",
}
#: What a line shows, by its name in the file: label and colour.
LINES = {
    "step": ("training step", "#777777"),
    "auto": ("refresh, auto", "#1f5fa8"),
    "expand": ("refresh, expand", "#d07a1f"),
    "exact": ("refresh, all outputs", "#d07a1f"),
    "one_column": ("refresh, default", "#1f5fa8"),
}


def panel(axes, title: str, points: list[dict]) -> None:
    """One line for each kind of time in the points, with its exponent."""
    values = sorted({point["value"] for point in points})
    for name, (label, colour) in LINES.items():
        line = sorted((point["value"], point[name]) for point in points if name in point)
        if not line:
            continue
        label += f", {exponent(line):.1f}" if len(line) > 1 else ""
        axes.loglog(*zip(*line), "o-", color=colour, label=label, markersize=4)
    axes.set_xlabel(title)
    axes.set_xticks(values, [str(value) for value in values])
    axes.minorticks_off()
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** 0.45)  # room for the legend above all lines
    axes.legend(fontsize=7, frameon=False, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)


def exponent(line: list[tuple[float, float]]) -> float:
    """Of the power of the value that the last two points lie on."""
    (x, y), (u, v) = line[-2:]
    return math.log(v / y) / math.log(u / x)


def main() -> None:
    points = [json.loads(line) for line in (HERE / "growth.jsonl").read_text(encoding="utf-8").splitlines()]
    figure, all_axes = plt.subplots(1, len(PANELS), figsize=(13, 3.2), layout="constrained")
    for axes, (what, title) in zip(all_axes, PANELS.items()):
        panel(axes, title, [point for point in points if point["what"] == what])
    all_axes[0].set_ylabel("processor time (s)")
    figure.suptitle("One batch of 32 images, 14×14; number beside a line: exponent of its last two points", fontsize=9)
    figure.savefig(HERE / "growth.png", dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
