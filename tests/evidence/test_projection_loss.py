"""What a subgroup costs in the data, against a network whose layers are averaged over the subgroup, output by
output."""

import pytest
import torch
from escnn import gspaces
from escnn import nn as enn
from torch import nn
from tolerances import accumulated
from torch.nn.functional import cross_entropy

from escnn_relax import Evidence, relax
from escnn_relax.errors import ArgumentError, DataError
from escnn_relax.evidence import survivors

SPACE = gspaces.flipRot2dOnR2(4)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.gray, fields = enn.FieldType(SPACE, [SPACE.trivial_repr]), enn.FieldType(SPACE, [SPACE.regular_repr])
        self.first = relax(enn.R2Conv(self.gray, fields, 3, padding=1))
        self.relu = enn.ReLU(fields)
        self.second = relax(enn.R2Conv(fields, enn.FieldType(SPACE, 3 * [SPACE.regular_repr]), 3, padding=1))

    def forward(self, x):
        return self.second(self.relu(self.first(self.gray(x)))).tensor.mean((-2, -1)).view(len(x), 3, -1)[..., 0]


class Averaged(nn.Module):
    """A layer made equivariant under a subgroup by averaging over it."""

    def __init__(self, layer, elements):
        super().__init__()
        self.layer, self.elements = layer, elements

    def forward(self, x):
        return sum((self.layer(x.transform(g)).transform(~g) for g in self.elements[1:]), self.layer(x)) * (
            1 / len(self.elements)
        )


@pytest.fixture
def trained():
    """Layers that keep C2 and nothing more."""
    torch.manual_seed(0)
    model = Net().double()
    with torch.no_grad():
        for layer in (model.first, model.second):
            for name, w in layer.weights.items():
                w.normal_()
                if name not in ("equivariant", "irrep_0,2"):  # those that C2 keeps
                    w.zero_()
    data = [(torch.randn(6, 1, 5, 5).double(), torch.randint(3, (6,))) for _ in range(2)]
    evidence = Evidence(model, num_data=24)
    evidence.refresh(data)
    return model, evidence, data


def loss(model, data):
    with torch.no_grad():
        return float(sum(cross_entropy(model(x), y, reduction="sum") for x, y in data))


def averaged(model, subgroup, depth):
    """The network whose first layers are averaged over the subgroup; fresh, so that the model stays as it is."""
    group, embed, _ = SPACE.fibergroup.subgroup(subgroup.id)
    elements = [embed(g) for g in group.elements]
    elements.sort(key=lambda g: g != SPACE.fibergroup.identity)
    other = Net().double()
    other.load_state_dict(model.state_dict())
    other.first = Averaged(other.first, elements)
    other.second = Averaged(other.second, elements) if depth > 1 else other.second
    return other


def test_losses_are_those_of_averaged_layers(trained):
    model, evidence, data = trained
    before = {n: p.clone() for n, p in model.state_dict().items()}
    found = survivors(model, evidence, data=data)
    for depth, one in ((1, found.layers[0]), (2, found.network)):
        assert one.larger and set(one.losses) == {h.name for h in one.larger}
        for larger in one.larger:
            oracle = 2 * (loss(averaged(model, larger, depth), data) - loss(model, data))  # 12 samples stand for 24
            # a difference of two losses; escnn's matrices, by which the oracle averages, are float32
            rounding = accumulated(torch.float32, 64) * loss(model, data)
            assert (
                one.losses[larger.name] == pytest.approx(oracle, rel=1e-6, abs=rounding)
                and abs(oracle) > 100 * rounding
            )
        assert one.loss == min(one.losses.values())
    # the broken twin: one layer averaged is not two
    assert found.network.losses != pytest.approx(
        {h.name: found.layers[0].losses.get(h.name, 0.0) for h in found.network.larger}, rel=1e-3
    )
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items()), "the model is left alone"
    assert "in data" in str(found) and "in data" not in str(survivors(model, evidence))


def test_nothing_is_lost_with_the_subgroup_itself(trained):
    from escnn_relax.evidence.verdicts.projection_loss import ProjectionLoss
    from escnn_relax.nn.measured.kernel_symmetry import KernelSymmetry

    model, evidence, data = trained
    layers = [KernelSymmetry(model.first, "first"), KernelSymmetry(model.second, "second")]
    measure = ProjectionLoss(evidence, data)
    assert abs(measure(layers, survivors(model).network.subgroup)) < 1e-4


def test_what_is_refused(trained):
    model, evidence, data = trained
    with pytest.raises(ArgumentError, match="data without an evidence.*pass the evidence too"):
        survivors(model, data=data)
    with pytest.raises(DataError, match="no data.*an iterator is empty after one pass"):
        survivors(model, evidence, data=iter(data))
    with pytest.raises(DataError, match="batch 1: NaN"):
        survivors(model, evidence, data=[data[0], (data[1][0] * torch.nan, data[1][1])])
