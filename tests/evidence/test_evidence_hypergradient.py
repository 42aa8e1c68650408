"""The evidence differentiated through the curvature, in anything inside the network."""

from __future__ import annotations

import pytest
import torch
from curvature_oracles import own_filters  # noqa: F401
from escnn import gspaces
from escnn import nn as enn
from nonempty import each
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from escnn_relax import Evidence
from escnn_relax.errors import ArgumentError
from escnn_relax.evidence import CurvatureSettings, NoiseSettings
from escnn_relax.nn import RelaxedR2Conv

#: central differences of step 1e-5 on a function computed to 1e-12
FINITE_DIFFERENCE = 1e-6

C4 = gspaces.rot2dOnR2(4)


class Net(nn.Module):
    """With a length scale of its own: the slope of its nonlinearity."""

    def __init__(self, kind=enn.R2Conv):
        super().__init__()
        self.gray, fields = enn.FieldType(C4, [C4.trivial_repr]), enn.FieldType(C4, [C4.regular_repr])
        self.first, self.second = RelaxedR2Conv(self.gray, fields, 3), kind(fields, fields, 3)
        self.slope, self.mixing = nn.Parameter(torch.tensor(0.7)), nn.Parameter(torch.tensor([0.3, -0.2]))
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        y = self.first(self.gray(x))
        mixed = self.mixing.softmax(0)
        y = enn.GeometricTensor(mixed[0] * (self.slope * y.tensor).tanh() + mixed[1] * y.tensor, y.type)
        return self.linear((self.slope * self.second(y).tensor).tanh().mean((-2, -1)))


def setting(likelihood, curvature, kind=enn.R2Conv, **options):
    model = Net(kind)
    with torch.no_grad():
        for p in (*model.first.parameters(), *model.second.parameters(), *model.linear.parameters()):
            p.normal_(std=0.4)
    model = model.double()
    x = torch.randn(9, 1, 6, 6).double()
    y = torch.randint(3, (9,)) if likelihood == "categorical" else torch.randn(9, 3).double()
    return model, Evidence(model, likelihood, curvature, **options), DataLoader(TensorDataset(x, y), batch_size=4)


def difference(evidence, loader, parameter, index, step=1e-5):
    """Central finite difference of the log evidence in one entry, precisions fixed."""
    values = []
    for by in (step, -step):
        with torch.no_grad():
            parameter.view(-1)[index] += by
        values.append(evidence.refresh(loader).total)
        with torch.no_grad():
            parameter.view(-1)[index] -= by
    return (values[0] - values[1]) / (2 * step)


@pytest.mark.parametrize("curvature", ["expand", "reduce", "exact", "diagonal"])
@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
def test_hypergradient_equals_finite_differences(likelihood, curvature):
    noise = NoiseSettings(log_noise=-0.3 if likelihood == "gaussian" else 0.0, temperature=0.7)
    model, evidence, loader = setting(likelihood, curvature, noise=noise, num_data=15)
    parameters = [model.slope, model.mixing, model.first.weights["irrep_1"], model.second.weights, model.first.bias]
    gradients = evidence.hypergradient(loader, parameters)
    for parameter, gradient in each(zip(parameters, gradients, strict=True)):
        assert gradient.shape == parameter.shape
        for index in each(range(min(2, parameter.numel()))):
            expected = difference(evidence, loader, parameter, index)
            assert abs(float(gradient.view(-1)[index]) - expected) < FINITE_DIFFERENCE * max(1.0, abs(expected))


def test_the_curvature_has_a_say():
    """Without the second pass the gradient would be that of the penalised loss, which is another."""
    model, evidence, loader = setting("categorical", "expand")
    (gradient,) = evidence.hypergradient(loader, [model.slope])
    model.eval()
    loss = sum(torch.nn.functional.cross_entropy(model(x), y, reduction="sum") for x, y in loader)
    (of_loss,) = torch.autograd.grad(loss, [model.slope])
    assert abs(float(gradient + of_loss)) > 0.05 * abs(float(gradient))


def test_nothing_is_left_behind():
    model, evidence, loader = setting("categorical", "expand")
    model.train()
    evidence.hypergradient(loader, [model.slope])
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(m.training and "forward" not in vars(m) for m in model.modules())


def test_what_cannot_be_differentiated():
    model, evidence, loader = setting("categorical", "eigenvalue-corrected")
    with pytest.raises(ArgumentError, match="eigenvalue-corrected"):
        evidence.hypergradient(loader, [model.slope])
    model, evidence, loader = setting("categorical", CurvatureSettings(samples=2))
    with pytest.raises(ArgumentError, match="sampled"):
        evidence.hypergradient(loader, [model.slope])
    with pytest.raises(ArgumentError, match="not the model's"):
        evidence.hypergradient(loader, [nn.Parameter(torch.zeros(1))])
