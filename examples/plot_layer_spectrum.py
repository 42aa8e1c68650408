"""The spectrum of a layer
=======================

The kernels of a relaxed SO(2) layer carry a representation of the group, and each irrep of it is a frequency. A kernel
with n-fold symmetry has energy at multiples of n only. One relaxed filter, which starts rotationally symmetric, learns
blossoms with one to six petals from noisy pairs of pictures. Which frequencies the evidence leaves alive says how many
petals there are, three and six too, which return no grid of pixels to
itself (all that the grid does is to lend a little of frequency 6 to 2, since they differ by 4). About 40 seconds on a
core.

    python examples/plot_layer_spectrum.py [--out examples/output]
"""

from __future__ import annotations

import argparse
import math
import warnings

warnings.filterwarnings("ignore", message="`py3nj` package not found")  # escnn does without it

from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
import escnn_relax  # noqa: E402, I001  # before escnn, which may need what it brings
from escnn import gspaces, nn as enn  # noqa: E402
from planted import Tensors  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

PETALS = (1, 2, 3, 4, 6)
HIGHEST = 6
#: A frequency with a larger share of the energy is alive (fraction).
ALIVE = 0.02


# %%
# Kernels with petals
# -------------------
# A ring whose brightness goes up and down n times. With n petals it is symmetric under turns by 360/n degrees, and
# its Fourier series in the angle has multiples of n only.


def blossom(petals: int, size: int = 9, angle: float = 20.0) -> torch.Tensor:
    """A kernel ``(1, 1, size, size)`` with so many petals: a ring whose brightness is 1 + cos n(θ - angle), norm 1."""
    axis = torch.arange(size) - (size - 1) / 2
    y, x = torch.meshgrid(-axis, axis, indexing="ij")
    ring = torch.exp(-(((x**2 + y**2).sqrt() - 3) ** 2) / 2)
    kernel = ring * (1 + torch.cos(petals * (torch.atan2(y, x) - math.radians(angle))))
    return (kernel / kernel.norm()).view(1, 1, size, size)


# %%
# One relaxed filter learns them
# ------------------------------
# It starts with all rotations and sees eight noisy pairs of pictures, before and after the unknown filter. Its
# pathways are the frequencies.


def learn(petals: int, samples: int = 8, epochs: int = 40, noise: float = 0.3) -> tuple[torch.Tensor, list[float]]:
    """The learned kernel, and its share of energy by frequency."""
    torch.manual_seed(petals)
    x = torch.randn(samples, 1, 18, 18)
    y = F.conv2d(F.pad(x, (4, 4, 4, 4), "circular"), blossom(petals))
    y = y + noise * torch.randn_like(y)
    space = gspaces.rot2dOnR2(-1, maximum_frequency=HIGHEST)
    scalar = enn.FieldType(space, [space.trivial_repr])
    strict = enn.R2Conv(scalar, scalar, 9, padding=4, padding_mode="circular", bias=False)
    model = Tensors(escnn_relax.relax(strict, frequencies=HIGHEST))
    options = {
        "likelihood": "gaussian",
        "lr": 3e-2,
        "burn_in": 12,
        "refresh_every": 6,
        "curvature": escnn_relax.CurvatureSettings(samples=6),
    }
    options["noise"] = escnn_relax.NoiseSettings(log_noise=-1.0)
    escnn_relax.fit(model, DataLoader(TensorDataset(x, y), 4, shuffle=True), epochs=epochs, progress=False, **options)
    energies = model.layer.energies()
    return model.layer.expand_parameters()[0].detach()[0, 0], list(energies.values())


# %%
# The claim
# ---------
# What was said above, as assertions: the script fails where one of them does not hold.


def check(spectra: dict[int, list[float]]) -> None:
    """The claims; AssertionError with the first that does not hold."""
    for petals, energies in spectra.items():
        alive = [f for f, energy in enumerate(energies) if energy > ALIVE]
        assert alive == [0, petals], f"{petals} petals: frequencies {alive} are alive, energies {energies}"


# %%
# The figure
# ----------
# The learned kernels above, and the share of energy of each frequency below.


def draw(kernels: dict[int, torch.Tensor], spectra: dict[int, list[float]], path: Path) -> None:
    """Kernels above, their spectra below."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(PETALS), figsize=(10, 4.6), layout="constrained", sharey="row")
    for (top, bottom), petals in zip(axes.T, PETALS):
        top.imshow(kernels[petals], cmap="cividis")
        top.set_xticks([]), top.set_yticks([])
        top.set_title(f"{petals} petal{'s' if petals > 1 else ''}")
        energies = np.maximum(spectra[petals], 1e-8)
        bottom.bar(range(len(energies)), energies, color=["#0072B2" if e > ALIVE else "#BBBBBB" for e in energies])
        bottom.axhline(ALIVE, color="black", linewidth=0.8, linestyle=":")
        bottom.set_yscale("log")
        bottom.set_ylim(1e-8, 2)
        bottom.set_xticks(range(len(energies)))
        bottom.set_xlabel("frequency (irrep of SO(2))")
    axes[0, 0].set_ylabel("learned kernel\n(9×9 pixels)")
    axes[1, 0].set_ylabel("share of kernel energy\n(grey: below 2 %)")
    figure.suptitle("The spectrum of one relaxed layer counts the petals of what it has learned")
    figure.savefig(path, dpi=110)


# %%
# Run it
# ------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("examples/output"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    kernels, spectra = {}, {}
    for petals in PETALS:
        kernels[petals], spectra[petals] = learn(petals)
        shares = " ".join(f"{energy:.1e}" for energy in spectra[petals])
        print(f"{petals} petals, share of energy by frequency: {shares}", flush=True)
    draw(kernels, spectra, given.out / "layer_spectrum.png")
    check(spectra)


if __name__ == "__main__":
    main()
