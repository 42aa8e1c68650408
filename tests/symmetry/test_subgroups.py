"""Subgroups, their lattice, and restriction of G-spaces and representations."""

import math

import numpy as np
import pytest
from escnn import gspaces
from escnn.group import cyclic_group, dihedral_group, direct_product
from hypothesis import given
from hypothesis import strategies as st
from nonempty import each

from escnn_relax.errors import ArgumentError, FieldTypeError, SubgroupError, naming
from escnn_relax.symmetry.groups.decomposition import decompose, generating_elements
from escnn_relax.symmetry.groups.restriction import restriction
from escnn_relax.symmetry.groups.lattice import subgroup, subgroups
from escnn_relax.symmetry.groups.tetrahedral import tetrahedral_group

FINITE = {
    "C8": gspaces.rot2dOnR2(8),
    "C12": gspaces.rot2dOnR2(12),
    "D4": gspaces.flipRot2dOnR2(4),
    "D6": gspaces.flipRot2dOnR2(6, axis=0.2),
    "flip": gspaces.flip2dOnR2(),
    "Octa": gspaces.octaOnR3(),
    "cylinder": gspaces.fullCylindricalOnR3(4),
    "cone": gspaces.conicalOnR3(4),
    "dihedral": gspaces.dihedralOnR3(4),
    "inversion": gspaces.invOnR3(),
    "no base": gspaces.no_base_space(dihedral_group(4)),
}
CONTINUOUS = {
    "SO2": gspaces.rot2dOnR2(-1),
    "O2": gspaces.flipRot2dOnR2(-1),
    "SO3": gspaces.rot3dOnR3(),
    "O3": gspaces.flipRot3dOnR3(),
    "full cylinder": gspaces.fullCylindricalOnR3(),
}
#: counted by hand: divisors of N; divisors plus sum of divisors for D_N; in tables of point groups for the octahedral
#: one
COUNTS = {"C8": 4, "C12": 6, "D4": 10, "D6": 16, "flip": 2, "Octa": 30, "inversion": 2, "no base": 10}


@pytest.mark.parametrize("name", [*FINITE, *CONTINUOUS])
def test_lattice_members_are_subgroups(name):
    space = (FINITE | CONTINUOUS)[name]
    lattice = subgroups(space, max_order=2 if name in ("SO3", "O3") else 4)
    assert len({m.name for m in lattice}) == len(lattice), "names must tell subgroups apart"
    for member in each(lattice):
        assert not set(member.name) & set(". ()[]") and member.name
        inner = member.group
        elements = generating_elements(inner)
        for a in each(elements):
            for b in each(elements):
                assert member.embed(a @ b) == member.embed(a) @ member.embed(b)
            assert member.contains(member.embed(a)) and member.pull(member.embed(a)) == a
        assert member <= member and not member < member
    if name in COUNTS:
        assert len(lattice) == COUNTS[name]


def _closures(space):
    """All subgroups of a finite group, by closing sets of generators: an oracle that knows no ids."""
    group = space.fibergroup
    elements = list(group.elements)
    position = {e: i for i, e in enumerate(elements)}
    if space.dimensionality == 3:  # by matrices: escnn multiplies slowly
        flat = np.stack([np.asarray(space.basespace_action(e)) for e in elements])
        products = np.einsum("aij,bjk->abik", flat, flat).reshape(-1, 9)
        table = (products @ flat.reshape(-1, 9).T).argmax(1).reshape(len(elements), -1)
    else:
        table = np.array([[position[a @ b] for b in elements] for a in elements])

    def closed(seed):
        found = np.zeros(len(elements), dtype=bool)
        found[[*seed, position[group.identity]]] = True
        while True:
            inside = np.flatnonzero(found)
            more = found.copy()
            more[table[np.ix_(inside, inside)].ravel()] = True
            if (more == found).all():
                return frozenset(inside.tolist())
            found = more

    cyclic = {closed([i]) for i in range(len(elements))}
    found, last = set(cyclic), set(cyclic)
    while last:
        last = {closed(a | b) for a in last for b in cyclic} - found
        found |= last
    return found


def _listed(space):
    position = {e: i for i, e in enumerate(space.fibergroup.elements)}
    return {frozenset(position[e] for e in m.elements) for m in subgroups(space)}


COMPLETE = ["C8", "C12", "D4", "D6", "flip", "Octa", "cylinder", "dihedral", "cone", "inversion", "tetrahedral"]
COMPLETE += [
    pytest.param("full octahedral", marks=pytest.mark.slow),
    pytest.param("icosahedral", marks=pytest.mark.slow),
]
COMPLETE += [pytest.param("full icosahedral", marks=pytest.mark.slow)]
MORE = {
    "tetrahedral": lambda: gspaces.no_base_space(tetrahedral_group()),
    "full octahedral": gspaces.fullOctaOnR3,
    "icosahedral": gspaces.icoOnR3,
    "full icosahedral": gspaces.fullIcoOnR3,
}


