"""Targets as people have them: loss, curvature and data fit equal those of the dense oracle, or an error of ours says
what is expected. The oracle forms the Hessian of the loss in the outputs by autograd, one sample after the other."""

from __future__ import annotations

import math

import pytest
import torch
from curvature_oracles import own_filters  # noqa: F401
from nonempty import each
from torch import nn
from torch.nn import functional as F

from escnn_relax import Batches, Evidence
from escnn_relax.curvature.curvature import Curvature
from escnn_relax.curvature.likelihood import Bernoulli, Categorical, Gaussian, Heteroscedastic
from escnn_relax.errors import DataError, LikelihoodError
from escnn_relax.evidence import NoiseSettings

#: float64; the two sides sum the same numbers in another order
ROUNDING = 1e-10
#: Columns drawn for the Monte-Carlo estimate, whose error is in proportion to the root of their number.
DRAWS = 4000

N, C = 6, 3
WEIGHTS = torch.tensor([0.5, 2.0, 1.5]).double()


class Pixels(nn.Module):
    """One output vector for each pixel."""

    def __init__(self, outputs):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 2, 3), nn.Conv2d(2, outputs, 1)

    def forward(self, x):
        return self.last(self.first(x).tanh())


def vectors(outputs):
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, outputs))


def labels(shape, ignored=None):
    y = (torch.arange(torch.Size(shape).numel()) * 2 + 1).remainder(C).view(shape)  # every class, in any part
    if ignored is not None:
        y.view(-1)[::4] = ignored
    return y


def ce(**options):
    return lambda f, y: F.cross_entropy(f, y, reduction="sum", **options)


def square(f, y):
    return 0.5 * (f - y).square().sum()


def normal(f, y):
    mean, s = f.chunk(2, 1)
    return -torch.distributions.Normal(mean, (s / 2).exp()).log_prob(y).sum()


SOFT = torch.rand(N, C, generator=torch.Generator().manual_seed(3)).double().softmax(1)
MAPS = torch.rand(N, C, 2, 2, generator=torch.Generator().manual_seed(3)).double().softmax(1)
REAL = torch.randn(N, C, generator=torch.Generator().manual_seed(4)).double()
REAL_MAPS = torch.randn(N, C, 2, 2, generator=torch.Generator().manual_seed(4)).double()
MASK = (torch.rand(N, C, generator=torch.Generator().manual_seed(5)) > 0.4).double()
PLACES = (torch.rand(N, 2, 2, generator=torch.Generator().manual_seed(5)) > 0.4).double()
EACH = torch.tensor([0.0, 1.0, 2.0, 0.5, 1.0, 3.0]).double()

#: likelihood, targets, weights, and the loss by torch alone
CASES = {
    "labels": (Categorical(), labels((N,)), None, ce()),
    "labels, some ignored": (Categorical(ignore_index=-1), labels((N,), -1), None, ce(ignore_index=-1)),
    "class weights": (Categorical(WEIGHTS), labels((N,)), None, ce(weight=WEIGHTS)),
    "label smoothing": (Categorical(label_smoothing=0.2), labels((N,)), None, ce(label_smoothing=0.2)),
    "all three": (
        Categorical(WEIGHTS, 255, 0.2),
        labels((N,), 255),
        None,
        ce(weight=WEIGHTS, label_smoothing=0.2, ignore_index=255),
    ),
    "soft labels": (Categorical(), SOFT, None, ce()),
    "soft labels, class weights": (Categorical(WEIGHTS), SOFT, None, ce(weight=WEIGHTS)),
    "pixels, some ignored": (
        Categorical(WEIGHTS, 255),
        labels((N, 2, 2), 255),
        None,
        ce(weight=WEIGHTS, ignore_index=255),
    ),
    "pixels, soft": (Categorical(), MAPS, None, ce()),
    "several labels": (
        Bernoulli(),
        (REAL > 0).double(),
        None,
        lambda f, y: F.binary_cross_entropy_with_logits(f, y, reduction="sum"),
    ),
    "regression, masked": (
        Gaussian(),
        REAL.masked_fill(MASK == 0, math.nan),
        MASK,
        lambda f, y: square(f * MASK, REAL * MASK),
    ),
    "regression, masked pixels": (
        Gaussian(),
        REAL_MAPS,
        PLACES,
        lambda f, y: square(f * PLACES.unsqueeze(1), REAL_MAPS * PLACES.unsqueeze(1)),
    ),
    "weights of samples": (
        Categorical(),
        labels((N,)),
        EACH,
        lambda f, y: (EACH * F.cross_entropy(f, y, reduction="none")).sum(),
    ),
    "weights of samples, regression": (
        Gaussian(),
        REAL,
        EACH,
        lambda f, y: square(EACH.sqrt().view(-1, 1) * f, EACH.sqrt().view(-1, 1) * y),
    ),
}
CASES_FISHER = {
    "heteroscedastic": (Heteroscedastic(), REAL, None, normal),
    "heteroscedastic, weights": (Heteroscedastic(), REAL, EACH, None),
    "heteroscedastic, masked": (Heteroscedastic(), REAL, MASK, None),
}


