"""The evidence against the exact marginal likelihood
==================================================

A small net whose marginal likelihood is known exactly: a random first layer that stays as it is, a relaxed layer that
is learned, the mean over the image, and Gaussian noise. Its output is linear in what is learned, so the marginal
likelihood is one Gaussian density, computed below from the network's outputs alone. Two data sets, one that keeps C4
and one that breaks it. Whatever the approximation of the curvature, the evidence prefers the same side as the exact
value: a residual that is switched off in the first case, one that is alive in the second. With exact blocks it is a
lower bound, for all that it leaves out is the correlation of pathways. About 20 seconds on a core.

    python examples/plot_evidence_exact.py [--out examples/output]
"""

from __future__ import annotations

import argparse
import math
import warnings

warnings.filterwarnings("ignore", message="`py3nj` package not found")  # escnn does without it

from pathlib import Path  # noqa: E402

import torch  # noqa: E402
import escnn_relax  # noqa: E402, F401, I001  # before escnn, which may need what it brings
from escnn import gspaces, nn as enn  # noqa: E402
from torch import Tensor, nn  # noqa: E402


NOISE, EQUIVARIANT = 0.1, 0.0
#: Log prior precisions of the pathways that break the symmetry; at the last they are off.
GRID = [float(d) for d in range(-4, 13)]
CURVATURES = {"exact": "exact blocks", "expand": "expand (default)", "reduce": "reduce", "diagonal": "diagonal"}


# %%
# A network that is linear in what is learned
# -------------------------------------------
# The first layer is random and stays as it is. Then the marginal likelihood is one Gaussian density, and no
# approximation is needed.


class SmallNet(nn.Module):
    """Random features, a relaxed convolution to one scalar field, the mean over the image."""

    def __init__(self) -> None:
        super().__init__()
        space = gspaces.rot2dOnR2(4)
        self.scalar = enn.FieldType(space, [space.trivial_repr])
        hidden = enn.FieldType(space, 2 * [space.regular_repr])
        options = {"padding": 1, "padding_mode": "circular", "bias": False}
        self.first = enn.R2Conv(self.scalar, hidden, 3, **options).requires_grad_(False)
        self.activation = enn.ReLU(hidden)
        self.learned = escnn_relax.relax(enn.SequentialModule(enn.R2Conv(hidden, self.scalar, 3, **options)))

    def forward(self, x: Tensor) -> Tensor:
        return self.learned(self.activation(self.first(self.scalar(x)))).tensor.mean((-2, -1))


# %%
# The exact value
# ---------------
# The outputs with one weight at one and the others at zero are the columns of the design matrix. Prior and noise are
# Gaussian, so the density of the data follows from it, and so do the most probable weights.


def design(model: SmallNet, x: Tensor) -> dict[str, Tensor]:
    """What each weight, alone and at one, adds to the outputs: ``(N, weights)`` for each parameter."""
    columns = {}
    weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for p in weights.values():
            p.zero_()
        for name, p in weights.items():
            found = []
            for index in range(p.numel()):
                p.view(-1)[index] = 1
                found.append(model(x).flatten())
                p.zero_()
            columns[name] = torch.stack(found, 1)
    return columns


def exact(columns: dict[str, Tensor], y: Tensor, log_precision: dict[str, float]) -> tuple[float, dict[str, Tensor]]:
    """Log density of the outputs y under the prior (nats), and the most probable weights."""
    J = torch.cat(list(columns.values()), 1)
    variance = torch.cat([torch.full_like(c[0], math.exp(-log_precision[n])) for n, c in columns.items()])
    covariance = (J * variance) @ J.T + NOISE**2 * torch.eye(len(y), dtype=J.dtype)
    density = torch.distributions.MultivariateNormal(torch.zeros_like(y), covariance).log_prob(y)
    weights = variance * (J.T @ torch.linalg.solve(covariance, y))
    return float(density), dict(zip(columns, weights.split([c.shape[1] for c in columns.values()])))