@pytest.mark.parametrize("name", COMPLETE)
def test_lattices_are_complete(name):
    """Each set of elements that is closed, once; the counts are those of the tables of point groups."""
    space = FINITE[name] if name in FINITE else MORE[name]()
    lattice, closed = subgroups(space), _closures(space)
    assert _listed(space) == closed and len(lattice) == len(closed)
    assert not lattice.unlisted and "not listed" not in str(lattice)
    assert len({m.name for m in lattice}) == len(lattice)
    known = {"Octa": 30, "full octahedral": 98, "icosahedral": 59, "full icosahedral": 164, "tetrahedral": 10}
    assert len(closed) == known.get(name, len(closed))


def test_what_is_not_listed_is_said():
    for space in (CONTINUOUS["SO2"], CONTINUOUS["O2"]):
        assert "not listed: " in str(subgroups(space, max_order=2))
    mixed = gspaces.no_base_space(direct_product(cyclic_group(3), cyclic_group(3)))
    lattice, closed = subgroups(mixed), _closures(mixed)
    assert _listed(mixed) < closed and "no product" in lattice.unlisted


#: elements and mirrors of the point groups that escnn has no id for, from their geometry
ROTOREFLECTIONS = {"S4": (4, 0), "D2d": (8, 2), "FullTetra": (24, 6), "TetraxInv": (24, 3), "Tetra": (12, 0)}


def test_point_groups_without_an_id_in_escnn():
    """By matrices alone: traces of -1 - 2 cos, mirrors have trace 1 and determinant -1."""
    space = gspaces.fullOctaOnR3()
    assert len(subgroups(space)) == 98
    for name, (order, mirrors) in ROTOREFLECTIONS.items():
        member = subgroup(space, name)
        matrices = np.stack([np.asarray(space.basespace_action(e)) for e in member.elements])
        reflections = (np.linalg.det(matrices) < 0) & (np.abs(np.trace(matrices, axis1=1, axis2=2) - 1) < 1e-6)
        assert (member.order, int(reflections.sum())) == (order, mirrors), name
    with pytest.raises(SubgroupError, match="no such subgroup"):
        subgroup(space, ("twisted", "octa", (False, 4)))


@pytest.mark.parametrize("name", ["S8", "C3h", "D3d", "D3h", "D4d", "Tetra", "TetraxInv", "FullTetra"])
def test_point_groups_in_O3(name):
    space = CONTINUOUS["O3"]
    if name == "D3d":  # contains the inversion
        member = subgroup(space, "D3xInv")
    else:
        member = subgroup(space, name)
        assert member.name == name
    elements = member.group.elements
    for a in each(elements[:5]):
        assert member.pull(member.embed(a)) == a
        for b in each(elements[:5]):
            assert member.embed(a @ b) == member.embed(a) @ member.embed(b)
    outside = space.fibergroup.element((0, np.array([0.6, 0.0, 0.0, 0.8])), "Q")
    assert member.pull(outside) is None and member <= subgroup(space, "O3")


@given(st.sampled_from(sorted(FINITE)), st.data())
def test_inclusion_and_cosets(name, data):
    lattice = subgroups(FINITE[name])
    a, b = data.draw(st.sampled_from(lattice.members)), data.draw(st.sampled_from(lattice.members))
    whole = set(FINITE[name].fibergroup.elements)
    assert (a <= b) == (set(a.elements) <= set(b.elements))
    for side in ("left", "right"):
        cosets = a.coset_representatives(side)
        assert len(cosets) == a.index and cosets[0] == FINITE[name].fibergroup.identity
        assert {t @ h if side == "left" else h @ t for t in cosets for h in a.elements} == whole
    outside = whole - set(a.elements)
    assert all(a.contains(e) for e in a.elements) and not any(a.contains(e) for e in outside)


def test_names():
    lattice = subgroups(gspaces.flipRot2dOnR2(4))
    names = {m.id: m.name for m in lattice}
    assert names[None, 1] == "trivial" and names[None, 4] == "C4" and names[0, 4] == "D4"
    assert names[0, 1] == "D1_90deg" and names[3, 1] == "D1_45deg" and names[1, 2] == "D2_45deg"
    assert lattice["C2"].id == (None, 2) and lattice[None, 2].name == "C2"
    assert "C2" in lattice and "C3" not in lattice
    with pytest.raises(SubgroupError, match="names: trivial"):
        lattice["C3"]
    assert [m.name for m in lattice.maximal_subgroups(lattice["C2"])] == ["trivial"]
    assert "10 subgroups" in str(lattice)


