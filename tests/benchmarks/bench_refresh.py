"""Cost of a refresh of the curvature, as ratios measured side by side in one run, one thread, processor time.

1. a plain network (three convolutions of 32 channels, 1000 images of 28 x 28, 10 classes): against laplace-torch's
   default back-end, curvlinops and BackPACK's KFLR, each with the exact sum over classes
2. a C8 steerable network: against its exported plain twin
3. training with a refresh each five epochs: against plain training
4. memory over 200 refreshes

    python tests/benchmarks/bench_refresh.py [--profile]
"""

from __future__ import annotations

import copy
import gc
import resource
import statistics
import sys
import time
import warnings

import torch
from backpack import backpack, extend
from backpack.extensions import KFLR
from curvlinops import KFACLinearOperator
import escnn_relax  # noqa: E402, F401, I001  # before escnn, which may need what it brings
from escnn import gspaces
from escnn import nn as enn
from laplace import KronLaplace
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from escnn_relax.curvature.curvature import Curvature
from escnn_relax.evidence import CurvatureSettings, Evidence
from escnn_relax.nn import RelaxedR2Conv


def plain():
    layers, channels = [], 1
    for _ in range(3):
        layers += [nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        channels = 32
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(288, 10))


def images(count, size):
    return TensorDataset(torch.randn(count, 1, size, size), torch.randint(10, (count,)))


def cost(run, repeats=3):
    """Median processor seconds, after one run that is not counted."""
    times = []
    for _ in range(repeats + 1):
        gc.collect()
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return statistics.median(times[1:])


def with_backpack(model, loader):
    extended, loss = extend(copy.deepcopy(model)), extend(nn.CrossEntropyLoss(reduction="sum"))

    def run():
        for x, y in loader:
            with backpack(KFLR()):
                loss(extended(x), y).backward()
            for p in extended.parameters():
                del p.kflr
                p.grad = None

    return run


def with_curvlinops(model, loader):
    parameters = list(model.parameters())

    def run():
        for x, y in loader:
            options = {"fisher_type": "type-2", "check_deterministic": False}
            operator = KFACLinearOperator(model, nn.CrossEntropyLoss(reduction="sum"), parameters, [(x, y)], **options)
            operator.compute_kronecker_factors()

    return run


def against_others():
    model, loader = plain().eval(), DataLoader(images(1000, 28), batch_size=250)
    curvature = Curvature(model, "categorical", "expand")
    ours = cost(lambda: curvature(loader))
    print(f"escnn_relax, expand: {ours:.2f} s")
    others = {
        "laplace-torch": lambda: KronLaplace(model, "classification").fit(loader),
        "curvlinops": with_curvlinops(model, loader),
        "BackPACK KFLR": with_backpack(model, loader),
    }
    for name, run in others.items():
        theirs = cost(run)
        print(f"{name}: {theirs:.2f} s, ratio {ours / theirs:.2f}")


class Steerable(nn.Module):
    def __init__(self, kind, relu=enn.ReLU):
        super().__init__()
        space = gspaces.rot2dOnR2(8)
        gray, fields = enn.FieldType(space, [space.trivial_repr]), enn.FieldType(space, 4 * [space.regular_repr])
        self.gray = gray
        self.convolutions = nn.ModuleList([kind(gray, fields, 5, padding=2), kind(fields, fields, 5, padding=2)])
        self.relu = relu(fields)
        self.linear = nn.Linear(32, 10)

    def forward(self, x):
        x = self.gray(x)
        for convolution in self.convolutions:
            x = self.relu(convolution(x))
        return self.linear(x.tensor.mean((-2, -1)))


def exported(model):
    """The plain twin of a steerable network."""
    layers = [part for convolution in model.convolutions for part in (convolution.export(), nn.ReLU())]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), copy.deepcopy(model.linear))


def against_the_plain_twin():
    loader = DataLoader(images(500, 14), batch_size=125)
    strict = Steerable(enn.R2Conv).eval()
    twin = Curvature(exported(strict), "categorical", "expand")
    theirs = cost(lambda: twin(loader))
    for name, model in (("strict", strict), ("relaxed, graded", Steerable(RelaxedR2Conv))):
        curvature = Curvature(model, "categorical", "expand")
        ours = cost(lambda: curvature(loader))
        print(f"C8, {name}: {ours:.2f} s, ratio to the plain twin {ours / theirs:.2f}")


def training():
    model, data = Steerable(RelaxedR2Conv), images(1000, 14)
    loader = DataLoader(data, batch_size=100)
    descent = torch.optim.Adam(model.parameters(), lr=1e-3)
    plain = Evidence(model, num_data=len(data))

    def epoch():
        model.train()
        for x, y in loader:
            descent.zero_grad()
            plain.loss(model(x), y).backward()
            descent.step()

    five = 5 * cost(epoch)
    quarter, eighth = TensorDataset(*data[:250]), TensorDataset(*data[:125])
    for name, part, samples in (
        ("all data, exact", data, None),
        ("all data, one sample", data, 1),
        ("a quarter of the data, exact", quarter, None),
        ("a quarter of the data, one sample", quarter, 1),
        ("an eighth of the data, one sample", eighth, 1),
    ):
        evidence, batches = (
            Evidence(model, num_data=len(data), curvature=CurvatureSettings(samples=samples)),
            DataLoader(part, batch_size=125),
        )
        refresh = cost(lambda: (evidence.refresh(batches), evidence.step()))
        print(f"training with a refresh each 5 epochs, {name}: {(five + refresh) / five:.2f} times plain training")


def soak(refreshes=200):
    model, loader = Steerable(RelaxedR2Conv), DataLoader(images(50, 10), batch_size=25)
    evidence = Evidence(model)
    marks = []
    for index in range(refreshes):
        evidence.refresh(loader)
        evidence.step()
        if index in (refreshes // 4, refreshes - 1):
            gc.collect()
            marks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(f"peak memory after {refreshes // 4} refreshes {marks[0]:.0f} MiB, after {refreshes} {marks[1]:.0f} MiB")


def profile():
    model, loader = plain().eval(), DataLoader(images(1000, 28), batch_size=250)
    curvature = Curvature(model, "categorical", "expand")
    curvature(loader)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as record:
        curvature(loader)
    print(record.key_averages().table(sort_by="self_cpu_time_total", row_limit=15, max_name_column_width=40))


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for part in [profile] if "--profile" in sys.argv else [against_others, against_the_plain_twin, training, soak]:
        part()
