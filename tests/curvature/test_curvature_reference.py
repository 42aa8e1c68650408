"""Kronecker factors one by one against curvlinops, and deliberately wrong ones, which neither reference lets pass."""

from __future__ import annotations

import math

import pytest
import torch
from curvlinops import KFACLinearOperator
from laplace import KronLaplace
from laplace.curvature import CurvlinopsGGN
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from escnn_relax import Evidence
from escnn_relax.evidence import CurvatureSettings, PriorSettings
from escnn_relax.curvature.sums import accumulation
from escnn_relax.curvature.curvature import Curvature
from escnn_relax.curvature.likelihood import Categorical

#: float64 on both sides, relative
TOLERANCE = 1e-8

NETWORKS = {
    "two convolutions": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(4, 5, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(20, 3),
    ),
    "dilated, oblong, large padding": lambda: nn.Sequential(
        nn.Conv2d(2, 3, (2, 3), padding=(1, 3), dilation=(2, 1)),
        nn.ELU(),
        nn.Conv2d(3, 2, 1, bias=False),
        nn.Flatten(),
        nn.Linear(120, 3),
    ),
    "pooled": lambda: nn.Sequential(
        nn.Conv2d(2, 6, 5, padding=2),
        nn.SiLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 4, 3),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(4, 3),
    ),
}
LOSSES = {"categorical": nn.CrossEntropyLoss(reduction="sum"), "gaussian": nn.MSELoss(reduction="sum")}


def data(likelihood, count=9):
    x = torch.randn(count, 2, 6, 6).double()
    y = torch.randint(3, (count,)) if likelihood == "categorical" else torch.randn(count, 3).double()
    return DataLoader(TensorDataset(x, y), batch_size=4)


def differences(model, loader, likelihood, approximation):
    """Relative distance of each A and B from curvlinops' own."""
    options = {"fisher_type": "type-2", "kfac_approx": approximation, "check_deterministic": False}
    operator = KFACLinearOperator(model, LOSSES[likelihood], list(model.parameters()), list(loader), **options)
    operator.compute_kronecker_factors()
    factors = Curvature(model, likelihood, approximation)(loader).factors
    found = {}
    for name, factor in ((n.removesuffix(".weight"), f) for n, (f,) in factors.items() if n.endswith("weight")):
        scale = 0.5 if likelihood == "gaussian" else 1.0  # squared error without the half
        for side, ours, theirs in (
            ("A", factor.A, operator._input_covariances[name]),
            ("B", factor.B, scale * operator._gradient_covariances[name]),
        ):
            found[name, side] = float((ours - theirs).norm() / theirs.norm())
    return found


@pytest.mark.parametrize("likelihood", LOSSES)
@pytest.mark.parametrize("approximation", ["expand", "reduce"])
@pytest.mark.parametrize("case", NETWORKS)
def test_each_factor_is_that_of_curvlinops(case, approximation, likelihood):
    model = NETWORKS[case]().double()
    found = differences(model, data(likelihood), likelihood, approximation)
    assert len(found) == 6 and max(found.values()) < TOLERANCE, found


def summed_over_places(monkeypatch):
    """BackPACK's convention for A: every place a sample, but not averaged over."""
    right = accumulation.contract
    monkeypatch.setattr(accumulation, "contract", lambda *args: right(*args) * 4)


def a_column_missing(monkeypatch):
    right = Categorical._exact_series
    monkeypatch.setattr(Categorical, "_exact_series", lambda self, output: [*right(self, output)][:-1])


def diagonal_only(monkeypatch):
    right = accumulation.contract
    monkeypatch.setattr(accumulation, "contract", lambda *args: right(*args).diag().diag())


def other_convention(monkeypatch):
    monkeypatch.setattr(accumulation.Expand, "reduce", True)


WRONG = [summed_over_places, a_column_missing, diagonal_only, other_convention]


@pytest.mark.parametrize("spoil", WRONG)
def test_curvlinops_tells_wrong_factors_apart(spoil, monkeypatch):
    model, loader = NETWORKS["two convolutions"]().double(), data("categorical")
    right = differences(model, loader, "categorical", "expand")
    spoil(monkeypatch)
    assert max(right.values()) < TOLERANCE < 0.05 < max(differences(model, loader, "categorical", "expand").values())


@pytest.mark.parametrize("spoil", WRONG)
def test_laplace_torch_tells_wrong_factors_apart(spoil, monkeypatch):
    """By the log marginal likelihood alone."""
    model, loader = NETWORKS["two convolutions"]().double(), data("categorical")
    theirs = KronLaplace(model, "classification", prior_precision=0.7, backend=CurvlinopsGGN)
    theirs.fit(loader)
    expected = float(theirs.log_marginal_likelihood())

    def ours():
        evidence = Evidence(
            model,
            prior=PriorSettings(log_precision=math.log(0.7)),
            curvature=CurvatureSettings(bias="kronecker"),
            relaxed_only=False,
        )
        return evidence.refresh(loader).total

    assert math.isclose(ours(), expected, rel_tol=TOLERANCE)
    spoil(monkeypatch)
    assert abs(ours() - expected) > 1e-3 * abs(expected)
