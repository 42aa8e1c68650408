"""The measured error of equivariance."""

import numpy as np
import pytest
import torch
from escnn import gspaces, nn
from nonempty import each

from escnn_relax.errors import ArgumentError, FieldTypeError, RelaxError
from escnn_relax.morphism.restrict.network import restrict
from escnn_relax.symmetry.equivariance.model_error import (
    acts_on_grid,
    assert_equivariant,
    equivariance_error,
    grid_elements,
    kernel_equivariance_error,
)
from escnn_relax.symmetry.grid.field_action import axes_matrix, move_points, transform_field

D4, C8, C3 = gspaces.flipRot2dOnR2(4), gspaces.rot2dOnR2(8), gspaces.rot2dOnR2(3)
OH, SO2 = gspaces.fullOctaOnR3(), gspaces.rot2dOnR2(-1)


def mixed(space):
    return nn.FieldType(space, list(space.fibergroup.irreps())[:3])


@pytest.mark.parametrize("space", [D4, C8, gspaces.flipRot2dOnR2(4, axis=0.0), OH, gspaces.octaOnR3()], ids=str)
def test_grid_action_is_escnns(space):
    """On the grid's own symmetries escnn's (single precision) transform is exact, and ours must be the same."""
    type = mixed(space)
    x = torch.randn(2, type.size, *(5,) * space.dimensionality)
    elements = grid_elements(space)
    for g in each(elements if len(elements) < 20 else elements[::7]):
        expected = nn.GeometricTensor(x, type).transform(g).tensor
        assert torch.allclose(transform_field(x, type, g), expected, atol=1e-5)


@pytest.mark.parametrize("space", [D4, OH], ids=str)
def test_grid_action_is_an_action(space):
    """(gh)f = g(hf), in float64 to the last bits."""
    type = mixed(space)
    x = torch.randn(1, type.size, *(4,) * space.dimensionality, dtype=torch.float64)
    elements = grid_elements(space)
    for g, h in each(zip(elements[::5], elements[::-3])):
        twice = transform_field(transform_field(x, type, h), type, g)
        assert torch.allclose(transform_field(x, type, g @ h), twice, atol=1e-7 if space is OH else 1e-13)


def test_interpolated_rotation_turns_counterclockwise():
    """A blob on the x axis, turned by 60 degrees about the centre, lies at 60 degrees: up, where rows count down."""
    space = gspaces.rot2dOnR2(6)
    axis = torch.arange(-16, 17, dtype=torch.float64)
    y, x = torch.meshgrid(-axis, axis, indexing="ij")
    blob = torch.exp(-((x - 8) ** 2 + y**2) / 8)
    turned = move_points(blob[None, None], axes_matrix(space, space.fibergroup.element(1)))[0, 0]
    expected = torch.exp(-((x - 4) ** 2 + (y - 8 * np.sin(np.pi / 3)) ** 2) / 8)
    assert (turned - expected).abs().max() < 0.01


@pytest.mark.parametrize("space, conv", [(D4, nn.R2Conv), (C8, nn.R2Conv), (OH, nn.R3Conv)], ids=str)
def test_strict_layers_pass_and_broken_ones_fail(space, conv):
    type = mixed(space)
    layer = conv(type, type, 3, recompute=True)
    elements = grid_elements(space)
    elements = elements if len(elements) < 20 else elements[1::9]
    error = equivariance_error(layer, elements=elements)
    assert error.max < 1e-5 and error.exact
    layer.double().eval()
    kernel = layer.filter.detach()
    assert kernel_equivariance_error(kernel, type, type, elements=elements).max < 1e-6
    layer.filter = torch.randn_like(kernel)
    assert equivariance_error(layer, elements=elements).max > 0.1
    assert kernel_equivariance_error(layer.filter, type, type, elements=elements).max > 0.1
    with pytest.raises(RelaxError, match="not equivariant"):
        assert_equivariant(layer, elements=elements)


def test_only_the_kept_symmetry_passes():
    type = mixed(D4)
    on_c4 = restrict(nn.R2Conv(type, type, 5), (None, 4))
    torch.nn.init.normal_(on_c4.weights)
    kernel = on_c4.expand_parameters()[0].detach()
    by_element = kernel_equivariance_error(kernel, type, type)
    for g, error in each(by_element.items()):
        assert (error < 1e-5) == (g.value[0] == 0), g
    assert assert_equivariant(on_c4, tolerance=1e-5).max == equivariance_error(on_c4).max


