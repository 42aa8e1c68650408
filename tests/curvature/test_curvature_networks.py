"""Exact blocks equal the dense Gauss-Newton matrix for every kind of layer, each inside a network with a nonlinearity
before and behind it, so that no gradient is trivial."""

from __future__ import annotations

import pytest
import torch
from curvature_oracles import dense_ggn, own_filters  # noqa: F401
from escnn import gspaces, group
from escnn import nn as enn
from nonempty import each
from tolerances import accumulated, autocast_curvature
from torch import nn

from escnn_relax.curvature.curvature import Curvature
from escnn_relax.nn import (
    MixedLinear,
    MixedR2Conv,
    MixedR3Conv,
    RelaxedLinear,
    RelaxedR2Conv,
    RelaxedR2ConvTransposed,
    RelaxedR3Conv,
    RelaxedR3ConvTransposed,
)

#: float64; the two sides sum the same numbers in another order
ROUNDING = 1e-10

#: some of escnn's nonlinearities put out float32, whatever goes in
SINGLE = accumulated(torch.float32, 256)

C4, D4, C8 = gspaces.rot2dOnR2(4), gspaces.flipRot2dOnR2(4), gspaces.rot2dOnR2(8)
SO2, O2 = gspaces.rot2dOnR2(-1, maximum_frequency=2), gspaces.flipRot2dOnR2(-1, maximum_frequency=2)
MIRROR, OCTA = gspaces.invOnR3(), gspaces.octaOnR3()
POINT = gspaces.no_base_space(group.dihedral_group(3))


def fields(space, *which):
    """``"regular"``, or the number of an irrep."""
    irreps = list(space.fibergroup.irreps())
    return enn.FieldType(space, [space.regular_repr if name == "regular" else irreps[name] for name in which])


class Steerable(nn.Module):
    """A steerable layer, with numbers of any kind going in and classes coming out."""

    def __init__(self, layer, side, act=None):
        super().__init__()
        self.layer, self.act = layer, act
        self.shape = (layer.in_type.size, *(side,) * layer.in_type.gspace.dimensionality)
        self.first = nn.Linear(5, torch.Size(self.shape).numel())
        self.last = nn.Linear((act or layer).out_type.size, 3)

    def forward(self, x):
        x = self.layer(self.layer.in_type(self.first(x).tanh().view(-1, *self.shape)))
        x = (x if self.act is None else self.act(x)).tensor.to(self.last.weight)
        return self.last(x.tanh().flatten(2).mean(2) if x.dim() > 2 else x.tanh())


class Plain(nn.Module):
    """The same for layers without field types."""

    def __init__(self, layer, *shape):
        super().__init__()
        self.layer, self.shape = layer, shape
        self.first = nn.Linear(5, torch.Size(shape).numel())

    def forward(self, x):
        y = self.layer(self.first(x).tanh().view(-1, *self.shape)).tanh()
        return torch.stack([part.flatten(1).sum(1) for part in y.flatten(1).tensor_split(3, 1)], dim=1)


def steerable(kind, ins, outs, *arguments, side=4, **options):
    return lambda: Steerable(kind(ins, outs, *arguments, **options), side)


def shared(make):
    """A layer applied twice, with a nonlinearity between."""

    def build():
        class Twice(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = make()
                self.in_type = self.out_type = self.layer.in_type

            def forward(self, x):
                x = self.layer(x)
                return self.layer(enn.GeometricTensor(x.tensor.tanh(), x.type))

        return Steerable(Twice(), 4)

    return build


def plain(layer, *shape):
    return lambda: Plain(layer(), *shape)


several, others = fields(C4, "regular", 1, 0, 1), fields(C4, 1, "regular", 0)
so2, o2 = fields(SO2, 0, 1, 2, 1), fields(O2, 0, 2, 1)
solid, solids = fields(MIRROR, "regular", 0, 1), fields(MIRROR, 1, "regular")
octa = fields(OCTA, 0, 1, 2)
sheet, maps = fields(D4, 0, 0), fields(D4, "regular", 0)

LAYERS = {
    "strict, several representations": steerable(enn.R2Conv, several, others, 3),
    "relaxed, several representations": steerable(RelaxedR2Conv, several, others, 3, padding=1),
    "relaxed C8": steerable(RelaxedR2Conv, fields(C8, 0, 1), fields(C8, "regular"), 3),
    "relaxed SO(2)": steerable(RelaxedR2Conv, so2, so2, 3),
    "relaxed O(2)": steerable(RelaxedR2Conv, o2, o2, 3, side=3),
    "mixed D4": steerable(MixedR2Conv, sheet, maps, 3, subgroups=[(None, 4), (0, 1), (None, 1)]),
    "mixed 3D": steerable(MixedR3Conv, solid, solids, 3, side=3, subgroups=[1]),
    "mixed linear": steerable(
        MixedLinear, fields(POINT, "regular", 0), fields(POINT, "regular", 2), subgroups=[(None, 3)]
    ),
    "relaxed linear": steerable(RelaxedLinear, fields(POINT, "regular", 0), fields(POINT, 2, "regular")),
    "strict linear": steerable(enn.Linear, fields(POINT, "regular", 2), fields(POINT, 2, 0)),
    "relaxed transposed": steerable(RelaxedR2ConvTransposed, several, others, 3, side=3, stride=2),
    "strict transposed": steerable(enn.R2ConvTransposed, several, others, 3, side=3, stride=2, padding=1),
    "relaxed 3D": steerable(RelaxedR3Conv, solid, solids, 3, side=3),
    "strict octahedral": steerable(enn.R3Conv, octa, octa, 3, side=3),
    "relaxed octahedral": steerable(RelaxedR3Conv, fields(OCTA, 0), fields(OCTA, 1, 0), 3, side=3),
    "relaxed transposed 3D": steerable(RelaxedR3ConvTransposed, solid, solids, 3, side=2, stride=2),
    "relaxed, grouped": steerable(RelaxedR2Conv, fields(C4, 0, 1, 0, 1), fields(C4, 1, 0, 1, 0), 3, groups=2),
    "strict 3D, grouped": steerable(enn.R3Conv, fields(MIRROR, 1, 1), fields(MIRROR, 0, 0), 3, side=3, groups=2),
    "shared": shared(lambda: RelaxedR2Conv(several, several, 3, padding=1)),
    "shared 3D": shared(lambda: RelaxedR3Conv(solid, solid, 3, padding=1)),
    "depthwise": plain(lambda: nn.Conv2d(4, 4, 3, groups=4), 4, 4, 4),
    "Conv1d": plain(lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2), 4, 9),
    "Conv3d": plain(lambda: nn.Conv3d(2, 4, (1, 2, 3), stride=(1, 2, 1), padding=(0, 1, 1), groups=2), 2, 2, 3, 3),
    "Linear, extra dimensions": plain(lambda: nn.Linear(4, 3), 2, 3, 4),
    "batch norm": plain(lambda: nn.BatchNorm2d(3), 3, 2, 2),
    "batch norm, 3D": plain(lambda: nn.BatchNorm3d(3), 3, 2, 1, 2),
}


