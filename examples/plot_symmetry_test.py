"""Which symmetry a question breaks, before anything is trained
============================================================

Three questions about digits turned by random quarter turns: which digit is it, does it lie on its side, by how much is
it turned? One C4 network with random weights, one pass of gradients over the data for each: in a strictly equivariant
network the mean gradient of a pathway that breaks the symmetry is zero unless the answer needs it broken, whatever the
weights. So the test tells for each layer and irrep which question needs what: nothing, the sign that half turns keep,
everything. Its p-values come from turning the samples at random once more, and are exact. A few seconds on one CPU
core.

    python examples/plot_symmetry_test.py [--out examples/output] [--seed 0]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from digits import DigitNet, task

import escnn_relax

#: Of each question what it asks, the irreps that its answer breaks, and the group that is left.
QUESTIONS = {
    "rot": ("which digit?", set(), "C4"),
    "half-turn": ("does it lie on its side?", {"irrep_2"}, "C2"),
    "turn": ("by how much is it turned?", {"irrep_1", "irrep_2"}, "trivial"),
}


# %%
# One pass of gradients
# ---------------------
# The network has random weights. In a strictly equivariant network the mean gradient of what breaks the symmetry is
# zero unless the data want it broken, so nothing needs to be trained.


def examine(name: str, seed: int = 0) -> escnn_relax.SymmetryTest:
    """The test of one question by a network with random weights."""
    data = task(name, seed)
    torch.manual_seed(seed)
    return escnn_relax.symmetry_test(DigitNet(data.classes), data.loader(), gains=True, progress=False)


# %%
# The claim
# ---------
# What was said above, as assertions: the script fails where one of them does not hold.


def check(results: dict[str, escnn_relax.SymmetryTest]) -> None:
    """The claim: in every layer what is planted is found, and nothing else; AssertionError where it does not hold."""
    for name, (_, planted, left) in QUESTIONS.items():
        test = results[name]
        assert len(test.tests) == 6 and all(t.testable for t in test.tests), f"{name}: three layers, two irreps"
        for t in test.tests:
            found = "found" if t.broken else "not found"
            assert t.broken == (t.pathway in planted), (
                f"{name}: {t.pathway} of {t.layer} {found}, p = {t.adjusted_p_value:.3f}"
            )
        assert test.network.name == left, f"{name}: {left} is left, not {test.network.name}"


# %%
# The figure
# ----------
# One heat map a question. A star marks what is broken at the 5 % level, corrected for all pathways of the network.


def draw(results: dict[str, escnn_relax.SymmetryTest], path: Path) -> None:
    """A heat map for each question."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(results), figsize=(4.2 * len(results), 3), layout="constrained")
    for ax, (name, test) in zip(axes, results.items()):
        test.plot(ax)
        ax.set_title(f"{QUESTIONS[name][0]}\n{test.network.name} is left of {test.group}", fontsize=11)
    figure.suptitle("Read off a network with random weights (* broken)")
    figure.savefig(path, dpi=110)


# %%
# Run it
# ------
# Three questions, one after the other; each is answered in a second or two.


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("examples/output"))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # small images: more threads only wait for each other
    results = {}
    for name, (question, *_) in QUESTIONS.items():
        start = time.perf_counter()
        results[name] = examine(name, given.seed)
        print(f"=== {question} ({time.perf_counter() - start:.1f} s)\n{results[name]}\n")
    draw(results, given.out / "symmetry_test.png")
    check(results)


if __name__ == "__main__":
    main()
