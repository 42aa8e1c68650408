"""escnn's tutorial network on rotated MNIST from start to end: trained strict as escnn's tutorial does, and relaxed
with the evidence.

    python tests/benchmarks/bench_tutorial.py --data FOLDER [--widths 1] [--images 10000] [--test 10000] [--epochs 31]
        [--keep FOLDER] [--parts strict relaxed]

FOLDER holds ``rotated_mnist.npz``: arrays x_train, y_train, x_test, y_test of uint8 digits, 28 x 28; they are padded to
29 x 29. Both networks start from the same weights and see the same batches, both in Adam with a cosine to a fiftieth of
``--lr``. The evidence has the curvature ``auto`` and the gates of ``fit``. With ``--keep`` each epoch is kept there, a
run that was ended goes on after its last epoch, and what comes out is added to ``tutorial.jsonl`` there: seconds of the
processor and peak memory are those of all its processes.

Whole, it needs 10 000 x 31 x .13 to .24 s = 11 to 21 hours of one core for each of the two (measured on two machines:
so much a step an image, batch 64), and 3 GiB; so it is for a GPU or a patient machine. ``--widths`` divides the numbers
of fields: 4 takes a sixteenth of it.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from bench_width import Tutorial, peak
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from escnn_relax import fit, relax, report
from escnn_relax.evidence import CurvatureSettings

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


class Kept:
    """What one part of a run has spent, and its state after each epoch, in a folder or nowhere."""

    def __init__(self, folder: Path | None, name: str) -> None:
        self.at = None if folder is None else folder / name  # a name without dots
        self.before, self.largest = 0.0, 0.0
        self.start = time.process_time()
        if self.at is not None:
            self.at.parent.mkdir(parents=True, exist_ok=True)
            if self.at.with_suffix(".json").exists():
                self.before, self.largest = json.loads(self.at.with_suffix(".json").read_text())

    @property
    def checkpoint(self) -> Path | None:
        return None if self.at is None else self.at.with_suffix(".pt")

    @property
    def seconds(self) -> float:
        return self.before + time.process_time() - self.start

    @property
    def peak(self) -> float:
        return max(self.largest, peak())

    def mark(self, *_) -> None:
        """After an epoch."""
        if self.at is not None:
            self.at.with_suffix(".json").write_text(json.dumps([self.seconds, self.peak]))


def strictly(model: torch.nn.Module, loader: DataLoader, epochs: int, lr: float, kept: Kept) -> None:
    device = next(model.parameters()).device
    descent = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=1e-5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(descent, epochs, lr / 50)
    parts, done = {"model": model, "descent": descent, "schedule": schedule}, 0
    if kept.checkpoint is not None and kept.checkpoint.exists():
        state = torch.load(kept.checkpoint, weights_only=True)
        done = state["done"]
        loader.generator.set_state(state["generator"])
        model.train()  # where escnn's layers have their weights, not kernels, in the state
        for name, part in parts.items():
            part.load_state_dict(state[name])
    for epoch in range(done, epochs):
        model.train()
        for x, y in loader:
            descent.zero_grad()
            F.cross_entropy(model(x.to(device)), y.to(device)).backward()
            descent.step()
        schedule.step()
        if kept.checkpoint is not None:
            state = {name: part.state_dict() for name, part in parts.items()}
            torch.save(state | {"done": epoch + 1, "generator": loader.generator.get_state()}, kept.checkpoint)
        kept.mark()


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
    parser.add_argument("--keep", type=Path, help="folder for the state after each epoch, to go on from")
    parser.add_argument("--parts", nargs="*", choices=["strict", "relaxed"], default=["strict", "relaxed"])
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    loader, test = data(given.data, given.images, given.test, given.batch)
    strict = Tutorial(tuple(max(w // given.widths, 1) for w in WIDTHS)).to(given.device)
    relaxed = relax(copy.deepcopy(strict))
    setting = {k: getattr(given, k) for k in ("widths", "images", "test", "epochs", "batch", "lr", "seed")}
    label = "-".join(str(v).replace(".", "_") for v in setting.values())
    print(
        "| | weights | test accuracy | processor time (s) | peak (GiB) |", "|---|---|---|---|---|", sep="\n", flush=True
    )

    def line(name: str, model: torch.nn.Module, run) -> None:
        loader.generator.manual_seed(given.seed)
        kept = Kept(given.keep, f"{name}-{label}")
        run(kept)
        kept.mark()
        weights, right = sum(p.numel() for p in model.parameters()), accuracy(model, test)
        print(f"| {name} | {weights / 1e6:.3f} M | {right:.2%} | {kept.seconds:.0f} | {kept.peak:.2f} |", flush=True)
        if given.keep is not None:
            found = {"network": name, "weights": weights, "accuracy": right, "seconds": kept.seconds, "peak": kept.peak}
            with open(given.keep / "tutorial.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(setting | found) + "\n")

    if "strict" in given.parts:
        line("strict", strict, lambda kept: strictly(strict, loader, given.epochs, given.lr, kept))
    if "relaxed" not in given.parts:
        return
    options = {
        "epochs": given.epochs,
        "burn_in": given.epochs // 2,
        "lr": given.lr,
        "curvature": CurvatureSettings("auto", memory=given.memory),
    }
    history = []

    def fitted(kept: Kept) -> None:
        history.append(fit(relaxed, loader, progress=False, checkpoint=kept.checkpoint, callback=kept.mark, **options))

    line("relaxed", relaxed, fitted)
    notes = [f"epoch {r.epoch}: {r.note}" for r in history[0].records if r.note]
    print("\nlog evidence / N (nats) at the refreshes: " + ", ".join(f"{v:.3f}" for _, v in history[0].evidences))
    print("what opened and closed: " + ("; ".join(notes) or "nothing"))
    print(report(relaxed, history[0].evidence))


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    main()
