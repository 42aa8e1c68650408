"""[G]-mixed layers: shares of several groups in one convolution
=============================================================

The shares say which of the groups a question needs. A C4 network for 8×8 digits has layers that mix C4, C2 and no
symmetry at all. Filters learn from one half of the training digits, architecture weights from the other. Where the
question is which digit it is, turned at random, every layer comes to C4; where it is by how much the digit was turned,
the early layers do, and the last one gives C4 up. In the end each layer merges into one plain convolution with the same
outputs. About a minute on 2 CPU cores.

    python examples/plot_mixed_layers.py [--out examples/output] [--epochs 60]
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from digits import DigitNet, accuracy, task
from torch.utils.data import DataLoader, TensorDataset

import escnn_relax
from escnn_relax.search import differentiate

QUESTIONS = {"rot": "which digit, turned at random?", "turn": "by how much is it turned?"}
#: Chance and the best an invariant network can do, per question.
CHANCE = {"rot": 0.1, "turn": 0.25}


# %%
# Two halves of the data
# ----------------------
# Filters learn from the one, the shares of the groups from the other, or the largest freedom would always win.


def halves(name: str, seed: int):
    """Loaders of two halves of the training digits, the test set, and the number of classes."""
    data = task(name, seed)
    x, y = data.train
    loaders = []
    for part, start in enumerate((0, 650)):
        generator = torch.Generator().manual_seed(seed + part)
        chosen = TensorDataset(x[start : start + 650], y[start : start + 650])
        loaders.append(DataLoader(chosen, 50, shuffle=True, generator=generator))
    return loaders, data.test, data.classes


# %%
# Search the shares
# -----------------
# ``mix`` gives every layer the kernels of C4, C2 and no symmetry, with a share for each; ``differentiate`` moves
# weights and shares in turn, and ``merge`` adds each layer up into one plain convolution.


def learn(arguments: tuple[str, int, int]) -> dict:
    """Search the shares for one question."""
    name, seed, epochs = arguments
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    loaders, test, classes = halves(name, seed)
    strict = DigitNet(classes, fields=4)
    mixed = escnn_relax.mix(strict, [2, 1])
    with torch.no_grad():
        start = float((mixed(test[0]) - strict(test[0])).abs().max())
    options = {"discretise": None, "architecture_lr": 0.03, "progress": False, "seed": seed}
    result = differentiate(mixed, *loaders, epochs=epochs, **options)
    merged = escnn_relax.merge(result.model)
    with torch.no_grad():
        same = float((merged.eval()(test[0]) - result.model.eval()(test[0])).abs().max())
    count = lambda model: sum(p.numel() for p in model.parameters())
    return {
        "history": result.history,
        "accuracy": accuracy(merged, test),
        "start": start,
        "same": same,
        "kinds": [type(m).__name__ for m in merged.modules() if isinstance(m, escnn_relax.nn.MergedConvolution)],
        "parameters": (count(result.model), count(merged)),
    }


# %%
# The figure
# ----------
# The shares over the steps: a row for each question, a panel for each layer.


def draw(results: dict[str, dict], path: Path) -> None:
    """Shares over the steps: one row a question, one panel a layer."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(9.5, 5.4), sharey=True, layout="constrained")
    for row, (name, result) in zip(axes, results.items()):
        result["history"].plot(row)
        row[0].set_ylabel(f"{QUESTIONS[name]}\nshare π")
    for extra in figure.legends[1:]:
        extra.remove()
    figure.suptitle("Which symmetry does each layer want? Shares of the groups in three [G]-mixed layers")
    figure.savefig(path, dpi=110)


# %%
# Run it
# ------
# Two processes, one for each question.


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("examples/output"))
    parser.add_argument("--epochs", type=int, default=60)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    start = time.time()
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        results = dict(zip(QUESTIONS, pool.map(learn, [(name, 0, given.epochs) for name in QUESTIONS])))
    for name, result in results.items():
        print(f"\n=== {QUESTIONS[name]}\n{result['history']}")
        before, after = result["parameters"]
        print(
            f"test accuracy {result['accuracy']:.1%}; merged: {before} → {after} parameters,"
            f" {', '.join(result['kinds'])}"
        )
    draw(results, given.out / "mixed_layers.png")
    print(f"\n{time.time() - start:.0f} s; figure in {given.out / 'mixed_layers.png'}")
    check(results)


# %%
# The claim
# ---------
# What was said above, as assertions: the script fails where one of them does not hold.


def check(results: dict[str, dict]) -> None:
    """The claims; raises AssertionError with the first that does not hold."""
    for name, result in results.items():
        assert result["start"] < 1e-4, "mixing keeps the function"
        assert result["same"] < 1e-3 and len(result["kinds"]) == 3, "merging keeps the function"
        assert result["accuracy"] > 2 * CHANCE[name], "the network learns its question"
    shares = {name: [of["C4"] for of in r["history"].final().values()] for name, r in results.items()}
    assert min(shares["rot"]) > 0.9, f"every layer comes to C4 where the answer keeps it: {shares['rot']}"
    late = f"the last layer gives C4 up, the first keeps it: {shares['turn']}"
    assert shares["turn"][0] > 0.5 and shares["turn"][-1] < 0.1, late


if __name__ == "__main__":
    main()
