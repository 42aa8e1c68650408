"""The gain of demanding a subgroup against the evidences of two linear models, computed on the data without any
curvature."""

import math

import pytest
import torch
from escnn import gspaces, group
from escnn import nn as enn
from nonempty import each
from scipy.optimize import minimize
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from escnn_relax import Evidence
from escnn_relax.errors import DataError
from escnn_relax.evidence import NoiseSettings, PriorSettings, survivors
from escnn_relax.evidence.verdicts.kernel_family import check_weights
from escnn_relax.evidence.verdicts.subgroup_cost import Demands, gain_of_demanding
from escnn_relax.nn import RelaxedLinear, RelaxedR2Conv
from escnn_relax.nn.measured.kernel_symmetry import KernelSymmetry
from escnn_relax.nn.measured.stabiliser import INDIFFERENT
from escnn_relax.symmetry.groups.lattice import subgroups

#: Relative to the largest term of the sums; escnn samples its kernels in float32.
EXACT = 1e-6


class Map(nn.Module):
    """A relaxed layer alone, between plain tensors: a linear model."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(self.layer.in_type(x)).tensor.flatten(1)


def orbit(x, in_type):
    """All transforms of some inputs: on such data the curvature does not couple different irreps, so that it is block
    diagonal and the Laplace approximation exact."""
    elements = in_type.fibergroup.elements
    return torch.cat([in_type(x).transform(g).tensor for g in elements])


def linear(name):
    whole = {"C4": group.cyclic_group(4), "D4": group.dihedral_group(4), "D3": group.dihedral_group(3)}[name]
    space = gspaces.no_base_space(whole)
    mixed = [space.regular_repr, space.trivial_repr, space.regular_repr]
    layer = RelaxedLinear(enn.FieldType(space, mixed), enn.FieldType(space, mixed[:2]), bias=False)
    x = torch.randn(5, layer.in_type.size)
    matrices = [torch.as_tensor(layer.in_type.representation(g), dtype=torch.float32) for g in whole.elements]
    return layer, torch.cat([x @ m.T for m in matrices])


def planar(name):
    space = {"C4": gspaces.rot2dOnR2(4), "D2": gspaces.flipRot2dOnR2(2)}[name]
    fields = enn.FieldType(space, [space.regular_repr])
    layer = RelaxedR2Conv(fields, fields, 3, padding=1, padding_mode="circular", bias=False)
    return layer, orbit(torch.randn(2, fields.size, 5, 5), fields)


CASES = [(linear, "C4"), (linear, "D3"), (linear, "D4"), (planar, "C4"), (planar, "D2")]


def at_the_mode(layer, x, curvature, noise=0.3, target=None, penalty="all"):
    """The model with its coefficients at the maximum of the posterior, those that feel no prior at that of the
    likelihood, and an evidence there."""
    model = Map(layer).double()
    x = x.double()
    with torch.no_grad():
        if target is None:
            for w in model.parameters():
                w.normal_(std=0.5)
            target = model(x)
        y = target + noise * torch.randn_like(target)
    settings = {"noise": NoiseSettings(log_noise=math.log(noise)), "prior": PriorSettings(penalty=penalty)}
    evidence = Evidence(model, "gaussian", curvature, num_data=len(x), **settings)
    for index, name in enumerate(evidence.log_precision):
        evidence.log_precision[name] = 0.5 * index - 0.5
    X, names = design(model, x)
    delta = precisions(model, evidence)
    sizes = [model.layer.kernel.dimensions[n] for n in names]
    felt = torch.cat(
        [torch.full((k,), float(f"layer.weights.{n}" in evidence.penalised)) for n, k in zip(names, sizes)]
    )
    H = X.T @ X / noise**2 + torch.diag(felt * delta)
    mode = torch.linalg.lstsq(H, (X.T @ y.flatten() / noise**2).unsqueeze(1), driver="gelsd").solution.squeeze(1)
    with torch.no_grad():
        for name, part in zip(names, mode.split(sizes)):
            model.layer.weights[name].copy_(part)
    evidence.refresh(DataLoader(TensorDataset(x, y), 7))
    return model, evidence, X, y.flatten()


def design(model, x):
    """The model's outputs as a matrix times all coefficients, column by column."""
    names = list(model.layer.weights)
    saved = {n: w.detach().clone() for n, w in model.layer.weights.items()}
    columns = []
    with torch.no_grad():
        for w in model.layer.weights.values():
            w.zero_()
        for n in names:
            for k in range(len(saved[n])):
                model.layer.weights[n][k] = 1
                columns.append(model(x).flatten())
                model.layer.weights[n][k] = 0
        for n in names:
            model.layer.weights[n].copy_(saved[n])
    return torch.stack(columns, dim=1), names


