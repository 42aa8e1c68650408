"""Predictions under the Laplace posterior, against dense linear algebra and laplace-torch."""

from __future__ import annotations

import math

import pytest
import torch
from curvature_oracles import dense_ggn
from escnn import gspaces
from escnn import nn as enn
from laplace import KronLaplace
from laplace.curvature import CurvlinopsGGN
from torch import nn
from torch.distributions import MultivariateNormal
from torch.utils.data import DataLoader, TensorDataset

from escnn_relax import Evidence
from escnn_relax.errors import ArgumentError, CoverageError, DataError, LikelihoodError
from escnn_relax.evidence import CurvatureSettings, NoiseSettings, PriorSettings
from escnn_relax.evidence.calibration import calibration
from escnn_relax.nn import RelaxedR2Conv

#: float64; the two sides decompose the same matrices in different ways
TOLERANCE = 1e-8

C4 = gspaces.rot2dOnR2(4)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.gray, fields = enn.FieldType(C4, [C4.trivial_repr]), enn.FieldType(C4, [C4.regular_repr, C4.irrep(1)])
        self.first = RelaxedR2Conv(self.gray, fields, 3)
        self.linear = nn.Linear(6, 3)

    def forward(self, x):
        return self.linear(self.first(self.gray(x)).tensor.tanh().mean((-2, -1)))


def setting(model, likelihood="categorical", **options):
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.5)
    model = model.double()
    x = torch.randn(12, 1, 5, 5).double()
    y = torch.randint(3, (12,)) if likelihood == "categorical" else torch.randn(12, 3).double()
    evidence = Evidence(model, likelihood, relaxed_only=False, **options)
    loader = DataLoader(TensorDataset(x, y), batch_size=5)
    evidence.refresh(loader)
    return model, evidence, loader


def dense_covariance(model, evidence, loader, likelihood, x):
    """J (hH + delta)^-1 J^T with dense matrices from ``torch.func``."""
    blocks = dense_ggn(model, list(loader), likelihood)
    values = {n: p.detach() for n, p in model.named_parameters()}
    rows = [
        torch.func.vjp(lambda v: torch.func.functional_call(model, v, (one,), tie_weights=False)[0], values)
        for one in x.split(1)
    ]
    covariance = torch.zeros(len(x), 3, 3).double()
    for index, (f, pull) in enumerate(rows):
        J = torch.func.vmap(pull)(torch.eye(3).double())[0]
        for name, H in blocks.items():
            precision = evidence.scale * H + math.exp(evidence.log_precision[name]) * torch.eye(len(H)).double()
            Jn = J[name].flatten(1)
            covariance[index] += Jn @ torch.linalg.solve(precision, Jn.T)
    return covariance


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
def test_covariance_of_the_outputs_with_exact_blocks(likelihood):
    model, evidence, loader = setting(Net(), likelihood, curvature="exact", prior=PriorSettings(log_precision=-0.5))
    x = torch.randn(4, 1, 5, 5).double()
    mean, covariance = evidence.posterior().outputs(x)
    expected = dense_covariance(model, evidence, loader, likelihood, x)
    assert torch.allclose(mean, model(x), rtol=TOLERANCE)
    assert torch.allclose(covariance, expected, rtol=TOLERANCE, atol=1e-12)


@pytest.mark.parametrize("curvature", ["expand", "reduce", "eigenvalue-corrected", "diagonal", "auto"])
def test_covariance_of_the_outputs_with_each_approximation(curvature):
    """By the dense form of the same factors."""
    model, evidence, _ = setting(Net(), curvature=curvature)
    x = torch.randn(3, 1, 5, 5).double()
    _, covariance = evidence.posterior().outputs(x)
    values = {n: p.detach() for n, p in model.named_parameters()}
    expected = torch.zeros(3, 3, 3).double()
    for index, one in enumerate(x.split(1)):
        _, pull = torch.func.vjp(lambda v: torch.func.functional_call(model, v, (one,), tie_weights=False)[0], values)
        J = torch.func.vmap(pull)(torch.eye(3).double())[0]
        for name, factors in evidence.estimate.factors.items():
            for factor in factors:
                H = factor.dense()
                part = (
                    J[name].flatten(1)
                    if factor.positions is None
                    else J[name].flatten(1)[:, factor.positions.flatten()]
                )
                precision = H + math.exp(evidence.log_precision[name]) * torch.eye(len(H)).double()
                expected[index] += part @ torch.linalg.solve(precision, part.T)
    assert torch.allclose(covariance, expected, rtol=TOLERANCE, atol=1e-12)


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
def test_predictions_equal_those_of_laplace_torch(likelihood):
    model = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(75, 3))
    model, evidence, loader = setting(
        model, likelihood, curvature=CurvatureSettings(bias="kronecker"), prior=PriorSettings(log_precision=0.3)
    )
    kind = "classification" if likelihood == "categorical" else "regression"
    laplace = KronLaplace(model, kind, prior_precision=math.exp(0.3), backend=CurvlinopsGGN)
    laplace.fit(loader)
    x = torch.randn(4, 1, 5, 5).double()
    if likelihood == "categorical":
        expected = laplace(x, pred_type="glm", link_approx="probit")
        assert torch.allclose(evidence.posterior().predict(x), expected, rtol=TOLERANCE)
    else:
        mean, covariance = laplace(x, pred_type="glm")
        prediction = evidence.posterior().predict(x)
        assert torch.allclose(prediction.mean, mean, rtol=TOLERANCE)
        assert torch.allclose(prediction.variance - 1, covariance.diagonal(dim1=1, dim2=2), rtol=TOLERANCE)


