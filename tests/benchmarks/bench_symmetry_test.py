"""The symmetry test on planted data sets, at random weights: what it finds, and what it costs beside an epoch of
training.

    python tests/benchmarks/bench_symmetry_test.py [--seeds 20]

Writes ``symmetry_test.md`` beside itself. One thread.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import torch  # noqa: E402
from digits import DigitNet, task  # noqa: E402
import escnn_relax  # noqa: E402, F401, I001  # before escnn, which may need what it brings
from escnn import gspaces  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from escnn_relax import symmetry_test  # noqa: E402

#: Of each question the group of the network and the irreps that the answer breaks.
QUESTIONS = {
    "rot": ("C4", set()),
    "half-turn": ("C4", {"irrep_2"}),
    "turn": ("C4", {"irrep_1", "irrep_2"}),
    "upright": ("C4", {"irrep_1", "irrep_2"}),
    "mirrored or not?": ("D4", {"irrep_1,0"}),
    "digit, turned and mirrored": ("D4", set()),
}


def data(question: str, seed: int) -> tuple[DataLoader, int]:
    """1300 digits of 8 x 8 pixels, and the number of classes."""
    if question in ("rot", "half-turn", "turn", "upright"):
        found = task(question, seed)
        return found.loader(), found.classes
    x, y = task("rot", seed).train
    mirrored = torch.randint(2, (len(x),), generator=torch.Generator().manual_seed(seed))
    x = torch.where(mirrored.view(-1, 1, 1, 1).bool(), x.flip(-1), x)
    y = mirrored if question == "mirrored or not?" else y
    return DataLoader(TensorDataset(x, y), 100, shuffle=True), int(y.max()) + 1


def epoch(model: torch.nn.Module, loader: DataLoader) -> float:
    """Processor time of one pass of training (s)."""
    descent, start = torch.optim.Adam(model.parameters()), time.process_time()
    for x, y in loader:
        descent.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        descent.step()
    return time.process_time() - start


def row(question: str, seeds: int) -> str:
    group, broken = QUESTIONS[question]
    wanted, found, missed, false, smallest, least, costs = 0, 0, 0, 0, [], [], []
    for seed in range(seeds):
        loader, classes = data(question, seed)
        torch.manual_seed(seed)
        space = gspaces.rot2dOnR2(4) if group == "C4" else gspaces.flipRot2dOnR2(4)
        model = DigitNet(classes, 6 if group == "C4" else 4, space)
        start = time.process_time()
        test = symmetry_test(model, loader, seed=seed, progress=False)
        costs.append((time.process_time() - start) / epoch(model, loader))
        for t in test.tests:
            wanted += t.pathway in broken
            found += t.broken and t.pathway in broken
            missed += not t.broken and t.pathway in broken
            false += t.broken and t.pathway not in broken
            (smallest if t.pathway in broken else least).append(t.ratio if t.pathway in broken else t.p_value)
    ratios = f"{min(smallest):.1f} – {max(smallest):.1f}" if smallest else ""
    kept = f"{min(least):.3f}" if least else ""
    cost = sorted(costs)[len(costs) // 2]
    return f"| {question} | {group} | {found} of {wanted} | {false} | {ratios} | {kept} | {cost:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    given = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# The symmetry test on planted data sets",
        "",
        (
            f"Randomly initialised networks of three layers, 1300 digits of 8×8, {given.seeds} seeds, `symmetry_test`"
            " with its defaults"
        ),
        (
            "(999 draws, level 5 %); made by `bench_symmetry_test.py`. Counted are layers × irreps. Cost: processor"
            " time over that of one"
        ),
        "epoch of training the strict network in batches of 100, relaxing included (median).",
        "",
        (
            "| question | group | planted irreps found | found without being planted | statistic / mean under symmetry,"
            " planted | smallest p, not planted | cost, epochs |"
        ),
        "|---|---|---|---|---|---|---|",
    ]
    for question in QUESTIONS:
        lines.append(row(question, given.seeds))
        print(lines[-1], flush=True)
    (Path(__file__).parent / "symmetry_test.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
