"""What users do wrong with an evidence: each raises our own error, and leaves everything as it was."""

from __future__ import annotations

import math

import pytest
import torch
from evidence_cases import loader, network
from torch import nn

from escnn_relax import Evidence
from escnn_relax.errors import ArgumentError, CoverageError, CurvatureError, DataError, LikelihoodError


def with_value(value, what="weight"):
    model, (x, y) = network(), next(iter(loader()))
    if what == "weight":
        with torch.no_grad():
            model.second.weights["equivariant"][0] = value
    else:
        x[0, 0, 0, 0] = value
    return model, [(x, y)]


def test_no_relaxed_layer():
    with pytest.raises(CoverageError, match="no relaxed layer.*relax"):
        Evidence(nn.Sequential(nn.Linear(2, 2)))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("what", ["weight", "input"])
def test_values_that_are_not_finite(what, value):
    model, data = with_value(value, what)
    with pytest.raises(DataError, match="not finite|NaN or infinite"):
        Evidence(model).refresh(data)


def test_an_unused_layer_is_named():
    model = network()
    model.spare = nn.Linear(2, 2).double()
    with pytest.raises(CoverageError, match="spare"):
        Evidence(model).refresh(loader())
    model.spare.requires_grad_(False)
    assert "spare.weight" in Evidence(model).uncovered
    Evidence(model).refresh(loader())


def bad_labels():
    return [(torch.randn(2, 1, 6, 6).double(), torch.tensor([0, 3]))]


BAD = {
    "empty": (lambda: [], {}, DataError, "no batch"),
    "label out of range": (bad_labels, {}, DataError, "labels in 0 ... 2"),
    "no pair": (lambda: [torch.randn(2, 1, 1, 6, 6).double()], {}, DataError, "pair"),
    "real targets": (lambda: loader("gaussian"), {}, LikelihoodError, "gaussian"),
    "class targets": (loader, {"likelihood": "gaussian"}, LikelihoodError, "categorical"),
    "too few targets": (lambda: [(torch.randn(3, 1, 6, 6).double(), torch.tensor([0, 1]))], {}, LikelihoodError, "3"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_leaves_everything_as_it_was(case):
    data, options, error, message = BAD[case]
    model = network()
    model.train()
    evidence = Evidence(model, **options)
    state = {n: t.clone() for n, t in model.state_dict().items()}
    before = evidence.state_dict()
    with pytest.raises(error, match=message):
        evidence.refresh(data())
    for n, t in model.state_dict().items():
        assert torch.equal(t, state[n]) or (t.isnan().all() and state[n].isnan().all())
    assert str(evidence.state_dict()) == str(before)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(m.training for m in model.modules())
    assert not any("forward" in vars(m) for m in model.modules())
    good = loader(options.get("likelihood", "categorical"))
    assert math.isfinite(evidence.refresh(good).total)


@pytest.mark.parametrize(
    "options", [{"curvature": "k-fac"}, {"samples": 0}, {"temperature": 0.0}, {"bias": "none"}, {"temperature": math.nan}]
)
def test_bad_arguments(options):
    with pytest.raises(ArgumentError):
        Evidence(network(), **options)


def test_unknown_likelihood():
    with pytest.raises(LikelihoodError, match="poisson"):
        Evidence(network(), "poisson")


def test_terms_before_refresh():
    for question in ("terms", "step", "gradient", "effective_dimension"):
        with pytest.raises(CoverageError, match="refresh"):
            getattr(Evidence(network()), question)()


def test_factors_that_are_not_finite():
    model = network()
    with torch.no_grad():
        model.linear.weight.fill_(1e200)
        model.linear.bias.fill_(0)
    data = [(torch.zeros(2, 1, 6, 6).double(), torch.randn(2, 3).double())]
    with torch.no_grad():
        for p in (*model.first.parameters(), *model.second.parameters(), *model.norm.parameters()):
            p.zero_()
    with pytest.raises(CurvatureError, match="second|first|norm"):
        Evidence(model, "gaussian").refresh(data)
