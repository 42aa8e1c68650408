"""The kernel space of a layer, sorted by how it breaks the symmetry.

Oracles: escnn's own layer of the subgroup, on the same rings and in the same band; and averages over the group that
turn the kernels as pictures.
"""

import numpy as np
import pytest
import torch
from escnn.gspaces import octaOnR3
from escnn.nn import FieldType, R3Conv
from fields import (
    ON_GRID,
    ROUNDING,
    SAMPLING,
    SIZES,
    SMALL,
    average,
    field_type,
    image,
    kernels_of,
    kernels_of_strict,
    kernels_of_subgroup,
    kernels_without_symmetry,
    layers,
    outside,
    rank,
    space,
    turn,
)
from hypothesis import given, settings
from nonempty import each

from escnn_relax.nn import RelaxedR2Conv, RelaxedR3Conv
from escnn_relax.symmetry.kernels.graded import fixed_kernels, fixed_vectors, isotypic_kernels, isotypic_tuples
from escnn_relax.symmetry.grid.kernel_action import grid_permutation, isotypic_projection, transform_kernels
from escnn_relax.symmetry.kernels.plan import plan
from escnn_relax.symmetry.groups.restriction import restriction
from escnn_relax.symmetry.kernels.linear_algebra import complement, orthonormal
from escnn_relax.symmetry.groups.lattice import subgroup, subgroups

#: Kernels of different irreps on a grid that a group does not map to itself are not orthogonal by themselves; after
#: orthogonalisation they are, to the rounding of a float32 buffer.
ORTHOGONAL = 1e-6


def relaxed(in_type, out_type, size, **how):
    return RelaxedR2Conv(in_type, out_type, size, bias=False, initialize=False, **how)


def free_kernels(layer):
    """All kernels that escnn has for the trivial group, one a row, for as many scalar channels."""
    return kernels_without_symmetry(layer.in_type.size, layer.out_type.size, layer)


# --- the whole space --------------------------------------------------------------------------------------------------


def check_that_pathways_fill_the_free_layer(in_type, out_type, size):
    layer = relaxed(in_type, out_type, size)
    rows, free = kernels_of(layer), free_kernels(layer)
    together = torch.cat(list(rows.values()))
    assert len(together) == rank(free) == rank(together)
    assert outside(together, free) < SAMPLING


@settings(max_examples=15)
@given(layers())
def test_pathways_fill_the_trivial_groups_layer(layer):
    check_that_pathways_fill_the_free_layer(*layer)


@pytest.mark.parametrize("name", SMALL)
def test_pathways_fill_the_trivial_groups_layer_for_each_group(name):
    check_that_pathways_fill_the_free_layer(field_type(name, "interleaved"), field_type(name, "trivial"), 5)


@pytest.mark.parametrize(
    ("name", "id", "frequency"), [("C8", 2, 1), ("D4", (None, 4), 1), ("D4", (0, 1), 1), ("C4", 2, 0)]
)
def test_pathways_fill_the_trivial_groups_layer_between_induced_fields(name, id, frequency):
    s = space(name)
    part = s.fibergroup.subgroup(id)[0]
    induced = s.induced_repr(id, part.irrep(frequency))
    fields = FieldType(s, [induced]), FieldType(s, [s.irreps[1], induced])
    check_that_pathways_fill_the_free_layer(*fields, 3)


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["C8", "D4", "D8"])
def test_pathways_fill_the_trivial_groups_layer_for_large_groups(name, size):
    for kind_in, kind_out in [("regular", "regular"), ("irreps", "irreps"), ("quotient", "interleaved")]:
        check_that_pathways_fill_the_free_layer(field_type(name, kind_in), field_type(name, kind_out), size)