def test_interpolation_is_used_and_said():
    type = nn.FieldType(C3, [C3.regular_repr])
    error = equivariance_error(nn.R2Conv(type, type, 5))
    assert not error.exact and 1e-5 < error.max < 0.1 and "interpolation" in str(error)
    assert error[C3.fibergroup.identity] == 0.0


def test_analytic_kernel_at_any_angle():
    """f(x) = x as a vector field from scalars is equivariant to every rotation; a stretched one to half turns only."""
    scalar, vector = nn.FieldType(SO2, [SO2.irrep(0)]), nn.FieldType(SO2, [SO2.irrep(1)])
    elements = [SO2.fibergroup.element(a) for a in (0.3, 1.0, float(np.pi))]
    radial = lambda p: p.T[:, None, :]
    assert kernel_equivariance_error(radial, scalar, vector, elements=elements).max < 1e-6
    stretched = lambda p: (p * torch.tensor([1.0, 2.0])).T[:, None, :]
    errors = kernel_equivariance_error(stretched, scalar, vector, elements=elements).errors
    assert min(errors[:2]) > 0.05 and errors[2] < 1e-6


def test_models_of_every_kind():
    type = nn.FieldType(D4, [D4.trivial_repr])
    regular = nn.FieldType(D4, 2 * [D4.regular_repr])
    body = nn.SequentialModule(nn.R2Conv(type, regular, 3), nn.ReLU(regular), nn.GroupPooling(regular))

    class Classifier(torch.nn.Module):
        def __init__(self, broken):
            super().__init__()
            self.body, self.broken = body, broken

        def forward(self, x):
            y = self.body(type(x)).tensor
            return y[:, :, : 3 if self.broken else None].mean((2, 3))

    assert equivariance_error(Classifier(False), in_type=type).max < 1e-5
    assert equivariance_error(Classifier(True), in_type=type).max > 1e-3
    maps = lambda x: body(type(x)).tensor
    assert equivariance_error(maps, torch.randn(1, 1, 7, 7), in_type=type).max < 1e-5


def test_running_statistics_are_left_alone():
    type = nn.FieldType(D4, [D4.regular_repr])
    norm = nn.InnerBatchNorm(type)
    before = [b.clone() for b in norm.buffers()]
    equivariance_error(norm)
    assert norm.training and all(torch.equal(a, b) for a, b in zip(before, norm.buffers()))


def test_dropout_uses_the_same_noise_twice():
    type = nn.FieldType(D4, 40 * [D4.trivial_repr])
    assert equivariance_error(nn.FieldDropout(type), elements=[D4.fibergroup.identity]).max == 0.0


def test_angles():
    error = equivariance_error(nn.R2Conv(mixed(D4), mixed(D4), 3), elements=D4.fibergroup.elements)
    angles = [(a, reverses) for a, reverses, _ in error.by_angle()]
    assert angles == [(a, False) for a in (0, 90, 180, 270)] + [(a, True) for a in (0, 45, 90, 135)]
    assert len(error) == 8 and error.mean <= error.max


def test_points():
    assert [acts_on_grid(C8, g) for g in C8.fibergroup.elements] == [True, False] * 4
    assert len(grid_elements(OH)) == 48


def test_bad_input():
    type = mixed(D4)
    with pytest.raises(FieldTypeError, match="in_type"):
        equivariance_error(lambda x: x)
    with pytest.raises(ArgumentError, match="elements of D4"):
        equivariance_error(nn.ReLU(nn.FieldType(D4, [D4.regular_repr])), elements=[C8.fibergroup.identity])
    with pytest.raises(ArgumentError, match="function of points"):
        fields = nn.FieldType(C8, [C8.irrep(0), C8.irrep(1)])
        kernel_equivariance_error(torch.randn(3, 3, 3, 3), fields, fields, elements=C8.fibergroup.elements)
    with pytest.raises(ArgumentError, match="shape"):
        kernel_equivariance_error(torch.randn(1, 1, 3, 3), type, type)
    with pytest.raises(ArgumentError, match="at least one"):
        equivariance_error(nn.IdentityModule(type), elements=[])


def test_an_input_in_the_place_of_the_tolerance_is_named():
    space = gspaces.rot2dOnR2(4)
    field = nn.FieldType(space, [space.trivial_repr])
    with pytest.raises(
        ArgumentError, match="R2Conv: expected a tolerance, a number, got Tensor; pass the input by its name, input="
    ):
        assert_equivariant(nn.R2Conv(field, field, 3), torch.randn(1, 1, 7, 7))