def test_sampled_probabilities_agree_with_many_draws():
    """From the Gaussian of the outputs; five standard errors of the mean of 20000 draws each, of numbers within [0, 1].
    The plain network's probabilities are further off."""
    _, evidence, _ = setting(Net(), prior=PriorSettings(log_precision=-3.0))
    x = torch.randn(3, 1, 5, 5).double()
    mean, covariance = evidence.posterior().outputs(x)
    drawn = MultivariateNormal(mean, covariance + 1e-10 * torch.eye(3)).sample((20000,)).softmax(-1).mean(0)
    found, tolerance = evidence.posterior().predict(x, "sample", 20000), 5 * 0.5 * (2 / 20000) ** 0.5
    assert (found - drawn).abs().max() < tolerance < (mean.softmax(1) - drawn).abs().max()
    assert torch.allclose(found.sum(1), torch.ones(3).double())


def test_a_strong_prior_predicts_as_the_plain_network():
    model, evidence, _ = setting(Net())
    evidence.log_precision = dict.fromkeys(evidence.log_precision, 16.0)
    x = torch.randn(3, 1, 5, 5).double()
    assert torch.allclose(evidence.posterior().predict(x), model(x).softmax(1), atol=1e-5)


def test_calibration_scores():
    model, evidence, loader = setting(Net())
    posterior, plain = evidence.posterior().calibration(loader)
    x, y = (torch.cat(parts) for parts in zip(*loader))
    p = model(x).detach().softmax(1)
    assert math.isclose(plain.log_loss, float(nn.functional.nll_loss(p.log(), y)), rel_tol=1e-9)
    assert plain.accuracy == float((p.argmax(1) == y).double().mean())
    assert posterior != plain


def test_calibration_leaves_every_module_in_its_mode():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(25), nn.Linear(25, 3))
    model, evidence, loader = setting(model)
    model.train()
    model[1].eval()
    evidence.posterior().calibration(loader)
    assert [m.training for m in model.modules()] == [True, True, False, True]


def test_calibration_of_yes_and_no():
    """Each output of a Bernoulli likelihood is a choice between two classes."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(25, 2)).double()
    x, y = torch.randn(10, 1, 5, 5).double(), torch.randint(2, (10, 2)).double()
    evidence = Evidence(model, "bernoulli", relaxed_only=False)
    evidence.refresh([(x, y)])
    posterior, plain = evidence.posterior().calibration([(x[:6], y[:6]), (x[6:], y[6:])])
    p = model(x).detach().sigmoid()
    assert math.isclose(plain.log_loss, float(nn.functional.binary_cross_entropy(p, y)), rel_tol=1e-9)
    assert plain.accuracy == float(((p > 0.5) == (y > 0.5)).double().mean())
    assert posterior.log_loss != plain.log_loss
    with pytest.raises(DataError, match="0 or 1"):
        evidence.posterior().calibration([(x, y * 0.5)])
    with pytest.raises(DataError, match="no samples"):
        evidence.posterior().calibration([])


def test_calibration_error_by_hand():
    p = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.55, 0.45], [0.3, 0.7]], dtype=torch.float64)
    scores = calibration(p, torch.tensor([0, 1, 0, 1]), bins=10)
    assert math.isclose(scores.error, (abs(1.8 - 1) + abs(0.55 - 1) + abs(0.7 - 1)) / 4)
    assert math.isclose(scores.brier, (2 * 0.01 + 2 * 0.81 + 2 * 0.2025 + 2 * 0.09) / 4)


def test_what_cannot_be_predicted():
    model, evidence, loader = setting(Net(), "gaussian")
    with pytest.raises(LikelihoodError, match="probabilities"):
        evidence.posterior().calibration(loader)
    with pytest.raises(ArgumentError, match="probit"):
        evidence.posterior().predict(torch.randn(1, 1, 5, 5).double(), "logit")
    with pytest.raises(CoverageError, match="refresh"):
        Evidence(model, "gaussian").posterior()
    with pytest.raises(DataError, match="no samples"):
        calibration(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long))


# --- the bridge to laplace-torch --------------------------------------------------------------------------------------


@pytest.mark.parametrize("curvature", ["expand", "exact"])
@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
def test_laplace_object_of_a_relaxed_network(likelihood, curvature):
    noise = NoiseSettings(log_noise=-0.3 if likelihood == "gaussian" else 0.0, temperature=0.6)
    _, evidence, _ = setting(Net(), likelihood, curvature=curvature, noise=noise, num_data=20)
    evidence.step()
    laplace = evidence.to_laplace()
    assert math.isclose(float(laplace.log_marginal_likelihood()), evidence.terms().total, rel_tol=TOLERANCE)
    assert torch.isfinite(laplace.sample(2)).all()


def test_laplace_object_predicts_like_laplaces_own():
    model, evidence, loader = setting(nn.Sequential(nn.Flatten(), nn.Linear(25, 4), nn.Tanh(), nn.Linear(4, 3)))
    theirs = KronLaplace(model, "classification", backend=CurvlinopsGGN)
    theirs.fit(loader)
    x = torch.randn(4, 1, 5, 5).double()
    assert torch.allclose(evidence.to_laplace()(x), theirs(x), rtol=TOLERANCE)


def test_laplace_needs_all_parameters_covered():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(25), nn.Linear(25, 3))
    model, evidence, loader = setting(model)
    with pytest.raises(CoverageError, match="1.weight"):
        evidence.to_laplace()
    model[1].requires_grad_(False)
    evidence = Evidence(model, relaxed_only=False)
    with pytest.raises(CoverageError, match="refresh"):
        evidence.to_laplace()
    evidence.refresh(loader)
    assert math.isclose(
        float(evidence.to_laplace().log_marginal_likelihood()), evidence.terms().total, rel_tol=TOLERANCE
    )
