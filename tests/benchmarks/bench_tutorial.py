"""escnn's tutorial network on rotated MNIST from start to end: trained strict as escnn's tutorial does, and relaxed with the evidence.

    python tests/benchmarks/bench_tutorial.py --data FOLDER [--widths 1] [--images 10000] [--test 10000] [--epochs 31]

FOLDER holds ``rotated_mnist.npz``: arrays x_train, y_train, x_test, y_test of uint8 digits, 28 x 28; they are padded to 29 x 29. Both
networks start from the same weights and see the same batches, both in Adam with a cosine to a fiftieth of ``--lr``. The evidence
has the curvature ``auto`` and the gates of ``fit``.

Whole, it needs 10 000 x 31 x .24 s = 21 hours of one core for each of the two (measured: .24 s a step an image, batch 64), and 3 GiB; so
it is for a GPU or a patient machine. ``--widths`` divides the numbers of fields: 4 takes a sixteenth of it.
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from bench_width import Tutorial, peak
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from escnn_relax import fit, relax, report

WIDTHS = (24, 48, 48, 96, 96, 64)


def data(folder: Path, images: int, test: int, batch: int) -> tuple[DataLoader, DataLoader]:
    archive = np.load(folder / "rotated_mnist.npz", allow_pickle=False)
    sets = []
    for part, count in (("train", images), ("test", test)):
        x = torch.from_numpy(archive[f"x_{part}"][:count]).float().view(-1, 1, 28, 28) / 255
        y = torch.from_numpy(archive[f"y_{part}"][:count]).long()
        sets.append(TensorDataset(F.pad(x, (0, 1, 0, 1)), y))
    generator = torch.Generator().manual_seed(0)
    return DataLoader(sets[0], batch, shuffle=True, generator=generator), DataLoader(sets[1], 250)


def accuracy(model: torch.nn.Module, loader: DataLoader) -> float:
    model.eval()
    device = next(model.parameters()).device
    with torch.no_grad():
        right = sum(int((model(x.to(device)).argmax(1).cpu() == y).sum()) for x, y in loader)
    return right / len(loader.dataset)


def strictly(model: torch.nn.Module, loader: DataLoader, epochs: int, lr: float) -> None:
    device = next(model.parameters()).device
    descent = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=1e-5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(descent, epochs, lr / 50)
    for _ in range(epochs):
        model.train()
        for x, y in loader:
            descent.zero_grad()
            F.cross_entropy(model(x.to(device)), y.to(device)).backward()
            descent.step()
        schedule.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--widths", type=int, default=1, help="divides the numbers of fields")
    parser.add_argument("--images", type=int, default=10000)
    parser.add_argument("--test", type=int, default=10000)
    parser.add_argument("--epochs", type=int, default=31)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory", type=float, help="MiB for a refresh")
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    loader, test = data(given.data, given.images, given.test, given.batch)
    strict = Tutorial(tuple(max(w // given.widths, 1) for w in WIDTHS)).to(given.device)
    relaxed = relax(copy.deepcopy(strict))
    print("| | weights | test accuracy | processor time (s) | peak (GiB) |", "|---|---|---|---|---|", sep="\n", flush=True)

    def line(name: str, model: torch.nn.Module, run) -> None:
        start = time.process_time()
        run()
        spent = time.process_time() - start
        weights = sum(p.numel() for p in model.parameters())
        print(f"| {name} | {weights / 1e6:.3f} M | {accuracy(model, test):.2%} | {spent:.0f} | {peak():.2f} |", flush=True)

    line("strict", strict, lambda: strictly(strict, loader, given.epochs, given.lr))
    loader.generator.manual_seed(0)
    options = {"epochs": given.epochs, "burn_in": given.epochs // 2, "lr": given.lr, "curvature": "auto", "memory": given.memory}
    history = []
    line("relaxed, with evidence", relaxed, lambda: history.append(fit(relaxed, loader, progress=False, **options)))
    notes = [f"epoch {r.epoch}: {r.note}" for r in history[0].records if r.note]
    print("\nlog evidence / N (nats) at the refreshes: " + ", ".join(f"{v:.3f}" for _, v in history[0].evidences))
    print("what opened and closed: " + ("; ".join(notes) or "nothing"))
    print(report(relaxed, history[0].evidence))


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    main()
