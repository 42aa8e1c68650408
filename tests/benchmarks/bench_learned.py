"""When has a network learned? What rules say that see the training data alone, of networks trained on true and on
shuffled labels, beside their likelihood on data held out.

    python tests/benchmarks/bench_learned.py --data FOLDER [--out learned.jsonl] [--labels true shuffled]
        [--images 100 300 1000 3000] [--widths 1 4 12] [--norms yes no] [--seeds 0] [--steps 600] [--network two]

FOLDER holds ``rotated_mnist.npz``, see ``bench_tutorial.py``; digits are averaged to 14 x 14. C4, two layers of so many
regular fields, some 600 steps of 32 digits by ``fit`` with its defaults; with ``--network tutorial`` escnn's C8
network with so many fields in the first layer and steps of 64 digits as they are. A line for each network: gain over
the best constant (nats, training data), the same on 1000 digits held out, effective dimension, and from a sample of 48
training digits (8 for the tutorial network): what the factors' posterior says of its own data (``leverage``, the trace
of the posterior's output covariance times the curvature), the second moment of the actual gradients against the
curvature (``takeuchi``), and the gain that is left when each digit is taken out of the training (``first_order``, and
``leave_one_out`` with its own curvature taken out, too).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
import escnn_relax  # noqa: E402, F401, I001  # before escnn, which may need what it brings
from escnn import gspaces
from escnn import nn as enn
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from bench_width import Tutorial
from escnn_relax import fit, relax

STEPS, BATCH, SAMPLE = 600, 32, 48
WIDTHS = (24, 48, 48, 96, 96, 64)


class Net(nn.Module):
    def __init__(self, width: int, norm: bool):
        super().__init__()
        space = gspaces.rot2dOnR2(4)
        self.gray = enn.FieldType(space, [space.trivial_repr])
        fields = enn.FieldType(space, width * [space.regular_repr])

        def after():
            return [enn.InnerBatchNorm(fields)] if norm else []

        self.body = enn.SequentialModule(
            *(enn.R2Conv(self.gray, fields, 5, padding=2, stride=2), *after(), enn.ReLU(fields)),
            *(enn.R2Conv(fields, fields, 3, padding=1), *after(), enn.ReLU(fields)),
        )
        self.linear = nn.Linear(4 * width, 10)

    def forward(self, x):
        return self.linear(self.body(self.gray(x)).tensor.mean((-2, -1)))


def digits(folder: Path, part: str, count: int, whole: bool):
    archive = np.load(folder / "rotated_mnist.npz", allow_pickle=False)
    x = torch.from_numpy(archive[f"x_{part}"][:count]).float().view(-1, 1, 28, 28) / 255
    x = F.pad(x, (0, 1, 0, 1)) if whole else (F.avg_pool2d(x, 2) - 0.13) / 0.27
    return x, torch.from_numpy(archive[f"y_{part}"][:count]).long()


def held_out(model, x, y, frequencies):
    """Mean gain over the training labels' frequencies (nats a digit)."""
    with torch.no_grad():
        loss = F.cross_entropy(torch.cat([model.eval()(part) for part in x.split(100)]), y)
    return float(F.cross_entropy(frequencies.log().expand(len(y), -1), y) - loss)


def sampled(evidence, x, y, constant):
    """Per digit: leverage, takeuchi, leave_one_out (first order, and with the digit's own curvature taken out)."""
    posterior, scale = evidence.posterior(), evidence.scale
    found = {"leverage": [], "takeuchi": [], "first_order": [], "leave_one_out": []}
    for a, b in zip(x.split(8), y.split(8)):
        mean, S = posterior.outputs(a)
        p = mean.softmax(1)
        curvature = scale * (torch.diag_embed(p) - p[:, :, None] * p[:, None])
        residual = scale * (F.one_hot(b, 10) - p)
        found["leverage"] += (S @ curvature).diagonal(dim1=1, dim2=2).sum(1).tolist()
        found["takeuchi"] += torch.einsum("ni,nij,nj->n", residual, S, residual).tolist()
        values, axes = torch.linalg.eigh(S)
        root = axes * values.clamp(min=0).sqrt()[:, None]
        inside, turn = torch.linalg.eigh(root.transpose(1, 2) @ curvature @ root)
        wide = root @ turn
        apart = wide / (1 - inside.clamp(0, 0.99))[:, None] @ wide.transpose(1, 2)
        for key, matrix in (("first_order", S), ("leave_one_out", apart)):
            moved = mean - (matrix @ residual[..., None]).squeeze(-1)
            found[key] += (constant - F.cross_entropy(moved, b, reduction="none")).tolist()
    return {k: (sum(v) / len(v), float(np.std(v) / math.sqrt(len(v)))) for k, v in found.items()}


