"""Gated training with one set of defaults beside static groups and the constant start, at several sizes of data.

    python tests/benchmarks/bench_gates.py --seeds 2 [--data FOLDER] [--only QUESTION ...] [--ways WAY ...]

The 8 x 8 digits come with the repository; questions named after MNIST need ``--data`` with ``mnist.npz`` and
``rotated_mnist.npz``. A run of digits takes one to two minutes on one CPU core, one of 10 000 images of MNIST about
ten. Each run is one line of ``gates.jsonl`` (a run that is there is not done again); the table is ``gates.md``. One
thread.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from digits import TASKS, DigitNet, accuracy, task  # noqa: E402
import escnn_relax  # noqa: E402, I001  # before escnn, which may need what it brings
from escnn import gspaces  # noqa: E402
from escnn import nn as enn  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from escnn_relax.evidence import CurvatureSettings
from escnn_relax.nn.relaxed_convolution import RelaxedConvolution  # noqa: E402

RUNS = Path(__file__).with_name("gates.jsonl")
GATED, CONSTANT = "gated (default)", "all open from log δ = 3"
OFTEN, EVIDENCE = "gated, refreshed often", "static with evidence "
#: Question: group of the network, passes, static subgroups beside it.
DIGITS = {name: ("C4", 100, [4, 2, 1]) for name in TASKS} | {
    "mirrored or not?": ("D4", 100, [(0, 4), (None, 4), (None, 1)])
}
#: "mirrored or not?, 8 fields" is the same question for a network twice as wide, "MNIST ..., no norm" one without batch
#: norm.
FIELDS, NORMLESS = " fields", ", no norm"
#: Passes over as many images.
PASSES = {350: 120, 1300: 80, 3000: 40, 10000: 20, 60000: 10}


class ImageNet(torch.nn.Module):
    """28 x 28: D4, even strides that keep the middle, pooled to invariants."""

    def __init__(self, norm: bool = True) -> None:
        super().__init__()
        space = gspaces.flipRot2dOnR2(4)
        self.gray, hidden = enn.FieldType(space, [space.trivial_repr]), enn.FieldType(space, 3 * [space.regular_repr])
        parts, before = [], self.gray
        for size, stride in ((6, 2), (4, 2), (3, 1)):
            parts.append(enn.R2Conv(before, hidden, size, padding=(size - stride + 1) // 2, stride=stride))
            parts += ([enn.InnerBatchNorm(hidden)] if norm else []) + [enn.ReLU(hidden)]
            before = hidden
        self.features, self.pool = enn.SequentialModule(*parts), enn.GroupPooling(hidden)
        self.linear = torch.nn.Linear(3 * 8, 10)
        invariant = enn.FieldType(space, 24 * [space.trivial_repr])
        self.last = enn.R2Conv(hidden, invariant, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.last(self.features(self.gray(x))).tensor.relu().mean((-2, -1)))


def images(question: str, seed: int, folder: Path):
    kind, count = question.removesuffix(NORMLESS).rsplit(" ", 1)
    archive = np.load(folder / ("rotated_mnist.npz" if "rotated" in kind else "mnist.npz"))
    order = np.random.default_rng(seed).permutation(len(archive["x_train"]))[: int(count)]

    def tensors(part, index):
        x = torch.from_numpy(archive[f"x_{part}"][index]).float()[:, None] / 255
        return (x - 0.13) / 0.31, torch.from_numpy(archive[f"y_{part}"][index]).long()

    return tensors("train", order), tensors("test", np.arange(10000))


def setting(question: str, seed: int, folder: Path):
    """Strict network, training and test data, passes, group name."""
    torch.manual_seed(seed)
    fields = int(question.removesuffix(FIELDS).rsplit(" ", 1)[1]) if question.endswith(FIELDS) else None
    normed = not question.endswith(NORMLESS)
    question = question.split(", ")[0]
    if question in DIGITS:
        group, passes, _ = DIGITS[question]
        space = gspaces.rot2dOnR2(4) if group == "C4" else gspaces.flipRot2dOnR2(4)
        found = task("rot" if question not in TASKS else question, seed)
        train, test, classes = found.train, found.test, found.classes
        if question not in TASKS:
            mirrored = torch.randint(2, (1797,), generator=torch.Generator().manual_seed(seed))
            x = torch.cat([train[0], test[0]])
            x = torch.where(mirrored.view(-1, 1, 1, 1).bool(), x.flip(-1), x)
            train, test, classes = (x[:1300], mirrored[:1300]), (x[1300:], mirrored[1300:]), 2
        return DigitNet(classes, fields or (6 if group == "C4" else 4), space), train, test, passes
    train, test = images(question, seed, folder)
    return ImageNet(normed), train, test, PASSES[len(train[0])]


def train_strictly(net: torch.nn.Module, loader: DataLoader, passes: int) -> None:
    """Without a prior, by the optimizer and the schedule of ``fit``."""
    descent = torch.optim.Adam(net.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(descent, passes, eta_min=1e-4)
    for _ in range(passes):
        for x, y in loader:
            descent.zero_grad()
            torch.nn.functional.cross_entropy(net(x), y).backward()
            descent.step()
        schedule.step()


def run(question: str, way: str, seed: int, folder: Path) -> dict:
    net, train, test, passes = setting(question, seed, folder)
    size = 100 if len(train[0]) > 1000 else 25
    loader = DataLoader(TensorDataset(*train), size, shuffle=True, generator=torch.Generator().manual_seed(seed))
    start, notes, evidence = time.process_time(), [], None
    if way.startswith("static"):
        id = eval(way.removeprefix(EVIDENCE).removeprefix("static "), {})  # an id of this file's own
        whole = {4: True, (0, 4): True}.get(id, False)
        net = net if whole else escnn_relax.restrict(net, id)
    if way.startswith(EVIDENCE):
        strict = escnn_relax.Evidence(net, num_data=len(train[0]), relaxed_only=False)
        history = escnn_relax.fit(net, loader, epochs=passes, evidence=strict, progress=False)
        evidence = -history.evidence.terms().total / len(train[0])
    elif way.startswith("static"):
        train_strictly(net, loader, passes)
    else:
        net = escnn_relax.relax(net)
        options: dict = {}
        if way == OFTEN:
            options = {
                "refresh_every": 3 if passes >= 40 else 2,
                "curvature": CurvatureSettings(samples=1),
                "share": min(1.0, 1300 / len(train[0])),
            }
        history = escnn_relax.fit(net, loader, epochs=passes, gates=way != CONSTANT, progress=False, **options)
        terms = history.evidence.terms()
        evidence = -terms.total / len(train[0])
        notes = [f"{r.epoch}: {r.note}" for r in history.records if r.note]
    cost = time.process_time() - start
    found = {"question": question, "way": way, "seed": seed, "passes": passes, "seconds": round(cost, 1)}
    parts = [
        accuracy(net, tuple(t[k : k + 500] for t in test)) * len(test[0][k : k + 500])
        for k in range(0, len(test[0]), 500)
    ]
    found["accuracy"] = sum(parts) / len(test[0])
    if way.startswith(EVIDENCE):
        found |= {"evidence": evidence}
    elif evidence is not None:
        energies = {
            name: {k: v for k, v in layer.energies().items() if k in {p.name for p in layer.pathways if p.breaks}}
            for name, layer in net.named_modules()
            if isinstance(layer, RelaxedConvolution)
        }
        found |= {"evidence": evidence, "notes": notes, "energies": energies}
    return found


HEAD = """# Gated training beside static groups

