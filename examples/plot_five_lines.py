"""Relax an escnn network in five lines
====================================

Is an 8×8 digit lying on its side (turned by 90° or 270°) or not? A C4-invariant network must answer by chance. Five
lines later the same network, with the same settings, answers right, and says what it gave up for it: the irrep that a
half turn keeps is alive, the one that it does not keep is off in every layer, and what remains is C2, the symmetry that
the question has. Half a minute on a core.

    python examples/plot_five_lines.py [--out examples/output] [--epochs 40]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from digits import DigitNet, accuracy, task, train_strict

import escnn_relax


# %%
# Five lines
# ----------
# ``relax`` returns a network with the same function and more freedom; ``fit`` trains its weights and the precisions
# of their priors together; ``report`` says what each layer kept, and ``harden`` gives plain escnn layers back. The
# strict network is trained beside it for comparison.


def learn(epochs: int) -> dict:
    """Train the strict and the relaxed network."""
    torch.manual_seed(0)
    data = task("half-turn", 0)
    my_escnn_model = DigitNet(data.classes, fields=4)
    train_loader = data.loader()

    # five lines
    model = escnn_relax.relax(my_escnn_model)
    before = float((model(data.test[0]) - my_escnn_model(data.test[0])).detach().abs().max())
    history = escnn_relax.fit(model, train_loader, epochs=epochs, share=0.5, progress=False)
    report = escnn_relax.report(model, history.evidence)
    final, hardening = escnn_relax.harden(model, return_report=True)

    train_strict(my_escnn_model, train_loader, epochs)
    with torch.no_grad():
        change = float((final.eval()(data.test[0]) - model.eval()(data.test[0])).norm() / model(data.test[0]).norm())
    return {
        "before": before,
        "strict": accuracy(my_escnn_model, data.test),
        "relaxed": accuracy(model, data.test),
        "report": report,
        "hardening": hardening,
        "change": change,
    }


# %%
# The claim
# ---------
# What was said above, as assertions: the script fails where one of them does not hold.


def check(result: dict) -> None:
    """The claims; AssertionError with the first that does not hold."""
    assert result["before"] < 1e-4, f"relaxing keeps the function, it changed by {result['before']:.1e}"
    assert abs(result["strict"] - 0.5) < 0.1, f"the strict network stays at chance: {result['strict']:.0%}"
    assert result["relaxed"] > 0.95, f"the relaxed network learns the question: {result['relaxed']:.0%}"
    energies = [{p.name: p.energy for p in layer.pathways} for layer in result["report"].layers]
    assert max(e["irrep_1"] for e in energies) < 1e-3, f"what a half turn does not keep is off: {energies}"
    assert max(e["irrep_2"] for e in energies) > 1e-3, f"what a half turn keeps is alive: {energies}"
    assert result["change"] < 0.05, f"hardening keeps the outputs, they changed by {result['change']:.1%}"


# %%
# The figure
# ----------
# A row for each layer, a column for each pathway: the share of the kernel's energy that it has.


def draw(result: dict, path: Path) -> None:
    """The heat map of the report."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
    scores = f"test accuracy: strict C4 network {result['strict']:.0%}, relaxed {result['relaxed']:.0%}"
    result["report"].plot(axes, f"On its side, or not? What each layer kept of C4\n{scores}")
    axes.set_xticks(range(3), ["equivariant\nkeeps C4", "ψ1\nbreaks even C2", "ψ2\nkeeps C2"])
    figure.savefig(path, dpi=110)


# %%
# Run it
# ------
# Half a minute. What is printed is the same as in the figure, in numbers.


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("examples/output"))
    parser.add_argument("--epochs", type=int, default=40)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    result = learn(given.epochs)
    print(result["report"])
    print(f"test accuracy: strict {result['strict']:.1%}, relaxed {result['relaxed']:.1%}")
    for layer in result["hardening"]:
        print(f"hardened {layer.name}: {layer.kind}, removed {', '.join(layer.removed) or 'nothing'}")
    draw(result, given.out / "five_lines.png")
    check(result)


if __name__ == "__main__":
    main()
