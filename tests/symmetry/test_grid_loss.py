"""What pixels lose, against kernels averaged point by point: no solver, no irreps, no harmonics of the package."""

import itertools
import math

import numpy as np
import pytest
import torch
from escnn import gspaces
from escnn import nn as enn
from nonempty import each
from torch import nn

from escnn_relax import Evidence, harden, relax, report, survivors
from escnn_relax.nn import RelaxedR2Conv, RelaxedR3Conv
from escnn_relax.nn.measured.resolution import lost_on_the_grid, resolution
from escnn_relax.nn.measured.kernel_symmetry import KernelSymmetry
from escnn_relax.symmetry.kernels import grid_loss as module, ring_geometry
from escnn_relax.symmetry.kernels.sampling import Band
from escnn_relax.symmetry.kernels.grid_loss import (
    irrep_multiplicities,
    default_band,
    grid_loss,
    sufficient_size,
    turning_error,
)
from escnn_relax.symmetry.kernels.harmonics import harmonics, harmonic_action
from escnn_relax.symmetry.groups.subgroup import subgroup
from escnn_relax.symmetry.groups.lattice import subgroups

#: Sines of small angles come out of 1 - cos^2.
SAME = 1e-6


def planar(name, frequency=3):
    if name == "O2":
        return gspaces.flipRot2dOnR2(-1, maximum_frequency=frequency)
    n = int(name[1:])
    return gspaces.rot2dOnR2(n) if name[0] == "C" else gspaces.flipRot2dOnR2(n)


def band_of(space, size):
    one = enn.FieldType(space, [space.trivial_repr])
    return Band.from_layer(enn.R2Conv(one, one, size, initialize=False))


def functions(band, points):
    """All band-limited functions at points of the plane, ``(n, S)``, as polar coordinates have them."""
    r, angle = np.hypot(*points.T), np.arctan2(points[:, 1], points[:, 0])
    rows = []
    for ring, width in zip(band.rings, band.sigma):
        profile = np.exp(-((r - ring) ** 2) / (2 * width**2))
        rows.append(profile)
        for f in range(1, band.cutoff(ring) + 1):
            rows += [profile * wave(f * angle) * (r > 1e-9) for wave in (np.cos, np.sin)]
    return np.stack(rows)


def group_elements(kept):
    """Of a continuous subgroup of the plane as many as average exactly what is tested here."""
    if kept.order > 0:
        return list(kept.elements)
    own, angles = kept.group, 2 * math.pi * np.arange(24) / 24
    if type(own).__name__ == "SO2":
        return [kept.embed(own.element(a)) for a in angles]
    return [kept.embed(own.element((flip, a))) for flip in (0, 1) for a in angles]


def averaged(band, kept, in_repr, out_repr):
    """All kernels averaged over a subgroup, evaluated at the turned pixels themselves: ``(kernels, numbers)``."""
    units = np.eye(out_repr.size * in_repr.size).reshape(-1, out_repr.size, in_repr.size)
    total, elements = 0, group_elements(kept)
    for g in elements:
        matrix = np.asarray(kept.gspace.basespace_action(g))
        there = functions(band, band.points @ matrix)  # at g^-1 x
        moved = np.einsum("po,koi,iq->kpq", out_repr(g), units, in_repr(~g))
        total = total + np.einsum("kpq,ns->knpqs", moved, there)
    return (total / len(elements)).reshape(-1, units.shape[1] * units.shape[2] * len(band.points))


def spanned(rows):
    _, values, vectors = np.linalg.svd(rows, full_matrices=False)
    return vectors[values > 1e-6 * max(1.0, values[0])]


