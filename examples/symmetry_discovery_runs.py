"""Is the planted symmetry found? Ten seeded runs for each start and each planted subgroup; writes the table.

    python examples/symmetry_discovery_runs.py [--runs examples/symmetry_discovery.jsonl] [--only fields O2] [--workers
    2]

Every run relaxes a network of the start's group, trains it with ``fit`` and reads the stabiliser of its kernels;
nothing is tuned to a case. Finished runs are appended to the file at once and not repeated, so that it can be
interrupted at any time; the table is written at the end. A run takes 5 to 30 seconds on one core.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import statistics
import time
from pathlib import Path

import planted
import torch
from runs import work_off

import escnn_relax
from escnn_relax import Evidence
from escnn_relax.evidence import survivors

HERE = Path(__file__).parent
#: Which starts each kind of data has.
STARTS = {"fields": ("C8", "D8", "SO2", "O2"), "digits": ("C8", "D4")}
CASES = [(data, start, name) for data, starts in STARTS.items() for start in starts for name in planted.PLANTED[start]]
KEY = ("data", "start", "planted", "seed")
OPTIONS = {
    "fields": {
        "likelihood": "gaussian",
        "epochs": 50,
        "lr": 2e-2,
        "burn_in": 5,
        "refresh_every": 3,
        "curvature": escnn_relax.CurvatureSettings(samples=8),
    },
    "digits": {"epochs": 60, "lr": 1e-2, "share": 0.5},
}


def run(job: dict) -> dict:
    """One run: train, read, and measure what more symmetry would cost."""
    data, start, name, seed = (job[entry] for entry in KEY)
    torch.set_num_threads(1)
    began = time.time()
    # data of their own for each start: with these fields C8's kernels are the first irreps of SO(2)'s
    make = planted.fields if data == "fields" else planted.turned
    case = make(start, name, seed + 100 * list(planted.PLANTED).index(start))
    torch.manual_seed(seed)
    history = escnn_relax.fit(case.model, case.loader(seed), progress=False, **OPTIONS[data])
    evidence = history.evidence
    if data == "digits":
        # the curvature of training suffices to switch irreps off; margins need the better one
        evidence = Evidence(case.model, curvature="eigenvalue-corrected", num_data=evidence.num_data)
        evidence.log_precision.update(history.evidence.log_precision)
        evidence.refresh(case.loader(seed))
    found = survivors(case.model, evidence, data=[case.train]).network
    record = {"data": data, "start": start, "planted": name, "seed": seed, "found": planted.reading(found.subgroup)}
    record |= {"subgroup": found.subgroup.name, "remainder": found.remainder, "gain": found.gain, "costs": found.costs}
    record |= {"projection": found.losses}
    if data == "digits":
        record["score"] = float((case.model.eval()(case.test[0]).argmax(1) == case.test[1]).float().mean())
    else:
        record |= {"score": math.exp(evidence.log_noise), "axis": case.axis}
    return {**record, "seconds": round(time.time() - began, 1)}


def table(records: list[dict]) -> str:
    """Markdown: a line for each case, all runs counted."""
    lines = [
        "| data | start | planted | found | others | margin, nats | least | in the data, nats | accuracy / noise |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for data, start, name in CASES:
        of = [r for r in records if (r["data"], r["start"], r["planted"]) == (data, start, name)]
        if not of:
            continue
        others = sorted(r["found"] for r in of if r["found"] != name)
        margins = [min(r["costs"].values()) for r in of if r["costs"]]
        losses = [min(r["projection"].values()) for r in of if r["projection"]]
        score = statistics.median(r["score"] for r in of)
        lines.append(
            f"| {data} | {start} | {name} | **{len(of) - len(others)}/{len(of)}** | {', '.join(others)} "
            f"| {_median(margins)} | {f'{min(margins):.1f}' if margins else '–'} | {_median(losses)} "
            f"| {f'{score:.1%}' if data == 'digits' else f'{score:.3f}'} |"
        )
    right = sum(r["found"] == r["planted"] for r in records)
    seconds = sum(r["seconds"] for r in records)
    lines += ["", f"{right} of {len(records)} runs found the planted subgroup; {seconds / 60:.0f} core minutes."]
    return "\n".join(lines) + "\n"


def _median(values: list[float]) -> str:
    return f"{statistics.median(values):.0f}" if values else "–"


def hardware() -> str:
    """What the seconds were measured on."""
    model = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return (
        f"{model[0] if model else platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__.split('+')[0]}"
    )


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=HERE / "symmetry_discovery.jsonl")
    parser.add_argument("--out", type=Path, default=HERE / "symmetry_discovery.md")
    parser.add_argument("--only", nargs="*", default=[], help="words out of data, start and planted group")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    cases = [case for case in CASES if all(word in case for word in given.only)]
    jobs = [dict(zip(KEY, (*case, seed))) for seed in range(given.seeds) for case in cases]
    records = work_off(jobs, run, given.runs, KEY, given.workers)
    given.out.write_text(HEAD + table(records) + f"\nMeasured on {hardware()}.\n", encoding="utf-8")


HEAD = """# Planted symmetry, found

Made by `python examples/symmetry_discovery_runs.py`; every run of it is in the table, and in
`symmetry_discovery.jsonl`.

* **fields**: a scalar and a vector field on a torus of 7×7 pixels, filtered by a random 5×5 kernel of which 10 % of the
  energy is equivariant under the planted subgroup only; one relaxed layer, 80 samples, noise 0.3 (last column: that
  found). From O(2) the axis of the planted reflection is random.
* **digits**: 350 images of 4, 6 and 7, moved by random elements of C8 or D4; the label is the coset of the planted
  subgroup, or the digit where all of the group is planted; two relaxed layers, 60 epochs; last column: accuracy on 140
  other digits.
* **found**: runs in which the stabiliser of all layers is the planted subgroup. **margin**: by how much the evidence
  prefers it to the best larger subgroup (on the Laplace posterior), median and least of the runs. **in the data**: what
  projecting on that larger subgroup costs in log-likelihood of the training data, other weights fixed.

What falls short of 9 in 10, and why:

* digits, all of C8 planted (0/10, always C4): on pixels there is no C8 to be kept. Turning by odd multiples of 45°
  takes no pixel to a pixel: a strict C8 layer's own kernels change by a third under it (`plot_symmetry_discovery.py`
  shows this), and the network uses the difference. C4, which the grid has, is what is found, over C8 by about a nat.

Also worth knowing:

* 40 epochs instead of 60 left C8 with C2 planted and D4 with C4 planted at 8/10 each: an irrep that should be off was
  still above the threshold when training ended.
* digits from SO(2) and O(2) are not in the table: one run of each case, with a network of Fourier nonlinearities
  (`planted.TurnedNet`), found 5 of 9 planted subgroups; from O(2) it stayed close to chance.

"""


if __name__ == "__main__":
    main()
