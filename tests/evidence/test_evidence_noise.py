"""Observation noise that each output has for itself, against the evidence of linear models computed on the data
alone."""

from __future__ import annotations

import math

import pytest
import torch
from curvature_oracles import central_difference, dense_ggn, own_filters  # noqa: F401
from escnn import gspaces
from escnn import nn as enn
from nonempty import each
from torch import nn
from torch.distributions import MultivariateNormal
from torch.utils.data import DataLoader, TensorDataset

from escnn_relax import Evidence, fit
from escnn_relax.errors import ArgumentError, CoverageError, LikelihoodError
from escnn_relax.evidence import CurvatureSettings, NoiseSettings, PriorSettings
from escnn_relax.nn import RelaxedR2Conv

#: float64; relative to sums of some hundred nats
ROUNDING = 1e-10

#: central differences of step 1e-4 on a function computed to 1e-12
FINITE_DIFFERENCE = 1e-6

LOG_NOISE = (-0.9, 0.1, 0.6)
C4 = gspaces.rot2dOnR2(4)


class Mixed(nn.Module):
    """Linear in its weights, with outputs that share them: a fixed layer stands behind the one that learns."""

    def __init__(self, layer, mix):
        super().__init__()
        self.layer, self.mix = layer, mix.requires_grad_(False)

    def forward(self, x):
        return self.mix(self.layer(x))


def flat():
    return Mixed(nn.Linear(4, 5, bias=False), nn.Linear(5, 3, bias=False)), torch.randn(7, 4)


def spatial():
    return Mixed(nn.Conv2d(1, 2, 3, bias=False), nn.Conv2d(2, 3, 2, bias=False)), torch.randn(4, 1, 5, 4)


LINEAR = {"outputs": flat, "images": spatial}


def jacobian(model, x):
    """Of all outputs in the weights, ``(N C places, P)``, and the channel of each row."""
    weight = model.layer.weight
    J = torch.autograd.functional.jacobian(
        lambda w: torch.func.functional_call(model, {"layer.weight": w}, (x,)), weight.detach()
    )
    channel = torch.arange(3).view(1, 3, *(1,) * (J.dim() - 2 - weight.dim())).expand(J.shape[: J.dim() - weight.dim()])
    return J.reshape(-1, weight.numel()), channel.flatten()


def setting(case, log_precision=0.4, **options):
    """A linear model at its most probable weights, its evidence, and the Gaussian that its targets have by
    definition."""
    model, x = LINEAR[case]()
    model, x = model.double(), x.double()
    y = torch.randn_like(model(x)).detach()
    J, channel = jacobian(model, x)
    delta = math.exp(log_precision)

    def exact(log_noise):
        variance = torch.tensor(log_noise, dtype=torch.float64).mul(2).exp()[channel]
        return float(
            MultivariateNormal(torch.zeros_like(variance), variance.diag() + J @ J.T / delta).log_prob(y.flatten())
        )

    weight = 1 / torch.tensor(LOG_NOISE, dtype=torch.float64).mul(2).exp()[channel]
    best = torch.linalg.solve((J.T * weight) @ J + delta * torch.eye(J.shape[1]), (J.T * weight) @ y.flatten())
    with torch.no_grad():
        model.layer.weight.copy_(best.view_as(model.layer.weight))
    options.setdefault("curvature", "exact")
    evidence = Evidence(
        model,
        "gaussian",
        noise=NoiseSettings("output", log_noise=LOG_NOISE),
        relaxed_only=False,
        prior=PriorSettings(log_precision=log_precision),
        **options,
    )
    return evidence, DataLoader(TensorDataset(x, y), batch_size=3), exact


@pytest.mark.parametrize("case", LINEAR)
def test_evidence_and_slopes_of_a_linear_model(case):
    evidence, loader, exact = setting(case)
    assert math.isclose(evidence.refresh(loader).total, exact(LOG_NOISE), rel_tol=ROUNDING)
    gradient, step = evidence.gradient(), 1e-4
    for c in range(3):
        ends = [exact([s + by * (c == k) for k, s in enumerate(LOG_NOISE)]) for by in (step, -step)]
        assert math.isclose(gradient[f"log_noise.{c}"], (ends[0] - ends[1]) / (2 * step), rel_tol=FINITE_DIFFERENCE)


@pytest.mark.parametrize("case", LINEAR)
def test_curvature_for_one_noise_is_told_apart(case):
    """The broken twin: one noise for all outputs, the same on average, gives another evidence."""
    evidence, loader, exact = setting(case)
    options = {
        "noise": NoiseSettings(log_noise=sum(LOG_NOISE) / 3),
        "relaxed_only": False,
        "prior": PriorSettings(log_precision=0.4),
    }
    alike = Evidence(evidence.model, "gaussian", "exact", **options)
    assert abs(alike.refresh(loader).total - exact(LOG_NOISE)) > 1