def by_brute_force(band, smaller, larger, in_repr, out_repr):
    """Number of kernels, share lost and least sine."""
    larger_rows = averaged(band, larger, in_repr, out_repr)
    only = averaged(band, smaller, in_repr, out_repr) - larger_rows  # the averages project, one within the other
    one, other = spanned(only), spanned(larger_rows)
    if not len(one):
        return 0, 0.0, 1.0
    cosines = np.zeros(len(one))
    if len(other):
        found = np.linalg.svd(one @ other.T, compute_uv=False)
        cosines[: len(found)] = found
    squares = (1 - cosines**2).clip(0, 1)
    return len(one), 1 - squares.mean(), math.sqrt(squares.min())


PLANAR = ["C4", "C6", "C8", "C12", "D6", "D8", "O2"]


def fields_of(space, name):
    if name == "O2":
        return space.irrep(1, 1), space.irrep(1, 2)
    return space.irrep(1, 1) if name[0] == "D" else space.irrep(1), space.regular_repr


def neighbours(space, name):
    """Pairs of a subgroup and a next larger one; of several conjugates two, one of which stands off the grid."""
    if name == "O2":
        ids = [
            ((None, 1), (None, 3)),
            ((None, 2), (None, 4)),
            ((None, 4), (None, -1)),
            ((0.4, 1), (0.4, 3)),
            ((None, 3), (0.3, 3)),
        ]
        yield from ((subgroup(space, a), subgroup(space, b)) for a, b in [*ids, ((0.0, 4), (0.0, -1))])
        return
    lattice = list(subgroups(space))
    for larger in lattice:
        below = [h for h in lattice if h < larger]
        for smaller in below:
            if not any(smaller < h for h in below) and (
                "deg" not in larger.name or larger.name.endswith(("_0deg", "_30deg", "_22.5deg"))
            ):
                yield smaller, larger


def exact_on_the_grid(kept):
    """Whether all elements move the pixels of a square to pixels."""
    if kept.order < 0:
        return False
    matrices = [np.asarray(kept.gspace.basespace_action(g)) for g in kept.elements]
    return all(np.allclose(m, np.rint(m), atol=1e-9) for m in matrices)


