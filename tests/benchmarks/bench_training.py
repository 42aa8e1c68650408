"""What training with the default ``fit`` costs beside training the strict network, in the same run.

    python tests/benchmarks/bench_training.py [--data FOLDER] [--only QUESTION ...] [--passes 40] [--repeats 3]

The strict network of the question (of the whole group) is trained by a plain loop of torch's Adam with a cosine
schedule, its relaxed one by ``fit(model, loader, epochs=...)`` and nothing else; construction and test are not counted.
Each repeat trains both, one after the other; ratios are of processor seconds within a repeat, one thread. The table is
``training.md``, with the shares of the parts of ``fit``. Questions named after MNIST need ``--data``, as
``bench_gates.py`` has them.
"""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from collections.abc import Iterator
from unittest import mock

import numpy as np
import torch
from bench_gates import setting, train_strictly
from torch.utils.data import DataLoader, TensorDataset

import escnn_relax
from escnn_relax.training import evidence_policy
from escnn_relax.training.evidence_training import EvidenceTraining
from escnn_relax.training.gate_policy import Gates

QUESTIONS = [
    "rot",
    "mirrored or not?",
    "MNIST rotated 350",
    "MNIST rotated 1300",
    "MNIST upright 350",
    "MNIST upright 1300",
]
#: Part of fit: where it is called, and its name.
PARTS = {
    "epochs": (EvidenceTraining, "_descend"),
    "tests": (Gates, "_test"),
    "refreshes": (escnn_relax.Evidence, "refresh"),
    "updates": (escnn_relax.Evidence, "step"),
    "rehearsal": (evidence_policy, "rehearse"),
}


@contextmanager
def shares() -> Iterator[dict[str, float]]:
    """Processor seconds of the parts of fit, while the context is open."""
    found = dict.fromkeys(PARTS, 0.0)

    def timed(name, inner):
        def call(*arguments, **options):
            start = time.process_time()
            try:
                return inner(*arguments, **options)
            finally:
                found[name] += time.process_time() - start

        return call

    with ExitStack() as stack:
        for name, (place, attribute) in PARTS.items():
            stack.enter_context(mock.patch.object(place, attribute, timed(name, getattr(place, attribute))))
        yield found


def measure(question: str, passes: int, seed: int, folder: Path) -> dict:
    seconds = {}
    for kind in ("strict", "relaxed"):
        net, train, _, _ = setting(question, seed, folder)
        size = 100 if len(train[0]) > 1000 else 25
        loader = DataLoader(TensorDataset(*train), size, shuffle=True, generator=torch.Generator().manual_seed(seed))
        if kind == "relaxed":
            net = escnn_relax.relax(net)
        with shares() as parts:
            start = time.process_time()
            if kind == "strict":
                train_strictly(net, loader, passes)
            else:
                history = escnn_relax.fit(net, loader, epochs=passes, progress=False)
            seconds[kind] = time.process_time() - start
    opened = len(history.evidence.log_precision) - len(history.evidence.closed)
    return {
        "question": question,
        "seed": seed,
        "open": opened,
        **seconds,
        **{p: parts[p] / seconds["strict"] for p in PARTS},
    }


def table(found: list[dict], passes: int) -> str:
    parts = " | ".join(PARTS)
    rows = [
        "# Training with the default fit beside the strict network\n",
        (
            f"Made by `bench_training.py`, see there: {passes} passes, processor seconds of one thread; *ratio* of"
            " relaxed to strict in the"
        ),
        (
            "same repeat, median (smallest to largest). The parts are in units of the strict training. A machine with"
            " much else to do.\n"
        ),
        f"| question | repeats | s, strict | s, relaxed | ratio | {parts} |",
        "|---" * (5 + len(PARTS)) + "|",
    ]
    for question in dict.fromkeys(f["question"] for f in found):
        of = [f for f in found if f["question"] == question]
        ratios = [f["relaxed"] / f["strict"] for f in of]
        middle = [np.median([f[p] for f in of]) for p in ("strict", "relaxed")]
        shown = " | ".join(f"{np.median([f[p] for f in of]):.2f}" for p in PARTS)
        ratio = f"{np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        rows.append(f"| {question} | {len(of)} | {middle[0]:.1f} | {middle[1]:.1f} | {ratio} | {shown} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--only", nargs="*", default=QUESTIONS)
    parser.add_argument("--passes", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", type=Path, default=Path(__file__).with_name("training.md"))
    given = parser.parse_args()
    measure(given.only[0], 2, 0, given.data)  # what is set up once
    found = []
    for question in given.only:
        for seed in range(given.repeats):
            found.append(measure(question, given.passes, seed, given.data))
            print({k: round(v, 2) if isinstance(v, float) else v for k, v in found[-1].items()}, flush=True)
    given.write.write_text(table(found, given.passes))


if __name__ == "__main__":
    main()
