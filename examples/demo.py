"""One network, four questions: the layers find out by themselves which symmetry each answer has.

    python examples/demo.py [--out examples/output] [--epochs 100] [--seed 0]

8×8 digits, a C4-equivariant network of three layers, 1300 training images. For each question the strict network and its
relaxed copy are trained with the same default settings; the evidence alone decides what the relaxed copy keeps. Prints
what was learned and draws it. About three minutes on 2 CPU cores.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from digits import TASKS, DigitNet, accuracy, change_under_turns, task, train_strict

import escnn_relax

#: How the residual irreps of C4 read: what a kernel in them is no longer equivariant under.
READABLE = {
    "equivariant": "equivariant\nkeeps C4",
    "irrep_1": "ψ1\nbreaks even C2",
    "irrep_2": "ψ2\nkeeps C2",
}


def learn(arguments: tuple[str, int, int]) -> dict:
    """Train the strict and the relaxed network on one task."""
    name, seed, epochs = arguments
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    data = task(name, seed)
    strict = DigitNet(data.classes)
    relaxed = escnn_relax.relax(strict)
    train_strict(strict, data.loader(seed=seed), epochs)
    history = escnn_relax.fit(
        relaxed, data.loader(seed=seed), epochs=epochs, evidence_loader=data.evidence_loader(), progress=False
    )
    learned = escnn_relax.report(relaxed, history.evidence)
    hardened, hardening = escnn_relax.harden(relaxed, return_report=True)
    return {
        "task": name,
        "strict": accuracy(strict, data.test),
        "relaxed": accuracy(relaxed, data.test),
        "hardened": accuracy(hardened, data.test),
        "classes": [f"{layer.name}: {layer.kind}" for layer in hardening],
        "change": change_under_turns(relaxed, data.test[0]),
        "chance": 1 / data.classes,
        "report": learned,
        "kept": [layer.survivor or "no verdict" for layer in learned.layers],
    }


def claims(result: dict) -> list[tuple[str, bool]]:
    """What the demo shows, as far as the task has a right answer."""
    energies = [{p.name: p.energy for p in layer.pathways} for layer in result["report"].layers]
    worst = max(e["irrep_1"] + e["irrep_2"] for e in energies)
    determined = max(p.fraction for layer in result["report"].layers for p in layer.pathways if p.breaks)
    kept = [("the hardened network is as good, within a point", abs(result["hardened"] - result["relaxed"]) <= 0.01)]
    if result["task"] == "rot":
        return kept + [
            ("the data determine less than 2 % of any residual pathway", determined < 0.02),
            ("every layer keeps C4 (breaking energy < 1 %)", worst < 0.01),
            ("the logits change by less than 5 % under turns", result["change"] < 0.05),
        ]
    if result["task"] == "half-turn":
        return kept + [
            ("ψ1, which breaks C2, is off in every layer (< 0.1 %)", max(e["irrep_1"] for e in energies) < 1e-3),
            ("ψ2, which C2 keeps, is alive", max(e["irrep_2"] for e in energies) > 1e-3),
        ]
    if result["task"] == "turn":
        return kept + [
            ("the strict network stays at chance", abs(result["strict"] - 0.25) < 0.06),
            ("the relaxed network learns it (> 80 %)", result["relaxed"] > 0.8),
            ("the first layer keeps C4", result["kept"][0] == "C4"),
        ]
    return kept


def draw(results: list[dict], path: Path) -> None:
    """One panel a task: the share of each layer's kernel that keeps C4, and that breaks it in each of the two ways."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(11, 7), layout="constrained")
    for panel, result in zip(axes.flat, results):
        kept = " → ".join(result["kept"])
        scores = f"test accuracy {result['relaxed']:.0%}, strict C4 network {result['strict']:.0%}"
        result["report"].plot(panel, f"{TASKS[result['task']]}\nsymmetry kept, layer by layer: {kept}\n{scores}")
        panel.set_xticks(range(3), list(READABLE.values()))
        panel.set_xlabel("")
    figure.suptitle("What each layer of one C4 network learned about its symmetry", fontsize=14)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("examples/output"))
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    start, results, failed = time.time(), [], []
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for result in pool.map(learn, [(name, given.seed, given.epochs) for name in TASKS]):
            results.append(result)
            print(f"\n=== {result['task']}: {TASKS[result['task']]}")
            print(
                f"test accuracy: relaxed {result['relaxed']:.1%}, strict {result['strict']:.1%}, chance"
                f" {result['chance']:.0%}"
            )
            print(f"hardened: {result['hardened']:.1%} ({', '.join(result['classes'])})")
            print(f"change of the logits under turns: {result['change']:.1%}")
            print(f"symmetry kept, layer by layer: {' → '.join(result['kept'])}\n{result['report']}", flush=True)
            for claim, holds in claims(result):
                print(f"  [{'ok' if holds else 'NOT REACHED'}] {claim}")
                failed += [] if holds else [claim]
    draw(results, given.out / "demo.png")
    print(f"\nfigure: {given.out / 'demo.png'}   ({time.time() - start:.0f} s)")
    if failed:
        raise SystemExit("not reached: " + "; ".join(failed))


if __name__ == "__main__":
    main()