Made by `bench_gates.py`, see there: `fit(model, loader, epochs=...)` and nothing else. *Tested* says when the symmetry
test opened pathways. The default does it at epoch 4 and at each refresh up to the first past 3/10 of the training, and
at refreshes while nothing is learned. Only what breaks a symmetry feels its prior. A pathway that opens in a network
that has learned keeps the precision of the test until the end. Which turn, half turn or mirror image it is, a network
that is strict for the whole group cannot learn: there the evidence moves what opens. The other ways were defaults
before, or were tried, all of them with a prior on all weights and precisions that move at each refresh. *Former
default*: tested at epoch 4 and once past 3/10. *Before training*: the last refresh at 9/10, no updates after it. *At
3/10* and *at epoch 4*: the evidence is at the best precisions for the final weights. *Refreshed often*: each second or
third epoch from epoch 10 (5 where there are 20 passes), on 1300 images with one column each, tested before training.
*Drawn labels*: as the former default, the curvature by labels that are drawn, not by random signs. The last refresh of
the former default's rows read fewer images than it does now, which moved an evidence by 1 % where it was tried.
Evidences of networks whose weights all feel a prior are higher for the same function. Static networks are trained as
long, without priors, by the same optimizer and schedule. Every run is a line of `gates.jsonl`.

"""


def table(lines: list[dict]) -> str:
    rows = [
        "| question | way | seeds | test acc. % (spread) | −log evidence / N | processor s |",
        "|---|---|---|---|---|---|",
    ]
    groups: dict[tuple, list[dict]] = {}
    for line in lines:
        groups.setdefault((line["question"], line["way"]), []).append(line)
    for (question, way), of in sorted(groups.items()):
        accuracies = np.array([100 * line["accuracy"] for line in of])
        evidence = [line["evidence"] for line in of if "evidence" in line]
        shown = f"{np.mean(evidence):.3f}" if evidence else ""
        seconds = np.mean([line["seconds"] for line in of])
        spread = f"{accuracies.mean():.1f} ({np.ptp(accuracies):.1f})"
        rows.append(f"| {question} | {way} | {len(of)} | {spread} | {shown} | {seconds:.0f} |")
    return HEAD + "\n".join(rows) + "\n"


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--only", nargs="*", default=list(DIGITS))
    parser.add_argument("--ways", nargs="*")
    parser.add_argument("--runs", type=Path, default=RUNS)
    given = parser.parse_args()
    done = [json.loads(line) for line in given.runs.read_text().splitlines()] if given.runs.exists() else []
    for question in given.only:
        static = DIGITS.get(question.split(", ")[0], ("D4", 0, [(0, 4), (None, 4), (None, 1)]))[2]
        for way in given.ways or [GATED, CONSTANT, *(f"static {id}" for id in static)]:
            for seed in range(given.seeds):
                if not any((d["question"], d["way"], d["seed"]) == (question, way, seed) for d in done):
                    done.append(run(question, way, seed, given.data))
                    with given.runs.open("a") as file:
                        file.write(json.dumps(done[-1]) + "\n")
                    print(done[-1], flush=True)
    given.runs.with_suffix(".md").write_text(table(done))


if __name__ == "__main__":
    main()