@pytest.mark.parametrize(
    ("name", "dimensions"),
    [
        ("C4", {"equivariant": 44, "irrep_1": 88, "irrep_2": 44}),
        ("C8", {"equivariant": 88, "irrep_1": 176, "irrep_2": 176, "irrep_3": 176, "irrep_4": 88}),
    ],
)
def test_dimensions_between_regular_fields(name, dimensions):
    """|G| copies of the field in each dimension of an irrep: 11 free kernels of size 5, times |G| times dim."""
    assert relaxed(field_type(name), field_type(name), 5).kernel.dimensions == dimensions


@settings(max_examples=15)
@given(layers())
def test_pathways_are_orthogonal_and_residual_ones_orthonormal(layer):
    rows = kernels_of(relaxed(*layer))
    equivariant = rows.pop("equivariant")
    residual = torch.cat(list(rows.values()))
    assert (residual @ residual.T - torch.eye(len(residual))).abs().max() < ORTHOGONAL
    assert (residual @ equivariant.T).abs().max() < ORTHOGONAL * max(1, equivariant.norm(dim=1).max())


def test_without_orthogonalisation_the_irreps_of_c8_overlap():
    """The twin: sampling mixes what is orthogonal on the plane."""
    layer, regular = relaxed(field_type("C8"), field_type("C8"), 5), space("C8").regular_repr
    parts = [
        isotypic_kernels(layer.band, layer.space, regular, regular, space("C8").irreps[j]).flatten(1) for j in (0, 4)
    ]
    cosines = torch.nn.functional.normalize(parts[0]) @ torch.nn.functional.normalize(parts[1]).T
    assert cosines.abs().max() > 0.1


# --- each part --------------------------------------------------------------------------------------------------------


def test_the_oracle_turns_pictures_as_escnn_does():
    for name in each(ON_GRID):
        gray = FieldType(space(name), [space(name).trivial_repr])
        x = image(gray, 5, 1)
        for g in each(gray.fibergroup.elements):
            expected = x.transform(g).tensor.numpy()
            assert np.array_equal(turn(x.tensor.numpy(), gray.gspace, g), expected)


@pytest.mark.parametrize("name", ON_GRID)
def test_kernels_are_moved_as_tensors_are(name):
    """(g K)(x) = rho_out(g) K(g^-1 x) rho_in(g)^-1, so that (g K) * (g f) = g (K * f)."""
    in_type, out_type = field_type(name, "interleaved"), field_type(name)
    layer = relaxed(in_type, out_type, 3)
    kernel = torch.randn(1, out_type.size, in_type.size, 9, dtype=torch.float64)
    x = image(in_type, 7, 1, torch.float64)
    for g in each(in_type.fibergroup.elements):
        q = grid_permutation(in_type.gspace, g, layer.band.points)
        moved = transform_kernels(kernel, g, in_type.representation, out_type.representation, q)
        there = torch.conv2d(x.transform(g).tensor, moved.view(out_type.size, in_type.size, 3, 3))
        here = out_type(torch.conv2d(x.tensor, kernel.view(out_type.size, in_type.size, 3, 3)))
        assert (there - here.transform(g).tensor).abs().max() < ROUNDING


@settings(max_examples=12)
@given(layers(names=ON_GRID))
def test_averaging_keeps_equivariant_kernels_and_removes_the_others(layer):
    in_type, out_type, size = layer
    rows = kernels_of(relaxed(in_type, out_type, size))
    equivariant = rows.pop("equivariant")
    residual = torch.cat(list(rows.values()))
    assert (average(equivariant, in_type, out_type) - equivariant).abs().max() < SAMPLING
    assert average(residual, in_type, out_type).abs().max() < SAMPLING
    # the twin: a kernel that is part of both is neither kept nor removed
    mixed = equivariant[:1] / equivariant[:1].norm() + residual[:1]
    half = average(mixed, in_type, out_type)
    assert (half - mixed).norm() > 0.9 and half.norm() > 0.9


