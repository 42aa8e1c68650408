"""Each escnn module on a subgroup: the same function, train and eval, and H-equivariant. The table in CONTRIBUTING
names the test of each row."""

import copy

import pytest
import torch
from escnn import gspaces, nn
from escnn.group import dihedral_group, directsum
from nonempty import each

from escnn_relax.errors import SubgroupError, UnsupportedModuleError
from escnn_relax.morphism.restrict.relabel import Relabel
from escnn_relax.morphism.restrict.network import restrict
from escnn_relax.symmetry.equivariance.model_error import equivariance_error
from fields import SINGLE

D4 = gspaces.flipRot2dOnR2(4)
C8 = gspaces.rot2dOnR2(8)
OCTA = gspaces.octaOnR3()
SO2 = gspaces.rot2dOnR2(-1, maximum_frequency=3)

REGULAR = nn.FieldType(D4, 2 * [D4.regular_repr])
VECTOR = nn.FieldType(D4, [D4.irrep(1, 1), D4.irrep(0, 0), D4.irrep(1, 1)])
VECTORS = nn.FieldType(D4, 2 * [D4.irrep(1, 1)])
SCALARS = nn.FieldType(D4, 3 * [D4.trivial_repr])
REGULAR3 = nn.FieldType(OCTA, [OCTA.regular_repr])
VECTOR3 = nn.FieldType(OCTA, [OCTA.irrep(1), OCTA.irrep(3)])
SUBFIELD = D4.induced_repr((None, 4), D4.fibergroup.subgroup((None, 4))[0].irrep(1))
INDUCED = nn.FieldType(D4, [SUBFIELD])
INDUCED_GATED = nn.FieldType(D4, [D4.quotient_repr((None, 4)), SUBFIELD])
GATED = nn.FieldType(D4, [*2 * [D4.trivial_repr], *2 * [D4.irrep(1, 1)]])
TURNS = nn.FieldType(C8, 2 * [C8.regular_repr])

