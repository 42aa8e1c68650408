"""Regression: the noise of each output is learned, and the training residual would underestimate it
=================================================================================================

Two scalar fields on a torus, filtered from one, each with a noise of its own, and so few pictures that the weights fit
part of the noise. The root mean square of the residuals on the training data is then too small. The evidence knows how
many weights the data determine for each output, and corrects for them: σ² = 2L / (N − γ). It needs no held-out data,
and the same correction widens the error bars of predictions. A few seconds on a core.

    python examples/plot_learned_noise.py [--out examples/output]
"""

from __future__ import annotations

import argparse
import math
import warnings

warnings.filterwarnings("ignore", message="`py3nj` package not found")  # escnn does without it

from pathlib import Path  # noqa: E402

import torch  # noqa: E402
import escnn_relax  # noqa: E402, I001  # before escnn, which may need what it brings
from escnn import gspaces, nn as enn  # noqa: E402
from planted import Tensors  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

#: True noise of the first output; the second always has 0.3.
NOISES = (0.05, 0.1, 0.2, 0.5)
SECOND = 0.3


# %%
# Two outputs, each with a noise of its own
# -----------------------------------------
# One convolution from a scalar field to two. There are so few pictures that it can follow part of the noise.


def layer() -> enn.R2Conv:
    """A 7×7 convolution equivariant under quarter turns, from one scalar field to two."""
    space = gspaces.rot2dOnR2(4)
    one, two = (enn.FieldType(space, n * [space.trivial_repr]) for n in (1, 2))
    return enn.R2Conv(one, two, 7, padding=3, padding_mode="circular", bias=False)


# %%
# What the evidence says, and what the residuals say
# --------------------------------------------------
# The true noise is known here. The residuals on the training data are too small by what the weights took from the
# noise; those on new data show what would have been seen with more.


def learn(noise: float, samples: int = 2, side: int = 9) -> dict:
    """True noises, learned ones, and the residuals' on training and on new data; each of two outputs."""
    torch.manual_seed(0)
    kernel = torch.randn(2, 1, 7, 7)
    kernel = kernel / kernel.flatten(1).norm(dim=1).view(2, 1, 1, 1)
    true = torch.tensor([noise, SECOND]).view(2, 1, 1)
    filtered = lambda x: F.conv2d(F.pad(x, (3, 3, 3, 3), "circular"), kernel)
    x, new = torch.randn(samples, 1, side, side), torch.randn(200, 1, side, side)
    y, new_y = (f + true * torch.randn_like(f) for f in (filtered(x), filtered(new)))
    model = Tensors(escnn_relax.relax(layer(), basis="pixel"))
    loader = DataLoader(TensorDataset(x, y), samples)
    options = {
        "likelihood": "gaussian",
        "noise": escnn_relax.NoiseSettings("output", log_noise=-1.0),
        "curvature": "exact",
    }
    training = {"lr": 2e-2, "burn_in": 80, "refresh_every": 40, "hypersteps": 20, "progress": False}
    history = escnn_relax.fit(model, loader, epochs=240, **training, **options)
    with torch.no_grad():
        rms = [(model(a) - b).square().mean((0, 2, 3)).sqrt().tolist() for a, b in ((x, y), (new, new_y))]
    return {
        "true": [noise, SECOND],
        "learned": history.evidence.log_noise.exp().tolist(),
        "train": rms[0],
        "new": rms[1],
        "determined": history.evidence.effective_dimension_of_outputs().tolist(),
        "count": samples * side * side,
    }


# %%
# The claim
# ---------
# What was said above, as assertions: the script fails where one of them does not hold.


def check(results: list[dict]) -> None:
    """The claims; AssertionError with the first that does not hold."""
    for result in results:
        error = 1 / math.sqrt(2 * (result["count"] - max(result["determined"])))  # what so few observations leave open
        for true, learned, train in zip(result["true"], result["learned"], result["train"]):
            assert abs(math.log(learned / true)) < 2 * error, f"noise {true}: learned {learned:.3f}, ± {error:.0%}"
            assert train < 0.9 * true, f"noise {true}: the residuals are too small, {train:.3f}"
            assert abs(math.log(learned / true)) < abs(math.log(train / true)), "the evidence is nearer"


# %%
# The figure
# ----------
# What the evidence learned lies on the line of the true noise, the residuals on the training data lie below.


def draw(results: list[dict], path: Path) -> None:
    """Learned noise over true noise."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    titles = ("first output: its noise varies", f"second output: always {SECOND}")
    for output, (axes, title) in enumerate(zip(panels, titles)):
        true = [r["true"][output] for r in results]
        axes.plot(NOISES, true, color="black", linewidth=1, label="true noise")
        for key, look, label in (
            ("learned", "o", "learned by the evidence"),
            ("train", "x", "RMS of training residuals"),
        ):
            colour = {"learned": "#0072B2", "train": "#E69F00"}[key]
            axes.plot(NOISES, [r[key][output] for r in results], look, color=colour, markersize=9, mew=2, label=label)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(NOISES, [f"{n:g}" for n in NOISES], minor=False)
        axes.set_xticks([], minor=True)
        axes.set_title(title)
        axes.set_xlabel("true noise of the first output (standard deviation)")
    panels[0].set_yticks(NOISES, [f"{n:g}" for n in NOISES])
    panels[0].set_yticks([], minor=True)
    panels[1].set_ylim(0.2, 0.4)
    panels[1].set_yticks((0.2, 0.25, 0.3, 0.35, 0.4), ("0.2", "0.25", "0.3", "0.35", "0.4"))
    panels[1].set_yticks([], minor=True)
    panels[0].set_ylabel("noise of the output\n(standard deviation)")
    panels[0].legend()
    figure.suptitle("Two outputs, two noises, learned without held-out data")
    figure.savefig(path, dpi=110)


# %%
# Run it
# ------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("examples/output"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    results = [learn(noise) for noise in NOISES]
    for r in results:
        for true, learned, train, new in zip(r["true"], r["learned"], r["train"], r["new"]):
            print(f"true {true:.2f}: learned {learned:.3f}; residuals in training {train:.3f}, on new data {new:.3f}")
    draw(results, given.out / "learned_noise.png")
    check(results)


if __name__ == "__main__":
    main()