@settings(max_examples=12)
@given(layers(names=ON_GRID))
def test_each_irreps_kernels_transform_by_it(layer):
    """Its character projects on them, and no other's does."""
    in_type, out_type, size = layer
    new = relaxed(in_type, out_type, size)
    rows = kernels_of(new)
    for psi in each(in_type.gspace.irreps):
        multiplicity = psi.size / psi.sum_of_squares_constituents
        for p in each(new.pathways):
            own = p.irrep == psi.id if p.irrep else psi.is_trivial()
            projected = multiplicity * average(rows[p.name], in_type, out_type, psi.character)
            expected = rows[p.name] if own else torch.zeros_like(projected)
            assert (projected - expected).abs().max() < 2 * SAMPLING


@pytest.mark.parametrize("name", ON_GRID)
def test_tuples_transform_by_their_irrep(name):
    r""":math:`g K_a = \sum_b \psi(g)_{ba} K_b`."""
    regular, quotient = field_type(name).representation, field_type(name, "irreps").representation
    layer = relaxed(field_type(name), field_type(name), 3)
    for psi in each(space(name).irreps):
        tuples = isotypic_tuples(layer.band, space(name), regular, quotient, psi)
        assert len(tuples)
        for g in each(space(name).fibergroup.elements):
            q = grid_permutation(space(name), g, layer.band.points)
            moved = transform_kernels(tuples.flatten(0, 1), g, regular, quotient, q).view_as(tuples)
            expected = torch.einsum("ba,kbois->kaois", torch.as_tensor(psi(g)), tuples)
            assert (moved - expected).abs().max() < SAMPLING


@pytest.mark.parametrize("name", ON_GRID)
def test_the_packages_own_projection_equals_the_oracle(name):
    in_type, out_type = field_type(name, "interleaved"), field_type(name)
    layer = relaxed(in_type, out_type, 3)
    kernels = torch.randn(4, out_type.size, in_type.size, 9, dtype=torch.float64)
    moves = {g: grid_permutation(in_type.gspace, g, layer.band.points) for g in in_type.fibergroup.elements}
    for psi in each(in_type.gspace.irreps):
        factor = psi.size / psi.sum_of_squares_constituents
        expected = factor * average(kernels.flatten(1), in_type, out_type, psi.character)
        got = isotypic_projection(kernels, in_type.representation, out_type.representation, moves, psi)
        assert (got.flatten(1) - expected).abs().max() < ROUNDING


@pytest.mark.parametrize("name", ["C4", "C8", "D4"])
def test_complex_irreps_need_only_their_first_members(name):
    """What the tuples' other members add to the span of the first is nothing, or they are independent."""
    layer, regular = relaxed(field_type(name), field_type(name, "trivial"), 5), space(name).regular_repr
    for psi in each(space(name).irreps):
        tuples = isotypic_tuples(layer.band, space(name), regular, space(name).trivial_repr, psi).flatten(2)
        kept = isotypic_kernels(layer.band, space(name), regular, space(name).trivial_repr, psi).flatten(1)
        assert len(kept) == rank(kept) == rank(tuples.flatten(0, 1))


# --- subgroups --------------------------------------------------------------------------------------------------------


def proper(name):
    """The whole lattice below a group, as parameters of a test."""
    return [pytest.param(name, kept.id, id=f"{name}-{kept.name}") for kept in subgroups(space(name)) if kept.index > 1]


@pytest.mark.parametrize(("name", "id"), [pair for name in ("C4", "C8", "D4") for pair in proper(name)])
def test_fixed_vectors_are_the_subgroups_own_kernels(name, id):
    """Equivariant kernels and the H-fixed vectors of all irreps span what escnn finds for H."""
    check_fixed_vectors(name, id, "quotient", 3)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "id"), [pair for name in ("C4", "C8", "D4", "D8") for pair in proper(name)])
def test_fixed_vectors_between_regular_fields(name, id):
    check_fixed_vectors(name, id, "regular", 5 if name != "D8" else 3)


