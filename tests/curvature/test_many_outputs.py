"""Many outputs: the layer that returns them takes their Hessian as it is, which is what all columns add up to."""

from __future__ import annotations

import pytest
import torch
from escnn import gspaces
from escnn import nn as enn
from nonempty import each
from torch import nn

from escnn_relax import Batches, relax
from escnn_relax.curvature import data_pass
from escnn_relax.curvature.curvature import Curvature
from escnn_relax.curvature.likelihood import Bernoulli, Categorical, Gaussian, Heteroscedastic
from escnn_relax.curvature.sums.accumulation import Expand
from escnn_relax.curvature.sums.moments import Moments

ROUNDING = 1e-12
CLASSES, SAMPLES = 6, 5
C4 = gspaces.rot2dOnR2(4)


class Steerable(nn.Module):
    """Regular and trivial fields at the end, six channels."""

    def __init__(self):
        super().__init__()
        self.gray = enn.FieldType(C4, [C4.trivial_repr])
        inner = enn.FieldType(C4, [C4.regular_repr])
        self.body = enn.SequentialModule(enn.R2Conv(self.gray, inner, 3), enn.ReLU(inner))
        self.out = enn.R2Conv(inner, enn.FieldType(C4, [C4.trivial_repr, C4.regular_repr, C4.trivial_repr]), 3)

    def forward(self, x):
        return self.out(self.body(self.gray(x))).tensor


class Reshaped(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.out = nn.Conv2d(1, 3, 3), nn.Conv2d(3, CLASSES, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.first(x))).squeeze(-1).reshape(len(x), CLASSES)


def dense():
    return nn.Sequential(nn.Flatten(), nn.Linear(25, 4), nn.Tanh(), nn.Linear(4, CLASSES))


def grouped():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Conv2d(4, CLASSES, 2, groups=2))


NETWORKS = {
    "dense": dense,
    "reshaped": Reshaped,
    "2 x 2 places, two groups": grouped,
    "steerable": Steerable,
    "relaxed": lambda: relax(Steerable()),
}


def data(model, kind="categorical"):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SAMPLES, 1, 5, 5, dtype=torch.float64, generator=generator)
    shape = model(x).shape
    if kind == "categorical":
        return x, torch.randint(CLASSES, (SAMPLES, *shape[2:]), generator=generator)
    target = torch.rand(shape, dtype=torch.float64, generator=generator)
    return x, target.chunk(2, 1)[0] if kind == "heteroscedastic" else target


def network(name):
    torch.manual_seed(0)
    return NETWORKS[name]().double().eval()


def matrices(model, loader, monkeypatch, many, likelihood="categorical", approximation="expand"):
    """Of all blocks, taken apart where there are more than so many outputs."""
    monkeypatch.setattr(data_pass, "MANY", many)
    torch.manual_seed(1)
    factors = Curvature(model, likelihood, approximation, None)(loader).factors
    return {name: torch.block_diag(*(block.dense() for block in blocks)) for name, blocks in factors.items()}


def largest_difference(first, second):
    return max(float((first[n] - second[n]).norm() / second[n].norm()) for n in second)


def products(model, loader, monkeypatch, many):
    """How many columns' outer products are added up, of layers with all outputs."""
    calls, add = [], Moments.add_samples

    def counted(self, samples):
        calls.append(samples.shape[1])
        add(self, samples)

    with monkeypatch.context() as patch:
        patch.setattr(Moments, "add_samples", counted)
        found = matrices(model, loader, patch, many)
    return found, calls.count(CLASSES)


@pytest.mark.parametrize("approximation", ["expand", "reduce", "sketched", "eigenvalue-corrected", "exact", "diagonal"])
@pytest.mark.parametrize("name", NETWORKS)
def test_blocks_are_those_of_all_columns(name, approximation, monkeypatch):
    model = network(name)
    loader = [data(model)]
    new, old = (matrices(model, loader, monkeypatch, many, approximation=approximation) for many in (1, 1000))
    assert largest_difference(new, old) < ROUNDING
    hidden = [n for n in old if "out" not in n and not n.startswith(("2", "3"))]
    for name in each(hidden):
        assert torch.equal(new[name], old[name])


def test_no_column_is_multiplied(monkeypatch):
    model = network("dense")
    loader = [data(model)]
    (new, few), (old, many) = (products(model, loader, monkeypatch, most) for most in (1, 1000))
    assert (few, many) == (0, CLASSES - 1) and largest_difference(new, old) < ROUNDING


@pytest.mark.parametrize("kind", ["bernoulli", "gaussian", "heteroscedastic"])
@pytest.mark.parametrize("name", ["dense", "2 x 2 places, two groups"])
def test_other_likelihoods(name, kind, monkeypatch):
    model = network(name)
    loader = [data(model, kind)]
    new, old = (matrices(model, loader, monkeypatch, many, kind) for many in (1, 1000))
    assert largest_difference(new, old) < ROUNDING


