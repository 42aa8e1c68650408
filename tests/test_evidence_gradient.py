"""The evidence's gradients, its scaling and its bookkeeping."""

from __future__ import annotations

import math

import pytest
import torch
from escnn import gspaces
from escnn import nn as enn
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from escnn_relax import Evidence, report
from escnn_relax.errors import ArgumentError, CoverageError, CurvatureError, DataError, LikelihoodError
from escnn_relax.nn import RelaxedR2Conv

#: central differences of step 1e-4 on a function computed to 1e-12
FINITE_DIFFERENCE = 1e-6

C4 = gspaces.rot2dOnR2(4)


class Net(nn.Module):
    def __init__(self, outputs=3):
        super().__init__()
        self.gray = enn.FieldType(C4, [C4.trivial_repr])
        fields = enn.FieldType(C4, 2 * [C4.regular_repr])
        self.first = RelaxedR2Conv(self.gray, fields, 3, padding=1)
        self.act = enn.ReLU(fields)
        self.norm = enn.InnerBatchNorm(fields)
        self.second = RelaxedR2Conv(fields, fields, 3)
        self.linear = nn.Linear(8, outputs)

    def forward(self, x):
        x = self.norm(self.act(self.first(self.gray(x))))
        return self.linear(self.second(x).tensor.tanh().mean((-2, -1)))


def network():
    model = Net()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.4)
    return model.double()


def dataset(likelihood="categorical", count=12):
    x = torch.randn(count, 1, 6, 6).double()
    return TensorDataset(x, torch.randint(3, (count,)) if likelihood == "categorical" else torch.randn(count, 3).double())


def loader(likelihood="categorical", count=12, batch_size=5, **options):
    return DataLoader(dataset(likelihood, count), batch_size=batch_size, **options)


LIKELIHOODS = ["categorical", "gaussian"]