def check_fixed_vectors(name, id, kind, size):
    s, a, b = space(name), space(name).regular_repr, field_type(name, kind).representations[0]
    layer = relaxed(field_type(name), field_type(name, kind), size)
    kept = subgroup(s, id)
    new = fixed_kernels(layer.band, s, a, b, kept).flatten(1)
    own = torch.cat([kernels_of(layer)["equivariant"], new])
    if kept.order == 1:
        expected = kernels_without_symmetry(a.size, b.size, layer)
    else:
        there = restriction(kept)
        expected = kernels_of_subgroup(there.gspace, [there.representation(a)], [there.representation(b)], layer)
    assert rank(own) == rank(expected)
    assert outside(own, expected) < SAMPLING and outside(expected, own) < SAMPLING


@pytest.mark.slow
def test_fixed_vectors_below_the_octahedral_group():
    """Every subgroup up to conjugation, and one conjugate."""
    s = octaOnR3()
    a, b = s.irrep(1), s.quotient_repr((False, 4))
    fields = FieldType(s, [a]), FieldType(s, [b])
    for id in [(False, 1), (False, 2), (False, 3), (False, 4), (True, 2), (True, 3), (True, 4)]:
        layer = RelaxedR3Conv(*fields, 3, bias=False, initialize=False, subgroups=[id])
        own = torch.cat(list(kernels_of(layer).values()))
        there = restriction(subgroup(s, id))
        band = {
            "rings": list(layer.band.rings),
            "sigma": list(layer.band.sigma),
            "frequencies_cutoff": layer.band.cutoff,
        }
        pair = [FieldType(there.gspace, [there.representation(r)]) for r in (a, b)]
        expected = kernels_of_strict(R3Conv(*pair, 3, **band, bias=False, initialize=False))
        assert len(own) == rank(own) == rank(expected)
        assert outside(own, expected) < SAMPLING and outside(expected, own) < SAMPLING


def test_a_conjugate_subgroup_fixes_other_kernels():
    """The twin: reflections along an axis and along the diagonal keep as many kernels, but not the same."""
    s, one = space("D4"), space("D4").regular_repr
    layer = relaxed(field_type("D4"), field_type("D4"), 3)
    spans = [fixed_kernels(layer.band, s, one, one, subgroup(s, id)).flatten(1) for id in [(0, 1), (1, 1)]]
    assert rank(spans[0]) == rank(spans[1]) and outside(*spans) > 0.5


@pytest.mark.parametrize("name", ["C4", "C8", "D1", "D2", "D4"])
def test_dimensions_of_fixed_vectors(name):
    """Frobenius reciprocity: over all irreps, dim psi times the fixed vectors add up to the index of H."""
    for kept in each(subgroups(space(name))):
        parts = [
            psi.size * len(fixed_vectors(psi, kept)) // psi.sum_of_squares_constituents for psi in space(name).irreps
        ]
        assert sum(parts) == kept.index
    fixed = [(h, psi, v) for h in subgroups(space(name)) for psi in space(name).irreps for v in fixed_vectors(psi, h)]
    for kept, psi, v in each(fixed):
        assert max(np.abs(psi(h) @ v.numpy() - v.numpy()).max() for h in kept.elements) < ROUNDING


def test_the_trivial_subgroup_ties_all_irreps():
    graded = kernels_of(relaxed(field_type("C4"), field_type("C4"), 5))
    residual = kernels_of(relaxed(field_type("C4"), field_type("C4"), 5, subgroups=[1]))
    assert list(residual) == ["equivariant", "trivial"]
    together = torch.cat([graded["irrep_1"], graded["irrep_2"]])
    assert len(together) == len(residual["trivial"])
    assert outside(residual["trivial"], together) < SAMPLING


