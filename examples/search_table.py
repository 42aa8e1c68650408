"""Static networks, searches and the evidence on one question after the other: the runs behind search_table.md.

    python examples/search_table.py --data FOLDER [--seeds 0 1 2 3 4] [--jobs 2] [--runs examples/search_runs.jsonl]
    python examples/search_table.py --data FOLDER --size gpu         (a larger network, trained longer: for a GPU)
    python examples/search_table.py --data FOLDER --size quick       (a few minutes: shows that it runs, nothing else)
    python examples/search_table.py --table                          (only writes the table from the runs there are)

FOLDER holds ``rotated_mnist.npz`` and ``mnist.npz``: arrays x_train, y_train, x_test, y_test of uint8 digits, 28 × 28.
Of the 12000 training digits each run trains on some, selects on others where it needs to, and is tested on digits of
the test set; ``SIZES`` in search_setting.py says on how many, with which network and for how long. Every finished run
is one line of a file; a run that is there is not done again, so the script can be stopped at any time. Seeds are worked
off one after the other, so that what is there are whole seeds.

"equal compute": all networks have the same channels, and the final one has seen the training data the same number of
times, with the same schedule (a constant learning rate in the first half, a falling one in the second); what a search
spends besides stands in its own column. A search has the first of these passes: its population lives on so many from
the first to the last generation, or its mixture moves its shares for so many; then the winner, or the mixture with its
shares frozen, trains on. "EquiNAS_D, one group a layer" trains what it found from scratch. "equal parameters": each
architecture, found ones too, is trained from scratch at the width (one field or more) at which its number of weights is
closest to that of the static D4 network.
"""

from __future__ import annotations

import argparse
import math
import time
from functools import cache
from itertools import product
from pathlib import Path
from collections.abc import Sequence

import numpy as np
import torch
from digits import accuracy
from runs import stored, work_off
from search_setting import DATA, KEY, METHODS, MODES, SEARCHES, SIZES, Network
from search_writing import table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import escnn_relax
from escnn_relax.morphism.mix import mixed_layers
from escnn_relax.search import differentiate, evolve, static

LR = 1e-2
#: Where the part of the table begins that is written by hand, and kept.
READING = "## What it says"


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
    loader = DataLoader(train, size["batch"], shuffle=True, generator=torch.Generator().manual_seed(seed))
    held_out = DataLoader(
        TensorDataset(scaled(x[cut:]), y[cut:]), size["batch"], shuffle=True, generator=torch.Generator()
    )
    return loader, held_out, Accuracy(scaled(x[cut:]), y[cut:]), Accuracy(scaled(test[0]), labels)


def train(model: nn.Module, loader, epochs: int, first: int = 0) -> nn.Module:
    """From the first of so many epochs to the last: Adam, cross entropy, no prior."""
    adam = torch.optim.Adam(model.parameters(), lr=LR)
    schedule = decay(epochs, first)(adam)
    model.train()
    for _ in range(first, epochs):
        for x, y in loader:
            loss = nn.functional.cross_entropy(model(x), y)
            adam.zero_grad()
            loss.backward()
            adam.step()
        schedule.step()
    return model


def decay(epochs: int, first: int = 0):
    """A constant learning rate in the first half of the epochs, a falling one in the second."""
    factor = lambda epoch: min(1.0, 2 - 2 * (first + epoch) / epochs)
    return lambda adam: torch.optim.lr_scheduler.LambdaLR(adam, factor)