def data(count=3):
    return [(torch.randn(count, 5).double(), torch.randint(3, (count,)))]


def shaken(model):
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not name.endswith("kernel.shares"):
                p.normal_(std=0.5)
    model.double().train()  # in evaluation mode escnn's layers keep an expanded filter, which has no graph
    for module in model.modules():
        if "BatchNorm" in type(module).__name__:
            module.eval()
    return model


def check(model, batch):
    curvature = Curvature(model, "categorical", "exact", normalisation=True)
    odd = {n: why for n, why in curvature.uncovered.items() if "architecture" not in why}
    estimate, expected = curvature(batch), dense_ggn(model, batch, "categorical")
    assert odd == {} and set(estimate.factors) == set(expected) - set(curvature.uncovered)
    for name, (factor,) in each(estimate.factors.items()):
        scale = expected[name].norm()
        assert (factor.dense() - expected[name]).norm() < ROUNDING * scale and scale > 0, name


@pytest.mark.parametrize("case", LAYERS)
def test_layer_inside_a_network(case):
    check(shaken(LAYERS[case]()), data())


def gated(space):
    values, gates = fields(space, 1, 1), fields(space, 0, 0)
    inner = gates + values
    return inner, enn.GatedNonLinearity1(inner)


ACTS = {
    "gates": lambda: gated(C4),
    "norms": lambda: (fields(C4, 1, 1), enn.NormNonLinearity(fields(C4, 1, 1), bias=True)),
    "Fourier": lambda: (lambda f: (f.in_type, f))(enn.FourierELU(SO2, 1, [(0,), (1,)], N=6)),
    "batch norm of norms": lambda: (fields(C4, 1, 1), enn.NormBatchNorm(fields(C4, 1, 1))),
}


@pytest.mark.parametrize("case", ACTS)
def test_layer_before_an_escnn_nonlinearity(case):
    """Biases of norm nonlinearities and scales of escnn's own batch norms have no curvature; the layer has all of
    it."""
    fields_, act = ACTS[case]()
    space = fields_.gspace
    model = shaken(Steerable(RelaxedR2Conv(fields(space, 0, 1), fields_, 3), 4, act))
    act.requires_grad_(False)
    for name, buffer in act.named_buffers():
        if "running_var" in name or name == "vars":
            buffer.uniform_(0.5, 2.0)
    batch = data()
    estimate, expected = Curvature(model, "categorical", "exact")(batch), dense_ggn(model, batch, "categorical")
    assert set(estimate.factors) == set(expected)
    for name, (factor,) in each(estimate.factors.items()):
        tolerance = SINGLE if case == "gates" else ROUNDING
        assert (factor.dense() - expected[name]).norm() < tolerance * expected[name].norm(), name


@pytest.mark.parametrize("case", ["relaxed, several representations", "mixed D4", "Conv1d", "relaxed 3D"])
def test_forward_pass_in_half_precision(case):
    """Autocast to bfloat16: exact blocks as near the dense ones of the float64 network as the roundings of three layers
    and two nonlinearities allow, nearer than those at other weights, and in float64."""
    model = shaken(LAYERS[case]())
    batch = data()
    expected = dense_ggn(model, batch, "categorical")
    low = [(x.float(), y) for x, y in batch]
    with torch.autocast("cpu", torch.bfloat16):
        estimate = Curvature(model.float(), "categorical", "exact")(low)
    tolerance = autocast_curvature(torch.bfloat16, 4)
    wrong, apart = dense_ggn(shaken(model.double()), batch, "categorical"), []
    for name, (factor,) in each(estimate.factors.items()):
        H = factor.dense()
        assert H.dtype == torch.float64
        assert 1e-6 < (H - expected[name]).norm() / expected[name].norm() < tolerance, name
        apart.append(float((H - wrong[name]).norm() / expected[name].norm()))
    assert apart and max(apart) > 2 * tolerance