def test_equal_noises_are_one_noise():
    for curvature in ("expand", "reduce", "exact", "diagonal", "auto"):
        model, loader = network(), images()
        alone = Evidence(model, "gaussian", curvature, noise=NoiseSettings(log_noise=-0.3, temperature=0.7))
        apart = Evidence(model, "gaussian", curvature, noise=NoiseSettings("output", log_noise=-0.3, temperature=0.7))
        assert math.isclose(apart.refresh(loader).total, alone.refresh(loader).total, rel_tol=ROUNDING)
        slopes = [g for n, g in apart.gradient().items() if n.startswith("log_noise")]
        assert len(slopes) == 3 and math.isclose(sum(slopes), alone.gradient()["log_noise"], rel_tol=1e-8)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.gray, fields = enn.FieldType(C4, [C4.trivial_repr]), enn.FieldType(C4, [C4.regular_repr, C4.irrep(1)])
        self.first, self.second = RelaxedR2Conv(self.gray, fields, 3), RelaxedR2Conv(fields, fields, 3)
        self.linear = nn.Linear(6, 3)

    def forward(self, x):
        x = self.first(self.gray(x))
        x = self.second(enn.GeometricTensor(x.tensor.tanh(), x.type))
        return self.linear(x.tensor.tanh().mean((-2, -1)))


def network():
    model = Net()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.4)
    return model.double()


def images(count=9):
    x = torch.randn(count, 1, 6, 6).double()
    return list(DataLoader(TensorDataset(x, torch.randn(count, 3).double()), batch_size=4))


@pytest.mark.parametrize("count", [2, 40], ids=["fewer columns than weights", "more"])
def test_blocks_of_a_network_are_weighted_sums_over_outputs(count):
    """Dense Gauss-Newton blocks by ``torch.func``, of outputs divided by their noise."""
    model, data = network(), images(count)
    evidence = Evidence(model, "gaussian", "exact", noise=NoiseSettings("output", log_noise=LOG_NOISE))
    evidence.refresh(data)

    class Divided(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model

        def forward(self, x):
            return self.net(x) / torch.tensor(LOG_NOISE, dtype=torch.float64).exp()

    expected = dense_ggn(Divided(), data, "gaussian")
    for name, (factor,) in each(evidence.estimate.factors.items()):
        H = expected[f"net.{name}"]
        assert (evidence.scale * factor.dense() - H).norm() < ROUNDING * H.norm(), name
        values = torch.linalg.eigvalsh(H).clamp(min=0)
        assert torch.allclose(evidence.eigenvalues[name].sort().values, values, atol=ROUNDING * float(values.max()))


@pytest.mark.parametrize("curvature", ["expand", "reduce", "exact", "diagonal"])
def test_slopes_of_a_network_equal_finite_differences(curvature):
    model, data = network(), images()
    evidence = Evidence(
        model, "gaussian", curvature, noise=NoiseSettings("output", log_noise=LOG_NOISE, temperature=0.8), num_data=14
    )
    evidence.refresh(data)
    gradient, step = evidence.gradient(), 1e-4

    def total(log_noise):
        noise = NoiseSettings("output", log_noise=log_noise, temperature=0.8)
        return Evidence(model, "gaussian", curvature, noise=noise, num_data=14).refresh(data).total

    for c in range(3):
        ends = [total([s + by * (c == k) for k, s in enumerate(LOG_NOISE)]) for by in (step, -step)]
        assert math.isclose(gradient[f"log_noise.{c}"], (ends[0] - ends[1]) / (2 * step), rel_tol=FINITE_DIFFERENCE)


@pytest.mark.parametrize("curvature", ["expand", "exact"])
def test_between_refreshes_the_evidence_is_a_lower_bound(curvature):
    """In the last eigenbasis the curvature at other noises is a diagonal, so that its log determinant errs upwards, and
    by what is of second order in the change."""
    model, data = nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.Tanh(), nn.Linear(4, 3)).double(), images(30)
    evidence = Evidence(
        model, "gaussian", curvature, noise=NoiseSettings("output", log_noise=LOG_NOISE), relaxed_only=False
    )
    gaps = []
    for share in (1.0, 0.1, 0.05):
        evidence.log_noise = LOG_NOISE
        evidence.refresh(data)
        evidence.log_noise = [s + share * by for s, by in zip(LOG_NOISE, (1.5, -1.0, 0.5))]
        bound, exact = evidence.terms(), evidence.refresh(data)
        assert bound.data_fit == pytest.approx(exact.data_fit, rel=ROUNDING)
        gaps.append(exact.total - bound.total)
    assert 1e-4 < gaps[2] < gaps[1] < gaps[0] < 0.1 * abs(exact.total)
    assert 3 < gaps[1] / gaps[2] < 5


