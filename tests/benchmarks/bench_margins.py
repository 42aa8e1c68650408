"""Margins of a classifier under each curvature, against two trained networks and their dense Laplace evidence.

A C4 network with max over the group and a mean over 49 sites has to tell three patterns and whether they were turned by
90 degrees (modulo 180), for which its second layer must break C4 to C2. What that is worth is the difference of the
dense evidence (all weights in one Gauss-Newton matrix) of the network and of one that was trained with its breaking
pathways closed.

    python tests/benchmarks/bench_margins.py [--count 200]
"""

from __future__ import annotations

import argparse
import math
import warnings

import torch
import escnn_relax  # noqa: F401, I001  # before escnn, which may need what it brings
from escnn import gspaces
from escnn import nn as enn
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from escnn_relax import Evidence, survivors
from escnn_relax.nn import RelaxedR2Conv

CURVATURES = ("exact", "eigenvalue-corrected", "expand")


class Invariant(nn.Module):
    def __init__(self):
        super().__init__()
        space = gspaces.rot2dOnR2(4)
        self.gray, fields = enn.FieldType(space, [space.trivial_repr]), enn.FieldType(space, 3 * [space.regular_repr])
        self.first, self.act = RelaxedR2Conv(self.gray, fields, 5, padding=1), enn.ReLU(fields)
        self.second, self.linear = RelaxedR2Conv(fields, fields, 3, padding=1), nn.Linear(3, 6)

    def head(self, features):
        return self.linear(features.relu().unflatten(1, (3, 4)).amax(2).mean((-2, -1)))

    def forward(self, x):
        return self.head(self.second(self.act(self.first(self.gray(x)))).tensor)


def data(count):
    generator = torch.Generator().manual_seed(0)
    patterns = nn.functional.avg_pool2d(torch.randn(3, 1, 11, 11, generator=generator), 3, 1)
    which, turns = (torch.randint(n, (count,), generator=generator) for n in (3, 4))
    x = torch.stack([torch.rot90(p, int(k), (1, 2)) for p, k in zip(patterns[which], turns)])
    return (2 * x + 0.9 * torch.randn(x.shape, generator=generator)).double(), which * 2 + turns % 2


def learned(x, y, closed):
    torch.manual_seed(0)
    model = Invariant().double()
    for name, p in model.named_parameters():
        if closed and "irrep" in name:
            p.requires_grad_(False)
        elif "irrep_2" in name:
            p.data.add_(0.05 * torch.randn_like(p))
    evidence = Evidence(model, "categorical", num_data=len(x), relaxed_only=False, curvature="exact")
    for _ in range(10):
        evidence.refresh(DataLoader(TensorDataset(x, y), batch_size=100))
        evidence.step()
        descent = torch.optim.LBFGS(model.parameters(), max_iter=25, line_search_fn="strong_wolfe")

        def closure():
            descent.zero_grad()
            loss = evidence.loss(model(x), y)
            loss.backward()
            return loss

        descent.step(closure)
    return model, evidence


def dense_evidence(model, x, y, log_precision):
    """By one Gauss-Newton matrix of all weights."""
    values = {n: p.detach().clone() for n, p in model.named_parameters() if n in log_precision and p.requires_grad}
    G = 0
    for one in x.split(1):
        f, pull = torch.func.vjp(lambda v: torch.func.functional_call(model, v, (one,), tie_weights=False)[0], values)
        J = torch.stack([torch.cat([g.flatten() for g in pull(e)[0].values()]) for e in torch.eye(len(f)).double()])
        p = f.detach().softmax(0)
        G = G + J.T @ (torch.diag(p) - torch.outer(p, p)) @ J
    delta = torch.cat([torch.full((v.numel(),), math.exp(log_precision[n])).double() for n, v in values.items()])
    w = torch.cat([v.flatten() for v in values.values()])
    fit = -float(nn.functional.cross_entropy(model(x), y, reduction="sum"))
    return fit - 0.5 * float(torch.linalg.slogdet(G + delta.diag())[1] - delta.log().sum() + (delta * w * w).sum())


def along(evidence, name):
    """The curvature along the weights of a pathway."""
    w, total = dict(evidence.model.named_parameters())[name].detach().flatten(), 0.0
    for factor in evidence.estimate.factors[name]:
        v = w if factor.positions is None else w[factor.positions.flatten()]
        total += float(v @ factor.dense() @ v)
    return total


def by_places(model, x):
    """The same by hand: as it is, and with every site a sample of its own."""
    layer = model.second
    with torch.no_grad():
        middle = model.act(model.first(model.gray(x)))
        kernel = layer.kernel({n: p if n == "irrep_2" else torch.zeros_like(p) for n, p in layer.weights.items()})
        change = nn.functional.conv2d(middle.tensor, kernel.view(12, 12, 3, 3), padding=1)
    features = layer(middle).tensor.detach().requires_grad_(True)
    outputs = model.head(features)
    p, whole, apart = outputs.detach().softmax(-1), 0.0, 0.0
    for c in range(6):
        column = (torch.eye(6).double()[c] - p) * p[:, c : c + 1].sqrt()
        gradient = torch.autograd.grad((outputs * column).sum(), features, retain_graph=True)[0]
        sites = (gradient * change).sum(1)
        whole, apart = whole + float(sites.sum((1, 2)).square().sum()), apart + float(sites.square().sum())
    return whole, apart


def main():
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    x, y = data(parser.parse_args().count)
    (free, evidence), (strict, other) = (learned(x, y, closed) for closed in (False, True))
    worth = dense_evidence(free, x, y, evidence.log_precision) - dense_evidence(strict, x, y, other.log_precision)
    print(f"C2 instead of C4, both trained, dense evidence: {worth:.1f} nats")
    whole, apart = by_places(free, x)
    print(f"w'Hw of second.weights.irrep_2 by hand: {whole:.1f}, every site a sample {apart:.1f}")
    loader = DataLoader(TensorDataset(x, y), batch_size=100)
    for curvature in CURVATURES:
        found = Evidence(free, "categorical", num_data=len(x), curvature=curvature, relaxed_only=False)
        found.refresh(loader)
        found.log_precision.update(evidence.log_precision)
        margins = [survivors(free, found, data=of, progress=False).network for of in (None, loader)]
        said = ", ".join(f"{m.subgroup.name} {m.margin:.1f}" for m in margins)
        print(
            f"{curvature}: w'Hw {along(found, 'second.weights.irrep_2'):.1f}; by depth, without and with data: {said}"
        )


if __name__ == "__main__":
    main()