def case(likelihood, target, weight):
    outputs = 2 * C if isinstance(likelihood, Heteroscedastic) else C
    pixels = target.dim() > 2
    model, x = (Pixels(outputs), torch.randn(N, 1, 4, 4)) if pixels else (vectors(outputs), torch.randn(N, 4))
    data = [(x.double(), target)] if weight is None else Batches([(x.double(), target, weight)], lambda batch: batch)
    return model.double(), x.double(), data


def dense(model, x, hessian):
    """The blocks of J^T H J with the Hessian of the summed loss in all outputs together."""
    values = {n: p.detach().clone() for n, p in model.named_parameters()}
    J = torch.func.jacrev(lambda p: torch.func.functional_call(model, p, (x,)))(values)
    H = hessian.reshape(model(x).numel(), -1)
    found = {}
    for name, rows in J.items():
        rows = rows.reshape(len(H), -1)
        found[name] = rows.T @ H @ rows
    return found


@pytest.mark.parametrize("which", CASES)
def test_loss_and_exact_curvature(which):
    likelihood, target, weight, loss = CASES[which]
    model, x, data = case(likelihood, target, weight)
    output = model(x).detach()
    estimate = Curvature(model, likelihood, "exact")(data)
    assert estimate.num_data == N
    assert math.isclose(estimate.loss, float(loss(output, target)), rel_tol=ROUNDING)
    expected = dense(model, x, torch.func.hessian(lambda f: loss(f, target))(output))
    assert len(expected) == 4
    for name, H in each(expected.items()):
        assert (estimate.factors[name][0].dense() - H).norm() < ROUNDING * H.norm(), name
        assert H.norm() > 1e-6


@pytest.mark.parametrize("which", [*CASES, *CASES_FISHER])
def test_drawn_columns_agree_with_exact_ones(which):
    likelihood, target, weight, _ = {**CASES, **CASES_FISHER}[which]
    model, x, data = case(likelihood, target, weight)
    ((_, wanted),) = _read(data)
    output = model(x).detach()
    exact = torch.stack(list(likelihood.columns(output, target=wanted))).flatten(2)
    drawn = torch.stack(list(likelihood.columns(output, DRAWS, wanted))).flatten(2)
    H, sampled = (torch.einsum("cni,cnj->nij", c, c) for c in (exact, drawn))
    # the places of a sample share a draw: their cross terms vanish on average only, each like a mean over the draws
    assert (sampled - H).abs().max() < 8 * float(H.max()) / DRAWS**0.5
    assert (0.5 * sampled - H).abs().max() > 8 * float(H.max()) / DRAWS**0.5


@pytest.mark.parametrize("which", CASES_FISHER)
def test_a_network_that_says_how_sure_it_is(which):
    """The Fisher information is the mean of the loss's Hessian over targets drawn from the network's own prediction: at
    the two points of a Gauss-Hermite rule, which is exact for what is quadratic in the target."""
    likelihood, target, weight, _ = CASES_FISHER[which]
    model, x, data = case(likelihood, target, weight)
    output = model(x).detach()
    counts = (
        torch.ones(N, C).double() if weight is None else weight if weight.dim() > 1 else weight.view(-1, 1).expand(N, C)
    )

    def loss(f, y):
        mean, s = f.chunk(2, 1)
        return -(counts * torch.distributions.Normal(mean, (s / 2).exp()).log_prob(y)).sum()

    mean, s = output.chunk(2, 1)
    both = [torch.func.hessian(lambda f: loss(f, mean + sign * (s / 2).exp()))(output) for sign in (-1, 1)]
    expected = dense(model, x, sum(both) / 2)
    estimate = Curvature(model, likelihood, "exact")(data)
    assert math.isclose(estimate.loss, float(loss(output, target)), rel_tol=ROUNDING)
    for name, H in each(expected.items()):
        assert (estimate.factors[name][0].dense() - H).norm() < ROUNDING * H.norm(), name