def test_a_ladder_agrees_with_the_grading():
    """C4 and the trivial group in D4: the irrep that C4 fixes, then all others."""
    in_type, out_type = field_type("D4"), field_type("D4", "quotient")
    graded = kernels_of(relaxed(in_type, out_type, 3))
    ladder = kernels_of(relaxed(in_type, out_type, 3, subgroups=[(None, 1), (None, 4)]))
    assert list(ladder) == ["equivariant", "C4", "trivial"]
    turns = subgroup(space("D4"), (None, 4))
    assert [psi.name for psi in space("D4").irreps if len(fixed_vectors(psi, turns))] == ["irrep_0,0", "irrep_1,0"]
    assert len(ladder["C4"]) == len(graded["irrep_1,0"])
    assert outside(ladder["C4"], graded["irrep_1,0"]) < SAMPLING
    others = torch.cat([rows for name, rows in graded.items() if name not in ("equivariant", "irrep_1,0")])
    assert len(ladder["trivial"]) == len(others) and outside(ladder["trivial"], others) < SAMPLING


# --- complete on the pixels -------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(layers(sizes=(1, 3)))
def test_pixel_basis_is_complete(layer):
    in_type, out_type, size = layer
    rows = torch.cat(list(kernels_of(relaxed(in_type, out_type, size, basis="pixel")).values()))
    assert len(rows) == rank(rows) == in_type.size * out_type.size * size**2


@pytest.mark.parametrize("name", ON_GRID)
def test_pixel_kernels_off_the_band_keep_a_symmetry_of_the_grid(name):
    in_type, out_type = field_type(name, "irreps"), field_type(name, "trivial" if name == "D4" else "regular")
    layer = relaxed(in_type, out_type, 3, basis="pixel")
    rows = kernels_of(layer)
    (off,) = [p for p in layer.pathways if p.name == "off_band"]
    assert not off.breaks
    assert (average(rows["off_band"], in_type, out_type) - rows["off_band"]).abs().max() < SAMPLING
    for p in each(layer.pathways):
        if p.irrep:
            psi = space(name).irrep(*p.irrep)
            factor = psi.size / psi.sum_of_squares_constituents
            projected = factor * average(rows[p.name], in_type, out_type, psi.character)
            assert (projected - rows[p.name]).abs().max() < SAMPLING


@pytest.mark.parametrize("name", ["C3", "C8"])
def test_pixel_kernels_off_the_band_count_as_breaking_elsewhere(name):
    layer = relaxed(field_type(name), field_type(name), 3, basis="pixel")
    assert layer.pathways[-1].name == "off_band" and layer.pathways[-1].breaks
    assert layer.pathways[-1] not in plan(space("C4"), basis="pixel").pathways


@pytest.mark.parametrize("kept", [4, 2, 1])
def test_pixel_ladder_below_c8_keeps_its_subgroup(kept):
    """C8 does not act on the grid, C4 and C2 do: their pathways hold all pixel kernels with that symmetry."""
    ids = [m for m in (4, 2, 1) if m >= kept]
    layer = relaxed(field_type("C8"), field_type("C8", "trivial"), 3, basis="pixel", subgroups=ids)
    rows = kernels_of(layer)
    dimension = sum(len(rows[n]) for n in rows if n != "off_band")
    assert dimension == 8 * 9 // kept  # C_m permutes the eight channels, and so the 72 entries, freely
    assert ("off_band" in rows) == (kept > 1)


# --- linear algebra ---------------------------------------------------------------------------------------------------


def test_orthonormal_drops_what_is_dependent():
    rows = torch.randn(4, 9, dtype=torch.float64)
    many = torch.randn(7, 4, dtype=torch.float64) @ rows
    basis = orthonormal(many)
    assert basis.shape == (4, 9)
    assert (basis @ basis.T - torch.eye(4)).abs().max() < ROUNDING and outside(rows, basis) < ROUNDING
    rest = orthonormal(torch.randn(9, 9, dtype=torch.float64), reference=basis)
    assert rest.shape == (5, 9) and (rest @ basis.T).abs().max() < ROUNDING
    assert outside(rest, complement(basis)) < ROUNDING
    assert orthonormal(torch.zeros(3, 9)).shape == orthonormal(many, reference=basis).shape == (0, 9)