def precisions(model, evidence):
    sizes = model.layer.kernel.dimensions
    return torch.cat([
        torch.full((sizes[n],), math.exp(evidence.log_precision[f"layer.weights.{n}"]), dtype=torch.float64)
        for n in model.layer.weights
    ])  # fmt: skip


def log_evidence(X, y, covariance, noise):
    """log N(y; 0, X S X' + noise^2), on the data."""
    total = X @ covariance @ X.T + noise**2 * torch.eye(len(y), dtype=torch.float64)
    root = torch.linalg.cholesky(total)
    solved = torch.linalg.solve_triangular(root, y[:, None], upper=False)
    return -float(root.diagonal().log().sum() + 0.5 * solved.square().sum() + 0.5 * len(y) * math.log(2 * math.pi))


def fixed_directions(model, kept):
    """Orthonormal coefficient vectors whose kernels do not change under the elements of H, by moving the kernels."""
    layer = model.layer
    size = sum(layer.kernel.dimensions[n] for n in layer.weights)
    moves = []
    kernels = []
    offset = 0
    for n in layer.weights:
        for k in range(layer.kernel.dimensions[n]):
            unit = torch.zeros(layer.kernel.dimensions[n], dtype=torch.float64)
            unit[k] = 1
            kernels.append(layer.kernel({n: unit}).detach())
        offset += layer.kernel.dimensions[n]
    kernels = torch.stack(kernels).double()  # (P, out, in, S)
    side = round(kernels.shape[-1] ** 0.5)
    for h in kept.elements:
        left = torch.as_tensor(layer.out_type.representation(h))
        right = torch.as_tensor(layer.in_type.representation(~h))
        moved = kernels
        if side > 1:
            pictures = kernels.view(*kernels.shape[:3], side, side)
            one = enn.FieldType(layer.space, [layer.space.trivial_repr])
            flat = one(pictures.reshape(-1, 1, side, side)).transform(h).tensor
            moved = flat.view(kernels.shape).double()
        moves.append((torch.einsum("po,koxs,xi->kpis", left, moved, right) - kernels).flatten(1))
    change = torch.cat(moves, dim=1)  # P x ...
    values, vectors = torch.linalg.eigh(change @ change.T)
    assert size == len(kernels) == offset
    return vectors[:, values < 1e-8 * max(float(values.max()), 1.0)].T


@pytest.mark.parametrize("curvature", ["exact", "expand", "eigenvalue-corrected"])
@pytest.mark.parametrize(("make", "name"), CASES)
def test_gain_is_the_difference_of_two_evidences(make, name, curvature):
    layer, x = make(name)
    model, evidence, X, y = at_the_mode(layer, x, curvature)
    delta = precisions(model, evidence)
    free = log_evidence(X, y, torch.diag(1 / delta), 0.3)
    assert evidence.log_marginal_likelihood() == pytest.approx(free, rel=EXACT), (
        "the Laplace approximation is exact here"
    )
    symmetry = KernelSymmetry(model.layer, "layer")
    for kept in each(subgroups(model.layer.space)):
        demanded = log_evidence(X, y, demanding(model, kept, delta), 0.3)
        gain = gain_of_demanding(kept, symmetry, evidence.estimate.factors, evidence.log_precision, evidence.scale)
        assert gain == pytest.approx(demanded - free, rel=1e-5, abs=EXACT * abs(free)), kept.name
        if kept.order == 1:
            assert gain == 0