#: name of the escnn class -> how to build one
MODULES = {
    "ReLU": lambda: nn.ReLU(REGULAR),
    "ELU": lambda: nn.ELU(REGULAR),
    "LeakyReLU": lambda: nn.LeakyReLU(REGULAR),
    "PointwiseNonLinearity": lambda: nn.PointwiseNonLinearity(REGULAR, "p_sigmoid"),
    "ConcatenatedNonLinearity": lambda: nn.ConcatenatedNonLinearity(REGULAR),
    "NormNonLinearity": lambda: nn.NormNonLinearity(VECTOR),
    "GatedNonLinearity1": lambda: nn.GatedNonLinearity1(GATED, gates=["gate", "gate", "gated", "gated"]),
    "GatedNonLinearityUniform": lambda: nn.GatedNonLinearityUniform(
        nn.FieldType(D4, 2 * [directsum([D4.trivial_repr, D4.irrep(1, 1)], name="gate and vector")])
    ),
    "VectorFieldNonLinearity": lambda: nn.VectorFieldNonLinearity(TURNS),
    "InducedNormNonLinearity": lambda: nn.InducedNormNonLinearity(INDUCED),
    "InducedGatedNonLinearity1": lambda: nn.InducedGatedNonLinearity1(INDUCED_GATED, gates=["gate", "gated"]),
    "FourierPointwise": lambda: nn.FourierPointwise(SO2, 2, SO2.fibergroup.bl_irreps(2), type="regular", N=12),
    "FourierELU": lambda: nn.FourierELU(SO2, 2, SO2.fibergroup.bl_irreps(2), type="regular", N=12),
    "QuotientFourierPointwise": lambda: nn.QuotientFourierPointwise(
        SO2, 2, 2, irreps=[(0,), (2,)], grid=SO2.fibergroup.grid(type="regular", N=12)
    ),
    "QuotientFourierELU": lambda: nn.QuotientFourierELU(
        SO2, 2, 2, irreps=[(0,), (2,)], grid=SO2.fibergroup.grid(type="regular", N=12)
    ),
    "InnerBatchNorm": lambda: nn.InnerBatchNorm(REGULAR),
    "NormBatchNorm": lambda: nn.NormBatchNorm(VECTORS),
    "InducedNormBatchNorm": lambda: nn.InducedNormBatchNorm(INDUCED),
    "GNormBatchNorm": lambda: nn.GNormBatchNorm(VECTORS),
    "IIDBatchNorm2d": lambda: nn.IIDBatchNorm2d(VECTOR),
    "IIDBatchNorm3d": lambda: nn.IIDBatchNorm3d(VECTOR3),
    "PointwiseMaxPool2D": lambda: nn.PointwiseMaxPool2D(REGULAR, 3, 2, 1),
    "PointwiseMaxPool3D": lambda: nn.PointwiseMaxPool3D(REGULAR3, 3, 2, 1),
    "PointwiseMaxPoolAntialiased2D": lambda: nn.PointwiseMaxPoolAntialiased2D(REGULAR, 3, 2, 1),
    "PointwiseMaxPoolAntialiased3D": lambda: nn.PointwiseMaxPoolAntialiased3D(REGULAR3, 3, 2, 1),
    "PointwiseAvgPool2D": lambda: nn.PointwiseAvgPool2D(REGULAR, 3, 2, 1),
    "PointwiseAvgPool3D": lambda: nn.PointwiseAvgPool3D(REGULAR3, 3, 2, 1),
    "PointwiseAvgPoolAntialiased2D": lambda: nn.PointwiseAvgPoolAntialiased2D(REGULAR, 0.6, 2),
    "PointwiseAvgPoolAntialiased3D": lambda: nn.PointwiseAvgPoolAntialiased3D(REGULAR3, 0.6, 2),
    "PointwiseAdaptiveAvgPool2D": lambda: nn.PointwiseAdaptiveAvgPool2D(REGULAR, 3),
    "PointwiseAdaptiveAvgPool3D": lambda: nn.PointwiseAdaptiveAvgPool3D(REGULAR3, 3),
    "PointwiseAdaptiveMaxPool2D": lambda: nn.PointwiseAdaptiveMaxPool2D(REGULAR, 3),
    "PointwiseAdaptiveMaxPool3D": lambda: nn.PointwiseAdaptiveMaxPool3D(REGULAR3, 3),
    "NormMaxPool": lambda: nn.NormMaxPool(VECTORS, 3, 2, 1),
    "PointwiseDropout": lambda: nn.PointwiseDropout(REGULAR, 0.3),
    "FieldDropout": lambda: nn.FieldDropout(VECTOR, 0.3),
    "R2Upsampling": lambda: nn.R2Upsampling(REGULAR, 2),
    "R3Upsampling": lambda: nn.R3Upsampling(REGULAR3, 2),
    "MaskModule": lambda: nn.MaskModule(SCALARS, 9),
    "IdentityModule": lambda: nn.IdentityModule(REGULAR),
    "GroupPooling": lambda: nn.GroupPooling(REGULAR),
    "NormPool": lambda: nn.NormPool(VECTORS),
    "InducedNormPool": lambda: nn.InducedNormPool(INDUCED),
    "ReshuffleModule": lambda: nn.ReshuffleModule(VECTOR, [2, 0, 1]),
    "DisentangleModule": lambda: nn.DisentangleModule(REGULAR),
    "SequentialModule": lambda: nn.SequentialModule(nn.R2Conv(REGULAR, REGULAR, 3, padding=1), nn.ReLU(REGULAR)),
    "MultipleModule": lambda: nn.MultipleModule(
        SCALARS + VECTORS, [*3 * ["a"], *2 * ["b"]], [(nn.ReLU(SCALARS), "a"), (nn.NormNonLinearity(VECTORS), "b")]
    ),
}


def _subgroups(name):
    if "3D" in name or "3d" in name or "R3" in name:
        return [(False, 4), (True, 2)]
    if "Fourier" in name:
        return [6]
    if name == "ConcatenatedNonLinearity":  # slow to build
        return [(1, 2)]
    return [4, 1] if name == "VectorFieldNonLinearity" else [(None, 4), (0, 1), (1, 2), (None, 1)]


CASES = [(name, id) for name in MODULES for id in _subgroups(name)]


def _input(module, dtype=torch.float32):
    type = module.in_type
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, type.size, *(9,) * type.gspace.dimensionality, generator=generator).to(dtype)


def _run(module, x):
    torch.manual_seed(2)
    return module(module.in_type(x)).tensor


