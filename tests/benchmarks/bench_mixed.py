"""What a training step of a [G]-mixed layer costs against the plain escnn layer of the same types.

    python tests/benchmarks/bench_mixed.py [--write tests/benchmarks/mixed.md] [--runs 15] [--threads 1]

A step is forward, backward and an Adam update of one layer with regular fields of D4 and kernels of 5 × 5, on a batch
of 64. Both layers are timed in turn, one step each, so that whatever else the machine does falls on both; medians are
reported.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
import escnn_relax  # noqa: E402, F401, I001  # before escnn, which may need what it brings
from escnn import gspaces
from escnn.nn import FieldType, R2Conv

from escnn_relax.nn import MixedR2Conv

SPACE = gspaces.flipRot2dOnR2(4)
GROUPS = {
    4: [(None, 4), (None, 2), (None, 1)],
    6: [(None, 4), (0, 2), (None, 2), (0, 1), (None, 1)],
}
#: Fields in and out, side of the image in pixels.
SIZES = [(4, 8, 28), (8, 8, 28), (8, 16, 14), (16, 16, 14), (16, 16, 7)]
BATCH = 64


def step(layer, x):
    """A training step of one layer, as a function without arguments."""
    adam = torch.optim.Adam(layer.parameters(), lr=1e-3)

    def run() -> None:
        adam.zero_grad()
        layer(x).tensor.square().mean().backward()
        adam.step()

    return run


def alternating(steps, runs: int) -> list[list[float]]:
    """Seconds of each run of each step, taken in turn."""
    for run in steps:
        run()
    seconds = [[] for _ in steps]
    for _ in range(runs):
        for of, run in zip(seconds, steps):
            start = time.perf_counter()
            run()
            of.append(time.perf_counter() - start)
    return seconds


def row(ins: int, outs: int, pixels: int, runs: int) -> str:
    """One line of the table."""
    types = [FieldType(SPACE, count * [SPACE.regular_repr]) for count in (ins, outs)]
    layers = [R2Conv(*types, 5, padding=2, initialize=False)]
    layers += [MixedR2Conv.from_strict(layers[0], subgroups=ids) for ids in GROUPS.values()]
    x = types[0](torch.randn(BATCH, types[0].size, pixels, pixels, requires_grad=True))
    plain, *mixed = ([1000 * s for s in of] for of in alternating([step(layer, x) for layer in layers], runs))
    cells = [f"{ins} → {outs}, {pixels} × {pixels}", f"{statistics.median(plain):.1f}"]
    for of in mixed:
        ratio = statistics.median(m / p for m, p in zip(of, plain))
        cells.append(f"{statistics.median(of):.1f} ({ratio:.2f}×)")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    lines = [
        "# [G]-mixed layers: cost of a training step",
        "",
        (
            f"Made by `python tests/benchmarks/bench_mixed.py --runs {given.runs} --threads {given.threads}`. "
            f"Regular fields of D4, 5 × 5, batch {BATCH};"
        ),
        (
            "milliseconds a step (forward, backward, Adam), median of alternating runs; in brackets the median ratio"
            " to the"
        ),
        "plain layer's step beside it. Four groups: D4, C4, C2, trivial; six: D2 and one reflection besides.",
        "",
        "| fields, image | escnn `R2Conv` | mixed, 4 groups | mixed, 6 groups |",
        "|---|---|---|---|",
    ]
    for line in lines:
        print(line, flush=True)
    for size in SIZES:
        lines.append(row(*size, given.runs))
        print(lines[-1], flush=True)
    if given.write:
        given.write.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
