"""The evidence's gradients, its scaling and its bookkeeping."""

from __future__ import annotations

import math

import pytest
import torch
from evidence_cases import LIKELIHOODS, dataset, loader, network
from nonempty import each
from torch.utils.data import DataLoader

from escnn_relax import Evidence, report
from escnn_relax.errors import CoverageError
from escnn_relax.evidence import NoiseSettings, PriorSettings

#: central differences of step 1e-4 on a function computed to 1e-12
FINITE_DIFFERENCE = 1e-6


@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("curvature", ["expand", "exact"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_gradient_equals_finite_differences(likelihood, curvature, temperature):
    evidence = Evidence(network(), likelihood, curvature, noise=NoiseSettings(temperature=temperature, log_noise=-0.4))
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

    for name, slope in each(gradient.items()):
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
        assert math.isclose(
            Evidence(model, curvature=curvature).refresh(DataLoader(data, **options)).total, whole, rel_tol=1e-10
        )


@pytest.mark.parametrize("curvature", ["expand", "reduce", "exact", "eigenvalue-corrected", "diagonal"])
def test_large_batches_are_halved(curvature):
    """The network sees no more than half of a large minibatch at a time; of an odd number, too."""
    model, data, seen = network(), dataset(count=71), []
    hook = model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    large = Evidence(model, curvature=curvature).refresh(DataLoader(data, batch_size=71)).total
    hook.remove()
    assert set(seen) == {36, 35, 16}, "and sixteen of them first, to find out about the rows"
    assert math.isclose(
        Evidence(model, curvature=curvature).refresh(DataLoader(data, batch_size=10)).total, large, rel_tol=1e-10
    )


def test_a_part_of_the_data_is_scaled_up():
    model, data = network(), dataset()
    once = Evidence(model, num_data=24).refresh(DataLoader(data, batch_size=12))
    twice = Evidence(model, num_data=24).refresh(
        list(DataLoader(data, batch_size=12)) * 2
    )  # as new data: else they count once
    assert once.num_data == twice.num_data == 24
    assert math.isclose(once.total, twice.total, rel_tol=1e-10)


def test_without_a_size_the_largest_refresh_counts():
    model, data = network(), dataset()
    evidence = Evidence(model)
    part, whole = (DataLoader(torch.utils.data.Subset(data, range(count)), batch_size=12) for count in (4, 12))
    assert evidence.refresh(part).num_data == 4
    assert evidence.refresh(whole) == Evidence(model).refresh(whole)
    assert evidence.refresh(part).num_data == 12
    given = Evidence(model, num_data=6)
    assert given.refresh(whole).num_data == 6


@pytest.mark.parametrize("noise", ["shared", "output"])
def test_images_of_several_sizes(noise):
    """Each number observed counts once, whichever minibatch comes last."""
    model = torch.nn.Conv2d(1, 2, 3, padding=1).double()
    data = [(torch.randn(2, 1, s, s).double(), torch.randn(2, 2, s, s).double()) for s in (3, 4, 6)]
    terms = Evidence(model, "gaussian", noise=NoiseSettings(noise, log_noise=0.3), relaxed_only=False).refresh(data)
    backwards = Evidence(model, "gaussian", noise=NoiseSettings(noise, log_noise=0.3), relaxed_only=False).refresh(
        data[::-1]
    )
    normal = torch.distributions.Normal
    expected = sum(normal(model(x), math.exp(0.3)).log_prob(y).sum() for x, y in data)
    assert math.isclose(terms.data_fit, float(expected), rel_tol=1e-10)
    assert math.isclose(terms.total, backwards.total, rel_tol=1e-10)


def test_temperature_equals_a_power_of_the_likelihood():
    """Data counted twice is the same as half the temperature."""
    model, data = network(), list(loader(batch_size=12))
    assert math.isclose(
        Evidence(model, noise=NoiseSettings(temperature=0.5)).refresh(data).complexity,
        Evidence(model, num_data=24).refresh(data * 2).complexity,
        rel_tol=1e-10,
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
    for n, p in each(model.named_parameters()):
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
    evidence = Evidence(network(), prior=PriorSettings(penalty="all"))
    terms = evidence.refresh(loader())
    assert math.isclose(float(evidence.penalty().detach()) * terms.num_data, terms.prior, rel_tol=1e-12)


def test_only_what_breaks_is_penalised():
    """By default, in a relaxed network; the rest is trained as ever, and its prior term stays in the evidence."""
    model = network()
    evidence = Evidence(model)
    terms = evidence.refresh(loader())
    logs, breaking = evidence.log_precision, [n for n in evidence.parameters if ".irrep_" in n]
    assert set(breaking) == evidence.penalised < set(evidence.parameters)
    wanted = sum(math.exp(logs[n]) * float(evidence.parameters[n].detach().square().sum()) for n in breaking) / 2
    assert math.isclose(float(evidence.penalty().detach()) * terms.num_data, wanted, rel_tol=1e-12)
    assert wanted < terms.prior
    evidence.penalty().backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())} == set(breaking)
    evidence.close(breaking)
    assert float(evidence.penalty()) == 0.0
    evidence.penalty().backward()  # for loops that take each term's gradient by itself
    frozen = network()
    for name in breaking:
        frozen.get_parameter(name).requires_grad_(False)
    assert "linear.weight" in Evidence(frozen).penalised, "nothing that breaks is trained: all others feel their prior"
    assert Evidence(hardened(model), relaxed_only=False).penalised > {"linear.weight"}, "nothing breaks: all are"


def hardened(model):
    from escnn_relax import harden

    return harden(model)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_loss_is_the_negative_log_posterior(likelihood):
    """Summed over the data it is what the evidence calls data fit and prior, up to the noise's normaliser."""
    model = network()
    noise = NoiseSettings(log_noise=0.3 if likelihood == "gaussian" else 0.0, temperature=0.7)
    evidence = Evidence(model, likelihood, prior=PriorSettings(penalty="all"), noise=noise)
    data = list(loader(likelihood, batch_size=12))
    terms = evidence.refresh(data)
    ((x, y),) = data
    model.eval()
    normaliser = 12 * 3 * (0.3 + 0.5 * math.log(2 * math.pi)) if likelihood == "gaussian" else 0.0
    assert math.isclose(
        float(evidence.loss(model(x), y)) * 12, terms.prior - terms.data_fit - normaliser, rel_tol=1e-12
    )


def test_state_dict_round_trip():
    model = network()
    evidence = Evidence(model, "gaussian")
    evidence.refresh(loader("gaussian"))
    evidence.step()
    again = Evidence(model, "gaussian")
    again.load_state_dict(evidence.state_dict())
    assert again.terms() == evidence.terms() and again.gradient() == evidence.gradient()


def test_state_of_a_wider_model_is_refused():
    narrow, wide = (Evidence(torch.nn.Linear(2, width), relaxed_only=False) for width in (3, 4))
    narrow.refresh([(torch.randn(5, 2), torch.randint(3, (5,)))])
    before = dict(wide.log_precision)
    with pytest.raises(CoverageError, match="weight has 6 weights there, 8 here"):
        wide.load_state_dict(narrow.state_dict())
    assert wide.log_precision == before


def test_layers_carry_what_the_evidence_found():
    model = network()
    evidence = Evidence(model)
    evidence.refresh(loader())
    evidence.step()
    record = report(model).layers[0].pathways[1]
    name = f"first.weights.{record.name}"
    assert math.isclose(record.log_precision, evidence.log_precision[name], rel_tol=1e-6)
    assert math.isclose(record.effective_dimension, evidence.effective_dimension()[name], rel_tol=1e-6)


def test_precisions_that_stay_this_time():
    evidence = Evidence(network(), prior=PriorSettings(ties="layer"))
    evidence.refresh(loader())
    before = dict(evidence.log_precision)
    evidence.step(fixed=["first.weights.irrep_1"])
    first = [n for n in before if n.startswith("first.")]
    assert len(first) > 2 and all(evidence.log_precision[n] == before[n] for n in first), "all that is tied to it"
    assert evidence.log_precision["linear.weight"] != before["linear.weight"]
    evidence.step()
    assert all(evidence.log_precision[n] != before[n] for n in first)