def test_continuous_relations():
    lattice = subgroups(CONTINUOUS["O2"])
    assert lattice["C4"] < lattice["SO2"] < lattice["O2"] and not lattice["SO2"] <= lattice["C4"]
    assert not lattice["D1_90deg"] <= lattice["SO2"]
    assert lattice["SO2"].index == 2 and lattice["C4"].index == math.inf and lattice["SO2"].order == -1
    assert len(lattice["SO2"].coset_representatives()) == 2
    with pytest.raises(SubgroupError, match="infinitely many"):
        lattice["C4"].coset_representatives()
    with pytest.raises(SubgroupError, match="continuous"):
        _ = lattice["SO2"].elements


@pytest.mark.parametrize(
    "space, id",
    [
        *[("C8", id) for id in ((None, 4), 3, 0, -1, 2.0, "C3", True)],
        *[("D4", id) for id in (4, (4, 1), (0.0, 1), (1, 3), (None,), None)],
        *[("SO2", id) for id in ((None, 4), 0, -2)],
        *[("O2", id) for id in (4, (1, 4), (7.0, 2), (None, 0))],
        *[("Octa", id) for id in (4, (False, 5), "tetr", "ico", (True, 5), ("edges", 3))],
        *[("SO3", id) for id in (4, "dodeca", (None, 3), ("cone", 3))],
        *[("O3", id) for id in (4, ("cone", 0), (True,), "tetra", ("twisted", "octa", "ico"))],
        *[("cylinder", id) for id in (4, (3, (None, 1)), (1, 4), ("twisted", (None, 4), (None, 1)))],
    ],
)
def test_bad_ids(space, id):
    with pytest.raises(SubgroupError, match="conv1") as caught, naming("conv1"):
        subgroup((FINITE | CONTINUOUS)[space], id)
    assert "expected" in str(caught.value) and repr(id) in str(caught.value)


def test_other_bad_input():
    c4 = subgroup(FINITE["C8"], 4)
    with pytest.raises(ArgumentError):
        c4.contains(FINITE["D4"].fibergroup.identity)
    with pytest.raises(ArgumentError):
        c4.coset_representatives("both")
    with pytest.raises(ArgumentError):
        subgroups(FINITE["C8"], max_order=0)


@pytest.mark.parametrize("name", [*FINITE, *CONTINUOUS])
def test_restriction_keeps_matrices_and_points(name):
    """Every listed subgroup gets a G-space that moves points as G does, and representations with G's matrices."""
    space = (FINITE | CONTINUOUS)[name]
    group = space.fibergroup
    members = subgroups(space, max_order=2 if name in ("SO3", "O3") else 4).members
    for member in each(members if len(members) < 16 else members[::3]):
        change = restriction(member)
        representations = list(group.irreps())[:4]
        if 0 < group.order() <= 16:
            representations.append(group.regular_representation)
        for h in each(generating_elements(change.gspace.fibergroup)):
            g = change.embed(h)
            if space.dimensionality:
                assert np.allclose(change.gspace.basespace_action(h), space.basespace_action(g), atol=1e-6)
            for rho in each(representations):
                restricted = change.representation(rho)
                assert np.allclose(restricted(h), rho(g), atol=1e-10), (member.name, rho.name)
    assert restriction(members[0]) is restriction(members[0])


def test_restriction_of_foreign_representation():
    change = restriction(subgroup(FINITE["C8"], 4))
    with pytest.raises(FieldTypeError):
        change.representation(FINITE["D4"].regular_repr)


@given(st.integers(0, 1000), st.sampled_from(["C8", "D4", "D6", "cylinder"]))
def test_decomposition_of_skewed_representations(seed, name):
    """Representations in any basis, orthogonal or not."""
    group = FINITE[name].fibergroup
    skew = np.random.default_rng(seed).normal(size=(3, 3)) + 2 * np.eye(3)
    parts = [group.irreps()[0], group.irreps()[-1], group.irreps()[1]]
    size = sum(p.size for p in parts)
    skew = np.random.default_rng(seed).normal(size=(size, size)) + 3 * np.eye(size)

    def matrix(g):
        from scipy.linalg import block_diag

        return skew @ block_diag(*(p(g) for p in parts)) @ np.linalg.inv(skew)

    ids, change = decompose(group, matrix)
    assert sorted(map(str, ids)) == sorted(str(p.id) for p in parts)
    for g in each(group.elements[:4]):
        blocks = [group.irrep(*id)(g) for id in ids]
        from scipy.linalg import block_diag

        assert np.allclose(change @ block_diag(*blocks) @ np.linalg.inv(change), matrix(g), atol=1e-7)
