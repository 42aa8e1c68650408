"""The subgroups of the tetrahedral, octahedral and icosahedral groups, with those that escnn documents and does not
build.

escnn builds the turns about one axis. Added here: the dihedral groups, the rotations of a tetrahedron (in a cube or an
icosahedron), and in the cube the half turns about an axis through two edges, with the Klein groups of two such axes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from escnn import group as g

from .finite_groups import Embedding, RotationTable, group_elements, rotation_table, table_embedding
from .tetrahedral import tetrahedral_group

__all__ = ["DIHEDRAL", "PLATONIC", "platonic_embedding", "platonic_ids"]

#: id of the whole group, and the numbers of turns about an axis
PLATONIC = {
    "Tetrahedral": ("tetra", (1, 2, 3)),
    "Octahedral": ("octa", (1, 2, 3, 4)),
    "Icosahedral": ("ico", (1, 2, 3, 5)),
}

#: the numbers of turns of the dihedral groups
DIHEDRAL = {"Tetrahedral": (2,), "Octahedral": (2, 3, 4), "Icosahedral": (2, 3, 5)}

EDGES = np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, -1]])  # half a turn about (1, 1, 0), through two edges of the cube
UPRIGHT = np.diag([-1.0, -1, 1])  # and about z


def platonic_embedding(group: g.Group, id: Any) -> Embedding:
    """The subgroup with this id, as :func:`~escnn_relax.symmetry.groups.subgroup_embedding.embedding` gives it.

    Raises:
        ValueError: no such subgroup.
    """
    entries = id if isinstance(id, tuple) else (id,)
    if isinstance(entries[-1], g.GroupElement):
        *standard, element = entries
        conjugator = rotation_table(group).position(np.asarray(element.to("MAT")))
    else:
        standard, conjugator = list(entries), None
    subgroup, positions = _standard(group, tuple(standard))
    table = rotation_table(group)
    images = positions if conjugator is None else table.conjugate(positions, conjugator)
    if standard[0] is True and conjugator is not None:  # its own first flip, along an axis of space where there is one
        turn = table.conjugate([positions[_turn(subgroup)]], conjugator)[0]
        _, images = _dihedral(table, turn, _flip(table, turn))
    return table_embedding(subgroup, [table.elements[p] for p in images])


def platonic_ids(group: g.Group) -> list[Any]:
    """An id for each subgroup; each set of elements once."""
    kind = type(group).__name__
    whole, turns = PLATONIC[kind]
    ids: list[tuple[Any, ...]] = [(False, m) for m in turns] + [(True, m) for m in DIHEDRAL[kind]]
    more: dict[str, list[tuple[Any, ...]]] = {
        "Octahedral": [("edges", 1), ("edges", 2), ("tetra",)],
        "Icosahedral": [("tetra",)],
    }
    ids += more.get(kind, [])
    return [*(conjugate for id in ids for conjugate in _conjugates(group, id)), whole]


def _conjugates(group: g.Group, id: tuple[Any, ...]) -> list[Any]:
    """One id for each subgroup A^-1 H A."""
    table = rotation_table(group)
    _, members = _standard(group, id)
    conjugates: dict[frozenset[int], Any] = {frozenset(members): id[0] if len(id) == 1 else id}
    for position, element in enumerate(table.elements):
        conjugates.setdefault(frozenset(table.conjugate(members, position)), (*id, element))
    return list(conjugates.values())


def _standard(group: g.Group, id: tuple[Any, ...]) -> tuple[g.Group, list[int]]:
    """A subgroup, and where its elements stand in the group; not conjugate_id."""
    kind, table = type(group).__name__, rotation_table(group)
    if id == (PLATONIC[kind][0],):
        return group, list(range(len(table.elements)))
    if id == ("tetra",):  # its half turns about the axes of space, in the icosahedron as escnn has it, too
        tetrahedral = tetrahedral_group()
        return tetrahedral, [table.position(np.asarray(h.to("MAT"))) for h in group_elements(tetrahedral)]
    if kind == "Octahedral" and id == ("edges", 1):
        return g.cyclic_group(2), [table.identity, table.position(EDGES)]
    if kind == "Octahedral" and id == ("edges", 2):
        return _dihedral(table, table.position(UPRIGHT), table.position(EDGES))
    if len(id) != 2 or id[1] not in (DIHEDRAL[kind] if id[0] is True else PLATONIC[kind][1] if id[0] is False else ()):
        raise ValueError(f"{group.name} has no subgroup {id}")
    turns, embed, _ = group.subgroup((False, id[1]))
    turn = table.position(np.asarray(embed(turns.element(1 % turns.order())).to("MAT")))
    if not id[0]:
        return turns, table.powers(turn)
    return _dihedral(table, turn, _flip(table, turn))


def _dihedral(table: RotationTable, turn: int, flip: int) -> tuple[g.Group, list[int]]:
    powers = table.powers(turn)
    subgroup = g.dihedral_group(len(powers))
    values = [h.value for h in group_elements(subgroup)]
    return subgroup, [int(table.product[powers[k], flip]) if flipped else powers[k] for flipped, k in values]


def _turn(subgroup: g.Group) -> int:
    """Where the first turn of a dihedral group stands."""
    return next(i for i, h in enumerate(group_elements(subgroup)) if h.value == (0, 1))


def _flip(table: RotationTable, turn: int) -> int:
    """The first half turn that reverses a turn: that about the axis with the fewest coordinates, x before y before
    z."""
    product, powers = table.product, table.powers(turn)
    flips = [
        f
        for f in range(len(table.elements))
        if f not in powers and product[f, f] == table.identity and product[product[f, turn], f] == table.inverse[turn]
    ]
    axes = [np.linalg.eigh((m + m.T) / 2)[1][:, -1] for m in table.matrices[flips]]
    keys = [(int((np.abs(a) > 1e-6).sum()), *np.round(-np.abs(a), 6), *np.round(-a, 6)) for a in axes]
    return flips[min(range(len(flips)), key=keys.__getitem__)]
