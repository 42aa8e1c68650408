"""What cannot be restricted is refused with the layer's name, what is accepted and the remedy; boundaries by depth."""

from importlib import import_module

import pytest
import torch
from escnn import nn
from test_restrict import C8, D4, FLOAT32, O2, OCTA, distance, fields, layer

from escnn_relax.errors import ArgumentError, EmptyBasisError, FieldTypeError, SubgroupError, naming
from escnn_relax.morphism.restrict.relabel import Relabel
from escnn_relax.morphism.restrict.network import restrict


def test_missing_kernels_are_reported(monkeypatch):
    type = fields(C8, "irreps")
    conv = layer(C8, type, type, 5)
    monkeypatch.setattr(
        import_module("escnn_relax.morphism.restrict.layer"), "frequency_limit", lambda conv: lambda radius: 0
    )
    with pytest.raises(EmptyBasisError, match="residual norm"):
        restrict(conv, 4)


C8_IDS = [(None, 4), 3, 16, 8, True]
D4_IDS = [4, (1.0, 2), (4, 1), (0, 4)]
OCTA_IDS = [(False, 5), "tetrahedron"]


@pytest.mark.parametrize(
    "space, id",
    [(C8, id) for id in C8_IDS] + [(D4, id) for id in D4_IDS] + [(OCTA, id) for id in OCTA_IDS] + [(O2, (1, 4))],
)
def test_bad_ids(space, id):
    type = nn.FieldType(space, [space.trivial_repr])
    conv = layer(space, type, type, 3)
    with pytest.raises(SubgroupError, match="features") as caught:
        with naming("features"):
            restrict(conv, id)
    assert "expected" in str(caught.value) or "whole group" in str(caught.value)


def test_bad_boundaries():
    type = fields(C8, "regular")
    net = nn.SequentialModule(layer(C8, type, type, 3), nn.ReLU(type))
    for wrong in ("nowhere", "", 1):
        with pytest.raises(ArgumentError, match="from_layer"):
            restrict(net, 4, from_layer=wrong)
    with pytest.raises(FieldTypeError, match="no field type"):
        restrict(torch.nn.Linear(2, 2), 4)


def test_boundary_within_a_sequence():
    type = fields(C8, "regular")
    net = nn.SequentialModule(layer(C8, type, type, 3), nn.ReLU(type), layer(C8, type, type, 3, seed=1))
    late = restrict(net, 4, from_layer="2")
    assert isinstance(late._modules["before_2"], Relabel)
    assert late.in_type == type and late.out_type.gspace.fibergroup.order() == 4
    assert late._modules["0"].weights.numel() < late._modules["2"].weights.numel()
    x = torch.randn(2, type.size, 9, 9)
    assert distance(net(type(x)).tensor, late(type(x)).tensor) < FLOAT32
