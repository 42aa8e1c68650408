"""Symmetry that holds is kept
===========================

Which digit is it, turned at random by multiples of 90°? The answer has the symmetry C4. A relaxed C4 network is free to
break it and tries: while it trains, its kernels leave the equivariant ones, since every batch of digits looks lopsided.
But the data determine hardly any of the weights that break the symmetry, so the evidence switches them off, layer by
layer, and the network ends as invariant as it began. No validation data are used. (``gates=False``: everything is open
from the start. By default ``fit`` opens only what the symmetry test finds broken, and here that is nothing.) About 40
seconds on a core.

    python examples/plot_symmetry_kept.py [--out examples/output] [--epochs 60]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from digits import DigitNet, accuracy, change_under_turns, task

import escnn_relax

LAYERS = ("conv1", "conv2", "conv3")
#: A layer with less breaking energy than this keeps its symmetry (fraction).
KEPT = 0.01


# %%
# Train, and watch the symmetry
# -----------------------------
# Here every pathway is open from the start, and a callback writes down after each epoch how much of each kernel
# breaks C4. The evidence is told of half of the data, which is enough for the curvature.


def learn(epochs: int, name: str = "rot", fields: int = 4) -> dict:
    """The relaxed network's breaking energy after each epoch, and what is left in the end."""
    torch.manual_seed(0)
    data = task(name, 0)
    model = escnn_relax.relax(DigitNet(data.classes, fields))
    energies = []

    def watch(record) -> None:
        energies.append([model.get_submodule(layer).breaking_energy for layer in LAYERS])

    options = {
        "evidence_loader": data.evidence_loader(),
        "curvature": escnn_relax.CurvatureSettings(samples=3),
        "gates": False,
        "progress": False,
        "callback": watch,
    }
    history = escnn_relax.fit(model, data.loader(), epochs=epochs, **options)
    return {
        "energies": energies,
        "evidences": [epoch for epoch, _ in history.evidences],
        "change": change_under_turns(model, data.test[0]),
        "accuracy": accuracy(model, data.test),
        "report": escnn_relax.report(model, history.evidence),
    }


# %%
# The claim
# ---------
# What was said above, as assertions: the script fails where one of them does not hold.


def check(result: dict) -> None:
    """The claims; AssertionError with the first that does not hold."""
    last = result["energies"][-1]
    assert max(map(max, result["energies"])) > 5 * max(last), "the symmetry was free to be broken, and was tried"
    assert max(last) < KEPT, f"every layer keeps C4 in the end: breaking energies {last}"
    assert result["change"] < 0.15, f"the logits hardly change under turns: {result['change']:.1%}"
    assert result["accuracy"] > 0.8, f"the network has learned the digits: {result['accuracy']:.0%}"


# %%
# The figure
# ----------
# The breaking energy of each layer over the epochs, on a logarithmic axis: it rises while the weights follow the
# batches, and falls once the evidence sets the precisions.


def draw(result: dict, path: Path) -> None:
    """Breaking energy of the layers over the epochs."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    looks = (("#0072B2", "-"), ("#E69F00", "--"), ("#000000", ":"))
    for layer, curve, (colour, style) in zip(LAYERS, zip(*result["energies"]), looks):
        axes.plot(
            range(1, len(curve) + 1), [max(e, 1e-8) for e in curve], style, color=colour, label=layer, linewidth=2
        )
    axes.axvline(result["evidences"][0] + 1, color="#999999", linewidth=1)
    axes.text(result["evidences"][0] + 1.5, 3e-8, "the evidence begins to move the precisions", fontsize=9)
    axes.axhline(KEPT, color="#999999", linewidth=1, linestyle=":")
    axes.set_yscale("log")
    axes.set_ylim(1e-8, 1)
    axes.set_xlabel("epoch")
    axes.set_ylabel("breaking energy (fraction)")
    axes.set_title("Share of each layer's kernel that breaks C4, where the question keeps it")
    axes.legend(loc="upper right")
    figure.savefig(path, dpi=110)


# %%
# Run it
# ------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("examples/output"))
    parser.add_argument("--epochs", type=int, default=60)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    result = learn(given.epochs)
    print(result["report"])
    print(f"test accuracy {result['accuracy']:.1%}; the logits change by {result['change']:.1%} under turns")
    draw(result, given.out / "symmetry_kept.png")
    check(result)


if __name__ == "__main__":
    main()
