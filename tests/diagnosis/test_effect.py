"""Effects and gains: estimates against averages over all samples that there are, closed forms against a search."""

import itertools
import math

import pytest
import torch
from scipy.optimize import minimize_scalar

from escnn_relax.diagnosis.effect import Sizes, directions, gain, moments, start

#: Relative, of sums of a few numbers.
ROUNDING = 1e-12


@pytest.mark.parametrize("repeats", [[1, 1, 1, 1], [2, 1, 1, 2]], ids=str)
def test_mean_and_variance_are_right_on_average(repeats):
    """Over all samples of four from a law of two values, in two groups; some come several times."""
    law = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    groups, times = [[0, 1], [2, 3]], torch.tensor(repeats, dtype=torch.float64)
    sizes = Sizes(torch.stack([times[g].sum() for g in groups]), torch.stack([times[g].square().sum() for g in groups]))
    found = []
    for values in itertools.product(range(2), repeat=4):
        gamma = times[:, None] * law[list(values)]
        sums = torch.stack([gamma[g].sum(0) for g in groups])
        found.append(moments(float(sums.sum(0).square().sum()), float(sums.square().sum()), sizes))
    mean = law.mean(0)
    assert sum(m.mean for m in found) / 16 == pytest.approx(float(mean.square().sum()), rel=ROUNDING)
    variance = float((law - mean).square().sum(1).mean())
    assert sum(m.variance for m in found) / 16 == pytest.approx(variance, rel=ROUNDING)
    one = found[-1]
    assert one.second == one.mean + one.variance and one.effect == one.mean / one.second


def test_nothing_has_no_effect():
    ones = torch.ones(3, dtype=torch.float64)
    assert math.isnan(moments(0.0, 0.0, Sizes(ones, ones)).effect)


def test_directions_are_the_participation_ratio():
    """Exactly one where all lie along one line; within what 400 draws tell where the covariance is known."""
    line = torch.outer(torch.tensor([1.0, -1.0, 1.0, 1.0]), torch.tensor([3.0, 4.0])).double()
    assert directions((line @ line.T)[None]) == pytest.approx(1.0, rel=ROUNDING)
    assert directions(torch.zeros(1, 4, 4, dtype=torch.float64)) == directions(torch.eye(2).double()[None]) == 1.0
    scales = torch.tensor([1.0, 1.0, 0.5, 0.1], dtype=torch.float64)
    features = torch.randn(400, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * scales
    expected = float(scales.square().sum() ** 2 / scales.pow(4).sum())
    assert directions((features @ features.T)[None]) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("surplus", [0.01, 1.0, 30.0])
def test_gain_and_start_are_the_best_precision_and_its_evidence(surplus):
    """d equal eigenvalues, along which the gradient has (1 + s) times the square that it has by chance."""
    count, curvature = 5.0, 3.0

    def loss(log):
        delta = math.exp(log)
        square = (1 + surplus) * curvature
        return -0.5 * count * (math.log(delta / (delta + curvature)) + square / (delta + curvature))

    best = minimize_scalar(loss, bounds=(-10.0, 10.0), method="bounded", options={"xatol": 1e-9})
    assert gain(count, surplus) == pytest.approx(-best.fun, rel=1e-6)
    assert start(curvature, surplus) == pytest.approx(best.x, abs=1e-3)


@pytest.mark.parametrize("surplus", [0.0, -0.5])
def test_no_more_than_chance_gains_nothing(surplus):
    assert gain(5.0, surplus) == 0 and start(3.0, surplus) == math.inf