@pytest.mark.parametrize("which", [*CASES, *CASES_FISHER])
def test_penalised_loss_and_best_constant(which):
    likelihood, target, weight, loss = {**CASES, **CASES_FISHER}[which]
    model, x, data = case(likelihood, target, weight)
    ((_, wanted),) = _read(data)
    evidence = Evidence(model, likelihood, num_data=N, relaxed_only=False)
    terms = evidence.refresh(data)
    own = float((evidence.loss(model(x), wanted) - evidence.penalty()).detach()) * N
    assert math.isclose(own, evidence.mean_loss * N, rel_tol=ROUNDING)
    shape = model(x)[:1].shape
    best = nn.Parameter(
        torch.zeros(
            shape
            if likelihood.name in ("bernoulli", "gaussian", "heteroscedastic")
            else (1, C, *(1,) * (len(shape) - 2))
        ).double()
    )
    descent = torch.optim.LBFGS(
        [best], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-9, tolerance_change=1e-12
    )

    def closure():
        descent.zero_grad()
        value = likelihood.loss(best.expand(N, *shape[1:]), wanted)
        value.backward()
        return value

    for _ in range(3):
        descent.step(closure)
    assert math.isclose(float(closure()) / N, likelihood.joint_constant_loss([wanted]), rel_tol=1e-4)
    halves = wanted.tensor_split(2)
    assert math.isclose(
        likelihood.joint_constant_loss(halves), likelihood.joint_constant_loss([wanted]), rel_tol=ROUNDING
    )
    assert terms.num_data == N


def test_what_is_masked_is_not_observed():
    """The noise of a regression is estimated from what was seen."""
    model, x, data = case(Gaussian(), REAL, MASK)
    evidence = Evidence(model, "gaussian", num_data=N, relaxed_only=False, noise=NoiseSettings(log_noise=0.7))
    terms = evidence.refresh(data)
    seen = MASK.bool()
    expected = torch.distributions.Normal(model(x), math.exp(0.7)).log_prob(REAL)[seen].sum()
    assert math.isclose(terms.data_fit, float(expected), rel_tol=ROUNDING)
    apart = Evidence(
        model, "gaussian", num_data=N, relaxed_only=False, noise=NoiseSettings("output", log_noise=0.7)
    ).refresh(data)
    assert math.isclose(apart.complexity, terms.complexity, rel_tol=ROUNDING)


@pytest.mark.parametrize(
    "likelihood, target, error, words",
    [
        ("categorical", torch.rand(N, C).double(), LikelihoodError, "add up to 1.*gaussian.*bernoulli"),
        ("categorical", torch.full((N,), 255), DataError, r"labels in 0 ... 2.*ignore_index"),
        (Categorical([1.0, 2.0]), torch.zeros(N).long(), LikelihoodError, "3 weights, got 2"),
        ("heteroscedastic", torch.zeros(N, C).double(), LikelihoodError, "even number"),
        ("gaussian", torch.full((N, C), math.nan).double(), DataError, "weight of zero"),
    ],
)
def test_targets_that_do_not_fit(likelihood, target, error, words):
    model, x, _ = case(Gaussian(), REAL, None)
    with pytest.raises(error, match=words):
        Evidence(model, likelihood, relaxed_only=False).refresh([(x, target)])


@pytest.mark.parametrize("shape", [(N, 2), (N, C, 1), (N, 2, 2)])
def test_weights_that_do_not_fit(shape):
    model, x, _ = case(Gaussian(), REAL, None)
    with pytest.raises(LikelihoodError, match=r"weights of shape \(6,\), or as the targets \(6, 3\), got"):
        Evidence(model, "gaussian", relaxed_only=False).refresh(Batches([(x, REAL, torch.ones(shape))], lambda b: b))


def _read(data):
    from escnn_relax.curvature.checked_batches import batches

    return list(batches(data, torch.device("cpu")))
