"""The symmetry test on planted symmetries of many groups, at random weights; and its cost beside an epoch of training.

    python tests/benchmarks/bench_symmetry_planted.py [--seeds 20] [--only NAME] [--no-cost]

Writes ``symmetry_planted.md`` beside itself, unless ``--only``. One thread.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "symmetry"), str(TESTS / "diagnosis")]
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import torch  # noqa: E402
from bench_symmetry_test import epoch  # noqa: E402
from digits import DigitNet  # noqa: E402
import escnn_relax  # noqa: E402, F401, I001  # before escnn, which may need what it brings
from escnn import gspaces  # noqa: E402
from planted_symmetries import COUNT, PLANTED  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from escnn_relax import symmetry_test  # noqa: E402


def row(name: str, seeds: int) -> str:
    """One planted symmetry."""
    found = planted = false = tested = left = 0
    beyond: list[tuple[float, float]] = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        case = PLANTED[name](seed)
        test = symmetry_test(case.model, case.loader, progress=False, seed=seed, **case.options)
        for t in test.tests:
            tested += t.testable
            planted += t.testable and t.pathway in case.broken
            found += t.broken and t.pathway in case.broken
            false += t.broken and t.pathway not in case.broken
            if not t.exact and t.inexact_effect == t.inexact_effect:
                beyond.append((t.inexact_effect, t.explained_effect))
        left += test.network.name == case.left
    middle = [f"{sorted(of)[len(of) // 2]:.1e}" for of in zip(*beyond)]
    effects = " / ".join(middle)
    return f"| {name} | {found} of {planted} | {false} of {tested - planted} | {left} of {seeds} | {effects} |"


def cost(group: str) -> str:
    """Processor time in epochs of training, 28 x 28 pixels; the least of three times of each, taken in turn."""
    space = {"C4": gspaces.rot2dOnR2(4), "D4": gspaces.flipRot2dOnR2(4), "C8": gspaces.rot2dOnR2(8)}[group]
    x, y = torch.randn(2000, 1, 28, 28), torch.randint(10, (2000,))
    loader = DataLoader(TensorDataset(x, y), 50, shuffle=True)
    torch.manual_seed(0)
    model = DigitNet(10, 8 if group == "C4" else 4, space)
    times: list[list[float]] = [[], [], []]
    for _ in range(3):
        times[0].append(epoch(model, loader))
        for gains in (False, True):
            start = time.process_time()
            symmetry_test(model, loader, gains=gains, progress=False)
            times[1 + gains].append(time.process_time() - start)
    plain, without, with_gains = map(min, times)
    return f"| {group} | {without / plain:.2f} | {with_gains / plain:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--only", default="")
    parser.add_argument("--no-cost", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# The symmetry test on planted symmetries of many groups",
        "",
        (
            f"Networks of three layers (two for vectors) with random weights, {COUNT} samples, {given.seeds} seeds,"
            " `symmetry_test` with its"
        ),
        (
            "defaults; the data sets are those of `tests/planted_symmetries.py`, made by `bench_symmetry_planted.py`."
            " Counted are layers ×"
        ),
        (
            "irreps that exact elements move; the family-wise level is 5 %, so that about one run in twenty may find"
            " something that is not"
        ),
        (
            "planted, or leave too small a group. Effects: median of those that no exact element moves, and of the part"
            " that pixels explain."
        ),
        "",
        (
            "| planted | found | found without being planted | group that is left: right | effect beyond the grid /"
            " explained |"
        ),
        "|---|---|---|---|---|",
    ]
    for name in PLANTED:
        if given.only in name:
            lines.append(row(name, given.seeds))
            print(lines[-1], flush=True)
    if not given.no_cost:
        lines += [
            "",
            "Cost in epochs of training the strict network: processor time (least of three), 2000 samples of",
            "28×28, batches of 50, relaxing included.",
            "",
            "| group | gradient only | with gains |",
            "|---|---|---|",
        ]
        for group in ("C4", "D4", "C8"):
            lines.append(cost(group))
            print(lines[-1], flush=True)
    if not given.only:
        (Path(__file__).parent / "symmetry_planted.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
