"""Certified errors: never below what is measured, whatever the group, fields, kernel and geometry; near the exact
norm."""

import math

import pytest
import torch
from escnn import gspaces, group
from escnn import nn as enn
from hypothesis import given, settings
from hypothesis import strategies as st
from nonempty import each
from torch import nn

from escnn_relax import harden, relax, report
from escnn_relax.errors import ArgumentError, UnsupportedModuleError
from escnn_relax.nn import RelaxedLinear, RelaxedR2Conv, RelaxedR2ConvTransposed, RelaxedR3Conv
from escnn_relax.nn.measured.certificate import certify
from escnn_relax.nn.measured.error_sources import error_sources
from escnn_relax.nn.measured.certificate_chain import certify_chain
from escnn_relax.symmetry.grid.field_action import acts_on_grid, transform_field
from escnn_relax.symmetry.equivariance.operator_norm import affordable, operator_norm, padding_norm

#: Rounding of sums in float64, relative to a layer's norm.
EXACT = 1e-10
#: escnn samples its kernels in float32: what that breaks of the equivariant part under elements off the grid is not
#: counted.
SPACES = {
    "C4": gspaces.rot2dOnR2(4),
    "D4": gspaces.flipRot2dOnR2(4),
    "C8": gspaces.rot2dOnR2(8),
    "flips": gspaces.flip2dOnR2(),
    "SO2": gspaces.rot2dOnR2(-1, maximum_frequency=2),
}


def fields(space, kind):
    continuous = space.fibergroup.order() < 0
    irreps = [space.trivial_repr, *([space.irrep(1), space.irrep(2)] if continuous else space.fibergroup.irreps()[1:3])]
    return enn.FieldType(
        space, {"scalar": irreps[:1], "irreps": irreps}.get(kind, irreps if continuous else [space.regular_repr])
    )


def broken(layer, seed=0):
    generator = torch.Generator().manual_seed(seed)
    layer = layer.double()
    with torch.no_grad():
        for name, w in layer.weights.items():
            w.copy_(
                (1.0 if name == "equivariant" else 0.3) * torch.randn(w.shape, generator=generator, dtype=torch.float64)
            )
    return layer.eval()


def dense(layer, shape):
    """The linear part as a matrix, column by column."""
    identity = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)
    with torch.no_grad():
        constant = layer(enn.GeometricTensor(torch.zeros(1, *shape, dtype=torch.float64), layer.in_type)).tensor
        rows = layer(enn.GeometricTensor(identity, layer.in_type)).tensor - constant
    return rows.flatten(1).T, rows.shape[1:]


def action(type, g, shape):
    identity = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)
    return transform_field(identity, type, g).flatten(1).T


