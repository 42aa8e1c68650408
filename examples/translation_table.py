"""Does the evidence find where a network may share weights over the image? The toy problem of the
layer-wise-equivariance paper.

    python examples/translation_table.py --data FOLDER [--seeds 3] [--jobs 1] [--runs FILE]
    python examples/translation_table.py --data FOLDER --full        (the published size; wants a GPU)
    python examples/translation_table.py --data FOLDER --quick       (a minute: shows that it runs, nothing else)
    python examples/translation_table.py --published-loop ...         (trains as the paper did, see published_loop.py)
    python examples/translation_table.py --table                     (only writes the table from the runs there are)

FOLDER holds ``mnist.npz``: arrays x_train, y_train, x_test, y_test of uint8 digits, 28 × 28. Each lies in a random
quadrant of a 56 × 56 canvas, which is reduced to 32 × 32, or 16 × 16 without --full. Asked is the digit, to which
translations do not matter, or the digit and the quadrant, which no network that shares its weights and pools can tell.
"MAP" trains under the prior precision 1; "evidence" learns one for each weight tensor.

Without --full: 6000 digits to train, 4000 to test, 4 channels at the bottom (64 at the top), 40 epochs: 1½ to 4 minutes
a run on one CPU core. Every finished run is one line of FILE, by default translation_runs.jsonl beside this script; a
run that is there is not done again.
"""

from __future__ import annotations

import statistics
import time
from itertools import product
from pathlib import Path

import numpy as np
import torch
from published_loop import train_as_published
from runs import arguments, common_to_all, stored, work_off, write_table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from translation_networks import Network, relative_dimensions

import escnn_relax
from escnn_relax import Evidence
from escnn_relax.evidence import CurvatureSettings

TASKS = {"digit": 10, "digit and quadrant": 40}
#: Training, layers, whether F-FC starts with zeros, and the published accuracies for the two tasks (%), of each
#: network.
COLUMNS = {
    "MAP FC": ("map", "FC", False, (95.73, 95.10)),
    "MAP CONV": ("map", "CONV", False, (99.38, 24.68)),
    "evidence FC": ("evidence", "FC", False, (97.04, 95.46)),
    "evidence CONV": ("evidence", "CONV", False, (99.23, 24.50)),
    "evidence F-FC+CONV": ("evidence", "F-FC+CONV", False, (98.86, 99.00)),
    "evidence F-FC+CONV, F-FC silent at first": ("evidence", "F-FC+CONV", True, None),
}
#: Initial log prior precision of an F-FC that starts silent, as in ``relax_translation``.
SILENT = 3.0
SMALL = {
    "train": 6000,
    "test": 4000,
    "side": 16,
    "alpha": 4,
    "epochs": 40,
    "share": 0.25,
    "samples": 1,
    "refresh": 5,
    "batch": 64,
}
FULL = {
    "train": 60000,
    "test": 10000,
    "side": 32,
    "alpha": 10,
    "epochs": 999,
    "share": 1.0,
    "samples": None,
    "refresh": 5,
    "batch": 128,
}
QUICK = {**SMALL, "train": 300, "test": 300, "epochs": 2, "refresh": 1}
SCALES = {"small": SMALL, "full": FULL, "quick": QUICK}
LR = 3e-3
KEY = ("task", "column", "seed", "scale")


HEAD = """Made by `examples/translation_table.py`, which says what is asked; every run is in `translation_runs.jsonl`.
"small" has a tenth of the published data, two fifths of the channels and a quarter of the pixels, so all accuracies are
lower than those published; what can be compared are the networks with each other.

* **Convolutions alone** tell the digit and guess the quadrant: a quarter of their accuracy on digits. On a fixed grid
  they are exactly blind to it (`tests/examples/test_translation_networks.py`).
* **The relaxed network, starting as a convolutional one** (F-FC silent at first, as `relax_translation` makes it) is as
  good as the better specialist or better on both tasks.
* **What the evidence chose**: for the digit alone it switches F-FC off in every block. For digit and quadrant it keeps
  F-FC in the first block, which sees where the digit lies, and in the seventh, the last that sees more than one pixel;
  the convolutions between carry it on.
* **The published form** (mean of the two, F-FC random from the start, same training) trails it by seven and eight
  points: with so few steps its F-FC is neither trained nor switched off. The published runs are 999 epochs long.
* Between networks the evidence is no reliable judge of accuracy: on digits that of FC is the highest, and its accuracy
  the lowest.
* A kernel of 3 × 3 sees 2 × 2 pixels in the seventh block, and one in the eighth, so that shares of CONV come out too
  small there.

""".split("\n")[:-1]