@pytest.mark.parametrize("size", [3, pytest.param(5, marks=pytest.mark.slow), pytest.param(7, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", PLANAR)
def test_the_loss_is_that_of_kernels_averaged_point_by_point(name, size):
    space = planar(name)
    band, (in_repr, out_repr) = band_of(space, size), fields_of(space, name)
    irreps, pairs, lost = irrep_multiplicities(in_repr, out_repr), list(neighbours(space, name)), 0
    assert pairs
    for smaller, larger in pairs:
        found = grid_loss(band, smaller, larger, irreps)
        kernels, fraction, sine = by_brute_force(band, smaller, larger, in_repr, out_repr)
        assert found.kernels == kernels, (smaller.name, larger.name)
        if not kernels:
            continue
        assert found.fraction == pytest.approx(fraction, abs=SAME), (smaller.name, larger.name)
        assert found.sine == pytest.approx(sine, abs=1e-3 if sine < 0.01 else SAME), (smaller.name, larger.name)
        if exact_on_the_grid(larger):
            assert abs(found.fraction) < SAME and abs(found.sine - 1) < SAME and turning_error(band, larger) < SAME
        else:
            assert turning_error(band, larger) > 0.01
        lost += found.fraction > SAME
    assert lost if name != "C4" else not lost
    # the broken twin: whatever is no subgroup of the grid's, judged as if pixels moved to pixels
    wrong = [by_brute_force(band, s, h, in_repr, out_repr)[1] > SAME for s, h in pairs if not exact_on_the_grid(h)]
    assert name == "C4" or any(wrong)


@pytest.mark.parametrize("name", ["C6", "D8"])
def test_the_least_sine_is_the_norm_of_the_average(name):
    """An oblique projector on one space along another has the norm 1 / sin of their least angle: here the average over
    H of the kernels as the band has them, read and written on pixels."""
    space = planar(name)
    band = band_of(space, 3)
    in_repr, out_repr = (space.trivial_repr, space.irrep(1)) if name == "C6" else (space.irrep(1, 1), space.irrep(1, 1))
    kept = subgroup(space, 3) if name == "C6" else subgroup(space, (None, 8))
    everything = averaged(band, subgroup(space, 1 if name == "C6" else (None, 1)), in_repr, out_repr)
    assert np.linalg.matrix_rank(everything) == len(everything), "the pixels have all of the band"
    average = np.linalg.pinv(everything) @ averaged(band, kept, in_repr, out_repr)
    norm = np.linalg.norm(average, 2)
    found = grid_loss(
        band, subgroup(space, 1 if name == "C6" else (None, 1)), kept, irrep_multiplicities(in_repr, out_repr)
    )
    assert norm > 1.01 and found.sine == pytest.approx(1 / norm, abs=SAME)


@pytest.mark.parametrize("name", ["C3", "C8", "C12"])
def test_turning_is_measured_on_the_functions_themselves(name):
    """The largest relative change of the norm of sampled functions that are turned, found by trying many."""
    space = planar(name)
    band, kept = band_of(space, 5), subgroup(space, int(name[1:]))
    here = functions(band, band.points)
    worst = 0.0
    for g in each(kept.elements):
        there = functions(band, band.points @ np.asarray(space.basespace_action(g)))
        norms = np.linalg.svd(np.linalg.pinv(here) @ there, compute_uv=False)[: len(here)]
        worst = max(worst, float(np.abs(norms - 1).max()))
        for seed in range(20):
            c = np.random.default_rng(seed).normal(size=len(here))
            assert abs(np.linalg.norm(c @ there) / np.linalg.norm(c @ here) - 1) <= turning_error(band, kept) + SAME
    assert worst == pytest.approx(turning_error(band, kept), rel=1e-5) and worst > 0.01


def test_the_bands_functions_are_those_that_escnn_samples():
    """The same span as escnn's kernels of the trivial group, and the default band is its own, in the plane and in
    space."""
    for space, layer in ((gspaces.trivialOnR2(), enn.R2Conv), (gspaces.trivialOnR3(), enn.R3Conv)):
        one = enn.FieldType(space, [space.trivial_repr])
        for size in (3, 5):
            band = Band.from_layer(layer(one, one, size, initialize=False))
            d = space.dimensionality
            default = default_band(d, size)
            assert (default.rings, default.sigma, default.limit) == (band.rings, band.sigma, band.limit)
            own = spanned(band.sample(space, space.trivial_repr, space.trivial_repr).flatten(1).numpy())
            known = ring_geometry.RingGeometry(band)
            ours = [known._sample(np.eye(len(a)), f, 1) for f, a in known.angular.items()]
            ours = ring_geometry._orthonormal(np.concatenate(ours))
            assert len(ours) == len(own) and np.linalg.norm(own - own @ ours.T @ ours) < 1e-5
    # the broken twin: widths that are not the layer's
    other = Band(band.rings, tuple(2 * s for s in band.sigma), band.maximum_frequency, band.limit, band.points)
    wrong = ring_geometry._orthonormal(
        np.concatenate(
            [ring_geometry.RingGeometry(other)._sample(np.eye(len(a)), f, 1) for f, a in known.angular.items()]
        )
    )
    assert np.linalg.norm(own - own @ wrong.T @ wrong) > 1e-2


@pytest.mark.parametrize("dimension", [2, 3])
def test_harmonics_move_as_functions(dimension):
    generator = np.random.default_rng(0)
    points = generator.normal(size=(60, dimension))
    for frequency, mirror in itertools.product(range(5), (1, -1)):
        g, _ = np.linalg.qr(generator.normal(size=(dimension, dimension)))
        g[0] *= mirror * np.linalg.det(g)
        R = harmonic_action(g, frequency)
        assert len(R) == (1 if frequency == 0 else 2 if dimension == 2 else 2 * frequency + 1)
        assert np.allclose(R @ R.T, np.eye(len(R)))
        # the coefficients of f(g^-1 x) are R times those of f
        assert np.allclose(harmonics(points @ g, frequency), R.T @ harmonics(points, frequency))


@pytest.mark.slow
def test_subgroups_of_space():
    """Three-fold turns of the octahedral group move voxels to voxels, those of SO(2) about an axis do not."""
    space = gspaces.octaOnR3()
    layer = RelaxedR3Conv(enn.FieldType(space, [space.trivial_repr]), enn.FieldType(space, [space.irrep(1)]), 3)
    symmetry = KernelSymmetry(layer)
    lattice = [h for h in subgroups(space)]
    assert len(lattice) == 30 and all(abs(turning_error(layer.band, h)) < SAME for h in lattice[::5])
    assert not lost_on_the_grid([symmetry], subgroup(space, "octa"), symmetry.search())
    axis = gspaces.rot3dOnR3(maximum_frequency=2)
    layer = RelaxedR3Conv(enn.FieldType(axis, [axis.trivial_repr]), enn.FieldType(axis, [axis.irrep(1)]), 3)
    assert turning_error(layer.band, subgroup(axis, "so3")) > 0.01


def test_a_turned_axis_in_the_plane_loses_what_a_standard_one_does_not():
    space = planar("O2")
    band, psi = band_of(space, 5), irrep_multiplicities(space.irrep(1, 1), space.irrep(1, 1))
    straight, tilted = (
        grid_loss(band, subgroup(space, (None, 1)), subgroup(space, (axis, 1)), psi) for axis in (0.0, 0.3)
    )
    assert straight.fraction < SAME < 1e-3 < tilted.fraction


def planted(space, fields, size, id):
    model = relax(enn.SequentialModule(enn.R2Conv(fields, fields, size)))
    torch.manual_seed(0)
    with torch.no_grad():
        for w in model[0].weights.values():
            w.normal_()
        for name, w in KernelSymmetry(model[0]).projected_weights(subgroup(space, id)).items():
            model[0].weights[name].copy_(w)
    return model


class Pooled(nn.Module):
    """Means of a model's outputs over the sites."""

    def __init__(self, body, fields):
        super().__init__()
        self.body, self.fields = body, fields

    def forward(self, x):
        return self.body(self.fields(x)).tensor.mean((-2, -1))


def test_where_a_verdict_is_read_so_is_what_is_lost():
    space = planar("C6")
    fields = enn.FieldType(space, 2 * [space.regular_repr])
    model = planted(space, fields, 3, 3)
    found = survivors(model)
    own = found.network
    assert own.subgroup.name == "C3" and [g.smaller.name for g in own.grid] == ["trivial"]
    assert own.lost == own.grid[0].fraction == pytest.approx(0.04, abs=0.002) and own.grid[0].kernel_size == 11
    said = "these pixels lose 4.00% of what tells trivial from C3"
    assert said in str(found) and any(said in reason for reason in found.decisions.layers[0].reasons)
    assert found.decisions.layers[0].lost == own.lost and found.decisions.to_dict()["0"]["lost"] == own.lost
    table = report(model)
    assert table.layers[0].lost == own.lost and "lost on the pixels: 0: 4.00%" in str(table)
    for changed, to in ((model, found), (planted(space, fields, 3, 3), "stabiliser")):
        _, (record,) = harden(changed, to=to, return_report=True)
        assert record.lost == own.lost and any(said in reason for reason in record.reasons)
    # what the grid has loses nothing, and nothing is said
    model = planted(space, fields, 3, 2)
    assert (
        survivors(model).network.lost == 0.0
        and "pixels" not in str(survivors(model))
        and "pixels" not in str(report(model))
    )


def test_what_is_lost_is_said_beside_a_verdict_by_data_too():
    """That of the subgroups which the data leave, no others."""
    space = planar("C6")
    fields = enn.FieldType(space, [space.regular_repr])
    model = planted(space, fields, 3, 3).double()
    net = Pooled(model, fields)
    x = torch.randn(20, 6, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    data = [(x, net(x).argmax(1).detach())]
    evidence = Evidence(net, num_data=20)
    evidence.refresh(data)
    (found,) = survivors(net, evidence, data=data).layers
    shown = {found.subgroup.name, *(h.name for h in found.candidates)}
    assert found.losses and found.subgroup.name == "C3"
    assert [g.smaller.name for g in found.grid if g.larger.name == "C3"] == ["trivial"]
    assert {g.larger.name for g in found.grid} <= shown


def test_the_size_that_would_settle_it_does():
    space = planar("C6")
    irreps = irrep_multiplicities(space.regular_repr, space.regular_repr)
    one, three = subgroup(space, 1), subgroup(space, 3)
    size = sufficient_size(one, three, irreps, 3)
    losses = [grid_loss(band_of(space, s), one, three, irreps).fraction for s in (size - 2, size)]
    assert losses[1] <= module.NEGLIGIBLE < losses[0]


def test_losses_are_of_the_whole_layer_and_the_layer_that_tells_most():
    space = planar("C6")
    scalar, regular = enn.FieldType(space, [space.trivial_repr]), enn.FieldType(space, 3 * [space.regular_repr])
    small, large = (KernelSymmetry(RelaxedR2Conv(regular, regular, s)) for s in (3, 5))
    kept = subgroup(space, 3)
    one, other, both = (
        lost_on_the_grid(of, kept, small.search())[0].fraction for of in ([small], [large], [small, large])
    )
    assert both == other < one
    # fields of several kinds count as often as they are there
    mixed = KernelSymmetry(RelaxedR2Conv(scalar + regular, regular, 3))
    parts = [KernelSymmetry(RelaxedR2Conv(of, regular, 3)).lost(subgroup(space, 1), kept) for of in (scalar, regular)]
    whole = mixed.lost(subgroup(space, 1), kept)
    assert whole.kernels == sum(p.kernels for p in parts)
    assert whole.squared_sines == pytest.approx(sum(p.squared_sines for p in parts))


def test_where_all_is_lost_it_is_one():
    space = planar("C6")
    scalar = enn.FieldType(space, [space.trivial_repr])
    symmetry = KernelSymmetry(RelaxedR2Conv(scalar, scalar, 5))
    kept = subgroup(space, 6)
    told = resolution([symmetry], kept, symmetry.search())
    assert told.alike and told.lost(kept) == 1.0
    # frequency 4 on three by three pixels: the sine vanishes on all of them
    layer = RelaxedR2Conv(scalar, scalar, 3, frequencies_cutoff=lambda r: 4.0 if r else 0.0)
    three, one = subgroup(space, 3), subgroup(space, 1)
    found = grid_loss(layer.band, one, three, irrep_multiplicities(space.trivial_repr, space.trivial_repr))
    assert found.kernels == 6 and found.sine == 0.0 and found.fraction >= 1 / 6
    assert turning_error(layer.band, three) >= 0.5 - SAME  # half of the cosine has gone to the sine
    assert turning_error(layer.band, subgroup(space, 2)) < SAME


@pytest.mark.parametrize("size", [4, 6])
def test_kernels_of_even_size(size):
    """They have no pixel in the middle, where the innermost ring is a point: it used to become NaN."""
    space = planar("C8")
    band = band_of(space, size)
    assert 0.0 in band.rings and np.linalg.norm(band.points, axis=1).min() > 0.5
    assert turning_error(band, subgroup(space, 8)) > 0.01 and turning_error(band, subgroup(space, 4)) < SAME
    regular = space.regular_repr
    found = grid_loss(band, subgroup(space, 4), subgroup(space, 8), irrep_multiplicities(regular, regular))
    assert found.kernels and 0 < found.fraction < 1 and 0 < found.sine < 1
