"""Every run behind the README's table: four tasks, strict and relaxed networks, several seeds, one set of defaults.

    python examples/table_of_runs.py --seeds 3 --jobs 2      (about 25 minutes on 2 CPU cores, less with more jobs)

"strict" is trained without any prior, "strict, evidence" by the same fit as the others, "relaxed" is what
escnn_relax.relax makes of it. "overlapping" is the residual pathway as it is usually built: a free convolution beside
the equivariant one, not orthogonal to it and started at random, trained by the same evidence.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from digits import TASKS, DigitNet, accuracy, change_under_turns, task, train_strict
import escnn_relax  # noqa: E402, F401, I001  # before escnn, which may need what it brings
from escnn.nn import EquivariantModule, GeometricTensor
from torch import nn

from escnn_relax import Evidence, fit, relax, report

NETWORKS = ["strict", "strict, evidence", "relaxed", "overlapping"]


class Overlapping(EquivariantModule):
    """An equivariant convolution plus a free one, both started at random."""

    def __init__(self, strict) -> None:
        super().__init__()
        self.in_type, self.out_type, self.strict = strict.in_type, strict.out_type, strict
        self.free = nn.Conv2d(
            self.in_type.size, self.out_type.size, strict.kernel_size, padding=strict.padding, bias=False
        )

    def forward(self, input: GeometricTensor) -> GeometricTensor:
        return GeometricTensor(self.strict(input).tensor + self.free(input.tensor), self.out_type)

    def evaluate_output_shape(self, input_shape):
        return self.strict.evaluate_output_shape(input_shape)


def run(arguments: tuple[str, str, int, dict]) -> dict:
    """One training run; returns what the table shows."""
    name, kind, seed, options = arguments
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    data = task(name, seed)
    model = DigitNet(data.classes)
    result = {"task": name, "network": kind, "seed": seed}
    if kind == "strict":
        train_strict(model, data.loader(seed=seed), options.get("epochs", 100))
    else:
        if kind == "relaxed":
            model = relax(model)
        if kind == "overlapping":
            for layer in ("conv1", "conv2", "conv3"):
                setattr(model, layer, Overlapping(getattr(model, layer)))
        evidence = Evidence(model, num_data=len(data.train[0]), relaxed_only=kind == "relaxed")
        options = {"evidence_loader": data.evidence_loader(), "progress": False, "gates": kind == "relaxed", **options}
        history = fit(model, data.loader(seed=seed), evidence=evidence, **options)
        result["evidence"] = history.evidence.log_marginal_likelihood() / len(data.train[0])
    result["accuracy"] = accuracy(model, data.test)
    result["train accuracy"] = accuracy(model, data.train)
    result["change under turns"] = change_under_turns(model, data.test[0])
    if kind == "relaxed":
        result["layers"] = report(model).to_dict()["layers"]
    return result


def row(result: dict) -> str:
    """One line of the table."""
    evidence = f"{-result['evidence']:.3f}" if "evidence" in result else ""
    energies = []
    for layer in result.get("layers", []):
        shares = {p["name"]: p["energy"] for p in layer["pathways"]}
        energies.append("(" + ", ".join(f"{100 * shares[n]:.2g}" for n in ("irrep_1", "irrep_2")) + ")")
    fraction = max(
        (p["fraction"] for layer in result.get("layers", []) for p in layer["pathways"] if p["breaks"]), default=None
    )
    return (
        f"| {result['task']} | {result['network']} | {result['seed']} | {100 * result['accuracy']:.1f} "
        f"| {100 * result['change under turns']:.1f} | {evidence} | {' '.join(energies)} "
        f"| {'' if fraction is None else f'{100 * fraction:.2f}'} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--networks", nargs="*", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--options", type=json.loads, default={}, help="JSON of options of escnn_relax.fit")
    parser.add_argument("--json", help="write all results to this file")
    given = parser.parse_args()
    jobs = [
        (t, k, s, given.options)
        for t in given.tasks
        for k in given.networks
        for s in range(given.seeds)
        if t == "rot" or k in ("strict", "relaxed")  # the other two are there for comparison on the first task
    ]
    print(
        "| task | network | seed | test acc. % | change under turns % | −log evidence / N | energy of ψ1, ψ2 by layer %"
        " | largest eff. dim. of a residual % |"
    )
    print("|---|---|---|---|---|---|---|---|")
    with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as pool:
        results = []
        for result in pool.map(run, jobs):
            results.append(result)
            print(row(result), flush=True)
    if given.json:
        with open(given.json, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
