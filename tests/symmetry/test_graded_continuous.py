"""The graded kernel space of continuous groups, in the plane and in space.

Oracles: escnn's own layers of the trivial group and of each subgroup, on the same rings and in the same band; and
averages over the group, by quadrature, of analytic kernels that are sampled at turned points.
"""

import copy
import pickle
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from escnn import gspaces
from escnn import group as groups
from escnn.nn import FieldType, Linear, NormNonLinearity, R2Conv, R3Conv, SequentialModule
from fields import SAMPLING, SINGLE, distance, kernels_of, kernels_of_strict, outside, randomise, rank
from nonempty import each
from torch.utils.data import DataLoader, TensorDataset

from escnn_relax import Evidence, relax
from escnn_relax.errors import ArgumentError, NothingToRelaxError, SubgroupError
from escnn_relax.nn import RelaxedLinear, RelaxedR2Conv, RelaxedR3Conv, RelaxedR3ConvTransposed
from escnn_relax.symmetry.kernels.graded import fixed_vectors, isotypic_kernels
from escnn_relax.symmetry.groups.irreps import irreps_up_to
from escnn_relax.symmetry.groups.restriction import restriction
from escnn_relax.symmetry.groups.lattice import subgroup

#: Principal cosines of equal spans, sampled in float32: one minus the square of the largest angle.
SAME = 1 - 1e-7

SPACES = {
    "SO2": lambda: gspaces.rot2dOnR2(-1, maximum_frequency=1),
    "O2": lambda: gspaces.flipRot2dOnR2(-1, maximum_frequency=1),
    "SO3": lambda: gspaces.rot3dOnR3(maximum_frequency=1),
    "O3": lambda: gspaces.flipRot3dOnR3(maximum_frequency=1),
    "axial": lambda: gspaces.rot2dOnR3(maximum_frequency=1),
    "cone": lambda: gspaces.conicalOnR3(maximum_frequency=1),
    "dihedral": lambda: gspaces.dihedralOnR3(maximum_frequency=1),
    "cylinder": lambda: gspaces.cylindricalOnR3(maximum_frequency=1),
    "octa": gspaces.octaOnR3,
    "inversion": gspaces.invOnR3,
    "mirror": gspaces.mirOnR3,
    "turns": lambda: gspaces.rot2dOnR3(4),
}

#: The irreps of two field types for each group: equal ones in several places, and ones of complex type.
FIELDS = {
    "SO2": ([(2,), (0,), (2,)], [(1,), (0,)]),
    "O2": ([(1, 1), (0, 0), (1, 1)], [(1, 0), (1, 2)]),
    "SO3": ([(1,), (0,)], [(0,), (1,)]),
    "O3": ([(1, 1), (0, 0)], [(0, 0), (0, 1)]),
    "axial": ([(1,), (0,)], [(2,), (0,)]),
    "cone": ([(1, 1), (0, 0)], [(1, 0), (0, 0)]),
    "dihedral": ([(0, 0), (1, 1)], [(1, 0), (0, 0)]),
    "cylinder": ([((0,), (0,))], [((1,), (1,)), ((0,), (0,))]),
    "octa": ([(1,), (0,)], [(-1,), (2,)]),
    "inversion": ([(0,), (1,)], [(1,), (0,)]),
    "mirror": ([(0,), (1,)], [(1,), (0,)]),
    "turns": ([(1,), (0,), (2,)], [(1,), (0,)]),
}


@cache
def space(name):
    return SPACES[name]()


def types(name, mixed=False):
    """Two field types of irreps; ``mixed`` puts the irreps of each into one field, in general coordinates."""
    s = space(name)
    found = []
    for side, ids in enumerate(FIELDS[name]):
        irreps = [s.irrep(*id) for id in ids]
        if mixed:
            whole = groups.directsum(irreps)
            turn, _ = np.linalg.qr(np.random.default_rng(side).normal(size=(whole.size, whole.size)))
            change = turn @ whole.change_of_basis
            irreps = [groups.Representation(s.fibergroup, f"mixed_{side}", whole.irreps, change, set())]
        found.append(FieldType(s, irreps))
    return found


