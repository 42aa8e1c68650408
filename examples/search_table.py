"""Static networks, searches and the evidence on one question after the other: the runs behind search_table.md.

    python examples/search_table.py --data FOLDER [--seeds 5] [--jobs 2] [--runs examples/output/search_runs.jsonl]
    python examples/search_table.py --data FOLDER --quick            (a few minutes: shows that it runs, nothing else)
    python examples/search_table.py --table                          (only writes the table from the runs there are)

FOLDER holds ``rotated_mnist.npz`` and ``mnist.npz``: arrays x_train, y_train, x_test, y_test of uint8 digits, 28 × 28.
Each run trains on 10000 digits, selects on 2000 others of the training set where it needs to, and is tested on 10000.
Every finished run is one line of a file; a run that is there is not done again, so the script can be stopped at any
time.

"equal compute": all networks have the same channels, and the final one has seen the training data the same number of times;
what a search spends besides stands in its own column. "equal parameters": each architecture, found ones too, is trained from
scratch at the width at which its number of weights is closest to that of the static D4 network.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from digits import accuracy
from escnn import gspaces
from escnn import nn as enn
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import escnn_relax
from escnn_relax.search import differentiate, evolve, static

DATA = ("rotated_mnist", "mnist")
METHODS = {
    "D4": "static D4",
    "C4": "static C4",
    "trivial": "static C1",
    "residual": "residual pathway, no evidence (RPP)",
    "evolve": "EquiNAS_E, accuracy",
    "pareto": "EquiNAS_E, Pareto",
    "evolve-evidence": "evolution by evidence",
    "differentiate": "EquiNAS_D, the mixture, merged",
    "discretised": "EquiNAS_D, one group a layer, retrained",
    "relaxed": "relaxed by evidence",
}
MODES = ("compute", "parameters")
COLUMNS = ("network", "runs", "test accuracy, %", "weights", "passes in all", "seconds", "−log evidence / N", "groups")
#: Methods that find an architecture, which is then trained from scratch at another width.
SEARCHES = ("evolve", "pareto", "evolve-evidence", "discretised")
#: Subgroups of D4 to choose from: turns, one reflection, both.
GROUPS = [(None, 4), (0, 2), (None, 2), (0, 1), (None, 1)]
#: Fields, training passes of the final network, digits to train, select and test on, generations, survivors.
FULL = {"fields": 6, "epochs": 30, "train": 10000, "select": 2000, "test": 10000, "generations": 14, "population": 4}
QUICK = {"fields": 2, "epochs": 2, "train": 200, "select": 100, "test": 200, "generations": 1, "population": 1}
BATCH, LR = 64, 3e-3


class Network(nn.Module):
    """Five steerable convolutions with norms and pools, invariant under D4; every module used once and in order."""

    def __init__(self, fields: int) -> None:
        super().__init__()
        space = gspaces.flipRot2dOnR2(4)
        self.gray, hidden = enn.FieldType(space, [space.trivial_repr]), enn.FieldType(space, fields * [space.regular_repr])
        parts, before = [], self.gray
        for index in range(5):
            parts += [enn.R2Conv(before, hidden, 5, padding=2, bias=False), enn.InnerBatchNorm(hidden), enn.ReLU(hidden)]
            parts += [enn.PointwiseAvgPool2D(hidden, 2)] if index in (0, 2) else []
            before = hidden
        self.features = enn.SequentialModule(*parts)
        self.pool, self.linear = enn.GroupPooling(hidden), nn.Linear(fields, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.pool(self.features(self.gray(x))).tensor.mean((-2, -1)))


class Accuracy:
    """Share of right answers (fraction), a thousand digits at a time."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __call__(self, model: nn.Module) -> float:
        chunks = zip(self.x.split(1000), self.y.split(1000))
        return sum(accuracy(model, chunk) * len(chunk[1]) for chunk in chunks) / len(self.y)