def exact_error(layer, g, size):
    """The largest singular value of the whole dense error, on one small grid."""
    shape = (layer.in_type.size, *(size,) * layer.space.dimensionality)
    matrix, out = dense(layer, shape)
    error = action(layer.out_type, g, out) @ matrix - matrix @ action(layer.in_type, g, shape)
    return float(torch.linalg.matrix_norm(error, 2)), float(torch.linalg.matrix_norm(matrix, 2))


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    st.sampled_from(["C4", "D4", "C8", "flips"]), st.sampled_from(["scalar", "irreps", "regular"]),
    st.sampled_from([3, 5]), st.sampled_from(["zeros", "circular", "reflect", "replicate"]), st.integers(0, 99),
)  # fmt: skip
def test_never_below_the_exact_norm(name, kind, size, mode, seed):
    space = SPACES[name]
    layer = broken(
        RelaxedR2Conv(fields(space, "regular"), fields(space, kind), size, padding=size // 2, padding_mode=mode), seed
    )
    found = certify(layer)
    assert found.elements and len(found.errors) == len(found.elements)
    for g, own in each(list(zip(found.elements, found.errors))[:2]):
        error, norm = exact_error(layer, g, 5)
        assert error <= own.bound + EXACT * norm, (str(g), error, own)
        assert norm <= found.norm.bound * (1 + EXACT)
        assert own.reached <= own.bound and found.bound >= own.bound


@pytest.mark.slow
@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.sampled_from(["C4", "D4", "C8", "flips"]), st.sampled_from(["scalar", "irreps", "regular"]),
    st.sampled_from(["scalar", "irreps", "regular"]), st.sampled_from([3, 5, 7]),
    st.sampled_from(["zeros", "circular", "reflect", "replicate"]), st.sampled_from([1, 2]), st.integers(0, 999),
)  # fmt: skip
def test_never_below_the_exact_norm_at_length(name, ins, outs, size, mode, dilation, seed):
    space, side = SPACES[name], 7
    padding = dilation * (size // 2)
    if mode == "reflect" and padding >= side or padding > side:
        return
    layer = RelaxedR2Conv(
        fields(space, ins), fields(space, outs), size, padding=padding, padding_mode=mode, dilation=dilation
    )
    found = certify(broken(layer, seed))
    for g, own in each(zip(found.elements, found.errors, strict=True)):
        error, norm = exact_error(layer, g, side)
        assert error <= own.bound + EXACT * norm and norm <= found.norm.bound * (1 + EXACT)


@pytest.mark.parametrize("options", [{"stride": 2}, {"stride": 2, "dilation": 2}, {"stride": 3}, {"groups": 2}])
def test_geometry(options):
    space = SPACES["C4"]
    twice = enn.FieldType(space, 2 * [space.regular_repr])
    layer = broken(RelaxedR2Conv(twice, twice, 3, padding=options.get("dilation", 1), **options))
    found = certify(layer)
    for g, own in each(zip(found.elements, found.errors, strict=True)):
        error, norm = exact_error(layer, g, 7)
        assert 0.3 * error < own.reached and error <= own.bound and norm <= found.norm.bound
    assert found.bound <= 2 * found.norm.bound


@pytest.mark.parametrize("stride", [1, 2])
def test_transposed(stride):
    space = SPACES["C4"]
    layer = broken(
        RelaxedR2ConvTransposed(fields(space, "regular"), fields(space, "irreps"), 3, padding=1, stride=stride)
    )
    found = certify(layer)
    for g, own in each(zip(found.elements, found.errors, strict=True)):
        error, norm = exact_error(layer, g, 5)
        assert 0.3 * error < own.reached and error <= own.bound and norm <= found.norm.bound


def test_in_space_and_over_a_point():
    signs = gspaces.invOnR3()
    layer = broken(RelaxedR3Conv(*2 * (enn.FieldType(signs, [signs.regular_repr]),), 3, padding=1))
    found = certify(layer)
    (own,) = found.errors
    error, _ = exact_error(layer, found.elements[0], 4)
    assert 0.5 * error < own.reached and error <= own.bound
    point = gspaces.no_base_space(group.dihedral_group(3))
    linear = broken(RelaxedLinear(*2 * (enn.FieldType(point, [point.regular_repr]),)))
    found = certify(linear)
    assert len(found.elements) == 5 and found.complete
    for g, own in each(zip(found.elements, found.errors, strict=True)):
        error, norm = exact_error(linear, g, 0)
        assert own.reached == pytest.approx(error, rel=1e-9) and error <= own.bound
    assert found.norm.reached == pytest.approx(norm, rel=1e-9)


def test_the_bound_is_near_the_norm_on_larger_grids():
    """The supremum over all sizes: the dense norm grows towards it, and comes within the resolution of the
    frequencies."""
    layer = broken(
        RelaxedR2Conv(
            fields(SPACES["C4"], "scalar"), fields(SPACES["C4"], "irreps"), 3, padding=1, padding_mode="circular"
        )
    )
    found = certify(layer)
    g, own = found.elements[0], found.errors[0]
    sizes = [exact_error(layer, g, n)[0] for n in (4, 8, 16)]
    assert sizes[0] <= sizes[1] * (1 + EXACT) <= sizes[2] * (1 + 2 * EXACT) <= own.bound < 1.05 * sizes[2]
    assert own.reached == pytest.approx(sizes[2], rel=1e-9), "a torus of as many points as there are frequencies"


def test_a_bound_of_the_grid_alone_would_be_too_low():
    """The largest value on a coarse grid of frequencies is exceeded between its points; the correction is needed."""
    kernel = torch.zeros(1, 1, 1, 5, dtype=torch.float64)
    kernel[0, 0, 0] = torch.tensor([1.0, 0.3, 0.0, -0.9, 0.8])
    norm = operator_norm(kernel, work=1.0)  # Schur's test: nothing else is so cheap
    fine = operator_norm(torch.nn.functional.pad(kernel, (60, 60)), work=1e12)
    coarse = operator_norm(kernel, work=100.0)
    assert coarse.reached < fine.reached <= coarse.bound <= norm.bound and norm.bound == pytest.approx(3.0)


def test_elements_off_the_grid():
    """C8: quarter turns are bounded as they are, eighths by twice what breaks; a layer that keeps C4 only is not
    certified as C8."""
    space = SPACES["C8"]
    layer = RelaxedR2Conv(*2 * (fields(space, "regular"),), 5, padding=2).double()
    strict = certify(layer)
    assert not strict.complete and strict.relative < 1e-6
    with torch.no_grad():
        layer.weights["irrep_4"].normal_()  # C4 keeps these
    found = certify(layer)
    assert max(e.bound for e in found.errors) < 1e-5 * found.norm.bound < found.bound == 2 * found.breaking.bound


@pytest.mark.parametrize("name", ["C8", "SO2"])
def test_error_sources(name):
    space = SPACES[name]
    layer = broken(RelaxedR2Conv(fields(space, "irreps"), fields(space, "scalar"), 5, padding=2, bias=True))
    with torch.no_grad():
        layer.bias.fill_(3.0)
    side = 9
    x = layer.in_type(torch.randn(2, layer.in_type.size, side, side, dtype=torch.float64))
    off = [g for g in space.testing_elements if not acts_on_grid(space, g)][:3]
    quarter = space.fibergroup.element(2 if name == "C8" else math.pi / 2)
    assert len(off) == 3
    found = error_sources(layer, x, [quarter, *off])
    kernel = certify(layer).breaking.bound
    for one in each(found):
        assert one.total <= one.interpolation + one.kernel + 1e-6
        shape = (layer.in_type.size, side, side)
        moves = [
            action(layer.in_type, one.element, shape),
            action(layer.out_type, one.element, (layer.out_type.size, side, side)),
        ]
        isometry = sum(float(torch.linalg.matrix_norm(m, 2)) for m in moves)
        assert one.kernel <= isometry * kernel * (1 + EXACT)
    assert found[0].interpolation < 1e-6 < min(one.interpolation for one in found[1:])
    with torch.no_grad():
        for p in layer.pathways:
            if p.breaks:
                layer.weights[p.name].zero_()
    assert all(
        one.kernel == 0 and one.total == pytest.approx(one.interpolation) for one in error_sources(layer, x, off)
    )


def test_what_cannot_be_certified():
    layer = broken(RelaxedR2Conv(*2 * (fields(SPACES["C4"], "regular"),), 3))
    with pytest.raises(
        UnsupportedModuleError, match="ReLU: a ReLU has no kernel on the grid; certify the convolutions"
    ):
        certify(enn.ReLU(layer.in_type))
    zero = enn.GeometricTensor(torch.zeros(1, 4, 5, 5, dtype=torch.float64), layer.in_type)
    with pytest.raises(ArgumentError, match="an input of norm 0"):
        error_sources(layer, zero)
    with pytest.raises(UnsupportedModuleError, match="its breaking part is not known; pass a relaxed layer"):
        error_sources(enn.R2Conv(layer.in_type, layer.in_type, 3), zero)
    with torch.no_grad():
        layer.weights["irrep_1"][0] = math.nan
    assert math.isnan(certify(layer).bound) and math.isnan(operator_norm(torch.tensor([[math.inf]])).bound)


def test_too_wide_for_the_work():
    """Cheaper bounds are looser, and bounds all the same."""
    layer = broken(RelaxedR2Conv(*2 * (fields(SPACES["D4"], "regular"),), 5))
    fine, coarse, least = (certify(layer, work=w) for w in (1e10, 1e6, 1.0))
    assert fine.reached <= fine.bound < coarse.bound < least.bound
    assert affordable((8, 8, 5, 5), (1, 1), 1e8) and not affordable((8, 8, 5, 5), (1, 1), 1e3)
    assert padding_norm("replicate", (1, 0)) == pytest.approx(3**0.5)


def net():
    space = SPACES["C4"]
    gray, two = enn.FieldType(space, [space.trivial_repr]), enn.FieldType(space, 2 * [space.regular_repr])
    model = relax(
        enn.SequentialModule(enn.R2Conv(gray, two, 3, padding=1), enn.ReLU(two), enn.R2Conv(two, two, 3, padding=1))
    )
    return nn.Sequential(model).double()[0]


def test_reports_and_hardened_layers_say_it():
    model = net()
    with torch.no_grad():
        model[0].weights["irrep_2"].normal_(std=0.1)
        model[2].weights["irrep_1"].normal_(std=1e-4)
    first, second = report(model).layers
    assert first.error_bound == certify(model[0]).bound > first.error_reached > 0 and first.norm > 0
    assert "error ≤" in str(report(model)) and 0 < second.error_bound < 0.01
    x = torch.randn(1, 1, 5, 5, dtype=torch.float64)
    for options in ({}, {"to": "stabiliser", "per": "layer"}):
        hardened, (one, two) = harden(model, return_report=True, **options)
        assert one.error == pytest.approx(first.error_bound, rel=1e-6) and one.change < 1e-12
        assert two.error < 1e-5 < two.change, "what broke C4 by little is gone"
        features = model[0](enn.GeometricTensor(x, model.in_type))
        hidden = enn.GeometricTensor(features.tensor, model[2].in_type)
        new = hardened[2](hidden).tensor
        change = float((new - model[2](hidden).tensor).norm() / hidden.tensor.norm())
        assert 0 < change <= two.change


def chain(space, seed=0):
    torch.manual_seed(seed)
    gray, two = enn.FieldType(space, [space.trivial_repr]), enn.FieldType(space, 2 * [space.regular_repr])
    model = enn.SequentialModule(
        RelaxedR2Conv(gray, two, 3, padding=1),
        enn.ReLU(two),
        enn.PointwiseAvgPool2D(two, 2, 1),
        enn.SequentialModule(RelaxedR2Conv(two, two, 3, padding=1), enn.ELU(two)),
        enn.R2Conv(two, two, 3),
        enn.GroupPooling(two),
    )
    with torch.no_grad():
        for module in model.modules():
            if getattr(module, "bias", None) is not None:
                module.bias.normal_()
    for layer in (model[0], model[3][0]):
        broken(layer, seed)
    return model.double().eval()


@pytest.mark.parametrize("name", ["C4", "D4"])
def test_along_a_chain(name):
    model = chain(SPACES[name])
    found = certify_chain(model, (1, 1, 6, 6))
    assert len(found.layers) == 3 and not found.stopped and "outputs up to" in str(found)
    worst = largest = 0.0
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        x = torch.randn(1, 1, 6, 6, dtype=torch.float64, generator=generator)
        x = enn.GeometricTensor(x / x.norm(), model.in_type)
        with torch.no_grad():
            out = model(x).tensor
            for g in found.layers[0].elements:
                turned = model(enn.GeometricTensor(transform_field(x.tensor, x.type, g), x.type)).tensor
                worst = max(worst, float((turned - transform_field(out, model.out_type, g)).norm()))
        largest = max(largest, float(out.norm()))
    assert 0.01 < worst <= found.error and largest <= found.size
    with torch.no_grad():
        for layer in (model[0], model[3][0]):
            for p in layer.pathways:
                if p.breaks:
                    layer.weights[p.name].zero_()
    assert certify_chain(model, (1, 1, 6, 6)).error < 1e-5 * found.size < worst


def test_where_a_chain_ends():
    space = SPACES["C4"]
    two = enn.FieldType(space, 2 * [space.regular_repr])
    layer = RelaxedR2Conv(two, two, 3)
    for last, reason in (
        (enn.InnerBatchNorm(two), "1: InnerBatchNorm, of which no Lipschitz constant is known"),
        (enn.PointwiseMaxPool2D(two, 3, 1), "whose windows overlap"),
        (enn.ELU(two, alpha=2.0), "ELU with alpha outside"),
    ):
        found = certify_chain(enn.SequentialModule(layer, last).eval(), (1, 8, 7, 7))
        assert reason in found.stopped and len(found.layers) == 1 and found.error == found.layers[0].bound
    assert not certify_chain(
        enn.SequentialModule(layer, enn.PointwiseMaxPool2D(two, 2, 2)).eval(), (1, 8, 7, 7)
    ).stopped
    with pytest.raises(UnsupportedModuleError, match="it is in training mode; call .eval"):
        certify_chain(enn.SequentialModule(layer).train(), (1, 8, 7, 7))
    with pytest.raises(UnsupportedModuleError, match="sequential modules only; certify its layers"):
        certify_chain(layer.eval(), (1, 8, 7, 7))
    with pytest.raises(ArgumentError, match=r"does not take the shape \(1, 3, 7, 7\); pass the shape of a batch"):
        certify_chain(enn.SequentialModule(layer).eval(), (1, 3, 7, 7))