@pytest.mark.parametrize("name, id", CASES)
def test_same_function_and_equivariant(name, id):
    module = MODULES[name]()
    with torch.no_grad():
        for p in filter(lambda p: p.requires_grad, module.parameters()):  # a mask is none to change
            p.add_(0.2 * torch.rand(p.shape, generator=torch.Generator().manual_seed(3)))
    x = _input(module)
    _run(module, x)  # statistics that are not the initial ones
    before = copy.deepcopy(module.state_dict())
    on_h = restrict(module, id)
    assert type(on_h) is type(module)
    assert on_h.in_type.gspace == on_h.out_type.gspace != module.in_type.gspace
    for mode in (True, False):
        assert torch.allclose(_run(module.train(mode), x), _run(on_h.train(mode), x), atol=SINGLE), f"train={mode}"
    module.train()
    names, after = dict(module.named_parameters()), module.state_dict()
    assert [key for key in names if not torch.equal(before[key], after[key])] == []  # many modules have none
    dropout = name.endswith("Dropout")
    # interpolation on the grid of samples limits the Fourier nonlinearities, and only these
    size = 9 if name == "MaskModule" else None
    assert equivariance_error(on_h.eval() if dropout else on_h, size=size).max < (0.2 if "Fourier" in name else 2e-5)


def test_running_statistics_move_alike():
    """One more step in training mode updates the statistics of both equally."""
    norm = nn.InnerBatchNorm(REGULAR)
    _run(norm, _input(norm))
    on_h = restrict(norm, (None, 4))
    x = 3 * _input(norm) + 1
    _run(norm, x), _run(on_h, x)
    for a, b in each(zip(norm.buffers(), on_h.buffers(), strict=True)):
        assert torch.equal(a, b)
    assert not any(a.data_ptr() == b.data_ptr() for a, b in zip(norm.buffers(), on_h.buffers()))


def test_branching_and_gates_of_two_inputs():
    """Modules that return or take several tensors. Branches without anything in them leave nothing to restrict."""
    with pytest.raises(UnsupportedModuleError, match="BranchingModule.*nothing in it could be restricted"):
        restrict(nn.BranchingModule(SCALARS + VECTORS, [*3 * ["a"], *2 * ["b"]]), (None, 2))
    gates = nn.FieldType(D4, 2 * [D4.trivial_repr])
    gated = nn.GatedNonLinearity2((gates, VECTORS))
    on_h = restrict(gated, (None, 2))
    g, v = torch.randn(2, 2, 5, 5), torch.randn(2, 4, 5, 5)
    plain = gated(gates(g), VECTORS(v))
    restricted = on_h(*(t(z) for t, z in zip(on_h.in_type, (g, v))))
    assert torch.equal(plain.tensor, restricted.tensor) and restricted.type.gspace.fibergroup.order() == 2


def test_merging():
    """A dictionary goes in, so the module has no input type of its own."""
    module = nn.MergeModule([(nn.ReLU(SCALARS), "a"), (nn.R2Conv(VECTORS, SCALARS + VECTORS, 3, padding=1), ["b"])])
    inputs = {"a": (SCALARS, torch.randn(2, 3, 5, 5)), "b": (VECTORS, torch.randn(2, 4, 5, 5))}
    plain = module({key: type(x) for key, (type, x) in inputs.items()})
    for id in [(None, 4), (3, 1)]:
        on_h = restrict(module, id)
        assert type(on_h) is nn.MergeModule and on_h.out_type.gspace == on_h.gspace != module.gspace
        parts = dict(zip("ab", on_h.children()))
        fed = {key: parts[key].in_type(x) for key, (_, x) in inputs.items()}
        found = on_h(fed)
        assert found.type == on_h.out_type and torch.allclose(found.tensor, plain.tensor, atol=1e-5)
        h = list(on_h.gspace.fibergroup.elements)[-1]
        turned = on_h({key: x.transform(h) for key, x in fed.items()})
        assert torch.allclose(turned.tensor, found.transform(h).tensor, atol=1e-5)
        assert parts["b"].weights.numel() > module.submodule_1.weights.numel()


def test_norm_without_pixels():
    space = gspaces.no_base_space(dihedral_group(4))
    type_ = nn.FieldType(space, [space.regular_repr, space.irrep(1, 1)])
    norm = nn.IIDBatchNorm1d(type_)
    x = torch.randn(6, type_.size)
    norm(type_(x + 1))
    on_h = restrict(norm, (1, 2))
    assert type(on_h) is nn.IIDBatchNorm1d
    for mode in (True, False):
        assert torch.equal(norm.train(mode)(type_(x)).tensor, on_h.train(mode)(on_h.in_type(x)).tensor)
    for a, b in each(zip(norm.buffers(), on_h.buffers(), strict=True)):
        assert torch.equal(a, b)
    assert equivariance_error(on_h.eval()).max < 1e-5


