"""Tied, fixed and bounded precisions; running averages of the curvature."""

from __future__ import annotations

import math

import pytest
import torch
from evidence_cases import loader, network
from nonempty import each

from escnn_relax import Evidence
from escnn_relax.errors import ArgumentError, CoverageError
from escnn_relax.evidence import PriorSettings
from tolerances import autocast_curvature


def test_tied_precisions_move_together_to_their_own_optimum():
    evidence = Evidence(network(), prior=PriorSettings(ties="layer"))
    evidence.refresh(loader())
    for _ in range(100):
        evidence.step(1)
    gradient = evidence.gradient()
    assert set(evidence.prior.groups) == {"first", "second", "linear"}
    for members in each(evidence.prior.groups.values()):
        assert len(members) > 1 and len({evidence.log_precision[n] for n in members}) == 1
        assert abs(sum(gradient[n] for n in members)) < 1e-6 < max(abs(gradient[n]) for n in members)


def test_one_precision_for_all():
    evidence = Evidence(network(), prior=PriorSettings(ties="model"))
    evidence.refresh(loader())
    evidence.step()
    assert len(set(evidence.log_precision.values())) == 1


def test_groups_of_the_users_own():
    ties = {"first.bias": "biases", "second.bias": "biases"}
    evidence = Evidence(network(), prior=PriorSettings(ties=ties))
    assert evidence.prior.groups["biases"] == ("first.bias", "second.bias")
    assert Evidence(network(), prior=PriorSettings(ties=lambda n: n.rpartition(".")[2])).prior.groups["bias"] == (
        *evidence.prior.groups["biases"],
        "linear.bias",
    )


def test_fixed_precisions_stay():
    evidence = Evidence(network(), prior=PriorSettings(fixed={"first.bias": 1.5}))
    evidence.refresh(loader())
    before = dict(evidence.log_precision)
    evidence.step()
    assert evidence.log_precision["first.bias"] == 1.5
    assert all(evidence.log_precision[n] != before[n] for n in before if n != "first.bias")


def test_bounds_hold():
    evidence = Evidence(network(), prior=PriorSettings(bounds=(-1.0, 2.0)))
    evidence.refresh(loader())
    for _ in range(30):
        evidence.step(1)
    values = evidence.log_precision.values()
    assert -1.0 <= min(values) < -0.99 and max(values) <= 2.0


@pytest.mark.parametrize("options", [{"ties": "everything"}, {"bounds": (2.0, 1.0)}])
def test_bad_priors(options):
    with pytest.raises(ArgumentError):
        Evidence(network(), prior=PriorSettings(**options))


@pytest.mark.parametrize("value", [101.0, -101.0, math.nan, math.inf])
def test_log_precisions_out_of_all_reason(value):
    """As of one who passes a precision itself, 1e4; nothing is clipped in silence."""
    with pytest.raises(
        ArgumentError, match="expected a log precision between -100 and 100, got .*; pass the logarithm"
    ):
        Evidence(network(), prior=PriorSettings(log_precision=value))
    with pytest.raises(ArgumentError, match="^first.bias: expected a log precision between -100 and 100"):
        Evidence(network(), prior=PriorSettings(fixed={"first.bias": value}))


def test_precisions_start_within_their_bounds():
    """So that no step can lower the evidence by clipping; fixed ones stay where they are told to."""
    evidence = Evidence(network(), prior=PriorSettings(bounds=(-1.0, 2.0), fixed={"first.bias": 5.0}))
    starts = set(evidence.log_precision.values())
    assert starts == {0.0, 2.0, 5.0} and evidence.log_precision["first.bias"] == 5.0
    before = evidence.refresh(loader()).total
    assert evidence.step(1).total >= before


def test_fixing_one_group_twice():
    with pytest.raises(ArgumentError, match="one log precision for 'first'"):
        Evidence(network(), prior=PriorSettings(ties="layer", fixed={"first.bias": 1.5, "first": 1.0}))
    assert (
        Evidence(network(), prior=PriorSettings(ties="layer", fixed={"first.bias": 1.5, "first": 1.5})).log_precision[
            "first.bias"
        ]
        == 1.5
    )


def test_fixing_what_is_not_there():
    with pytest.raises(CoverageError, match="third.bias"):
        Evidence(network(), prior=PriorSettings(fixed={"third.bias": 1.0}))