@pytest.mark.parametrize(
    "likelihood",
    [Categorical(weight=[1.0, 2, 0, 1, 3, 1]), Categorical(ignore_index=1), Categorical(label_smoothing=0.1)],
    ids=["classes weighted", "labels ignored", "smooth labels"],
)
@pytest.mark.parametrize("name", ["dense", "2 x 2 places, two groups"])
def test_importance(name, likelihood, monkeypatch):
    model = network(name)
    x, y = data(model)
    weights = torch.rand(SAMPLES, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    loader = Batches([(x, y, weights)], lambda batch: batch)
    new, old = (matrices(model, loader, monkeypatch, many, likelihood) for many in (1, 1000))
    assert largest_difference(new, old) < ROUNDING


class Ended(nn.Module):
    """Something between the last layer and the outputs."""

    def __init__(self, end):
        super().__init__()
        self.body, self.end = dense(), end

    def forward(self, x):
        return self.end(self.body(x))


ENDS = {
    "scaled": lambda y: 2 * y,
    "turned round": lambda y: y.flip(1),
    "saturated": torch.tanh,
    "transposed": lambda y: y.view(-1, 2, 3).transpose(1, 2).reshape(-1, 6),
    "added": lambda y: y + y.mean(1, keepdim=True),
}


@pytest.mark.parametrize("end", ENDS)
def test_another_function_of_the_last_layer_is_no_ending(end, monkeypatch):
    torch.manual_seed(0)
    model = Ended(ENDS[end]).double()
    loader = [data(model)]
    (new, few), (old, many) = (products(model, loader, monkeypatch, most) for most in (1, 1000))
    assert few == many and largest_difference(new, old) == 0


def test_an_ending_that_is_none_would_be_noticed(monkeypatch):
    """The broken twin: the last layer's node for the network's, whatever lies between."""
    torch.manual_seed(0)
    model = Ended(ENDS["scaled"]).double()
    loader = [data(model)]
    old = matrices(model, loader, monkeypatch, 1000)
    monkeypatch.setattr("escnn_relax.curvature.layers.extraction.Extraction.ending", lambda self, output: "body.3")
    assert largest_difference(matrices(model, loader, monkeypatch, 1), old) > 0.1


class Sequences(nn.Module):
    """Six places by six channels, channels last: the outputs are the places."""

    def __init__(self):
        super().__init__()
        self.first, self.out = nn.Linear(5, 4), nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.out(torch.tanh(self.first(x)))


def test_channels_last_are_not_taken_for_places(monkeypatch):
    torch.manual_seed(0)
    model = Sequences().double()
    loader = [(torch.randn(4, CLASSES, 5).double(), torch.randint(CLASSES, (4, CLASSES)))]
    new, old = (matrices(model, loader, monkeypatch, many) for many in (1, 1000))
    assert largest_difference(new, old) == 0


class Tied(nn.Module):
    """One layer twice, the second time at the end."""

    def __init__(self):
        super().__init__()
        self.first, self.out = nn.Linear(25, CLASSES), nn.Linear(CLASSES, CLASSES)

    def forward(self, x):
        return self.out(torch.tanh(self.out(torch.tanh(self.first(x.flatten(1))))))


def test_a_layer_that_is_used_twice_takes_columns(monkeypatch):
    torch.manual_seed(0)
    model = Tied().double()
    loader = [data(model)]
    new, old = (matrices(model, loader, monkeypatch, many) for many in (1, 1000))
    assert largest_difference(new, old) == 0


class Doubled(Categorical):
    def exact_columns(self, output):
        return 2 * super().exact_columns(output)


class HalfSums(Expand):
    def add(self, batch, gradients):
        super().add(batch, gradients / 2)


def test_what_subclasses_redefine_counts(monkeypatch):
    model = network("dense")
    loader = [data(model)]
    plain = matrices(model, loader, monkeypatch, 1)
    doubled = matrices(model, loader, monkeypatch, 1, Doubled())
    halved = matrices(model, loader, monkeypatch, 1, approximation=HalfSums())
    assert largest_difference(doubled, {n: 4 * m for n, m in plain.items()}) < ROUNDING
    weights = {n: m / 4 for n, m in plain.items() if n.endswith("weight")}
    assert largest_difference({n: halved[n] for n in weights}, weights) < ROUNDING


@pytest.mark.parametrize("likelihood", [Categorical(), Bernoulli(), Gaussian(), Heteroscedastic()])
def test_columns_are_made_when_they_are_asked_for(likelihood):
    """All of them would be 19 GB."""
    output = torch.zeros(3, 40_000)
    first = next(iter(likelihood.columns(output)))
    assert first.shape == output.shape and first.any()


@pytest.mark.parametrize("likelihood", [Categorical(), Bernoulli(), Gaussian(), Heteroscedastic()])
def test_their_sum_is_the_hessian(likelihood):
    output = torch.randn(4, 6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = torch.zeros(4, 2, dtype=torch.long) if isinstance(likelihood, Categorical) else torch.rand(4, 6, 2)
    columns = torch.stack([*likelihood.columns(output)]).movedim(2, -1).flatten(0, -2)
    assert torch.allclose(likelihood.output_hessian(output, target).total, columns.T @ columns, atol=ROUNDING)
