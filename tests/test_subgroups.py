"""Subgroups, their lattice, and restriction of G-spaces and representations."""

import math

import numpy as np
import pytest
from escnn import gspaces
from escnn.group import dihedral_group
from hypothesis import given
from hypothesis import strategies as st

from escnn_relax.errors import ArgumentError, FieldTypeError, SubgroupError
from escnn_relax.symmetry.decomposition import decompose, generating_elements
from escnn_relax.symmetry.restriction import restriction
from escnn_relax.symmetry.subgroups import subgroup, subgroups

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
#: counted by hand: divisors of N; divisors plus sum of divisors for D_N; conjugates of what escnn has ids for
COUNTS = {"C8": 4, "C12": 6, "D4": 10, "D6": 16, "flip": 2, "Octa": 20, "inversion": 2, "no base": 10}


@pytest.mark.parametrize("name", [*FINITE, *CONTINUOUS])
def test_lattice_members_are_subgroups(name):
    space = (FINITE | CONTINUOUS)[name]
    lattice = subgroups(space, max_order=2 if name in ("SO3", "O3") else 4)
    assert len({m.name for m in lattice}) == len(lattice), "names must tell subgroups apart"
    for member in lattice:
        assert not set(member.name) & set(". ()[]") and member.name
        inner = member.group
        elements = generating_elements(inner)
        for a in elements:
            for b in elements:
                assert member.embed(a @ b) == member.embed(a) @ member.embed(b)
            assert member.contains(member.embed(a)) and member.pull(member.embed(a)) == a
        assert member <= member and not member < member
    if name in COUNTS:
        assert len(lattice) == COUNTS[name]


def _closures(group):
    """All subgroups of a finite group, by closing sets of generators: an oracle that knows no ids."""
    elements = list(group.elements)
    table = np.array([[elements.index(a @ b) for b in elements] for a in elements])

    def closed(seed):
        found = set(seed) | {elements.index(group.identity)}
        while True:
            more = {int(table[a, b]) for a in found for b in found} - found
            if not more:
                return frozenset(found)
            found |= more

    found = {closed([])} | {closed([i]) for i in range(len(elements))}
    while True:
        more = {closed(a | b) for a in found for b in found} - found
        if not more:
            return found
        found |= more


@pytest.mark.parametrize("name", ["C8", "C12", "D4", "D6", "flip"])
def test_planar_lattices_are_complete(name):
    group = FINITE[name].fibergroup
    elements = list(group.elements)
    listed = {frozenset(elements.index(e) for e in m.elements) for m in subgroups(FINITE[name])}
    assert listed == _closures(group)


def test_octahedral_lattice_lacks_only_what_escnn_cannot_name():
    """Of the 30 subgroups, the tetrahedral one, the edge half turns (6) and their Klein groups (3) have no id."""
    group = FINITE["Octa"].fibergroup
    elements = list(group.elements)
    listed = {frozenset(elements.index(e) for e in m.elements) for m in subgroups(FINITE["Octa"])}
    missing = sorted(len(s) for s in _closures(group) - listed)
    assert missing == [2] * 6 + [4] * 3 + [12]


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
    assert [m.name for m in lattice.below(lattice["C2"])] == ["trivial"]
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
        *[("Octa", id) for id in (4, (False, 5), "tetra", "ico", (True, 5))],
        *[("SO3", id) for id in (4, "tetra", (None, 3), ("cone", 3))],
        *[("O3", id) for id in (4, ("cone", 0), (True,), "tetra")],
        *[("cylinder", id) for id in (4, (3, (None, 1)), (1, 4))],
    ],
)
def test_bad_ids(space, id):
    with pytest.raises(SubgroupError, match="conv1") as caught:
        subgroup((FINITE | CONTINUOUS)[space], id, where="conv1")
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
    for member in members if len(members) < 16 else members[::3]:
        change = restriction(member)
        representations = list(group.irreps())[:4]
        if 0 < group.order() <= 16:
            representations.append(group.regular_representation)
        for h in generating_elements(change.gspace.fibergroup):
            g = change.embed(h)
            if space.dimensionality:
                assert np.allclose(change.gspace.basespace_action(h), space.basespace_action(g), atol=1e-6)
            for rho in representations:
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
    for g in group.elements[:4]:
        blocks = [group.irrep(*id)(g) for id in ids]
        from scipy.linalg import block_diag

        assert np.allclose(change @ block_diag(*blocks) @ np.linalg.inv(change), matrix(g), atol=1e-7)