# --- running averages -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curvature", ["expand", "reduce", "exact", "diagonal"])
def test_running_average_of_the_same_data_is_the_same(curvature):
    model, data = network(), loader()
    evidence = Evidence(model, curvature=curvature, num_data=12)
    first = evidence.refresh(data, keep=0.9)
    again = evidence.refresh(list(data) * 2, keep=0.9)
    assert math.isclose(again.total, first.total, rel_tol=1e-10)


def test_running_average_counts_samples():
    """Exact blocks are sums over samples, so that the average is that of a data set in which older samples come less
    often."""
    model, data = network(), list(loader(batch_size=6))
    (x, y), (others, theirs) = data[0], (data[1][0][:3], data[1][1][:3])
    evidence = Evidence(model, curvature="exact", num_data=12)
    halves = [evidence.refresh([part], keep=0.5) for part in ((x, y), (others, theirs))]
    both = (torch.cat([x, others, others]), torch.cat([y, theirs, theirs]))  # those of the last refresh twice
    wanted = Evidence(model, curvature="exact", num_data=12).refresh([both])
    assert math.isclose(halves[1].total, wanted.total, rel_tol=1e-10)
    assert not math.isclose(halves[0].data_fit, wanted.data_fit, rel_tol=1e-3)
    assert evidence.state_dict()["previous"]["weight"] == 0.5 * 6 + 3 and evidence.mean_loss == pytest.approx(
        -wanted.data_fit / 12
    )
    third = evidence.refresh([(x, y)], keep=0.5)
    both = (torch.cat(5 * [x] + 2 * [others]), torch.cat(5 * [y] + 2 * [theirs]))
    wanted = Evidence(model, curvature="exact", num_data=12).refresh([both])  # a quarter, a half, all
    assert math.isclose(third.total, wanted.total, rel_tol=1e-10)


def test_an_average_of_all_parts_is_the_whole_if_nothing_is_forgotten():
    model, data = network(), list(loader(batch_size=5))
    assert [len(y) for _, y in data] == [5, 5, 2], "a last batch that is smaller"
    whole = Evidence(model, curvature="exact", num_data=12).refresh(data)
    evidence = Evidence(model, curvature="exact", num_data=12)
    terms = [evidence.refresh([part], keep=1 - 1e-12) for part in data][-1]
    assert math.isclose(terms.total, whole.total, rel_tol=1e-9)


def test_running_average_survives_a_checkpoint():
    model, data = network(), list(loader(batch_size=6))
    evidence = Evidence(model, num_data=12)
    evidence.refresh(data[:1], keep=0.5)
    again = Evidence(model, num_data=12)
    again.load_state_dict(evidence.state_dict())
    assert again.refresh(data[1:], keep=0.5) == evidence.refresh(data[1:], keep=0.5)


def test_running_average_of_another_curvature():
    model, data = network(), loader()
    evidence, exact = Evidence(model), Evidence(model, curvature="exact")
    evidence.refresh(data, keep=0.5)
    exact.load_state_dict(evidence.state_dict())
    with pytest.raises(CoverageError, match="first.weights.equivariant has another form; refresh once with keep=0"):
        exact.refresh(data, keep=0.5)
    exact.refresh(data)
    exact.refresh(data, keep=0.5)


def test_running_average_needs_a_fixed_basis():
    evidence = Evidence(network(), curvature="eigenvalue-corrected")
    with pytest.raises(ArgumentError, match="EigenFactor"):
        evidence.refresh(loader(), keep=0.5)
    with pytest.raises(ArgumentError, match="fraction"):
        evidence.refresh(loader(), keep=1.0)


def test_forward_pass_in_lower_precision():
    """Under autocast the factors stay close to those in float32, and are kept in float64."""
    model = network().float()
    data = [(x.float(), y) for x, y in loader()]
    full = Evidence(model).refresh(data)
    evidence = Evidence(model)
    with torch.autocast("cpu", torch.bfloat16):
        low = evidence.refresh(data)
    assert all(values.dtype == torch.float64 for values in evidence.eigenvalues.values())
    assert low != full and math.isclose(low.total, full.total, rel_tol=autocast_curvature(torch.bfloat16, 3))