# %%
# The evidence beside it
# ----------------------
# The precision of what breaks the symmetry goes over a grid; for each approximation of the curvature the evidence is
# taken at the same most probable weights.


def sweep(breaking: float, samples: int = 150) -> dict[str, list[float]]:
    """Log evidence by approximation over the grid, on data whose teacher breaks the symmetry by so much (nats)."""
    torch.manual_seed(0)
    model = SmallNet().double()
    x = torch.randn(samples, 1, 6, 6, dtype=torch.float64)
    columns = design(model, x)
    teacher = {n: torch.randn(c.shape[1]).double() * (breaking if "irrep" in n else 1.0) for n, c in columns.items()}
    y = sum(columns[n] @ teacher[n] for n in columns) + NOISE * torch.randn(samples).double()
    options = {"noise": escnn_relax.NoiseSettings(log_noise=math.log(NOISE)), "num_data": samples}
    evidences = {name: escnn_relax.Evidence(model, "gaussian", name, **options) for name in CURVATURES}
    found: dict[str, list[float]] = {name: [] for name in ["truth", *CURVATURES]}
    for delta in GRID:
        precisions = {n: delta if "irrep" in n else EQUIVARIANT for n in columns}
        value, weights = exact(columns, y, precisions)
        found["truth"].append(value)
        with torch.no_grad():
            for name, w in weights.items():
                model.get_parameter(name).copy_(w.view_as(model.get_parameter(name)))
        for name, evidence in evidences.items():
            evidence.log_precision.update(precisions)
            found[name].append(evidence.refresh([(x, y.unsqueeze(1))]).total)
    return found


def gain(values: list[float]) -> float:
    """What the best precision gains over a residual that is switched off (nats)."""
    return max(values) - values[-1]


# %%
# The claim
# ---------
# What was said above, as assertions: the script fails where one of them does not hold.


def check(keeps: dict, breaks: dict) -> None:
    """The claims; AssertionError with the first that does not hold."""
    for found in (keeps, breaks):
        assert all(b <= t + 1e-6 for b, t in zip(found["exact"], found["truth"])), "exact blocks give a lower bound"
    for name in ("truth", "exact", "expand"):
        assert gain(keeps[name]) < 1, f"{name}: breaking a symmetry that holds gains {gain(keeps[name]):.1f} nats"
        assert gain(breaks[name]) > 10, f"{name}: breaking one that does not gains {gain(breaks[name]):.1f} nats only"
        apart = abs(breaks[name].index(max(breaks[name])) - breaks["truth"].index(max(breaks["truth"])))
        assert apart <= 2, f"{name}: the best log precision is {apart} away from the exact one"


# %%
# The figure
# ----------
# Evidence over the precision: to the right the residual is switched off, to the left it is free.


def draw(keeps: dict, breaks: dict, path: Path) -> None:
    """Evidence over the precision of the residual."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    looks = (("black", "-"), ("#0072B2", "--"), ("#E69F00", "-."), ("#009E73", ":"), ("#CC79A7", (0, (1, 3))))
    for panel, found, title in zip(axes, (keeps, breaks), ("data that keep C4", "data that break C4")):
        for (name, values), (colour, style) in zip(found.items(), looks):
            label = CURVATURES.get(name, "exact marginal likelihood")
            panel.plot(GRID, [v - values[-1] for v in values], color=colour, linestyle=style, linewidth=2, label=label)
        panel.axhline(0, color="#999999", linewidth=0.8)
        panel.set(title=title, xlabel="log prior precision of the residual (right: switched off)")
    axes[0].set_ylabel("log evidence, relative to\na residual switched off (nats)")
    axes[0].legend(loc="lower right")
    figure.savefig(path, dpi=110)


# %%
# Run it
# ------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("examples/output"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    keeps, breaks = sweep(0.0), sweep(1.0)
    for name in keeps:
        print(f"{name}: breaking C4 gains {gain(keeps[name]):.2f} nats where it holds, else {gain(breaks[name]):.1f}")
    draw(keeps, breaks, given.out / "evidence_exact.png")
    check(keeps, breaks)


if __name__ == "__main__":
    main()
