"""``harden(to=)`` of networks whose layers are no chain, and what it says where it cannot.

Symptom: on branches that share one input it returned a network that died in an empty AssertionError of a pooling, and
refusals spoke of ``restrict`` and its ``from_layer``.
"""

import pytest
import torch
from escnn import gspaces
from escnn import nn as enn
from nonempty import each
from torch import nn

from escnn_relax import harden, relax
from escnn_relax.errors import UnsupportedModuleError

import networks

#: float32 rounding through some ten layers, relative.
ROUNDING = 1e-4


def image(side=33, seed=0):
    return torch.randn(2, 1, side, side, generator=torch.Generator().manual_seed(seed))


class Branches(nn.Module):
    """An Inception block: three branches of one input, one of them through a pooling, concatenated."""

    def __init__(self):
        super().__init__()
        space = gspaces.rot2dOnR2(4)
        self.gray, fields = enn.FieldType(space, [space.trivial_repr]), enn.FieldType(space, [space.regular_repr])
        self.stem = enn.R2Conv(self.gray, fields, 3, padding=1)
        self.narrow = enn.R2Conv(fields, fields, 1)
        self.wide = enn.SequentialModule(enn.ReLU(fields), enn.R2Conv(fields, fields, 3, padding=1))
        self.pooled = enn.SequentialModule(enn.PointwiseMaxPool2D(fields, 3, 1, 1), enn.R2Conv(fields, fields, 1))
        self.last = enn.R2Conv(fields + fields + fields, fields, 3, padding=1)
        self.pool = enn.GroupPooling(fields)

    def forward(self, x):
        x = self.stem(self.gray(x))
        x = enn.tensor_directsum([self.narrow(x), self.wide(x), self.pooled(x)])
        return self.pool(self.last(x)).tensor.mean((2, 3))


class Named(nn.Module):
    """Names its field types in forward."""

    def __init__(self):
        super().__init__()
        self.gspace = gspaces.rot2dOnR2(4)
        self.gray, fields = (
            enn.FieldType(self.gspace, [r]) for r in (self.gspace.trivial_repr, self.gspace.regular_repr)
        )
        self.first, self.second = enn.R2Conv(self.gray, fields, 3), enn.R2Conv(fields, fields, 3)

    def forward(self, x):
        y = self.first(self.gray(x)).tensor.relu()
        return self.second(enn.FieldType(self.gspace, [self.gspace.regular_repr])(y)).tensor


def broken(net, name, irrep="irrep_2"):
    """Relaxed, with one layer that has given up the symmetry down to what the irrep keeps."""
    model = relax(net)
    torch.manual_seed(1)
    nn.init.normal_(model.get_submodule(name).weights[irrep], std=0.3)
    return model.eval()


def reached(done):
    return {layer.name: layer.subgroup for layer in done}


def change(model, turns, x):
    with torch.no_grad():
        y, z = model(x), model(torch.rot90(x, turns, (-2, -1)))
    return float((y - z).norm() / y.norm())


@pytest.mark.parametrize("name", ["narrow", "wide.1", "pooled.1", "last"])
def test_branches_step_down_together(name):
    model, x = broken(Branches(), name), image(9)
    final, done = harden(model, to="stabiliser", return_report=True)
    final.eval()
    on_c4 = {"stem"} if name != "last" else {"stem", "narrow", "wide.1", "pooled.1"}
    assert reached(done) == {n: "C4" if n in on_c4 else "C2" for n in ("stem", "narrow", "wide.1", "pooled.1", "last")}
    with torch.no_grad():
        assert float((final(x) - model(x)).norm() / model(x).norm()) < ROUNDING  # nothing that was learned is lost
    assert change(final, 2, x) < ROUNDING < 1e-3 < change(final, 1, x)
    for layer in final.modules():
        if isinstance(layer, enn.R2Conv):
            nn.init.normal_(layer.weights)
    final.train().eval()
    assert change(final, 2, x) < ROUNDING < 1e-3 < change(final, 1, x)  # whatever it is trained on


@pytest.mark.slow
def test_a_shortcut_and_a_skip():
    for net, name, irrep in (
        (networks.ResidualNet(1), "stage2.shortcut", "irrep_1,0"),
        (networks.UNet(1), "up1", "irrep_2"),
    ):
        model, x = broken(net, name, irrep), image(16)
        final, done = harden(model, to="stabiliser", return_report=True)
        final.eval()
        with torch.no_grad():
            assert float((final(x) - model(x)).norm() / model(x).norm()) < ROUNDING
        assert len(reached(done)) > 5 and len(set(reached(done).values())) == (2 if name.startswith("stage") else 1)


def test_subgroups_that_were_asked_for_are_not_changed():
    model = broken(Branches(), "wide.1")
    wanted = {"stem": 4, "narrow": 4, "wide.1": 2, "pooled.1": 2, "last": 2}
    with pytest.raises(UnsupportedModuleError) as caught:
        harden(model, to=wanted)
    said = str(caught.value)
    assert "harden cannot" in said and "'narrow'" in said and "give the layers that meet one subgroup" in said
    assert "per='network'" in said and "per='layer'" in said and "from_layer" not in said
    assert reached(harden(model, to=wanted, per="layer", return_report=True)[1]) == {
        n: f"C{order}" for n, order in wanted.items()
    }


@pytest.mark.parametrize("per, ways", [("depth", ["per='network'", "per='layer'"]), ("network", ["per='layer'"])])
def test_types_named_in_forward(per, ways):
    model = broken(Named(), "first")
    with pytest.raises(UnsupportedModuleError, match="Named: harden cannot .* would not run") as caught:
        harden(model, to="stabiliser", per=per)
    assert all(way in str(caught.value) for way in ways) and "without to=" in str(caught.value)
    final, x = harden(model, to="stabiliser", per="layer"), image()
    with torch.no_grad():
        assert float((final(x) - model(x)).norm() / model(x).norm()) < ROUNDING


def test_an_example_where_none_can_be_made():
    net, x = networks.ActorCritic(), (image(9), torch.randn(2, 2))
    model = broken(net, "value", "irrep_2")
    final, done = harden(model, to="stabiliser", example=x, return_report=True)
    final.eval()
    assert reached(done)["value"] == "C2" and reached(done)["see.0"] == "C4"
    with torch.no_grad():
        for a, b in each(zip(final(*x), model(*x), strict=True)):
            assert float((a - b).norm() / b.norm()) < ROUNDING