def test_the_bound_holds_between_noises_of_any_ratio():
    """Also where there are fewer columns than weights, and one output counts so little that its own are lost in
    rounding beside the others'. No change of basis changes a trace."""
    model, data = nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.Tanh(), nn.Linear(4, 3)).double(), images(2)
    evidence = Evidence(model, "gaussian", "exact", noise="output", relaxed_only=False)
    for before, after in (((0.0, 18.0, 0.0), (0.0, -1.0, 0.0)), ((-9.0, 9.0, 0.0), (0.0, 0.0, 0.0))):
        evidence.log_noise = before
        evidence.refresh(data)
        evidence.log_noise = after
        bound, traces = evidence.terms(), {name: values.sum() for name, values in evidence.eigenvalues.items()}
        exact = evidence.refresh(data)
        assert all(torch.isclose(evidence.eigenvalues[name].sum(), trace) for name, trace in traces.items())
        assert bound.complexity >= (1 - ROUNDING) * exact.complexity > 1


def test_steps_never_lower_the_evidence():
    """Neither the bound that they climb nor the evidence itself."""
    evidence, data = Evidence(network(), "gaussian", noise=NoiseSettings("output", log_noise=2.0)), images(30)
    before = evidence.refresh(data).total
    for _ in range(30):
        after = evidence.step(1).total
        assert after >= before - 1e-9 * abs(before)
        before = evidence.refresh(data).total
        assert before >= after - 1e-9 * abs(before)
    assert max(abs(g) for n, g in evidence.gradient().items() if n.startswith("log_noise")) < 1e-4


def noisy_data(sigmas, count=400):
    x = torch.randn(count, 1, 6, 6)
    signal = torch.stack([x.mean((1, 2, 3)) * 4, x[:, 0, 2, 2] - x[:, 0, 3, 3], x[:, 0, 1:5, 1:5].mean((1, 2))], dim=1)
    return DataLoader(TensorDataset(x, signal + torch.tensor(sigmas) * torch.randn(count, 3)), batch_size=100)


def test_noises_of_all_outputs_are_recovered():
    """To within 20 percent of each, over a range of 20: 400 samples leave 3.5 percent of chance, the misfit of a small
    network the rest. One noise for all must miss that by far, and have less evidence."""
    sigmas, loader = (0.05, 0.3, 1.0), None
    loader, found = noisy_data(sigmas), {}
    for noise in ("output", "shared"):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 3))
        options = {
            "epochs": 60,
            "burn_in": 10,
            "refresh_every": 3,
            "lr": 2e-2,
            "progress": False,
            "relaxed_only": False,
        }
        found[noise] = fit(model, loader, likelihood="gaussian", noise=noise, **options).evidence
    learned = found["output"].log_noise.exp()
    assert all(abs(float(s) / true - 1) < 0.2 for s, true in zip(learned, sigmas)), learned
    assert math.exp(found["shared"].log_noise) > 2 * sigmas[0]
    assert found["output"].terms().total > found["shared"].terms().total + 100


def test_loss_weighs_each_output():
    model, ((x, y), *_) = network(), images()
    evidence = Evidence(
        model, "gaussian", noise=NoiseSettings("output", log_noise=LOG_NOISE, temperature=0.5), num_data=9
    )
    by_hand = sum(
        (model(x) - y)[:, c].square().sum() * math.exp(-2 * s) / 0.5 / 2 for c, s in enumerate(LOG_NOISE)
    ) / len(x)
    assert torch.allclose(evidence.loss(model(x), y) - evidence.penalty(), by_hand, rtol=1e-12)


def test_running_averages_and_state():
    model, (one, other, _) = network(), images(12)
    options = {"noise": "output", "num_data": 12}
    evidence = Evidence(model, "gaussian", "exact", **options)
    evidence.refresh([one], keep=0.5)
    again = Evidence(model, "gaussian", "exact", **options)
    again.load_state_dict(evidence.state_dict())
    assert again.terms() == evidence.terms()
    assert again.refresh([other], keep=0.5) == evidence.refresh([other], keep=0.5)
    twice = [one, other, tuple(part.clone() for part in other)]  # the older samples count half
    whole = Evidence(model, "gaussian", "exact", **options).refresh(twice)
    assert math.isclose(evidence.terms().total, whole.total, rel_tol=ROUNDING)
    evidence.step()
    again.load_state_dict(evidence.state_dict())
    assert again.terms() == evidence.terms() and torch.equal(again.log_noise, evidence.log_noise)
    with pytest.raises(CoverageError, match="noise"):
        Evidence(model, "gaussian").load_state_dict(evidence.state_dict())


