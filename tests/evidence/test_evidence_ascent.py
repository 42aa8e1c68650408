"""Two ways up the evidence, to the same place."""

from __future__ import annotations

import math

import pytest
import torch
from evidence_cases import LIKELIHOODS, loader, network

from escnn_relax import Evidence
from escnn_relax.errors import ArgumentError, CoverageError
from escnn_relax.evidence import PriorSettings
from escnn_relax.evidence.terms import doubt
from escnn_relax.evidence.verdicts.fixed_point import SETTLED, climb

METHODS = {"mackay": {"steps": 40}, "gradient": {"steps": 150, "method": "gradient", "rate": 0.05}}


def refreshed(likelihood="categorical", **options):
    torch.manual_seed(0)
    evidence = Evidence(network(), likelihood, **options)
    evidence.refresh(loader(likelihood))
    return evidence


@pytest.mark.parametrize("options", [{}, {"ties": "layer"}, {"noise": "output"}], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_both_ways_lead_back_to_the_optimum(method, options):
    """From half a nat of log precision, and of log noise, beside it."""
    likelihood = "gaussian" if "noise" in options else "categorical"
    prior = PriorSettings(ties=options.get("ties", "parameter"), bounds=(-6.0, 6.0))
    evidence = refreshed(likelihood, prior=prior, noise=options.get("noise", "shared"))
    highest, best = evidence.step(60).total, dict(evidence.log_precision)
    inside = [n for n, value in best.items() if abs(value) < 5]
    log_noise = torch.as_tensor(evidence.log_noise)
    assert len(inside) >= 5
    for group, members in enumerate(evidence.prior.groups.values()):
        for name in set(members) & set(inside):
            evidence.log_precision[name] += 0.5 * (-1) ** group
    if "noise" in options:
        evidence.log_noise = log_noise + torch.tensor([0.5, -0.5, 0.5])
    below = evidence.terms().total
    after = evidence.step(**METHODS[method]).total
    assert below < highest - 0.1 and abs(after - highest) < 0.01
    assert all(abs(evidence.log_precision[n] - best[n]) < 0.1 for n in inside)
    assert torch.allclose(torch.as_tensor(evidence.log_noise), log_noise, atol=0.02)


@pytest.mark.parametrize("rate", [0.1, 30.0])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_evidence_never_falls(likelihood, rate):
    """Not even with a rate that is far too large."""
    evidence = refreshed(likelihood)
    before = evidence.terms().total
    for _ in range(10):
        after = evidence.step(3, method="gradient", rate=rate).total
        assert after >= before
        before = after


def test_a_rate_that_leaves_the_range_of_the_noise():
    evidence = refreshed("gaussian")
    before = evidence.terms().total
    assert evidence.step(40, method="gradient", rate=30.0).total >= before


def test_what_does_not_move():
    evidence = refreshed(prior=PriorSettings(fixed={"first.bias": 1.5}, bounds=(-1.0, 4.0)))
    with torch.no_grad():
        evidence.model.second.weights["irrep_1"].zero_()
    start = dict(evidence.log_precision)
    evidence.step(50, method="gradient", rate=0.5)
    still = {n for n, value in evidence.log_precision.items() if value == start[n]}
    assert still == {"first.bias", "second.weights.irrep_1"}
    assert all(-1.0 <= value <= 4.0 for value in evidence.log_precision.values())


@pytest.mark.parametrize(
    "arguments",
    [{"method": "newton"}, {"method": "gradient", "rate": 0.0}, {"steps": -1}, {"damping": 1.0}, {"rate": math.nan}],
)
def test_steps_that_make_no_sense(arguments):
    evidence = refreshed()
    before = dict(evidence.log_precision)
    with pytest.raises(ArgumentError, match="step: expected"):
        evidence.step(**arguments)
    assert evidence.log_precision == before
    with pytest.raises(CoverageError, match="refresh"):
        Evidence(network()).step(method="gradient")


@pytest.mark.parametrize("method", METHODS)
def test_no_steps_move_nothing(method):
    evidence = refreshed()
    before = dict(evidence.log_precision)
    assert evidence.step(0, method=method) == evidence.terms() and evidence.log_precision == before


def test_a_fixed_point_ends_the_climb():
    """At the first two values that are the same within a hundredth of a nat, however many steps are left."""
    seen = []

    def at(logs):
        seen.append(logs["w"])
        return 5.0 - (logs["w"] - 1.0) ** 2, {"w": (logs["w"] + 1.0) / 2}

    assert climb(at, {"w": 3.0}, (-5.0, 5.0)) == pytest.approx(5.0, abs=SETTLED)
    assert seen == [3.0, 2.0, 1.5, 1.25, 1.125, 1.0625, 1.03125], "0.0117 nats from one to the next, then 0.003"


@pytest.mark.parametrize("gain, known", [(-2.0, "no better"), (0.0, "no better"), (0.1, "not known to be better")])
def test_what_is_said_of_a_network_that_may_not_have_learned(gain, known):
    assert f"the network is {known} than a constant output" in doubt(gain, 10.0, 2.0)
