"""Which approximation of the curvature decides as the exact blocks do? The default is chosen by this table.

For each network, early and late in training, each approximation is compared with the exact block of every parameter:

* error: of log|H + δ| per weight (nats), median over parameters, for δ = 1e-2 ... 1e4
* difference: of the log evidence between two pathways of a layer, each at its own best δ: error per weight (nats),
  median
* log δ: error of the best log prior precision, median over pathways
* choice: share of (pathway, δ) where the evidence wants the precision to move the same way as with the exact block
* off: share of pathways whose precision ends on the same side of the threshold beyond which a pathway counts as
  switched off
* cost: processor time relative to expand

"sampled" draws one Monte-Carlo column a sample instead of one for each class; "quarter" takes a quarter of the data and
scales up. Ten classes make nine columns.

    python tests/benchmarks/bench_curvature.py [--quick]
"""

from __future__ import annotations

import itertools
import math
import statistics
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
import escnn_relax  # noqa: E402, F401, I001  # before escnn, which may need what it brings
from escnn import gspaces
from escnn import nn as enn
from torch import nn

from escnn_relax.curvature.curvature import Curvature
from escnn_relax.evidence import Evidence, PriorSettings
from escnn_relax.nn import RelaxedR2Conv, RelaxedR3Conv

#: The approximation, Monte-Carlo columns (``None``: all outputs), share of the data.
APPROXIMATIONS = {
    "expand": ("expand", None, 1),
    "expand, sampled": ("expand", 1, 1),
    "expand, quarter": ("expand", None, 4),
    "expand, quarter, sampled": ("expand", 1, 4),
    "reduce": ("reduce", None, 1),
    "eigenvalue-corrected": ("eigenvalue-corrected", None, 1),
    "diagonal": ("diagonal", None, 1),
    "auto": ("auto", None, 1),
}
DELTAS = [10.0**k for k in range(-2, 5)]
OFF = 7.0  # log precision from which the demo's pathways are dead
SAMPLES = 200


class Net(nn.Module):
    """Two or three steerable layers, mean over space, a linear layer; made invariant by trivial fields at the end."""

    def __init__(self, space, fields, size=5, layer=RelaxedR2Conv, residual=False):
        super().__init__()
        gray = enn.FieldType(space, [space.trivial_repr])
        last = enn.FieldType(space, 6 * [space.trivial_repr])
        self.gray, self.residual = gray, residual
        self.first = layer(gray, fields, size, padding=size // 2)
        pointwise = all("pointwise" in r.supported_nonlinearities for r in fields.representations)
        self.act = enn.ELU(fields) if pointwise else enn.NormNonLinearity(fields, bias=False)
        self.middle = layer(fields, fields, size, padding=size // 2) if residual else None
        self.last = layer(fields, last, size, padding=size // 2)
        self.linear = nn.Linear(6, 10)

    def forward(self, x):
        x = self.act(self.first(self.gray(x)))
        if self.residual:
            x = x + self.act(self.middle(x))
        return self.linear(self.last(x).tensor.relu().flatten(2).mean(-1))


def regular(space, count):
    return enn.FieldType(space, count * [space.regular_repr])


def irreps(space, count, frequencies):
    return enn.FieldType(space, count * [space.irrep(*f) for f in frequencies])


def plain():
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 3, padding=1), nn.ELU(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10)),
    )


def networks():
    C4, C8, D4 = gspaces.rot2dOnR2(4), gspaces.rot2dOnR2(8), gspaces.flipRot2dOnR2(4)
    SO2, O2, octa = gspaces.rot2dOnR2(-1, 3), gspaces.flipRot2dOnR2(-1, 3), gspaces.octaOnR3()
    frequencies = [(0,), (1,), (2,)]
    solid = enn.FieldType(octa, 2 * [octa.trivial_repr] + [octa.irrep(1)])
    return {
        "C4": lambda: Net(C4, regular(C4, 4)),
        "C4, 3x3": lambda: Net(C4, regular(C4, 4), 3),
        "C4, residual": lambda: Net(C4, regular(C4, 3), residual=True),
        "C4, wide": lambda: Net(C4, regular(C4, 6), residual=True),
        "C8": lambda: Net(C8, regular(C8, 2)),
        "D4": lambda: Net(D4, regular(D4, 2)),
        "SO(2)": lambda: Net(SO2, irreps(SO2, 3, frequencies)),
        "O(2)": lambda: Net(O2, irreps(O2, 3, [(0, 0), (1, 0), (1, 1), (1, 2)])),
        "octahedral, 3D": lambda: Net(octa, solid, 3, layer=RelaxedR3Conv),
        "C1": plain,
    }


def digits(count, solid=False):
    archive = np.load(Path(__file__).parents[2] / "examples" / "data" / "digits8.npz", allow_pickle=False)
    x, y = torch.from_numpy(archive["x"]).float().unsqueeze(1)[:count], torch.from_numpy(archive["y"]).long()[:count]
    x = (x - x.mean()) / x.std()
    x = torch.stack([torch.rot90(image, index % 4, (-2, -1)) for index, image in enumerate(x)])
    return (torch.nn.functional.avg_pool2d(x, 2).unsqueeze(-1) * torch.linspace(0.4, 1.6, 4) if solid else x), y