def test_checkpoints_of_another_noise_are_refused(tmp_path):
    from escnn_relax.errors import CheckpointError

    model, loader = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), noisy_data((0.1, 0.3, 1.0), 20)
    options = {"likelihood": "gaussian", "progress": False, "relaxed_only": False, "burn_in": 0}
    options["checkpoint"] = tmp_path / "run"
    first = fit(model, loader, epochs=2, noise="output", **options)
    again = fit(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), loader, epochs=2, noise="output", **options)
    assert torch.equal(again.evidence.log_noise, first.evidence.log_noise)
    with pytest.raises(CheckpointError, match="noise"):
        fit(model, loader, epochs=2, **options)


@pytest.mark.parametrize("curvature", ["expand", "exact"])
def test_hypergradient_equals_finite_differences(curvature):
    model, data = network(), images()
    evidence = Evidence(model, "gaussian", curvature, noise=NoiseSettings("output", log_noise=LOG_NOISE), num_data=13)
    weight = model.linear.weight
    (gradient,) = evidence.hypergradient(data, [weight])
    for index in (0, 7, 17):
        expected = central_difference(evidence, data, weight, index)
        assert abs(float(gradient.view(-1)[index]) - expected) < FINITE_DIFFERENCE * max(1.0, abs(expected))


def test_predictions_carry_the_noise_of_each_output():
    """Also right after a step, without a refresh: the factors are summed anew for the noises of the moment."""
    evidence, loader, _ = setting("outputs")
    evidence.refresh(loader)
    evidence.step(1)
    x, sigma = torch.randn(2, 4).double(), evidence.log_noise.exp()
    prediction = evidence.posterior().predict(x)
    inputs = torch.cat([x for x, _ in loader])
    rows = [jacobian(evidence.model, part) for part in (inputs, x)]
    (J, channel), (at, where) = rows
    delta = math.exp(evidence.log_precision["layer.weight"])
    covariance = torch.linalg.inv((J.T / sigma[channel].square()) @ J + delta * torch.eye(J.shape[1]))
    expected = (at @ covariance @ at.T).diagonal() + sigma[where].square()
    assert torch.allclose(prediction.variance.flatten(), expected, rtol=1e-9)


@pytest.mark.parametrize("case", LINEAR)
def test_monte_carlo_columns_are_unbiased(case):
    """For the curvature of each output by itself; five standard errors of the mean."""
    evidence, loader, _ = setting(case)
    evidence.refresh(loader)
    exact = evidence.effective_dimension_of_outputs()
    assert torch.allclose(exact.sum(), torch.tensor(sum(evidence.effective_dimension().values())).double())
    noise = NoiseSettings("output", log_noise=LOG_NOISE)
    sampled = Evidence(
        evidence.model, "gaussian", CurvatureSettings("exact", samples=4), noise=noise, relaxed_only=False
    )

    def traces(of):
        of.refresh(loader)
        return torch.stack([o.factors["layer.weight"][0].dense().trace() for o in of.estimate.outputs])

    draws = torch.stack([traces(sampled) for _ in range(60)])
    exact_traces = traces(evidence)  # random signs of one output's only column leave them as they are
    assert ((draws.mean(0) - exact_traces).abs() < 5 * draws.std(0) / 60**0.5 + ROUNDING * exact_traces).all()


BAD = [
    ("gaussian", {"noise": "each"}, ArgumentError, "'shared' or 'output'"),
    ("categorical", {"noise": "output"}, ArgumentError, "gaussian"),
    ("gaussian", {"noise": NoiseSettings(log_noise=(0.0, 1.0, 2.0))}, ArgumentError, "noise='output'"),
    ("gaussian", {"noise": NoiseSettings("output", log_noise=(0.0, math.nan, 1.0))}, ArgumentError, "log_noise"),
    ("gaussian", {"noise": "output", "curvature": "eigenvalue-corrected"}, ArgumentError, "eigenvalue-corrected"),
]


@pytest.mark.parametrize(("likelihood", "options", "error", "message"), BAD)
def test_noises_that_make_no_sense(likelihood, options, error, message):
    with pytest.raises(error, match=message):
        Evidence(network(), likelihood, **options)


def test_as_many_noises_as_outputs():
    evidence = Evidence(network(), "gaussian", noise=NoiseSettings("output", log_noise=(0.0, 1.0)))
    with pytest.raises(LikelihoodError, match="3 outputs.*got 2"):
        evidence.refresh(images())
    with pytest.raises(LikelihoodError, match="3 outputs.*got 2"):
        evidence.loss(torch.zeros(1, 3).double(), torch.zeros(1, 3).double())


def test_laplace_torch_has_one_noise_only():
    evidence = Evidence(network(), "gaussian", noise="output")
    evidence.refresh(images())
    with pytest.raises(LikelihoodError, match="noise='shared'"):
        evidence.to_laplace()