@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("curvature", ["expand", "exact"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_gradient_equals_finite_differences(likelihood, curvature, temperature):
    evidence = Evidence(network(), likelihood, curvature, temperature=temperature, log_noise=-0.4)
    evidence.refresh(loader(likelihood))
    gradient, step = evidence.gradient(), 1e-4
    assert set(gradient) == set(evidence.log_precision) | ({"log_noise"} if likelihood == "gaussian" else set())

    def moved(name, by):
        saved = dict(evidence.log_precision), evidence.log_noise
        if name == "log_noise":
            evidence.log_noise += by
        else:
            evidence.log_precision[name] += by
        total = evidence.terms().total
        evidence.log_precision, evidence.log_noise = saved
        return total

    for name, slope in gradient.items():
        difference = (moved(name, step) - moved(name, -step)) / (2 * step)
        assert math.isclose(slope, difference, rel_tol=FINITE_DIFFERENCE, abs_tol=1e-6), name


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_steps_climb_to_a_stationary_point(likelihood):
    evidence = Evidence(network(), likelihood)
    totals = [evidence.refresh(loader(likelihood)).total]
    for _ in range(100):
        totals.append(evidence.step(1).total)
    assert all(after >= before - 1e-9 * abs(before) for before, after in zip(totals, totals[1:]))
    inside = {n: g for n, g in evidence.gradient().items() if n == "log_noise" or abs(evidence.log_precision[n]) < 10}
    assert len(inside) >= 10 and max(abs(g) for g in inside.values()) < 1e-6


@pytest.mark.parametrize("curvature", ["expand", "reduce", "exact", "diagonal"])
def test_batches_and_order_do_not_matter(curvature):
    model, data = network(), dataset(count=13)
    whole = Evidence(model, curvature=curvature).refresh(DataLoader(data, batch_size=13)).total
    for options in ({"batch_size": 1}, {"batch_size": 5}, {"batch_size": 4, "shuffle": True}):
        assert math.isclose(Evidence(model, curvature=curvature).refresh(DataLoader(data, **options)).total, whole, rel_tol=1e-10)


def test_a_part_of_the_data_is_scaled_up():
    model, data = network(), dataset()
    once = Evidence(model, num_data=24).refresh(DataLoader(data, batch_size=12))
    twice = Evidence(model).refresh(list(DataLoader(data, batch_size=12)) * 2)
    assert once.num_data == twice.num_data == 24
    assert math.isclose(once.total, twice.total, rel_tol=1e-10)


def test_temperature_equals_a_power_of_the_likelihood():
    """Data counted twice is the same as half the temperature."""
    model, data = network(), list(loader(batch_size=12))
    assert math.isclose(
        Evidence(model, temperature=0.5).refresh(data).complexity, Evidence(model).refresh(data * 2).complexity, rel_tol=1e-10
    )


def test_the_model_is_left_as_it_was():
    model = network()
    model.train()
    model.norm.eval()
    model.second.weights["irrep_2"].requires_grad_(False)
    model(torch.randn(2, 1, 6, 6).double()).sum().backward()
    state = {n: t.clone() for n, t in model.state_dict().items() if "log_precision" not in n and "effective" not in n}
    gradients = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    asked = {n: p.requires_grad for n, p in model.named_parameters()}
    modes = {n: m.training for n, m in model.named_modules()}
    attributes = {n: set(vars(m)) for n, m in model.named_modules()}
    Evidence(model).refresh(loader())
    assert all(torch.equal(model.state_dict()[n], t) for n, t in state.items())
    assert {n: p.requires_grad for n, p in model.named_parameters()} == asked
    assert {n: m.training for n, m in model.named_modules()} == modes
    assert {n: set(vars(m)) for n, m in model.named_modules()} == attributes
    for n, p in model.named_parameters():
        assert (p.grad is None and gradients[n] is None) or torch.equal(p.grad, gradients[n])


def test_batch_norm_statistics_do_not_move():
    model = network()
    before = {n: b.clone() for n, b in model.norm.named_buffers()}
    Evidence(model).refresh(loader())
    assert before and all(torch.equal(b, before[n]) for n, b in model.norm.named_buffers())


def test_uncovered_parameters_are_named():
    model = network()
    model.first.bias.requires_grad_(False)
    uncovered = Evidence(model).uncovered
    assert uncovered["first.bias"] == "frozen"
    norm = [n for n, _ in model.named_parameters() if n.startswith("norm.")]
    assert norm and set(uncovered) == {"first.bias", *norm}


def test_penalty_is_the_prior_term():
    evidence = Evidence(network())
    terms = evidence.refresh(loader())
    assert math.isclose(float(evidence.penalty().detach()) * terms.num_data, terms.prior, rel_tol=1e-12)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_loss_is_the_negative_log_posterior(likelihood):
    """Summed over the data it is what the evidence calls data fit and prior, up to the noise's normaliser."""
    model = network()
    evidence = Evidence(model, likelihood, log_noise=0.3 if likelihood == "gaussian" else 0.0, temperature=0.7)
    data = list(loader(likelihood, batch_size=12))
    terms = evidence.refresh(data)
    ((x, y),) = data
    model.eval()
    normaliser = 12 * 3 * (0.3 + 0.5 * math.log(2 * math.pi)) if likelihood == "gaussian" else 0.0
    assert math.isclose(float(evidence.loss(model(x), y)) * 12, terms.prior - terms.data_fit - normaliser, rel_tol=1e-12)


def test_state_dict_round_trip():
    model = network()
    evidence = Evidence(model, "gaussian")
    evidence.refresh(loader("gaussian"))
    evidence.step()
    again = Evidence(model, "gaussian")
    again.load_state_dict(evidence.state_dict())
    assert again.terms() == evidence.terms() and again.gradient() == evidence.gradient()


def test_layers_carry_what_the_evidence_found():
    model = network()
    evidence = Evidence(model)
    evidence.refresh(loader())
    evidence.step()
    record = report(model).layers[0].pathways[1]
    name = f"first.weights.{record.name}"
    assert math.isclose(record.log_precision, evidence.log_precision[name], rel_tol=1e-6)
    assert math.isclose(record.effective_dimension, evidence.effective_dimension()[name], rel_tol=1e-6)


# --- what the user does wrong -----------------------------------------------------------------------------------------


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


# --- priors -----------------------------------------------------------------------------------------------------------


def test_tied_precisions_move_together_to_their_own_optimum():
    evidence = Evidence(network(), ties="layer")
    evidence.refresh(loader())
    for _ in range(100):
        evidence.step(1)
    gradient = evidence.gradient()
    assert set(evidence.prior.groups) == {"first", "second", "linear"}
    for members in evidence.prior.groups.values():
        assert len(members) > 1 and len({evidence.log_precision[n] for n in members}) == 1
        assert abs(sum(gradient[n] for n in members)) < 1e-6 < max(abs(gradient[n]) for n in members)


def test_one_precision_for_all():
    evidence = Evidence(network(), ties="model")
    evidence.refresh(loader())
    evidence.step()
    assert len(set(evidence.log_precision.values())) == 1


def test_groups_of_the_users_own():
    ties = {"first.bias": "biases", "second.bias": "biases"}
    evidence = Evidence(network(), ties=ties)
    assert evidence.prior.groups["biases"] == ("first.bias", "second.bias")
    assert Evidence(network(), ties=lambda n: n.rpartition(".")[2]).prior.groups["bias"] == (
        *evidence.prior.groups["biases"],
        "linear.bias",
    )


def test_fixed_precisions_stay():
    evidence = Evidence(network(), fixed={"first.bias": 1.5})
    evidence.refresh(loader())
    before = dict(evidence.log_precision)
    evidence.step()
    assert evidence.log_precision["first.bias"] == 1.5
    assert all(evidence.log_precision[n] != before[n] for n in before if n != "first.bias")


def test_bounds_hold():
    evidence = Evidence(network(), bounds=(-1.0, 2.0))
    evidence.refresh(loader())
    for _ in range(30):
        evidence.step(1)
    values = evidence.log_precision.values()
    assert -1.0 <= min(values) < -0.99 and max(values) <= 2.0


@pytest.mark.parametrize("options", [{"ties": "everything"}, {"bounds": (2.0, 1.0)}])
def test_bad_priors(options):
    with pytest.raises(ArgumentError):
        Evidence(network(), **options)


def test_fixing_what_is_not_there():
    with pytest.raises(CoverageError, match="third.bias"):
        Evidence(network(), fixed={"third.bias": 1.0})


# --- running averages -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curvature", ["expand", "reduce", "exact", "diagonal"])
def test_running_average_of_the_same_data_is_the_same(curvature):
    model, data = network(), loader()
    evidence = Evidence(model, curvature=curvature, num_data=12)
    first = evidence.refresh(data, keep=0.9)
    again = evidence.refresh(list(data) * 2, keep=0.9)
    assert math.isclose(again.total, first.total, rel_tol=1e-10)


def test_running_average_over_parts():
    """Exact blocks are sums over samples: with weights 1/2 the average of two halves is the whole."""
    model, data = network(), list(loader(batch_size=6))
    whole = Evidence(model, curvature="exact", num_data=12).refresh(data)
    evidence = Evidence(model, curvature="exact", num_data=12)
    halves = [evidence.refresh([part], keep=0.5) for part in data]
    assert math.isclose(halves[1].total, whole.total, rel_tol=1e-10)
    assert not math.isclose(halves[0].data_fit, whole.data_fit, rel_tol=1e-3)


def test_running_average_survives_a_checkpoint():
    model, data = network(), list(loader(batch_size=6))
    evidence = Evidence(model, num_data=12)
    evidence.refresh(data[:1], keep=0.5)
    again = Evidence(model, num_data=12)
    again.load_state_dict(evidence.state_dict())
    assert again.refresh(data[1:], keep=0.5) == evidence.refresh(data[1:], keep=0.5)


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
    assert low != full and math.isclose(low.total, full.total, rel_tol=0.02)
