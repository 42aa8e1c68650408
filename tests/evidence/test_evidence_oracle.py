"""The log marginal likelihood equals laplace-torch's, where the two conventions meet: plain networks, one precision."""

from __future__ import annotations

import math

import pytest
import torch
from laplace import KronLaplace
from laplace.curvature import CurvlinopsGGN
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from escnn_relax import Evidence
from escnn_relax.evidence import CurvatureSettings, NoiseSettings, PriorSettings

#: float64 on both sides, relative to the evidence
TOLERANCE = 1e-8

NAMES = {"categorical": "classification", "gaussian": "regression"}


def network():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(4, 5, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(20, 3),
    ).double()


def loader(likelihood, batch_size):
    x = torch.randn(40, 2, 6, 6).double()
    y = torch.randint(3, (40,)) if likelihood == "categorical" else torch.randn(40, 3).double()
    return DataLoader(TensorDataset(x, y), batch_size=batch_size)


def ours(model, data, likelihood, delta=0.7, sigma=1.0, temperature=1.0, curvature="expand", bias="kronecker"):
    prior, noise = (
        PriorSettings(log_precision=math.log(delta)),
        NoiseSettings(log_noise=math.log(sigma), temperature=temperature),
    )
    evidence = Evidence(
        model, likelihood, CurvatureSettings(curvature, bias=bias), prior=prior, noise=noise, relaxed_only=False
    )
    return evidence.refresh(data).total


def theirs(model, data, likelihood, delta=0.7, sigma=1.0, temperature=1.0, curvature="expand"):
    laplace = KronLaplace(
        model,
        NAMES[likelihood],
        sigma_noise=sigma,
        prior_precision=delta,
        temperature=temperature,
        backend=CurvlinopsGGN,
        asdl_fisher_kwargs={"kfac_approx": curvature},
    )
    laplace.fit(data)
    return float(laplace.log_marginal_likelihood())


@pytest.mark.parametrize("batch_size", [20, 7])
@pytest.mark.parametrize("temperature", [1.0, 0.4])
@pytest.mark.parametrize("curvature", ["expand", "reduce"])
@pytest.mark.parametrize("likelihood", NAMES)
def test_log_marginal_likelihood(likelihood, curvature, temperature, batch_size):
    model, data = network(), loader(likelihood, batch_size)
    sigma = 1.0 if likelihood == "categorical" else 0.6
    options = {"sigma": sigma, "temperature": temperature, "curvature": curvature}
    expected = theirs(model, data, likelihood, **options)
    assert math.isclose(ours(model, data, likelihood, **options), expected, rel_tol=TOLERANCE)