def run(folder: Path, labels: str, images: int, width: int, norm: bool, seed: int, steps: int, tutorial: bool):
    torch.manual_seed(seed)
    start = time.process_time()
    x, y = digits(folder, "train", images, tutorial)
    if labels == "shuffled":
        y = y[torch.randperm(images)]
    elif labels != "true":
        some = torch.rand(images) < float(labels)
        y[some] = y[some][torch.randperm(int(some.sum()))]
    loader = DataLoader(TensorDataset(x, y), BATCH, shuffle=True)
    epochs = max(10, steps * BATCH // images)
    if tutorial:
        loader = DataLoader(TensorDataset(x, y), 64, shuffle=True)
        model = relax(Tutorial(tuple(max(w * width // 24, 1) for w in WIDTHS)))
        epochs = max(2, steps * 64 // images)
        history = fit(model, loader, epochs=epochs, progress=False, lr=1e-3, burn_in=epochs // 2, curvature="auto")
    else:
        model = relax(Net(width, norm))
        history = fit(model, loader, epochs=epochs, progress=False)
    evidence = history.evidence
    spectrum, noise = evidence.spectrum, evidence.noise
    counts = torch.bincount(y, minlength=10).double() + 1e-3
    frequencies = (counts / counts.sum()).float()
    constant = float(spectrum.constants.sum()) / images
    terms = evidence.terms()
    few = torch.randperm(images)[: 8 if tutorial else SAMPLE]
    with torch.no_grad():
        right, test = (
            float((torch.cat([model.eval()(a) for a in b.split(100)]).argmax(1) == c).float().mean())
            for b, c in ((x, y), digits(folder, "test", 1000, tutorial))
        )
    tx, ty = digits(folder, "test", 1000, tutorial)
    return {
        "labels": labels, "images": images, "width": width, "norm": norm, "seed": seed,
        "network": "tutorial" if tutorial else "two layers", "steps": steps,
        "weights": sum(p.numel() for p in evidence.parameters.values()), "train": right, "test": test,
        "gain": spectrum.gain_over_constant(noise), "constant": constant * images,
        "dimension": sum(evidence.effective_dimension().values()),
        "complexity": terms.complexity, "prior": terms.prior,
        "held_out": images * held_out(model, tx, ty, frequencies),
        "sample": {k: (images * m, images * s) for k, (m, s) in sampled(evidence, x[few], y[few], constant).items()},
        "learned": evidence.learned, "seconds": time.process_time() - start,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--labels", nargs="*", default=["true", "shuffled"])
    parser.add_argument("--images", nargs="*", type=int, default=[300, 1000, 100, 3000])
    parser.add_argument("--widths", nargs="*", type=int, default=[4, 1, 12])
    parser.add_argument("--norms", nargs="*", default=["no", "yes"])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--network", choices=["two", "tutorial"], default="two")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    given = parser.parse_args()
    for seed, width, images, norm, labels in itertools.product(
        given.seeds, given.widths, given.images, given.norms, given.labels
    ):
        found = run(given.data, labels, images, width, norm == "yes", seed, given.steps, given.network == "tutorial")
        line = json.dumps(found)
        print(line, flush=True)
        if given.out:
            with open(given.out, "a", encoding="utf-8") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    sys.exit(main())
