"""A new approximation is one class, passed as ``curvature=``; this one has the exact blocks, so that all is known of
it."""

import copy
import math

import pytest
import torch
from escnn import gspaces
from escnn import nn as enn
from nonempty import each
from torch import nn

from escnn_relax import Evidence, RelaxError, fit, relax
from escnn_relax.curvature import Approximation, Curvature
from escnn_relax.curvature.sums.contraction import pull_back
from escnn_relax.curvature.sums.exact import in_order
from escnn_relax.curvature.factors import DenseFactor, KroneckerFactor
from escnn_relax.errors import ArgumentError, CurvatureError

#: Sums in float32 in another order, relative to the whole.
ROUNDING = 1e-5


class DenseSums(Approximation):
    """The exact block of each parameter, summed densely from the start."""

    def __init__(self, scale=1.0):
        self.scale = scale

    def prepare(self):
        self.totals = {name: 0.0 for name in self.parameters}

    def add(self, batch, gradients):
        kernels = gradients @ batch.patches.transpose(-1, -2)
        for name in self.parameters:
            blocks = [block for block in self.blocks if block.parameter == name]
            rows = in_order(blocks, [pull_back(kernels, block) for block in blocks]).double()
            self.totals[name] = self.totals[name] + self.scale * rows.T @ rows

    def factors(self):
        return {name: (DenseFactor(self.parameter_name(name), total),) for name, total in self.totals.items()}


class ReadsItself(Approximation):
    """``expand`` of fully connected layers; every output reads the data by itself, since nothing is said of sharing."""

    def prepare(self):
        self.A, self.B, self.count = 0.0, 0.0, 0

    def read(self, batch):
        rows = batch.patches[:, 0, :, 0].double()
        self.A, self.count = self.A + rows.T @ rows, self.count + len(rows)

    def add(self, batch, gradients):
        columns = gradients[:, 0, :, 0].double()
        self.B = self.B + columns.T @ columns

    def factors(self):
        (block,) = self.blocks
        factor = KroneckerFactor(
            self.parameter_name("weight"), self.A / self.count, self.B, block.positions, self.count
        )
        return {"weight": (factor,)}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        space = gspaces.rot2dOnR2(4)
        self.gray = enn.FieldType(space, [space.trivial_repr])
        fields = enn.FieldType(space, [space.regular_repr])
        self.first, self.pool = enn.R2Conv(self.gray, fields, 3), enn.GroupPooling(fields)
        self.act = enn.ReLU(fields)
        self.head = nn.Linear(1, 2)

    def forward(self, x):
        return self.head(self.pool(self.act(self.first(self.gray(x)))).tensor.mean((-2, -1)))


def case(regression=False):
    torch.manual_seed(0)
    model = relax(Net())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    x = torch.randn(40, 1, 5, 5)
    y = torch.randn(40, 2) if regression else torch.randint(2, (40,))
    return model, [(x[:24], y[:24]), (x[24:], y[24:])]


def test_its_name_is_what_is_said_of_it():
    model, data = case()
    curvature = Curvature(model, approximation=DenseSums())
    assert curvature.approximation == "DenseSums" and set(curvature.recipe.values()) == {"DenseSums"}
    assert curvature.passes == 1 < Curvature(model, approximation="eigenvalue-corrected").passes