def size_of(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def build(kind: str, genome: Sequence[str] | None, fields: int, size: dict) -> nn.Module:
    """A network to be trained from scratch: with given groups, or relaxed."""
    model = Network(fields, size["layers"])
    if genome is not None:  # nothing is trained here: the architecture, with random filters
        nothing = [(model.gray(torch.zeros(1, 1, 28, 28)).tensor, torch.zeros(1, dtype=torch.long))]
        model = static(model, nothing, lambda m: 0.0, [genome], epochs=0, groups=size["groups"], progress=False).model
    elif kind == "residual":
        model = escnn_relax.relax(model, subgroups=[(None, 1)])
    elif kind == "relaxed":
        model = escnn_relax.relax(model)
    return model.train()


@cache
def width(kind: str, genome: tuple[str, ...] | None, size: str) -> int:
    """The number of fields, up to that of the size, at which the number of weights is closest to the static D4
    network's."""
    chosen = SIZES[size]
    wanted = size_of(Network(chosen["fields"], chosen["layers"]))

    def distance(fields: int) -> float:
        model = build(kind, genome, fields, chosen)
        if kind == "differentiate":  # a mixture is as large as what it merges into
            model = escnn_relax.merge(escnn_relax.mix(model, chosen["groups"]))
        return abs(math.log(size_of(model) / wanted))

    return min(range(1, chosen["fields"] + 1), key=distance)


def run(job: dict) -> dict:
    """One run of one method; the line that is stored."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    size, seed, method = SIZES[job["size"]], job["seed"], job["method"]
    torch.manual_seed(seed)
    loader, held_out, score, test = digits(Path(job["folder"]), job["data"], seed, size, job["device"])
    start, epochs, first, groups = time.time(), size["epochs"], size["search"], size["groups"]
    genome, evidence, passes = job.get("genome"), None, epochs
    if method in ("D4", "C4", "trivial"):
        genome = len(size["layers"]) * [method]
    if job["mode"] == "parameters":
        fields = width(method, genome and tuple(genome), job["size"])
    else:
        fields = size["fields"]
    torch.manual_seed(seed)  # whether the width was known already changes nothing
    model = build(method, genome, fields, size).to(job["device"])
    part = DataLoader(TensorDataset(*(t[: size["curvature"]] for t in loader.dataset.tensors)), 250)
    searching = job["mode"] == "compute" and method in SEARCHES
    if method == "relaxed":
        options = {"burn_in": size["burn_in"], "refresh_every": 1, "num_data": size["train"], "progress": False}
        options |= {"scheduler": decay(epochs), "curvature": escnn_relax.CurvatureSettings(samples=1)}
        found = escnn_relax.fit(model, loader, epochs=epochs, lr=LR, evidence_loader=part, **options)
        evidence = found.evidence.log_marginal_likelihood() / size["train"]
        genome = [f"{layer.breaking_energy:.1e}" for layer in escnn_relax.report(model).layers]
        model = escnn_relax.harden(model)
    elif method == "differentiate" or searching and method == "discretised":
        options = {"epochs": first, "lr": LR, "architecture_lr": 3 * LR, "seed": seed, "progress": False}
        options |= {"discretise": None} if method == "differentiate" else {"monotone": 0.1}
        found = differentiate(escnn_relax.mix(model, groups), loader, held_out, **options)
        genome = list(found.architecture.values())
        if method == "differentiate":
            for layer in mixed_layers(found.model).values():
                layer.freeze()
            model = escnn_relax.merge(train(found.model, loader, epochs, first))
            genome = [" ".join(f"{100 * share:.0f}" for share in of.values()) for of in found.history.final().values()]
            genome = [f"[{shares}]" for shares in genome]
        else:
            model, passes = train(build(method, genome, fields, size).to(job["device"]), loader, epochs), first + epochs
    elif searching:
        selection = {"evolve": "score", "pareto": "pareto", "evolve-evidence": "evidence"}[method]
        budget = {name: size[name] for name in ("generations", "population")}
        options = {**budget, "epochs": first / (size["generations"] + 1), "groups": groups, "lr": LR, "seed": seed}
        options |= (
            {"evidence_loader": part, "evidence_options": {"curvature": escnn_relax.CurvatureSettings(samples=1)}}
            if selection == "evidence"
            else {}
        )
        result = evolve(model, loader, score, selection=selection, **options, progress=False)
        genome, passes = list(result.winner.genome), options["epochs"] * len(result.individuals) + epochs - first
        evidence = None if math.isnan(result.winner.log_evidence) else result.winner.log_evidence
        model = train(result.model, loader, epochs, first)
    else:
        train(model, loader, epochs)
    kept = {name: job[name] for name in KEY}
    counts = {"parameters": size_of(model), "passes": passes, "seconds": time.time() - start}
    return {**kept, "test": test(model), "select": score(model), "evidence": evidence, "genome": genome, **counts}


def key(line: dict) -> tuple:
    return tuple(line[name] for name in KEY)


def jobs(given, done: dict[tuple, dict], seed: int, mode: str) -> list[dict]:
    """What there is to do for one seed in one mode; widths for equal parameters need the architectures found before."""
    wanted = []
    for data in DATA:
        for method in METHODS:
            job = {"data": data, "mode": mode, "method": method, "seed": seed, "size": given.size}
            job |= {"folder": str(given.data), "device": given.device}
            if given.only and method not in given.only:
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
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", choices=list(SIZES), default="cpu")
    parser.add_argument("--only", nargs="*", choices=list(METHODS))
    parser.add_argument("--runs", type=Path, default=Path(__file__).with_name("search_runs.jsonl"))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("search_table.md"))
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    if not given.table:
        if given.data is None:
            parser.error("--data is needed")
        for seed, mode in product(given.seeds, MODES):
            done = {key(line): line for line in stored(given.runs)}
            work_off(jobs(given, done, seed, mode), run, given.runs, KEY, given.jobs)
    before = given.out.read_text(encoding="utf-8") if given.out.exists() else ""
    reading = before[before.index(READING) :] if READING in before else ""
    text = table(stored(given.runs)) + (reading and "\n" + reading)
    given.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
