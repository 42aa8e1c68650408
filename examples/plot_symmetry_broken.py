"""Symmetry that does not hold is broken, and where in depth
=========================================================

Two questions whose answers have no symmetry under quarter turns. By how much is a digit turned? What the early layers
look for, edges and strokes, may come in all four orientations; only the last layer must know which way they point.
Which digit is it, none of them turned? There the early layers profit already. The relaxed C4 network, with the same
settings for both questions, says so: the first breaks its symmetry late, keeping C4 in the first layer, the second
breaks it from the first layer on. (``gates=False``: every pathway of every layer starts open, under one and the same
prior, so that where the evidence ends is its own choice.) Under a minute on each of 2 CPU cores.

    python examples/plot_symmetry_broken.py [--out examples/output] [--epochs 50]
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from digits import DigitNet, accuracy, task, train_strict

import escnn_relax

QUESTIONS = {"turn": "by how much is it turned?", "upright": "which digit, none turned?"}


# %%
# Both networks, on one question
# ------------------------------
# The strict network shows what the symmetry costs; the relaxed one has the same start, the same data and as many
# epochs.


def learn(arguments: tuple[str, int]) -> dict:
    """Strict and relaxed network on one question."""
    name, epochs = arguments
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = task(name, 0)
    strict = DigitNet(data.classes, fields=4)
    model = escnn_relax.relax(strict)
    train_strict(strict, data.loader(), epochs)
    options = {
        "evidence_loader": data.evidence_loader(),
        "curvature": escnn_relax.CurvatureSettings(samples=2),
        "gates": False,
        "progress": False,
    }
    history = escnn_relax.fit(model, data.loader(), epochs=epochs, **options)
    return {
        "strict": accuracy(strict, data.test),
        "relaxed": accuracy(model, data.test),
        "report": escnn_relax.report(model, history.evidence),
    }


# %%
# Where in depth
# --------------
# The share of each layer's kernel that breaks C4 is all that is compared. It says which layers gave their symmetry
# up.


def broken(result: dict) -> list[float]:
    """The breaking energy of each layer (fraction)."""
    return [layer.breaking_energy for layer in result["report"].layers]


# %%
# The claim
# ---------
# What was said above, as assertions: the script fails where one of them does not hold.


def check(results: dict[str, dict]) -> None:
    """The claims; AssertionError with the first that does not hold."""
    turn, upright = broken(results["turn"]), broken(results["upright"])
    assert results["turn"]["strict"] < 0.35, "the strict network cannot tell the turn"
    assert results["turn"]["relaxed"] > 0.75, f"the relaxed one can: {results['turn']['relaxed']:.0%}"
    gained = results["upright"]["relaxed"] - results["upright"]["strict"]
    assert gained > 0, f"it knows upright digits at least as well: {gained:.1%} better"
    assert turn[0] < 0.003 and turn[-1] > 0.005 and turn[-1] > 5 * turn[0], f"the turn is read late: {turn}"
    assert min(upright) > 0.01 and upright[0] > 5 * turn[0], f"upright digits are broken up from the start: {upright}"


# %%
# The figure
# ----------
# Two bars a layer, one for each question.


def draw(results: dict[str, dict], path: Path) -> None:
    """Breaking energy by depth."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for offset, (name, colour, hatch) in zip((-0.2, 0.2), (("turn", "#0072B2", ""), ("upright", "#E69F00", "//"))):
        scores = f"{results[name]['relaxed']:.0%} right, strict network {results[name]['strict']:.0%}"
        heights = [100 * energy for energy in broken(results[name])]
        label = f"{QUESTIONS[name]} ({scores})"
        places = [x + offset for x in range(3)]
        bars = axes.bar(places, heights, 0.38, color=colour, hatch=hatch, edgecolor="white", label=label)
        axes.bar_label(bars, [f"{h:.2g}" for h in heights], fontsize=9)
    axes.set_xticks(range(3), ["conv1\n(first)", "conv2", "conv3\n(last)"])
    axes.set_xlabel("layer")
    axes.set_ylabel("breaking energy (%)")
    axes.set_ylim(0, 1.4 * max(max(broken(result)) for result in results.values()) * 100)
    axes.set_title("Where in depth two questions make a C4 network give up its symmetry")
    axes.legend(loc="upper center")
    figure.savefig(path, dpi=110)


# %%
# Run it
# ------
# Two processes, one for each question.


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("examples/output"))
    parser.add_argument("--epochs", type=int, default=50)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        results = dict(zip(QUESTIONS, pool.map(learn, [(name, given.epochs) for name in QUESTIONS])))
    for name, result in results.items():
        print(
            f"=== {QUESTIONS[name]} relaxed {result['relaxed']:.1%}, strict"
            f" {result['strict']:.1%}\n{result['report']}\n"
        )
    draw(results, given.out / "symmetry_broken.png")
    check(results)


if __name__ == "__main__":
    main()
