"""What a refresh that looks at no more than it needs loses beside one on all data with a column for each output, at the
same weights.

    python tests/benchmarks/bench_enough.py N=350 N=1300 width=1 width=6 noise=0.01 noise=0.3 width=30 N=10000 --data
    FOLDER

``N``: rotated MNIST in the network of `bench_gates.py` (``--data`` holds ``rotated_mnist.npz``); ``width`` and
``noise`` (share of random labels): 1300 digits of 8 x 8, two layers of so many regular fields of C4. All pathways open.
One thread.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from bench_gates import ImageNet, images  # which finds the examples
from digits import task
import escnn_relax  # noqa: F401, I001  # before escnn, which may need what it brings
from escnn import gspaces
from escnn import nn as enn
from torch.utils.data import DataLoader, TensorDataset

from escnn_relax import fit, relax
from escnn_relax.curvature.enough_data import Enough

REPEATS = 5


class Small(torch.nn.Module):
    def __init__(self, fields: int) -> None:
        super().__init__()
        space = gspaces.rot2dOnR2(4)
        self.gray, hidden = (
            enn.FieldType(space, [space.trivial_repr]),
            enn.FieldType(space, fields * [space.regular_repr]),
        )
        self.one, self.two = enn.R2Conv(self.gray, hidden, 3, padding=1), enn.R2Conv(hidden, hidden, 3, padding=1)
        self.act, self.pool, self.linear = enn.ReLU(hidden), enn.GroupPooling(hidden), torch.nn.Linear(fields, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.pool(self.act(self.two(self.act(self.one(self.gray(x)))))).tensor.mean((-2, -1)))


def row(case: str, folder: Path) -> str:
    kind, value = case.split("=")
    torch.manual_seed(0)
    if kind == "N":
        train, _ = images(f"MNIST rotated {value}", 0, folder)
        net, size, epochs, lr = ImageNet(), 100 if int(value) > 1000 else 25, 20 if int(value) < 5000 else 6, 5e-3
    else:
        train = task("rot", 0).train
        net, size, epochs, lr = Small(int(value) if kind == "width" else 6), 100, 20, 1e-2
        if kind == "noise":
            labels = train[1]
            random = torch.rand(len(labels), generator=torch.Generator().manual_seed(0)) < float(value)
            train = train[0], torch.where(random, torch.randint(10, (len(labels),)), labels)
    loader = DataLoader(TensorDataset(*train), size, shuffle=True, generator=torch.Generator().manual_seed(0))
    evidence = fit(relax(net), loader, epochs=epochs, gates=False, progress=False, lr=lr).evidence
    start, began = dict(evidence.log_precision), time.process_time()
    evidence.refresh(loader)
    costly = time.process_time() - began
    evidence.step(20)
    best, spectrum, wanted = evidence.terms().total, evidence.spectrum, dict(evidence.log_precision)
    live = [name for name, gamma in evidence.effective_dimension().items() if gamma > 1]
    found = []
    for _ in range(REPEATS):
        evidence.log_precision.update(start)
        began = time.process_time()
        read = evidence.refresh(loader, enough=Enough()) and evidence.estimate.num_data
        cheap = time.process_time() - began
        evidence.step(20)
        off = [abs(evidence.log_precision[name] - wanted[name]) for name in live]
        lost = (
            best - spectrum.terms(evidence.noise, evidence.log_precision, evidence.squares()).total
        )  # what all data say of precisions from a part
        found.append((read, sum(off) / len(off), max(off), lost, cheap))
    read, mean, largest, _, cheap = (sorted(column)[REPEATS // 2] for column in zip(*found))
    lost = max(of[3] for of in found)
    shown = f"{mean:.2f} | {largest:.2f} | {lost:.1f} | {100 * lost / abs(best):.2f} | {costly:.2f} | {cheap:.2f}"
    return f"| {case} | {len(train[0])} | {read} | {shown} |"


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+")
    parser.add_argument("--data", type=Path, default=Path("."))
    given = parser.parse_args()
    print(
        "| case | N | samples read | log δ off by, mean | largest | nats lost, worst of 5 | % | s, all | s, enough |\n"
        + 9 * "|---"
        + "|"
    )
    for case in given.cases:
        print(row(case, given.data), flush=True)


if __name__ == "__main__":
    main()
