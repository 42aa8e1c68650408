"""A trained C8 network goes on as a C4 network
============================================

A scalar field has to be turned into another, as a network does that keeps quarter turns and no more. One with the
symmetry C8 learns it as well as it can. ``restrict`` re-expresses the trained network on C4: the same function to
rounding, the optimiser's moments carried along, and twice as many directions to go on in. The loss does not jump where
the C4 network takes over, and falls below what the C8 network, trained as long, comes to. The new network is no longer
equivariant under 45°, but exactly under quarter turns. About 10 seconds on a core.

    python examples/plot_restrict_and_train.py [--out examples/output] [--epochs 20]
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
import escnn_relax  # noqa: E402, F401, I001  # before escnn, which may need what it brings
from escnn import gspaces, nn as enn
from planted import Tensors
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


# %%
# A C8 network, and data that have C4
# -----------------------------------
# The data come from an unknown network with the symmetry C4, so eight-fold symmetry is too much.


def network(group: int) -> nn.Module:
    """Two convolutions on a torus from a scalar field to a scalar field, with 16 channels in between."""
    space = gspaces.rot2dOnR2(group)
    scalar = enn.FieldType(space, [space.trivial_repr])
    hidden = enn.FieldType(space, 16 // group * [space.regular_repr])
    wrap = {"padding": 2, "padding_mode": "circular"}
    layers = enn.R2Conv(scalar, hidden, 5, **wrap), enn.ELU(hidden), enn.R2Conv(hidden, scalar, 5, **wrap)
    return Tensors(enn.SequentialModule(*layers))


def fields(count: int) -> tuple[Tensor, Tensor]:
    """Pairs of fields ``(count, 1, 10, 10)``, the second of variance 1; between them an unknown network of C4."""
    x = torch.randn(count, 1, 10, 10)
    with torch.no_grad():
        y = network(4)(x)
    return x, (y - y.mean()) / y.std()


# %%
# A plain training loop
# ---------------------
# Nothing of it knows about symmetry: the restricted network is an ordinary escnn network, and so is its optimiser.


def train(model: nn.Module, optimiser: torch.optim.Optimizer, loader: DataLoader, epochs: int) -> list[float]:
    """Mean squared error averaged over each epoch."""
    losses = []
    for _ in range(epochs):
        total = 0.0
        for x, y in loader:
            loss = nn.functional.mse_loss(model(x), y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += float(loss.detach()) / len(loader)
        losses.append(total)
    return losses


# %%
# How far from C8
# ---------------
# The share of the kernels that is outside C8's says how much of the new freedom is used.


def left(restricted: nn.Module, original: nn.Module) -> float:
    """The largest share of a kernel's norm that is not of C8's kernels (fraction)."""
    shares = []
    for name, layer in original.named_modules():
        if isinstance(layer, enn.R2Conv):
            kernel = restricted.get_submodule(name).expand_parameters()[0]
            nearest = escnn_relax.project(restricted.get_submodule(name), like=layer).expand_parameters()[0]
            shares.append(float((kernel - nearest).detach().norm() / kernel.detach().norm()))
    return max(shares)


# %%
# Two ways on
# -----------
# After the first epochs one copy goes on as it is, the other is restricted to C4 and takes the optimiser's moments
# along by ``carry_optimizer``.


def learn(epochs: int) -> dict:
    """C8 first; then two ways on."""
    torch.manual_seed(0)
    loader = DataLoader(TensorDataset(*fields(300)), 25, shuffle=True, generator=torch.Generator().manual_seed(0))
    x = loader.dataset.tensors[0][:50]
    on_c8 = network(8)
    adam = torch.optim.Adam(on_c8.parameters(), lr=5e-3)
    first = train(on_c8, adam, loader, epochs)

    on_c4 = escnn_relax.restrict(on_c8, 4)
    carried = escnn_relax.carry_optimizer(adam, on_c8, on_c4)
    with torch.no_grad():
        same = float((on_c4(x) - on_c8(x)).norm() / on_c8(x).norm())
    as_it_was = copy.deepcopy(on_c8.train())
    counts = [sum(p.numel() for p in model.parameters()) for model in (on_c8, on_c4)]
    result = {"first": first, "same": same, "parameters": counts, "left before": left(on_c4, as_it_was)}
    result["C8"] = train(on_c8, adam, loader, epochs)
    result["C4"] = train(on_c4.train(), carried, loader, epochs)
    with torch.no_grad():
        turned = torch.rot90(on_c4(torch.rot90(x, 1, (-2, -1))), -1, (-2, -1))
        change = float((turned - on_c4(x)).norm() / on_c4(x).norm())
    return result | {"left": left(on_c4, as_it_was), "change": change}


# %%
# The claim
# ---------
# What was said above, as assertions: the script fails where one of them does not hold.


def check(result: dict) -> None:
    """The claims; AssertionError with the first that does not hold."""
    assert result["same"] < 1e-4, f"restricting keeps the function, it changed by {result['same']:.1e}"
    assert result["parameters"][1] > 1.5 * result["parameters"][0], "there are more directions on C4"
    jump = result["C4"][0] - result["first"][-1]
    assert jump < 0, f"training goes on without a jump: {jump:+.3f}"
    assert result["C4"][-1] < 0.7 * result["C8"][-1], f"C4 gets further: {result['C4'][-1]} against {result['C8'][-1]}"
    assert result["left before"] < 1e-4 < 0.05 < result["left"], f"its kernels are no longer C8's: {result['left']}"
    assert result["change"] < 1e-4, (
        f"but exactly C4's: the outputs change by {result['change']:.1e} under quarter turns"
    )


# %%
# The figure
# ----------
# Training losses of both: no jump where the C4 network takes over.


def draw(result: dict, path: Path) -> None:
    """Training losses."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    start = len(result["first"])
    axes.plot(range(1, start + 1), result["first"], color="black", linewidth=2, label="C8 network")
    for name, colour, style in (("C8", "#0072B2", "--"), ("C4", "#E69F00", "-")):
        curve = [result["first"][-1], *result[name]]
        label = f"goes on as {name}, comes to {result[name][-1]:.3f}"
        axes.plot(range(start, start + len(curve)), curve, style, color=colour, linewidth=2, label=label)
    axes.axvline(start, color="#999999", linewidth=1, linestyle=":")
    note = "restrict(model, 4)\ncarry_optimizer(...)"
    axes.text(start + 0.2, max(result["first"]) * 0.5, note, fontsize=9, family="monospace")
    axes.set_yscale("log")
    axes.set_xlabel("epoch")
    axes.set_ylabel("mean squared error\n(variance of the target: 1)")
    axes.set_title("A C8 network becomes a C4 network in mid-training")
    axes.legend(loc="lower left")
    figure.savefig(path, dpi=110)


# %%
# Run it
# ------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("examples/output"))
    parser.add_argument("--epochs", type=int, default=20)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    result = learn(given.epochs)
    before, after = result["parameters"]
    print(f"change of the outputs by restricting: {result['same']:.1e}; parameters {before} → {after}")
    print(f"training loss {result['first'][-1]:.3f}, then {result['C8'][-1]:.3f} as C8, {result['C4'][-1]:.3f} as C4")
    print(f"not of C8's kernels in the end: {result['left']:.1%}; change under quarter turns: {result['change']:.1e}")
    draw(result, given.out / "restrict_and_train.png")
    check(result)


if __name__ == "__main__":
    main()