def relaxed(in_type, out_type, size=3, **how):
    kind = RelaxedR2Conv if in_type.gspace.dimensionality == 2 else RelaxedR3Conv
    return kind(in_type, out_type, size, bias=False, initialize=False, **how)


def cosines(a, b):
    """Cosines of the principal angles between the spans of two sets of rows, small to large."""
    ranges = []
    for rows in (a, b):
        left, values, _ = torch.linalg.svd(rows.T, full_matrices=False)
        ranges.append(left[:, values > 1e-3 * values[0]])
    return torch.linalg.svdvals(ranges[0].T @ ranges[1]).flip(0)


def assert_same_span(a, b):
    assert rank(a) == rank(b)
    assert cosines(a, b)[0] > SAME


def strict_kernels(gspace, in_reprs, out_reprs, like):
    """The kernels of escnn's own layer on another G-space, one a row, on the rings and in the band of ``like``."""
    band = {"rings": list(like.band.rings), "sigma": list(like.band.sigma), "frequencies_cutoff": like.band.cutoff}
    kind = R2Conv if like.d == 2 else R3Conv
    pair = FieldType(gspace, in_reprs), FieldType(gspace, out_reprs)
    return kernels_of_strict(kind(*pair, like.kernel_size, **band, bias=False, initialize=False))


def free_kernels(layer):
    trivial = gspaces.trivialOnR2() if layer.d == 2 else gspaces.trivialOnR3()
    scalar = strict_kernels(trivial, [trivial.trivial_repr], [trivial.trivial_repr], layer)
    return torch.kron(torch.eye(layer.in_type.size * layer.out_type.size), scalar).double()


# --- the whole space --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixed", [False, True], ids=["irreps", "mixed"])
@pytest.mark.parametrize("name", SPACES)
def test_all_irreps_fill_the_trivial_groups_layer(name, mixed):
    layer = relaxed(*types(name, mixed))
    rows, free = torch.cat(list(kernels_of(layer).values())), free_kernels(layer)
    assert len(rows) == rank(rows) == rank(free) == len(free)
    assert cosines(rows, free)[0] > SAME and outside(rows, free) < SAMPLING


@pytest.mark.slow
@pytest.mark.parametrize(
    "kinds", [("quotient", "trivial"), ("regular", "irreps"), ("irreps", "quotient")], ids="-".join
)
def test_all_irreps_fill_the_trivial_groups_layer_of_the_octahedron(kinds):
    s = space("octa")
    fields = {
        "trivial": [s.trivial_repr],
        "regular": [s.regular_repr],
        "irreps": [s.irrep(k) for k in (0, 1, 2, 3, -1)],
        "quotient": [s.quotient_repr((False, 4))],
    }
    layer = relaxed(*(FieldType(s, fields[kind]) for kind in kinds))
    rows, free = torch.cat(list(kernels_of(layer).values())), free_kernels(layer)
    assert len(rows) == rank(rows) == rank(free) and outside(rows, free) < SAMPLING


@pytest.mark.parametrize("name", ["SO2", "O2"])
def test_all_irreps_fill_larger_kernels(name):
    layer = relaxed(*types(name), size=5)
    assert_same_span(torch.cat(list(kernels_of(layer).values())), free_kernels(layer))


@pytest.mark.parametrize("name", ["SO2", "SO3", "octa"])
def test_one_irrep_less_or_other_rings_and_the_space_is_another(name):
    """The twins of the tests above."""
    layer = relaxed(*types(name))
    rows, free = kernels_of(layer), free_kernels(layer)
    left_out = max((n for n in rows if n != "equivariant"), key=lambda n: len(rows[n]))
    fewer = torch.cat([rows[n] for n in rows if n != left_out])
    assert rank(fewer) == rank(free) - len(rows[left_out])
    assert outside(rows[left_out], fewer) > 0.99
    kind = RelaxedR2Conv if layer.d == 2 else RelaxedR3Conv
    other = kind(layer.in_type, layer.out_type, 3, sigma=0.8, bias=False, initialize=False)
    assert cosines(torch.cat(list(kernels_of(other).values())), free)[0] < 0.999