def digits(folder: Path, name: str, seed: int, size: dict, device: str):
    """A loader, and scores on the digits to select by and to test with."""
    archive = np.load(folder / f"{name}.npz", allow_pickle=False)
    # 12000 training digits of either set, split anew for every seed
    order = torch.randperm(12000, generator=torch.Generator().manual_seed(seed))[: size["train"] + size["select"]]
    x, y = (torch.from_numpy(archive[f"{part}_train"][:12000])[order] for part in "xy")
    test = [torch.from_numpy(archive[f"{part}_test"][: size["test"]]) for part in "xy"]
    scaled = lambda images: ((images.float() / 255 - 0.13) / 0.3).reshape(-1, 1, 28, 28).to(device)
    cut = size["train"]
    y, labels = y.long().to(device), test[1].long().to(device)
    train = TensorDataset(scaled(x[:cut]), y[:cut])
    loader = DataLoader(train, BATCH, shuffle=True, generator=torch.Generator().manual_seed(seed))
    held_out = DataLoader(TensorDataset(scaled(x[cut:]), y[cut:]), BATCH, shuffle=True, generator=torch.Generator())
    return loader, held_out, Accuracy(scaled(x[cut:]), y[cut:]), Accuracy(scaled(test[0]), labels)


def train(model: nn.Module, loader, epochs: int) -> None:
    """Adam with a cosine schedule, cross entropy, no prior."""
    adam = torch.optim.Adam(model.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, epochs * len(loader), eta_min=LR / 50)
    model.train()
    for _ in range(epochs):
        for x, y in loader:
            loss = nn.functional.cross_entropy(model(x), y)
            adam.zero_grad()
            loss.backward()
            adam.step()
            schedule.step()


