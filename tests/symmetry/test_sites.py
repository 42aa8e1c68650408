"""Orbits of sites, fields in turned frames, interpolation."""

import numpy as np
import pytest
import torch
from escnn import gspaces
from escnn import nn as enn
from nonempty import each

from escnn_relax.errors import ArgumentError, SubgroupError
from escnn_relax.symmetry.grid.field_action import transform_field
from escnn_relax.symmetry.grid.interpolation import interpolation
from escnn_relax.symmetry.grid.sites import Sites, TurnedFields, grid_points, largest_grid_subgroup, orbit_points
from escnn_relax.symmetry.groups.lattice import subgroup

EXACT = 1e-10

CASES = [
    (gspaces.flipRot2dOnR2(4), (5, 5), (1, 1)),
    (gspaces.flipRot2dOnR2(4), (4, 4), (1, 2)),
    (gspaces.rot2dOnR2(8), (4, 4), (1,)),
    (gspaces.flipRot2dOnR2(-1, maximum_frequency=2), (5, 5), (1, 2)),
    (gspaces.flip2dOnR2(), (3, 4), (1,)),
    (gspaces.octaOnR3(), (3, 3, 3), (1,)),
]


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(("space", "shape", "irrep"), CASES, ids=lambda c: getattr(c, "name", str(c)))
def test_turned_fields_move_as_the_regular_representation(space, shape, irrep):
    kept = largest_grid_subgroup(space, shape)
    assert kept.order > 1
    representation = space.irrep(*irrep)
    sites = Sites(grid_points(shape), kept)
    turned = TurnedFields(sites, representation, kept)
    fields = enn.FieldType(space, 2 * [representation])
    signal = torch.randn(3, 2, representation.size, len(sites))
    regular = turned(signal)
    assert (turned.back(regular) - signal).abs().max() < EXACT, "an isometry: its transpose leads back"
    assert abs(regular.norm() - signal.norm()) < EXACT
    wrong = 0.0
    for n, element in enumerate(each(kept.elements)):
        moved = transform_field(signal.reshape(3, -1, *shape), fields, element).reshape(signal.shape)
        # the regular representation: phi(h^-1 g)
        assert (turned(moved) - regular[..., sites.table[n]]).abs().max() < EXACT
        wrong = max(wrong, float((turned(moved) - regular).abs().max()))
    assert wrong > 0.1, "the action is not trivial"


def test_orbits_are_a_partition():
    for space, shape, _ in CASES:
        sites = Sites(grid_points(shape), largest_grid_subgroup(space, shape))
        seen = torch.zeros(len(sites))
        for row, share in zip(sites.index, sites.share):
            seen.index_add_(0, row, share.square().expand(len(row)))
        assert torch.allclose(seen, torch.ones(len(sites)))


def test_a_group_that_does_not_permute_the_sites():
    with pytest.raises(SubgroupError, match="does not permute the sites.*smaller subgroup"):
        Sites(grid_points((4, 4)), subgroup(gspaces.rot2dOnR2(8), 8))
    with pytest.raises(SubgroupError, match="does not permute"):
        Sites(grid_points((4, 5)), subgroup(gspaces.rot2dOnR2(4), 4))


def test_anchors_come_in_orbits():
    kept = subgroup(gspaces.rot2dOnR2(8), 8)
    points = orbit_points(kept, (5, 5), 20, np.random.default_rng(0))
    assert len(points) == 16 and Sites(points, kept).orbits == 2
    free = orbit_points(subgroup(gspaces.rot2dOnR2(8), 1), (5, 5), 20, np.random.default_rng(0))
    assert len(free) == 20 and np.abs(free).max() <= 2.5


def test_interpolation_is_the_mean_of_the_process():
    anchors, sites, omega = torch.randn(6, 2), torch.randn(9, 2), torch.tensor(0.8)
    matrix = interpolation(anchors, sites, omega)
    covariance = lambda a, b: (1 + 1e-6) * np.exp(-0.5 * 0.64 * ((a[:, None] - b[None]) ** 2).sum(-1))
    among, across = covariance(anchors.numpy(), anchors.numpy()), covariance(sites.numpy(), anchors.numpy())
    expected = across @ np.linalg.inv(among + 1e-4 * np.eye(6))
    assert np.abs(matrix.numpy() - expected).max() < 1e-9
    assert np.abs(interpolation(anchors, sites, torch.tensor(1.6)).numpy() - expected).max() > 0.1


def test_interpolation_is_differentiable_in_the_scale():
    anchors, sites = torch.randn(5, 2), torch.randn(4, 2)
    omega = torch.tensor(0.7, requires_grad=True)
    assert torch.autograd.gradcheck(lambda o: interpolation(anchors, sites, o), omega)


def test_singular_systems_are_reported():
    anchors = torch.zeros(3, 2)
    with pytest.warns(UserWarning, match="singular with noise 0; .* is used instead"):
        matrix = interpolation(anchors, torch.zeros(1, 2), torch.tensor(1.0), noise=0.0)
    assert torch.isfinite(matrix).all()


@pytest.mark.parametrize("options", [{"amplitude": 0.0}, {"noise": -1.0}, {"omega": torch.tensor(-1.0)}])
def test_interpolation_refuses_bad_numbers(options):
    options = {"omega": torch.tensor(1.0), **options}
    with pytest.raises(ArgumentError, match="a positive amplitude and omega"):
        interpolation(torch.zeros(1, 2), torch.zeros(1, 2), **options)


def test_half_precision_is_refused():
    half = torch.zeros(1, 2, dtype=torch.float16)
    with pytest.raises(ArgumentError, match="float32 or float64"):
        interpolation(half, half, torch.tensor(1.0))