def test_the_default_is_the_lowest_complete_cutoff():
    """Input frequency 2, output frequency 1, and 2 in the band of a kernel of size 3: 5 and no less."""
    in_type, out_type = types("SO2")
    whole = relaxed(in_type, out_type)
    assert [p.irrep for p in whole.pathways[1:]] == [(k,) for k in range(1, 6)] and not whole.empty_pathways
    less = relaxed(in_type, out_type, frequencies=4)
    assert 0 < sum(whole.kernel.dimensions.values()) - sum(less.kernel.dimensions.values())
    more = relaxed(in_type, out_type, frequencies=7)
    assert [p.irrep for p in more.empty_pathways] == [(6,), (7,)]
    assert more.kernel.dimensions == whole.kernel.dimensions


# --- each part, by averaging over the group ---------------------------------------------------------------------------


def quadrature(name, degree):
    """Elements and weights that integrate matrix elements of this degree exactly over the group."""
    group = space(name).fibergroup
    turns = 2 * np.pi * np.arange(degree + 1) / (degree + 1)
    if name == "SO2":
        return [(group.element(a), 1 / len(turns)) for a in turns]
    if name == "O2":
        return [(group.element((f, a)), 0.5 / len(turns)) for f in (0, 1) for a in turns]
    nodes, weights = np.polynomial.legendre.leggauss(degree // 2 + 1)
    found = []
    for a, (b, w), c in product(turns, zip(nodes, weights), turns):
        ca, sa, cc, sc = np.cos(a), np.sin(a), np.cos(c), np.sin(c)
        about = [np.array([[x, -y, 0], [y, x, 0], [0, 0, 1]]) for x, y in ((ca, sa), (cc, sc))]
        tilt = np.array([[b, 0, np.sqrt(1 - b * b)], [0, 1, 0], [-np.sqrt(1 - b * b), 0, b]])
        found.append((group.element(about[0] @ tilt @ about[1], "MAT"), w / 2 / len(turns) ** 2))
    return found


def averaged(layer, in_repr, out_repr, character, elements):
    r"""All free kernels projected, :math:`\int \chi(g) \rho_{out}(g) K(g^{-1}x) \rho_{in}(g)^{-1} dg`, one a row."""
    trivial = gspaces.trivialOnR2() if layer.d == 2 else gspaces.trivialOnR3()
    one, band = trivial.trivial_repr, layer.band
    basis = trivial.build_kernel_basis(one, one, list(band.sigma), list(band.rings), maximum_frequency=band.highest)
    inside = torch.tensor([band.admits(e) for e in basis])
    total = 0
    for g, weight in elements:
        matrix = layer.in_type.gspace.basespace_action(g)
        points = torch.as_tensor(band.points @ matrix, dtype=torch.float32)  # row by row g^-1 x
        turned = basis.sample(points).double()[:, inside, 0, 0].T  # (K, S), not normalised
        left, right = (torch.as_tensor(np.asarray(r)) for r in (out_repr(g), in_repr(~g)))
        total = total + weight * character(g) * torch.einsum("po,iq,ks->oikpqs", left, right, turned)
    return total.flatten(0, 2).flatten(1)


@pytest.mark.parametrize("name", ["SO2", "O2", "SO3"])
def test_each_part_is_what_averaging_by_its_character_leaves(name):
    layer = relaxed(*types(name))
    in_repr, out_repr = layer.in_type.representation, layer.out_type.representation
    highest = 2 if name == "SO3" else 3
    elements = quadrature(name, degree=4 + highest + (name != "SO3"))  # of the fields, the band, and the character
    found = {}
    for psi in each(irreps_up_to(space(name).fibergroup, highest)):
        found[psi.id] = isotypic_kernels(layer.band, space(name), in_repr, out_repr, psi).flatten(1)
        assert_same_span(found[psi.id], averaged(layer, in_repr, out_repr, psi.character, elements))
    # the twin: another irrep's character leaves another part
    first, second = list(found)[1:3]
    other = space(name).irrep(*second).character
    assert cosines(found[first], averaged(layer, in_repr, out_repr, other, elements))[0] < 0.9


def test_members_of_complex_type_are_not_redundant():
    """Half of the members of tuples suffice for SO(2), all are needed for O(2)."""
    for name, factor in (("SO2", 1), ("O2", 2)):
        layer = relaxed(*types(name))
        psi = space(name).irrep(*irreps_up_to(space(name).fibergroup, 1)[-1].id)
        rows = isotypic_kernels(layer.band, space(name), *(t.representation for t in types(name)), psi).flatten(1)
        assert len(rows) == rank(rows) and psi.size == 2 and psi.sum_of_squares_constituents * factor == 2


def test_pathways_of_a_large_cyclic_group_are_those_of_all_turns():
    """C16 tells apart all that frequencies up to 5 can do."""
    in_type, out_type = types("SO2")
    cyclic = gspaces.rot2dOnR2(16)
    there = [FieldType(cyclic, [cyclic.irrep(*id) for id in ids]) for ids in FIELDS["SO2"]]
    ours, theirs = kernels_of(relaxed(in_type, out_type, 5, frequencies=5)), kernels_of(relaxed(*there, 5))
    for name, rows in each(ours.items()):
        assert len(rows) == len(theirs[name]) and cosines(rows, theirs[name])[0] > SAME


# --- subgroups --------------------------------------------------------------------------------------------------------


SUBGROUPS = {
    "SO2": [1, 2, 3, 4],
    "O2": [(None, -1), (None, 1), (None, 4), (0.0, 1), (0.0, 4), (np.pi / 4, 2)],
    "SO3": ["octa", (False, -1), (True, -1), (False, 4), (True, 2), (False, 1)],
    "O3": ["so3", ("cone", -1), (True, False, 1), (False, False, 2), (False, "octa"), ("cone", 3)],
    "cone": [(None, -1), (None, 2), (0.0, 1)],
}


@pytest.mark.parametrize(("name", "id"), [(name, id) for name in SUBGROUPS for id in SUBGROUPS[name]], ids=str)
def test_fixed_vectors_are_the_subgroups_own_kernels(name, id):
    """Equivariant kernels and those of the subgroup's pathway span what escnn finds for the subgroup."""
    in_type, out_type = types(name)
    kept = subgroup(space(name), id)
    layer = relaxed(in_type, out_type, subgroups=[id])
    rows = torch.cat(list(kernels_of(layer).values()))
    if kept.order == 1:
        expected = free_kernels(layer)
    else:
        there = restriction(kept)
        pair = ([there.representation(r) for r in t.representations] for t in (in_type, out_type))
        expected = strict_kernels(there.gspace, *pair, layer)
    assert_same_span(rows, expected)


def test_another_axis_is_another_subgroup():
    """The twin: the reflection at 45 degrees keeps other kernels than that along an axis."""
    in_type, out_type = types("O2")
    straight, oblique = (relaxed(in_type, out_type, subgroups=[(angle, 1)]) for angle in (0.0, np.pi / 2))
    rows = [torch.cat(list(kernels_of(layer).values())) for layer in (straight, oblique)]
    assert rank(rows[0]) == rank(rows[1]) and cosines(*rows)[0] < 0.5


@pytest.mark.parametrize(
    ("name", "ids", "kept"),
    [
        ("SO2", [4], {4: ["irrep_4"]}),
        ("SO2", [1, 2], {2: ["irrep_2", "irrep_4"], 1: ["irrep_1", "irrep_3", "irrep_5"]}),
        ("O2", [(None, 1), (None, -1)], {(None, -1): ["irrep_1,0"]}),
        ("O3", ["so3"], {"so3": ["irrep_1,0"]}),
    ],
    ids=str,
)
def test_a_ladder_coarsens_the_grading(name, ids, kept):
    """Subgroups that fix whole irreps or nothing of them: their pathways are sums of the irreps' pathways."""
    in_type, out_type = types(name)
    graded, layer = kernels_of(relaxed(in_type, out_type)), relaxed(in_type, out_type, subgroups=ids)
    ladder = kernels_of(layer)
    for p in each(layer.pathways[1:]):
        together = kept.get(p.subgroup)
        if together is None:  # the last step takes all that is left
            taken = {"equivariant", *(n for names in kept.values() for n in names)}
            together = [n for n in graded if n not in taken]
        expected = torch.cat([graded[n] for n in together])
        assert len(ladder[p.name]) == len(expected)
        # the grid mixes what is orthogonal on the plane, so compare with all that came before
        stop = layer.pathways.index(p) + 1
        names = ["equivariant", *(n for q in layer.pathways[1:stop] for n in kept.get(q.subgroup, together))]
        together = torch.cat([graded[n] for n in names])
        assert_same_span(torch.cat([ladder[q.name] for q in layer.pathways[:stop]]), together)


def test_dimensions_of_fixed_vectors():
    """Turns by a quarter fix the irreps of SO(2) whose frequency 4 divides; half turns about an axis l + 1 of 2l +
    1."""
    so2, so3, o2 = space("SO2"), space("SO3"), space("O2")
    assert [len(fixed_vectors(so2.irrep(k), subgroup(so2, 4))) for k in range(9)] == [1, 0, 0, 0, 2, 0, 0, 0, 2]
    axis = [len(fixed_vectors(so3.irrep(k), subgroup(so3, (False, -1)))) for k in range(5)]
    assert axis == [1, 1, 1, 1, 1]
    assert [len(fixed_vectors(so3.irrep(k), subgroup(so3, "octa"))) for k in range(7)] == [1, 0, 0, 0, 1, 0, 1]
    assert [len(fixed_vectors(so3.irrep(k), subgroup(so3, "ico"))) for k in range(7)] == [1, 0, 0, 0, 0, 0, 1]
    assert [len(fixed_vectors(o2.irrep(1, k), subgroup(o2, (0.3, 1)))) for k in range(5)] == [0, 1, 1, 1, 1]


# --- layers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SO2", "O2", "SO3", "cone"])
def test_relaxing_keeps_the_function(name):
    in_type, out_type = types(name)
    strict = (R2Conv if in_type.gspace.dimensionality == 2 else R3Conv)(in_type, out_type, 3, padding=1)
    layer = relax(strict)
    x = in_type(torch.randn(2, in_type.size, *[7] * in_type.gspace.dimensionality))
    assert distance(layer(x).tensor, strict(x).tensor) < SINGLE
    randomise(layer)
    assert distance(layer(x).tensor, strict(x).tensor) > 0.1
    assert distance(layer.export()(x.tensor), layer.eval()(x).tensor) < SINGLE


def test_one_convolution_however_many_irreps(monkeypatch):
    in_type, out_type = types("SO2")
    layer = randomise(relaxed(in_type, out_type, frequencies=5))
    calls = []
    plain = torch.nn.functional.conv2d
    monkeypatch.setattr(torch.nn.functional, "conv2d", lambda *a, **k: calls.append(1) or plain(*a, **k))
    layer(in_type(torch.randn(1, in_type.size, 6, 6)))
    assert len(layer.pathways) == 6 and calls == [1]


def test_linear_maps_and_transposed_convolutions():
    so3 = gspaces.no_base_space(groups.so3_group(1))
    fields = FieldType(so3, [so3.irrep(1), so3.irrep(0)])
    layer = RelaxedLinear(fields, fields)
    assert layer.kernel.dimensions == {"equivariant": 2, "irrep_1": 9, "irrep_2": 5}  # 16 = 1 + 3 + 3 + (1 + 3 + 5)
    x = fields(torch.randn(3, 4))
    strict = Linear(fields, fields)
    assert distance(RelaxedLinear.from_strict(strict)(x).tensor, strict(x).tensor) < SINGLE
    tensors = FieldType(so3, [so3.irrep(2)])  # under the octahedral group two irreps, so two numbers instead of one
    assert RelaxedLinear(tensors, tensors, subgroups=["octa"]).kernel.dimensions == {"equivariant": 1, "Octa": 1}
    in_type, out_type = types("SO3")
    transposed = RelaxedR3ConvTransposed(in_type, out_type, 3, initialize=False)
    assert sum(transposed.kernel.dimensions.values()) == 16 * 10


def test_a_small_maximum_frequency_is_no_obstacle():
    """escnn knows only the irreps that were made so far, and decomposes products into these alone."""
    o2 = gspaces.no_base_space(groups.O2(0))
    fields = FieldType(o2, [o2.irrep(1, 2)])
    assert sum(RelaxedLinear(fields, fields).kernel.dimensions.values()) == 4


# --- what is asked for ------------------------------------------------------------------------------------------------


def test_irreps_by_hand():
    in_type, out_type = types("SO2")
    layer = relaxed(in_type, out_type, irreps=[3, (1,)])
    assert [p.name for p in layer.pathways] == ["equivariant", "irrep_1", "irrep_3"]
    whole = kernels_of(relaxed(in_type, out_type))
    assert_same_span(kernels_of(layer)["irrep_1"], whole["irrep_1"])
    hand = relaxed(*types("cylinder"), irreps=[((1,), (0,)), ((0,), (1,), 0)])
    assert [p.irrep for p in hand.pathways[1:]] == [((1,), (0,), 0), ((0,), (1,), 0)]
    octa = space("octa")
    scalar = FieldType(octa, [octa.trivial_repr])
    chosen = relaxed(scalar, FieldType(octa, [octa.irrep(1)]), irreps=[octa.irrep(2)])
    assert list(chosen.kernel.dimensions) == ["equivariant", "irrep_2"]


@pytest.mark.parametrize(
    ("name", "how", "message"),
    [
        ("SO2", {"irreps": [(1, 1)]}, "SO\\(2\\) has no such irrep"),
        ("SO2", {"irreps": [-1]}, "no such irrep"),
        ("octa", {"irreps": [7]}, "no such irrep.*out of"),
        ("octa", {"irreps": ["A1"]}, "no such irrep.*got 'A1'"),
        ("cylinder", {"irreps": [1]}, "no such irrep"),
        ("SO2", {"irreps": [0]}, "the trivial one"),
        ("SO2", {"irreps": []}, "nothing to relax"),
        ("SO2", {"irreps": 3}, "a list of irrep ids"),
        ("SO2", {"irreps": [1, (1,)]}, "named twice"),
        ("SO2", {"irreps": [1], "frequencies": 2}, "both say"),
        ("SO2", {"irreps": [1], "subgroups": [4]}, "both say"),
        ("SO2", {"frequencies": -1}, "0 or more, got -1"),
        ("SO2", {"frequencies": 1.5}, "got 1.5"),
        ("SO2", {"frequencies": 0}, "no irrep up to frequency 0"),
        ("octa", {"frequencies": 1}, "have no frequency"),
    ],
    ids=str,
)
def test_requests_that_make_no_sense(name, how, message):
    with pytest.raises(ArgumentError, match=message):
        relaxed(*types(name), **how)
    with pytest.raises(ArgumentError, match=message):
        relax((R2Conv if name == "SO2" else R3Conv)(*types(name), 3, initialize=False), **how)


def test_frequencies_of_finite_groups():
    s = gspaces.flipRot2dOnR2(8)
    fields = FieldType(s, [s.regular_repr])
    assert list(relaxed(fields, fields, frequencies=1).kernel.dimensions) == ["equivariant", "irrep_1,0", "irrep_1,1"]


@pytest.mark.parametrize(
    ("name", "ids"), [("SO2", [-1]), ("O2", [(0.0, -1)]), ("SO3", ["so3"]), ("SO2", [4, 4])], ids=str
)
def test_whole_or_repeated_subgroups(name, ids):
    with pytest.raises(SubgroupError):
        relaxed(*types(name), subgroups=ids)


def test_empty_parts_are_reported():
    """Between scalars a kernel of size 1 is a number; the band of size 3 ends at frequency 2."""
    s = space("SO2")
    scalar = FieldType(s, [s.trivial_repr])
    with pytest.raises(NothingToRelaxError, match="size 1"):
        relaxed(scalar, scalar, 1)
    layer = relaxed(scalar, scalar, frequencies=4)
    assert [p.irrep for p in layer.empty_pathways] == [(3,), (4,)]
    assert list(layer.kernel.dimensions) == ["equivariant", "irrep_1", "irrep_2"]
    flat = gspaces.no_base_space(groups.so2_group(1))
    one = FieldType(flat, [flat.fibergroup.trivial_representation])
    with pytest.raises(NothingToRelaxError, match="no kernel from"):
        RelaxedLinear(one, one)
    vector = FieldType(flat, [flat.irrep(1)])
    assert [p.irrep for p in RelaxedLinear(vector, vector).empty_pathways] == [(1,)]
    vectors = FieldType(s, [s.irrep(1)])
    assert [p.name for p in relaxed(scalar, vectors, frequencies=1).pathways] == ["equivariant", "irrep_1"]
    with pytest.raises(NothingToRelaxError):  # the cutoff leaves nothing
        relaxed(vectors, vectors, 1, frequencies=1)


def test_pixels_beyond_the_band():
    in_type, out_type = types("SO2")
    layer = relaxed(in_type, out_type, basis="pixel")
    assert layer.pathways[-1].name == "off_band" and layer.pathways[-1].breaks
    assert sum(layer.kernel.dimensions.values()) == in_type.size * out_type.size * 9
    # C4 maps the pixels to each other, all nine at rest and one when turned: its pathway completes the kernels it fixes
    ladder = kernels_of(relaxed(in_type, out_type, basis="pixel", subgroups=[4]))
    quarter = [space("SO2").fibergroup.element(k * np.pi / 2) for k in range(4)]
    traces = [np.trace(in_type.representation(g)) * np.trace(out_type.representation(g)) for g in quarter]
    dimension = sum(t * pixels for t, pixels in zip(traces, (9, 1, 1, 1))) / 4
    assert len(ladder["equivariant"]) + len(ladder["C4"]) == round(dimension)


def network(name):
    """A small network of irreps with a nonlinearity that keeps the continuous symmetry."""
    s = space(name)
    gray = FieldType(s, [s.trivial_repr])
    irreps = [s.trivial_repr, s.irrep(1), s.irrep(2)] if name == "SO2" else [s.trivial_repr, s.irrep(1)]
    hidden, out = FieldType(s, irreps), FieldType(s, 3 * [s.trivial_repr])
    kind, d = (R2Conv, 2) if name == "SO2" else (R3Conv, 3)
    strict = SequentialModule(kind(gray, hidden, 3), NormNonLinearity(hidden), kind(hidden, out, 3))
    return relax(strict, frequencies=2), gray, d


@pytest.mark.parametrize("name", ["SO2", "SO3"])
def test_evidence_of_a_continuous_group(name):
    """One precision for each irrep, finite terms, and an ascent that does not lower the evidence."""
    model, gray, d = network(name)
    for layer in (model[0], model[2]):
        randomise(layer, scale=0.3)

    class Classifier(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.steerable = model

        def forward(self, x):
            return self.steerable(gray(x)).tensor.flatten(2).mean(-1)

    data = TensorDataset(torch.randn(24, 1, *[6] * d), torch.randint(3, (24,)))
    evidence = Evidence(Classifier(), likelihood="categorical", num_data=24)
    evidence.refresh(DataLoader(data, batch_size=12))
    before = float(evidence.terms().total)
    evidence.step(3)
    assert np.isfinite(before) and float(evidence.terms().total) >= before
    for layer in (model[0], model[2]):
        assert layer.log_precision.shape == (len(layer.pathways),) and layer.log_precision.isfinite().all()
        assert (layer.effective_dimension > 0).all()
        sizes = torch.tensor([float(n) for n in layer.kernel.dimensions.values()])
        assert (layer.effective_dimension <= sizes).all()


def test_copies_and_checkpoints():
    in_type, out_type = types("O2")
    layer = randomise(relaxed(in_type, out_type, frequencies=3)).eval()
    x = in_type(torch.randn(1, in_type.size, 6, 6))
    expected = layer(x).tensor
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x).tensor, expected)
    fresh = relaxed(in_type, out_type, frequencies=3)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh.eval()(x).tensor, expected)
    other = relaxed(in_type, out_type, frequencies=2)
    with pytest.raises(RuntimeError, match="irrep_1,3"):
        other.load_state_dict(layer.state_dict())