@pytest.mark.parametrize("noise", ["shared", "output"])
def test_an_evidence_takes_it_everywhere(noise):
    """Evidence, slopes, updates, predictions, averages and hypergradients are those of the built-in blocks."""
    model, data = case(regression=True)
    options = {"likelihood": "gaussian", "noise": noise, "num_data": 40}
    made = [Evidence(model, curvature=kind, **options) for kind in (DenseSums(), "exact", DenseSums(scale=1.5))]
    totals = [evidence.refresh(data).total for evidence in made]
    assert math.isclose(totals[0], totals[1], rel_tol=ROUNDING)
    assert not math.isclose(totals[0], totals[2], rel_tol=100 * ROUNDING), "the broken twin"
    slopes = [evidence.gradient() for evidence in made[:2]]
    assert slopes[0] and all(
        math.isclose(slopes[0][n], slopes[1][n], rel_tol=ROUNDING, abs_tol=ROUNDING) for n in slopes[1]
    )
    spreads = [evidence.posterior().outputs(data[0][0])[1] for evidence in made[:2]]
    assert torch.allclose(*spreads, rtol=ROUNDING)
    gradients = [evidence.hypergradient(data, [model.head.weight])[0] for evidence in made[:2]]
    assert torch.allclose(*gradients, rtol=10 * ROUNDING, atol=ROUNDING)
    averages = [[evidence.refresh([part], keep=0.5).total for part in data] for evidence in made[:2]]
    assert all(math.isclose(one, other, rel_tol=ROUNDING) for one, other in zip(*averages, strict=True))
    updates = [evidence.step().total for evidence in made[:2]]
    assert math.isclose(*updates, rel_tol=ROUNDING)


@pytest.mark.parametrize("noise", ["shared", "output"])
def test_what_is_read_need_not_be_shared(noise):
    """With outputs apart each sees every minibatch once, the first one included."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    data = [(torch.randn(6, 3), torch.randn(6, 2)), (torch.randn(5, 3), torch.randn(5, 2))]
    options = {"likelihood": "gaussian", "noise": noise, "relaxed_only": False}
    made = [Evidence(model, curvature=kind, **options) for kind in (ReadsItself(), "expand")]
    for evidence in made:
        evidence.refresh(data)
    values, expected = (evidence.eigenvalues for evidence in made)
    assert len(values) == 4 and list(values) == list(expected)
    assert all(torch.allclose(values[n], expected[n], rtol=ROUNDING, atol=ROUNDING) for n in expected)


def test_a_training_takes_it():
    model, data = case()
    twin = copy.deepcopy(model)
    options = {"epochs": 3, "burn_in": 1, "refresh_every": 1, "share": 1.0, "progress": False, "num_data": 40}
    histories = []
    for trained, kind in ((model, DenseSums()), (twin, "exact")):
        torch.manual_seed(1)
        histories.append(fit(trained, data, curvature=kind, **options).evidences)
    assert len(histories[0]) == len(histories[1]) == 2
    for (epoch, value), (other_epoch, other) in each(zip(*histories, strict=True)):
        assert epoch == other_epoch and math.isclose(value, other, rel_tol=100 * ROUNDING)


def test_decisions_take_it():
    model, data = case()
    decided = []
    for kind in (DenseSums(), "exact"):
        evidence = Evidence(model, curvature=kind)
        evidence.refresh(data)
        decided.append([(layer.layer, layer.subgroup.name, layer.source) for layer in evidence.decide().layers])
    assert decided[0] and decided[0] == decided[1]


def test_a_class_is_refused_with_the_remedy():
    model = case()[0]
    with pytest.raises(ArgumentError, match=r"pass DenseSums\(\), not the class"):
        Evidence(model, curvature=DenseSums)


def test_processes_need_its_sums_to_be_added_up():
    started = DenseSums().start("head", _linear(), ("weight",))
    with pytest.raises(CurvatureError, match="gather"):
        started.gather()
    assert issubclass(CurvatureError, RelaxError)


def test_the_prototype_stays_as_it_is():
    """Two layers, and two outputs, never share a sum."""
    prototype = DenseSums()
    one, other = (prototype.start(name, _linear(), ("weight",)) for name in ("one", "other"))
    one.totals["weight"] += 1
    assert other.totals == {"weight": 0.0} and not hasattr(prototype, "totals") and not hasattr(prototype, "layer")


def test_sums_that_init_makes_are_no_layers_in_common():
    class Early(DenseSums):
        def __init__(self):
            super().__init__()
            self.rows = []

    prototype = Early()
    first, second = (prototype.start(name, _linear(), ("weight",)) for name in ("first", "second"))
    first.rows.append(1)
    assert second.rows == [] and prototype.rows == []


def _linear():
    from escnn_relax.curvature.layers.known_layers import linear_map

    return linear_map(nn.Linear(3, 2))
