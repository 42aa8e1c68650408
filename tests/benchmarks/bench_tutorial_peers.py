"""Others on escnn's tutorial network at a quarter of its widths, and on its export to torch's modules: one refresh on
100 random images in batches of 50, one drawn column (laplace-torch, which has no draws, with all ten classes).

    python tests/benchmarks/bench_tutorial_peers.py {ours,curvlinops,laplace,backpack} {strict,twin}

One run is one process, so that its peak is its own.
"""

from __future__ import annotations

import sys
import warnings

import torch
from bench_width import Tutorial, images, peak, spent
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from escnn_relax import prepare_export
from escnn_relax.curvature.curvature import Curvature


def ours(model, loader):
    estimate = Curvature(model, "categorical", "auto", 1)(loader)
    for name in estimate.factors:
        estimate.eigenvalues(name)


def curvlinops(model, loader):
    from curvlinops import KFACLinearOperator

    parameters = [p for p in model.parameters() if p.requires_grad]
    options = {"fisher_type": "mc", "mc_samples": 1, "check_deterministic": False}
    operator = KFACLinearOperator(model, nn.CrossEntropyLoss(reduction="sum"), parameters, list(loader), **options)
    operator.compute_kronecker_factors()


def laplace(model, loader):
    from laplace import KronLaplace

    KronLaplace(model, "classification").fit(loader)


def backpack(model, loader):
    from backpack import backpack as running
    from backpack import extend
    from backpack.extensions import KFAC

    extended, loss = extend(model), extend(nn.CrossEntropyLoss(reduction="sum"))
    for x, y in loader:
        with running(KFAC(mc_samples=1)):
            loss(extended(x), y).backward()


def main(peer, form):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, (x, y) = Tutorial((6, 12, 12, 24, 24, 16)), images(100, 29)
    model(x[:50])
    model.eval()
    if form == "twin":
        model = prepare_export(model, example=x[:2]).eval()
        # batch normalisation is not known to all, and hooks do not go with changes in place
        known = {id(p) for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d)) for p in m.parameters(False)}
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in known)
        for module in model.modules():
            if hasattr(module, "inplace"):
                module.inplace = False
    before, loader = peak(), DataLoader(TensorDataset(x, y), 50)
    try:
        time = spent(lambda: {f.__name__: f for f in (ours, curvlinops, laplace, backpack)}[peer](model, loader))
        print(f"{peer}, {form}: {time:.1f} s, process {before:.2f} GiB before, {peak():.2f} after")
    except (NotImplementedError, RuntimeError) as error:
        print(f"{peer}, {form}: {type(error).__name__}: {error}")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main(*sys.argv[1:])