@pytest.mark.parametrize(
    ("make", "name"),
    [(linear, "C4"), *(pytest.param(*case, marks=pytest.mark.slow) for case in [(linear, "D3"), (planar, "C4")])],
)
def test_each_side_takes_the_precisions_that_suit_it_best(make, name):
    """Against the largest evidence on the data over all precisions of the residual pathways, by a simplex search."""
    layer, x = make(name)
    model, evidence, X, y = at_the_mode(layer, x, "exact")
    start, sizes = precisions(model, evidence), model.layer.kernel.dimensions
    residual = [n for n in model.layer.weights if n != "equivariant"]

    def with_precisions(logs):
        delta, row = start.clone(), 0
        for n in model.layer.weights:
            if n in residual:
                delta[row : row + sizes[n]] = math.exp(min(max(logs[residual.index(n)], -12), 12))
            row += sizes[n]
        return delta

    def best(covariance):
        lost = lambda logs: -log_evidence(X, y, covariance(with_precisions(logs)), 0.3)
        logs = [evidence.log_precision[f"layer.weights.{n}"] for n in residual]
        return -minimize(lost, logs, method="Nelder-Mead", options={"xatol": 1e-3, "fatol": 1e-5, "maxfev": 600}).fun

    symmetry = KernelSymmetry(model.layer, "layer")
    factors, scale = evidence.estimate.factors, evidence.scale
    free = best(lambda delta: torch.diag(1 / delta))
    present = Demands(symmetry, factors, evidence.log_precision, scale)
    own = Demands(symmetry, factors, evidence.log_precision, scale, (-12.0, 12.0))
    middle = [h for h in subgroups(model.layer.space) if h.order > 1]
    assert middle
    for kept in middle:
        wanted = best(lambda delta, kept=kept: demanding(model, kept, delta)) - free
        assert own.gain(kept) == pytest.approx(wanted, abs=0.1), kept.name
    # the broken twin: the present precisions, far from the best
    assert max(abs(own.gain(h) - present.gain(h)) for h in middle) > 1


@pytest.mark.parametrize(("make", "name"), [(linear, "D4"), (planar, "C4")])
def test_margins_are_differences_of_evidences_on_the_data(make, name):
    """What ``survivors`` says in nats, after data in which a subgroup is planted."""
    layer, x = make(name)
    model = Map(layer).double()
    planted = list(subgroups(layer.space))[len(list(subgroups(layer.space))) // 2]
    with torch.no_grad():
        for w in layer.weights.values():
            w.normal_(std=0.5)
        for pathway, w in KernelSymmetry(layer).projected_weights(planted).items():
            layer.weights[pathway].copy_(w)
        target = model(x.double())
    noise = 0.01  # so small that what it adds to the kernel counts as switched off
    model, evidence, X, y = at_the_mode(layer, x, "expand", noise, target)
    found = survivors(model, evidence).network
    assert found.subgroup.name == planted.name and found.gain > -INDIFFERENT and found.larger
    delta = precisions(model, evidence)
    of = {h.name: log_evidence(X, y, demanding(model, h, delta), noise) for h in (planted, *found.larger)}
    for larger, cost in each(found.costs.items()):
        assert cost == pytest.approx(of[planted.name] - of[larger], rel=1e-4, abs=1e-3) and cost > 10
    assert found.margin == min(found.costs.values())
    # the broken twin: other precisions give other margins
    evidence.log_precision = {n: v + 0.5 for n, v in evidence.log_precision.items()}
    moved = survivors(model, evidence).network
    assert abs(moved.margin - found.margin) > 0.1


def demanding(model, kept, delta):
    """Prior covariance of the coefficients given that H fixes the kernel."""
    basis = fixed_directions(model, kept)
    return basis.T @ torch.linalg.solve(basis @ torch.diag(delta) @ basis.T, basis)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_no_evidence_is_compared_at_weights_that_are_not_finite(value):
    check_weights(torch.ones(3), "layer.weights.irrep_1")
    with pytest.raises(DataError, match="^layer.weights.irrep_1: NaN or infinite weights; go back to a checkpoint"):
        check_weights(torch.tensor([1.0, value]), "layer.weights.irrep_1")