@pytest.mark.parametrize("id", ["octa", (False, 4), (True, 3)])
def test_harmonic_polynomials(id):
    module = nn.HarmonicPolynomialR3(2)
    on_h = restrict(module, id)
    x = torch.randn(5, 3)
    assert torch.equal(module(module.in_type(x)).tensor, on_h(on_h.in_type(x)).tensor)
    assert on_h.in_type.fibergroup.order() > 0 and equivariance_error(on_h).max < 1e-5


@pytest.mark.parametrize("kind", [nn.R3IcoConv, nn.R3IcoConvTransposed])
def test_orbits_of_the_icosahedron(kind):
    """Kernels on the vertices of a polyhedron: kept as they are, with the icosahedral group's coefficients."""
    space = gspaces.icoOnR3()
    type_ = nn.FieldType(space, [space.trivial_repr, space.irrep(1)])
    conv = kind(type_, type_, 3, initialize=False)
    torch.nn.init.normal_(conv.weights)
    x = torch.randn(2, type_.size, 5, 5, 5)
    for id in [(True, 2), (False, 5)]:
        on_h = restrict(conv, id)
        for mode in (True, False):
            assert torch.equal(conv.train(mode)(type_(x)).tensor, on_h.train(mode)(on_h.in_type(x)).tensor)
        torch.nn.init.normal_(on_h.train().weights)
        error = equivariance_error(on_h)  # half turns act on voxels, a fifth of a turn does not
        assert error.exact == (id == (True, 2)) and error.max < (2e-5 if error.exact else 0.2)
        assert on_h.weights.shape == conv.weights.shape and not torch.equal(on_h.weights, conv.weights)


def test_linear():
    space = gspaces.no_base_space(dihedral_group(4))
    regular = nn.FieldType(space, [space.regular_repr, *2 * [space.irrep(1, 1)]])
    layer = nn.Linear(regular, regular)
    torch.nn.init.normal_(layer.bias)
    for id in [(None, 4), (1, 2), (2, 1), (None, 1)]:
        on_h = restrict(layer, id)
        x = torch.randn(5, regular.size)
        assert torch.allclose(layer(regular(x)).tensor, on_h(on_h.in_type(x)).tensor, atol=1e-5)
        torch.nn.init.normal_(on_h.weights)
        torch.nn.init.normal_(on_h.bias)
        assert equivariance_error(on_h).max < 1e-5


def test_restriction_module_inside():
    """A network that itself steps from D4 to C4, restricted to C2: the step becomes a relabelling."""
    step = nn.RestrictionModule(REGULAR, (None, 4))
    net = nn.SequentialModule(nn.ReLU(REGULAR), step, nn.R2Conv(step.out_type, step.out_type, 3, padding=1))
    on_h = restrict(net, (None, 2))
    assert isinstance(on_h[1], Relabel) and on_h.out_type.fibergroup.order() == 2
    x = torch.randn(2, REGULAR.size, 7, 7)
    assert torch.allclose(net(REGULAR(x)).tensor, on_h(on_h.in_type(x)).tensor, atol=1e-5)
    with pytest.raises(SubgroupError, match="already stepped down"):
        restrict(net, (0, 1))


class Own(nn.EquivariantModule):
    """A user's module without escnn modules inside."""

    def __init__(self):
        super().__init__()
        self.in_type = self.out_type = REGULAR

    def forward(self, x):
        return x

    def evaluate_output_shape(self, shape):
        return shape


class OwnConv(nn.R2Conv):
    """A user's change of an escnn class."""


def test_unknown_modules_are_refused():
    for module in (
        Own(),
        OwnConv(REGULAR, REGULAR, 3),
        nn.TensorProductModule(VECTORS, nn.FieldType(D4, 2 * [D4.trivial_repr])),
    ):
        with pytest.raises(UnsupportedModuleError, match=type(module).__name__):
            restrict(nn.SequentialModule(nn.ReLU(REGULAR), module) if module.in_type == REGULAR else module, (None, 4))