def size_of(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def build(kind: str, genome: list[str] | None, fields: int) -> nn.Module:
    """A network to be trained from scratch: with given groups, or relaxed."""
    model = Network(fields)
    if genome is not None:  # nothing is trained here: the architecture, with random filters
        nothing = [(model.gray(torch.zeros(1, 1, 28, 28)).tensor, torch.zeros(1, dtype=torch.long))]
        model = static(model, nothing, lambda m: 0.0, [genome], epochs=0, groups=GROUPS, progress=False).model
    elif kind == "residual":
        model = escnn_relax.relax(model, subgroups=[(None, 1)])
    elif kind == "relaxed":
        model = escnn_relax.relax(model)
    return model.train()


def fit_width(kind: str, genome: list[str] | None, wanted: int, most: int) -> nn.Module:
    """The network of the width, up to ``most`` fields, whose number of weights is closest to the one wanted."""

    def count(model: nn.Module) -> int:
        if kind == "differentiate":  # a mixture is as large as what it merges into
            model = escnn_relax.merge(escnn_relax.mix(model, GROUPS))
        return size_of(model)

    networks = (build(kind, genome, fields) for fields in range(1, most + 1))
    return min(networks, key=lambda model: abs(math.log(count(model) / wanted)))


def run(job: dict) -> dict:
    """One run of one method; the line that is stored."""
    torch.set_num_threads(1)
    size, seed, method = job["size"], job["seed"], job["method"]
    torch.manual_seed(seed)
    loader, held_out, score, test = digits(Path(job["folder"]), job["data"], seed, size, job["device"])
    start, fields, epochs = time.time(), size["fields"], size["epochs"]
    genome, evidence, passes = job.get("genome"), None, epochs
    if method in ("D4", "C4", "trivial"):
        genome = 5 * [method]
    if job["mode"] == "parameters":
        model = fit_width(method, genome, size_of(Network(fields)), fields)
    else:
        model = build(method, genome, fields)
    model = model.to(job["device"])
    part = DataLoader(TensorDataset(*(t[:1000] for t in loader.dataset.tensors)), 250)  # for the curvature
    searching = job["mode"] == "compute" and method in SEARCHES
    if method == "relaxed":
        options = {"burn_in": min(5, epochs - 1), "refresh_every": 3, "num_data": size["train"], "progress": False}
        found = escnn_relax.fit(model, loader, epochs=epochs, lr=LR, evidence_loader=part, **options)
        evidence = found.evidence.log_marginal_likelihood() / size["train"]
        genome = [f"{layer.breaking_energy:.1e}" for layer in escnn_relax.report(model).layers]
        model = escnn_relax.harden(model)
    elif method == "differentiate" or searching and method == "discretised":
        mixed = escnn_relax.mix(model, GROUPS, leaning=2.0)
        options = {"epochs": epochs, "lr": LR, "seed": seed, "progress": False}
        if method == "discretised":
            options, passes = {**options, "monotone": 0.1, "retrain": epochs}, 2 * epochs
        else:
            options["discretise"] = None
        found = differentiate(mixed, loader, held_out, **options)
        model = escnn_relax.merge(found.model)
        genome = [max(of, key=of.get) for of in found.history.final().values()]
        if method == "discretised":
            genome = list(found.architecture.values())
    elif searching:
        selection = {"evolve": "score", "pareto": "pareto", "evolve-evidence": "evidence"}[method]
        budget = {name: size[name] for name in ("generations", "population")}
        options = {**budget, "epochs": epochs / (size["generations"] + 1), "groups": GROUPS, "lr": LR, "seed": seed}
        options |= {"evidence_loader": part, "evidence_options": {"samples": 1}} if selection == "evidence" else {}
        result = evolve(model, loader, score, selection=selection, **options, progress=False)
        model, genome, passes = result.model, list(result.winner.genome), options["epochs"] * len(result.individuals)
        evidence = None if math.isnan(result.winner.log_evidence) else result.winner.log_evidence
    else:
        train(model, loader, epochs)
    kept = {name: job[name] for name in ("data", "mode", "method", "seed", "quick")}
    counts = {"parameters": size_of(model), "passes": passes, "seconds": time.time() - start}
    return {**kept, "test": test(model), "select": score(model), "evidence": evidence, "genome": genome, **counts}


def key(line: dict) -> tuple:
    return tuple(line[name] for name in ("data", "mode", "method", "seed", "quick"))


def table(lines: list[dict]) -> str:
    """Mean and standard deviation over seeds, and every architecture found."""
    text = ["# Static networks, searches and the evidence", ""]
    text += ["Made by `examples/search_table.py`, which says what is compared."]
    for quick in sorted({line["quick"] for line in lines}):
        for data in DATA:
            for mode in MODES:
                chosen = [one for one in lines if (one["data"], one["mode"], one["quick"]) == (data, mode, quick)]
                if not chosen:
                    continue
                warning = " (`--quick`: only shows that it runs)" if quick else ""
                text += ["", f"## {data}, equal {mode}{warning}", ""]
                text += [f"| {' | '.join(COLUMNS)} |", "|" + len(COLUMNS) * "---|"]
                for method, title in METHODS.items():
                    of = [line for line in chosen if line["method"] == method]
                    if of:
                        text.append(row(title, of))
    return "\n".join(text) + "\n"


def row(title: str, of: list[dict]) -> str:
    mean = lambda name: statistics.mean(line[name] for line in of)
    values = [100 * line["test"] for line in of]
    spread = f" ± {statistics.stdev(values):.2f}" if len(of) > 1 else ""
    evidence = [-line["evidence"] for line in of if line["evidence"] is not None]
    shown = f"{statistics.mean(evidence):.3f}" if evidence else ""
    groups = "; ".join(dict.fromkeys(" ".join(line["genome"]) for line in of if line["genome"]))
    counts = f"{mean('parameters'):.0f} | {mean('passes'):.1f} | {mean('seconds'):.0f}"
    return f"| {title} | {len(of)} | {statistics.mean(values):.2f}{spread} | {counts} | {shown} | {groups} |"


def jobs(given, done: dict[tuple, dict], mode: str) -> list[dict]:
    """What is left to do in one mode; widths for equal parameters need the architectures found before."""
    wanted = []
    for data in DATA:
        for seed in range(given.seeds):
            for method in METHODS:
                job = {"data": data, "mode": mode, "method": method, "seed": seed, "quick": given.quick}
                job |= {"folder": str(given.data), "size": QUICK if given.quick else FULL, "device": given.device}
                if key(job) in done or (given.only and method not in given.only):
                    continue
                if mode == "parameters" and method in SEARCHES:
                    before = done.get(key({**job, "mode": "compute"}))
                    if before is None:
                        continue
                    job["genome"] = before["genome"]
                wanted.append(job)
    return wanted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="*", choices=list(METHODS))
    parser.add_argument("--runs", type=Path, default=Path("examples/output/search_runs.jsonl"))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("search_table.md"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    if given.quick:
        given.seeds = 1
    lines = [json.loads(line) for line in given.runs.read_text().splitlines()] if given.runs.exists() else []
    if not given.table:
        if given.data is None:
            parser.error("--data is needed")
        given.runs.parent.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as pool:
            for mode in MODES:
                todo = jobs(given, {key(line): line for line in lines}, mode)
                for future in as_completed([pool.submit(run, job) for job in todo]):
                    lines.append(future.result())
                    with given.runs.open("a") as file:
                        file.write(json.dumps(lines[-1]) + "\n")
                    print(json.dumps(lines[-1]), flush=True)
    given.out.write_text(table(lines), encoding="utf-8")
    print(table(lines))


if __name__ == "__main__":
    main()
