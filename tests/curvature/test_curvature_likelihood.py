"""Likelihoods: their losses are densities, their columns square roots of the loss's Hessian."""

from __future__ import annotations

import math

import pytest
import torch
from backpack.core.derivatives.crossentropyloss import CrossEntropyLossDerivatives
from nonempty import each
from torch import nn

from escnn_relax.curvature.curvature import Curvature
from escnn_relax.curvature.likelihood import Bernoulli, Categorical, Gaussian, likelihood
from escnn_relax.errors import DataError, LikelihoodError

#: float64
ROUNDING = 1e-10


def case(name, *space):
    """A likelihood, outputs and targets."""
    output = torch.randn(4, 3, *space).double()
    if name == "categorical":
        return Categorical(), output, torch.randint(3, (4, *space))
    if name == "bernoulli":
        return Bernoulli(), output, torch.randint(2, (4, 3, *space)).double()
    return Gaussian(), output, torch.randn(4, 3, *space).double()


NAMES = ["categorical", "bernoulli", "gaussian"]


@pytest.mark.parametrize("space", [(), (2,), (2, 2)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_columns_are_a_root_of_the_hessian(name, space):
    """Which autograd computes of the summed loss."""
    of, output, target = case(name, *space)
    columns = torch.stack(list(of.columns(output)))
    assert columns.shape[1:] == output.shape
    found = torch.einsum("cno,cnp->nop", columns.flatten(2), columns.flatten(2))
    for index in each(range(len(output))):
        expected = torch.autograd.functional.hessian(
            lambda f: of.loss(f.view_as(output[:1]), target[index : index + 1]), output[index].flatten()
        )
        assert torch.allclose(found[index], expected, atol=ROUNDING)


@pytest.mark.parametrize("name", NAMES)
def test_sampled_columns_have_the_hessian_as_covariance(name):
    """Five standard errors of 20000 draws."""
    of, output, _ = case(name, 2)
    exact, sampled = (torch.stack(list(of.columns(output, m))).flatten(2) for m in (None, 20000))
    expected, found = (torch.einsum("cno,cnp->nop", c, c) for c in (exact, sampled))
    products = torch.einsum("cno,cnp->cnop", sampled, sampled) * 20000
    assert ((found - expected).abs() <= 5 * products.std(0) / 20000**0.5 + 1e-12).all()


def test_sampled_columns_of_sure_samples_scatter_little():
    """Drawn labels, which have the same covariance, are almost always the sure one's: hardly any draw says anything."""
    torch.manual_seed(0)
    output = torch.tensor([[5.0, 0.0, 0.0]]).double()
    p = output.softmax(1)
    norms = torch.stack(list(Categorical().columns(output, 4000))).square().sum(2).flatten() * 4000
    labels = torch.eye(3).double()[torch.multinomial(p[0], 4000, replacement=True)] - p
    trace = float((p - p.square()).sum())
    assert norms.mean() == pytest.approx(trace, rel=0.05) and labels.square().sum(1).mean() == pytest.approx(
        trace, rel=0.5
    )
    assert norms.std() < trace and labels.square().sum(1).std() > 5 * trace


def test_categorical_columns_agree_with_backpack():
    output = torch.randn(5, 4).double() * 3
    module = nn.CrossEntropyLoss(reduction="sum")
    module.input0, module.output = output, output.new_zeros(())
    theirs = CrossEntropyLossDerivatives().sqrt_hessian(module, None, None)
    ours = Categorical().exact_columns(output)
    assert len(ours) == 3 < len(theirs) == 4
    assert torch.allclose(*(torch.einsum("cno,cnp->nop", c, c) for c in (ours, theirs)), atol=ROUNDING)


def test_columns_of_a_certain_class_are_finite():
    output = torch.tensor([[0.0, 0.0, 800.0], [800.0, 0.0, 0.0]]).double()
    assert torch.isfinite(Categorical().exact_columns(output)).all()


def test_constant_loss_is_that_of_the_best_constant():
    for name in NAMES:
        of, _, target = case(name)
        constant = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
        descent = torch.optim.LBFGS([constant], max_iter=200, tolerance_grad=1e-10)
        expected = float(descent.step(lambda: _closure(of, constant, target, descent)))
        expected = float(of.loss(constant.expand(4, 3), target).detach()) / 4
        assert math.isclose(of.constant_loss(target), expected, abs_tol=1e-3)


def _closure(of, constant, target, descent):
    descent.zero_grad()
    loss = of.loss(constant.expand(len(target), -1), target)
    loss.backward()
    return loss


@pytest.mark.parametrize("name", NAMES)
def test_joint_constant_loss_of_minibatches(name):
    """Of several sizes: that of one constant at all places, divided by N."""
    of, _, target = case(name, 4)
    assert of.joint_constant_loss(target.split(3)) == of.constant_loss(target)
    parts = [target[:1, ..., :2], target[1:]]
    places = torch.cat([p.flatten() if name == "categorical" else p.transpose(1, 2).flatten(0, 1) for p in parts])
    assert math.isclose(of.joint_constant_loss(parts), of.constant_loss(places) * 14 / 4)


def test_the_former_name_of_the_joint_constant_loss_warns():
    targets = [torch.randn(3, 2), torch.randn(2, 2)]
    with pytest.warns(DeprecationWarning, match="joint_constant_loss"):
        assert Gaussian().constant_loss_of(targets) == Gaussian().joint_constant_loss(targets)


@pytest.mark.parametrize("kind", [torch.int32, torch.uint8, torch.bool])
def test_labels_of_any_integer_type(kind):
    output, target = torch.randn(6, 2), torch.tensor([0, 1, 1, 0, 1, 1])
    Categorical().check(output, target.to(kind))
    assert Categorical().loss(output, target.to(kind)) == Categorical().loss(output, target)
    assert Categorical().constant_loss(target.to(kind)) == Categorical().constant_loss(target)


@pytest.mark.parametrize("name", NAMES)
def test_spatial_outputs_of_a_network(name):
    """A network that answers for each pixel: exact blocks equal those of the same network with flattened outputs."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 1)).double()
    of, _, target = case(name, 3, 3)
    x = torch.randn(4, 1, 3, 3).double()
    found = Curvature(model, of, "exact")([(x, target)])
    assert found.num_outputs == 27
    parameters = dict(model.named_parameters())
    for key, (factor,) in each(found.factors.items()):
        expected = torch.zeros(parameters[key].numel(), parameters[key].numel()).double()
        for one, y in zip(x.split(1), target.split(1)):

            def outputs(p):
                return torch.func.functional_call(model, {**parameters, key: p}, (one,))

            f, pull = torch.func.vjp(outputs, parameters[key].detach())
            H = torch.autograd.functional.hessian(lambda o: of.loss(o.view_as(f), y), f.detach().flatten())
            J = torch.func.vmap(lambda e: pull(e.view_as(f))[0].flatten())(torch.eye(27).double())
            expected += J.T @ H @ J
        assert (factor.dense() - expected).norm() < ROUNDING * expected.norm(), key


BAD = [
    ("categorical", torch.zeros(2, 1), torch.zeros(2).long(), LikelihoodError, "bernoulli"),
    ("categorical", torch.zeros(2, 3), torch.tensor([0, -1]), DataError, "labels in 0 ... 2"),
    ("categorical", torch.zeros(2, 3, 2), torch.zeros(2).long(), LikelihoodError, "shape"),
    ("bernoulli", torch.zeros(2, 1), torch.full((2, 1), 1.5), DataError, "0 ... 1"),
    ("bernoulli", torch.zeros(2, 1), torch.zeros(2), LikelihoodError, "both one shape"),
    ("bernoulli", torch.zeros(2, 1), torch.zeros(2, 1).long(), LikelihoodError, r"\.float\(\)"),
    ("gaussian", torch.zeros(2, 1), torch.full((2, 1), math.nan), DataError, "NaN"),
    ("gaussian", torch.zeros(2, 1), torch.zeros(2, 1).long(), LikelihoodError, "categorical"),
]


@pytest.mark.parametrize(("name", "output", "target", "error", "message"), BAD)
def test_targets_that_do_not_fit(name, output, target, error, message):
    with pytest.raises(error, match=message):
        likelihood(name).check(output, target)


def test_outputs_that_are_none():
    for output in (torch.zeros(3), (torch.zeros(2, 2),), None):
        with pytest.raises(LikelihoodError, match="output of shape"):
            Gaussian().tensor(output)