def canvas(images: np.ndarray, labels: np.ndarray, task: str, side: int, seed: int) -> tuple[Tensor, Tensor]:
    """Digits in random quadrants, (n, 1, side, side), and labels."""
    generator = torch.Generator().manual_seed(seed)
    quadrant = torch.randint(4, (len(images),), generator=generator)
    whole = torch.zeros(len(images), 1, 56, 56)
    for n, (image, q) in enumerate(zip(torch.from_numpy(images).float() / 255, quadrant.tolist())):
        row, column = 28 * (q // 2), 28 * (q % 2)
        whole[n, 0, row : row + 28, column : column + 28] = image
    x = nn.functional.interpolate(whole, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
    y = torch.from_numpy(labels).long()
    return (x - 0.033) / 0.15, y if task == "digit" else y + 10 * quadrant


def run(job: dict) -> dict:
    """One network, trained and tested; the line that is stored."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    size, seed, start = job["size"], job["seed"], time.time()
    archive = np.load(Path(job["folder"]) / "mnist.npz", allow_pickle=False)
    order = np.random.default_rng(seed).permutation(len(archive["x_train"]))[: size["train"]]
    x, y = canvas(archive["x_train"][order], archive["y_train"][order], job["task"], size["side"], seed)
    test = canvas(
        archive["x_test"][: size["test"]], archive["y_test"][: size["test"]], job["task"], size["side"], 1000 + seed
    )
    x, y, test = x.to(job["device"]), y.to(job["device"]), [t.to(job["device"]) for t in test]
    how, kinds, silent, _ = COLUMNS[job["column"]]
    torch.manual_seed(seed)
    model = Network(
        kinds, size["alpha"], classes=TASKS[job["task"]], size=size["side"], silent=silent, grid="fixed"
    ).to(job["device"])
    loader = DataLoader(TensorDataset(x, y), size["batch"], shuffle=True, generator=torch.Generator().manual_seed(seed))
    samples = None if size["published"] else size["samples"]
    evidence = Evidence(model, num_data=len(x), relaxed_only=False, curvature=CurvatureSettings(samples=samples))
    evidence.log_precision.update({name: SILENT for name in evidence.log_precision if silent and ".F-FC." in name})
    learns, shares, total = how == "evidence", None, None
    if size["published"]:
        train_as_published(model, loader, evidence, size["epochs"], learns)
    else:
        burn_in = min(10, size["epochs"] - 1) if learns else size["epochs"]  # in the latter case the precisions stay
        options = {
            "epochs": size["epochs"],
            "burn_in": burn_in,
            "refresh_every": size["refresh"],
            "lr": LR,
            "progress": False,
        }
        escnn_relax.fit(model, loader, evidence=evidence, share=size["share"], keep=0.3, hypersteps=20, **options)
    if learns:
        shares = relative_dimensions(model, evidence.effective_dimension())
        total = -evidence.log_marginal_likelihood() / len(x)
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(part) for part in test[0].split(500)])
    kept = {name: job[name] for name in KEY}
    found = {"accuracy": float((logits.argmax(1) == test[1]).float().mean()), "evidence": total, "shares": shares}
    found["nll"] = float(nn.functional.cross_entropy(logits, test[1]))
    return {**kept, **found, "parameters": sum(p.numel() for p in model.parameters()), "seconds": time.time() - start}


def table(lines: list[dict]) -> str:
    """Accuracies beside the published ones, and what the evidence kept of each layer."""
    text = ["# Sharing weights over the image, or not", "", *HEAD]
    for scale in sorted({line["scale"] for line in lines}):
        of = lambda task, column: [o for o in lines if (o["task"], o["column"], o["scale"]) == (task, column, scale)]
        text += [f"## Test accuracy, %, mean ± standard deviation over runs ({scale})", ""]
        text += [
            "| network | weights | digit | published | digit and quadrant | published | −log evidence / N, nats: digit"
            " | both |"
        ]
        text += ["|" + 8 * "---|"]
        for column, (*_, published) in COLUMNS.items():
            cells, evidences, count = [], [], 0
            for task, theirs in zip(TASKS, published or (None, None)):
                runs = of(task, column)
                values, count = (
                    [100 * o["accuracy"] for o in runs],
                    count or max([o["parameters"] for o in runs], default=0),
                )
                spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.1f}{spread} ({len(values)} runs)" if values else "")
                cells.append("" if theirs is None else f"{theirs:.1f}")
                known = [o["evidence"] for o in runs if o["evidence"] is not None]
                evidences.append(f"{statistics.mean(known):.3f}" if known else "")
            text.append(f"| {column} | {count} | {' | '.join(cells + evidences)} |")
        text += ["", f"## Relative effective dimension of CONV beside F-FC by block, %, mean over runs ({scale})", ""]
        text += ["| network | task | " + " | ".join(map(str, range(1, 9))) + " |", "|" + 10 * "---|"]
        for column, task in product([c for c in COLUMNS if "+" in c], TASKS):
            runs = of(task, column)
            if runs:
                shares = [
                    100 * statistics.mean(o["shares"][n]["CONV"] for o in runs) for n in range(len(runs[0]["shares"]))
                ]
                text.append(f"| {column} | {task} | " + " | ".join(f"{s:.0f}" for s in shares) + " |")
        text.append("")
    return "\n".join(text)


def main() -> None:
    parser = arguments(__doc__, "translation", seeds=3)
    given = parser.parse_args()
    lines = stored(given.runs)
    if not given.table:
        common = common_to_all(parser, given, SCALES)
        seeds = range(1 if given.quick else given.seeds)
        wanted = [
            {"task": task, "column": column, "seed": seed, **common}
            for seed in seeds
            for column in reversed(COLUMNS)
            for task in TASKS
        ]
        lines = work_off(wanted, run, given.runs, KEY, given.jobs)
    write_table(given, lines, table)


if __name__ == "__main__":
    main()
