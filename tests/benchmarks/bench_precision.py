"""Refreshes until the evidence stands: MacKay's fixed point against Adam's steps on log precisions.

1. at one curvature: steps until the evidence is within 0.1 percent of the highest that any way reaches in 400 steps
2. weights and precisions in turn: each round brings the weights to an optimum of the penalised loss (L-BFGS on all
   data), takes the curvature there, and moves the precisions. A way has arrived with the first refresh from which on
   its evidence, after the steps, stays within 0.1 percent of where it ends.

All ways start at the same weights, the optimum at the initial precisions.

    python tests/benchmarks/bench_precision.py [--rounds 20]
"""

from __future__ import annotations

import argparse
import copy
import warnings

import torch
import escnn_relax  # noqa: E402, F401, I001  # before escnn, which may need what it brings
from escnn import gspaces
from escnn import nn as enn
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from escnn_relax import Evidence
from escnn_relax.nn import RelaxedR2Conv

WAYS = {
    "MacKay, 6 steps": {"steps": 6},
    "MacKay, 3 steps": {"steps": 3},
    "MacKay, 1 step, undamped": {"steps": 1, "damping": 0.0},
    "Adam, 20 steps of 0.1": {"steps": 20, "method": "gradient", "rate": 0.1},
    "Adam, 20 steps of 0.5": {"steps": 20, "method": "gradient", "rate": 0.5},
    "Adam, 100 steps of 0.1": {"steps": 100, "method": "gradient", "rate": 0.1},
}


SINGLE = {
    "MacKay": {},
    "MacKay, undamped": {"damping": 0.0},
    "Adam, 0.1": {"method": "gradient", "rate": 0.1},
    "Adam, 0.5": {"method": "gradient", "rate": 0.5},
}
COUNTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 70, 100, 150, 200, 300, 400)


class Steerable(nn.Module):
    """Two relaxed layers of a group of the plane, and a linear one."""

    def __init__(self, space, outputs):
        super().__init__()
        self.gray, fields = enn.FieldType(space, [space.trivial_repr]), enn.FieldType(space, 3 * [space.regular_repr])
        self.first, self.act = RelaxedR2Conv(self.gray, fields, 5, padding=1), enn.ReLU(fields)
        self.second = RelaxedR2Conv(fields, fields, 3, padding=1)
        self.linear = nn.Linear(fields.size, outputs)

    def forward(self, x):
        return self.linear(self.second(self.act(self.first(self.gray(x)))).tensor.relu().mean((-2, -1)))


def plain():
    return nn.Sequential(
        nn.Conv2d(1, 12, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(12, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5)
    )


def patterns(count=200, classes=5, regression=False):
    """Noisy patterns, turned by multiples of 90 degrees; the label says which, or how much of each there is."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.nn.functional.avg_pool2d(torch.randn(classes, 1, 11, 11, generator=generator), 3, 1)
    which = torch.randint(classes, (count,), generator=generator)
    turns = torch.randint(4, (count,), generator=generator).tolist()
    x = torch.stack([torch.rot90(p, k, (1, 2)) for p, k in zip(basis[which], turns)])
    x = 2 * x + 0.7 * torch.randn(x.shape, generator=generator)
    if regression:
        noise = torch.randn(count, 2, generator=generator) * torch.tensor([0.1, 0.5])
        return TensorDataset(x, torch.stack([x.square().mean((1, 2, 3)), x[:, 0, 3:6, 3:6].mean((1, 2))], 1) + noise)
    return TensorDataset(x, which)


MODELS = {
    "C4, five patterns": (lambda: Steerable(gspaces.rot2dOnR2(4), 5), "categorical", {}),
    "D4, two numbers with noises of their own": (
        lambda: Steerable(gspaces.flipRot2dOnR2(4), 2),
        "gaussian",
        {"noise": "output"},
    ),
    "plain CNN, five patterns": (plain, "categorical", {"relaxed_only": False}),
}


def train(evidence, data, iterations=30):
    x, y = data.tensors
    evidence.model.train()
    descent = torch.optim.LBFGS(evidence.model.parameters(), max_iter=iterations, line_search_fn="strong_wolfe")

    def closure():
        descent.zero_grad()
        loss = evidence.loss(evidence.model(x), y)
        loss.backward()
        return loss

    descent.step(closure)


def run(start, likelihood, options, way, data, rounds):
    """The evidence after each round."""
    evidence = Evidence(copy.deepcopy(start), likelihood, num_data=len(data), **options)
    loader, found = DataLoader(data, batch_size=len(data)), []
    for _ in range(rounds):
        evidence.refresh(loader)
        found.append(evidence.step(**WAYS[way]).total)
        train(evidence, data)
    return found


def steps_needed(evidence):
    """Of each way, at the curvature that the evidence has."""
    state, totals = evidence.state_dict(), {}
    for way, arguments in SINGLE.items():
        for count in COUNTS:
            evidence.load_state_dict(state)
            totals[way, count] = evidence.step(count, **arguments).total
    evidence.load_state_dict(state)
    highest = max(totals.values())
    near = {key for key, total in totals.items() if highest - total < 1e-3 * abs(highest)}
    return {way: min((count for w, count in near if w == way), default=None) for way in SINGLE}


def arrival(totals):
    """First refresh from which on the evidence stays within 0.1 percent of where it ends."""
    away = [index for index, total in enumerate(totals) if abs(total - totals[-1]) > 1e-3 * abs(totals[-1])]
    return away[-1] + 2 if away else 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name, (make, likelihood, options) in MODELS.items():
        torch.manual_seed(0)
        data = patterns(regression=likelihood == "gaussian")
        start = make()
        evidence = Evidence(start, likelihood, num_data=len(data), **options)
        train(evidence, data, 300)
        evidence.refresh(DataLoader(data, batch_size=len(data)))
        print(f"\n{name}\n| way | steps at one curvature |\n|---|---|")
        for way, count in steps_needed(evidence).items():
            print(f"| {way} | {count or f'more than {COUNTS[-1]}'} |", flush=True)
        if not rounds:
            continue
        print(
            "\n| way | log evidence after 1 | 3 | 10 refreshes | at the end | arrived after"
            " |\n|---|---|---|---|---|---|"
        )
        for way in WAYS:
            found = run(start, likelihood, options, way, data, rounds)
            shown = " | ".join(f"{found[index]:.1f}" for index in (0, 2, 9, -1))
            print(f"| {way} | {shown} | {arrival(found)} |", flush=True)


if __name__ == "__main__":
    main()