def train(model, data, epochs):
    x, y = data
    evidence = Evidence(model, num_data=len(x), prior=PriorSettings(residual_log_precision=2.0), relaxed_only=False)
    descent = torch.optim.Adam(model.parameters(), lr=5e-3)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(50):
            loss = evidence.loss(model(x[batch]), y[batch])
            descent.zero_grad()
            loss.backward()
            descent.step()


def share(values, square, log_delta):
    """What one pathway adds to the log evidence."""
    return -0.5 * (float(torch.log1p(values * math.exp(-log_delta)).sum()) + math.exp(log_delta) * square)


def best(values, square):
    """The best log precision, by bisection of the gradient within the bounds of the evidence."""
    low, high = -12.0, 16.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(values, square, middle) > 0 else (low, middle)
    return (low + high) / 2


def slope(values, square, log_delta):
    return float((values / (values + math.exp(log_delta))).sum()) - math.exp(log_delta) * square


def layer_of(name):
    return name.partition(".weight")[0]


def compare(exact, other, squares):
    weights = [name for name in exact if "bias" not in name]
    errors = {d: [float((torch.log(other[n] + d) - torch.log(exact[n] + d)).mean()) for n in weights] for d in DELTAS}
    log_deltas = [torch.linspace(-4, 9, 14).tolist() for _ in weights]
    agree = [
        (slope(other[n], squares[n], d) > 0) == (slope(exact[n], squares[n], d) > 0)
        for n, grid in zip(weights, log_deltas)
        for d in grid
    ]
    ends = {n: (best(exact[n], squares[n]), best(other[n], squares[n])) for n in weights}
    tops = {n: [share(v[n], squares[n], ends[n][i]) for i, v in enumerate((exact, other))] for n in weights}
    differences = [
        abs((tops[a][1] - tops[b][1]) - (tops[a][0] - tops[b][0])) / (len(exact[a]) + len(exact[b]))
        for a, b in itertools.combinations(weights, 2)
        if layer_of(a) == layer_of(b)
    ]
    return {
        "errors": errors,
        "difference": differences,
        "log delta": [abs(a - b) for a, b in ends.values()],
        "choice": agree,
        "off": [(a > OFF) == (b > OFF) for a, b in ends.values()],
    }


def measure(model, data):
    squares = {n: float(p.detach().double().square().sum()) for n, p in model.named_parameters()}
    found, times = {}, {}
    order = torch.randperm(len(data[0]))
    for name, (approximation, samples, parts) in {"exact": ("exact", None, 1), **APPROXIMATIONS}.items():
        chosen = order[: len(order) // parts]
        loader = [(data[0][chosen], data[1][chosen])]
        start = time.process_time()
        estimate = Curvature(model, "categorical", approximation, samples)(loader)
        found[name] = {parameter: parts * estimate.eigenvalues(parameter) for parameter in estimate.factors}
        times[name] = time.process_time() - start
    records = {a: compare(found["exact"], found[a], squares) for a in APPROXIMATIONS}
    return records, {a: t / times["expand"] for a, t in times.items()}


def row(name, records, times):
    def median(values):
        return statistics.median(values) if values else math.nan

    errors = " ".join(f"{median([e for r in records for e in r['errors'][d]]):+.3f}" for d in DELTAS)
    joined = {key: [v for r in records for v in r[key]] for key in ("difference", "log delta", "choice", "off")}
    return (
        f"| {name:34s} | {errors} | {median(joined['difference']):.3f} | {median(joined['log delta']):.2f} "
        f"| {statistics.mean(joined['choice']):6.1%} | {statistics.mean(joined['off']):6.1%} | {median(times):5.1f} |"
    )


def main(quick=False):
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    head = f"| {'network':34s} | error at δ = 1e-2 ... 1e4{'':25s} | diff. | log δ | choice | off | cost |"
    print(head, "|" + "---|" * 7, sep="\n")
    everything = {a: ([], []) for a in ("exact", *APPROXIMATIONS)}
    for name, make in list(networks().items())[: 2 if quick else None]:
        torch.manual_seed(0)
        model, data = make(), digits(SAMPLES, solid="3D" in name)
        for stage, epochs in (("early", 4), ("late", 36)):
            train(model, data, epochs)
            records, times = measure(model, data)
            for approximation in APPROXIMATIONS:
                print(
                    row(f"{name}, {stage}: {approximation}", [records[approximation]], [times[approximation]]),
                    flush=True,
                )
                everything[approximation][0].append(records[approximation])
                everything[approximation][1].append(times[approximation])
            everything["exact"][1].append(times["exact"])
    print()
    for approximation in APPROXIMATIONS:
        print(row(f"all: {approximation}", *everything[approximation]))
    print(f"cost of exact: {statistics.median(everything['exact'][1]):.1f}")


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
