"""The subgroup ids that escnn understands: their form, and what is accepted.

==================  ==================================================================================
group               ids
==================  ==================================================================================
C_N                 ``M`` (an int dividing N)
D_N                 ``(None, M)`` rotations, ``(k, M)`` rotations and the flip ``r^k f``, ``(k, 1)`` that flip
SO(2)               ``M`` rotations, ``-1`` all of them
O(2)                ``(None, M)``, ``(None, -1)``, ``(theta, M)``, ``(theta, -1)``; theta a float, twice the axis
SO(3)               ``'so3'``, ``'ico'``, ``'octa'``, ``'tetra'``, ``(False, M)`` turns about z, ``(True, M)`` with
                    flips of z
O(3)                ``'o3'``, ``'so3'``, ``(inversion, 'ico' | 'octa' | 'tetra')``, ``(inversion, flips, M)``,
                    ``('cone', M)``, ``'fulltetra'``, ``('twisted', id, id)`` of SO(3)
tetrahedral         ``'tetra'``, ``(False, 1 | 2 | 3)``, ``(True, 2)``
octahedral          ``'octa'``, ``'tetra'``, ``(False, 1 | 2 | 3 | 4)``, ``(True, 2 | 3 | 4)``, ``('edges', 1 | 2)``:
                    the half turn about an axis through two edges, and the Klein group of two such
icosahedral         ``'ico'``, ``'tetra'``, ``(False, 1 | 2 | 3 | 5)``, ``(True, 2 | 3 | 5)``
G1 x G2             ``(id1, id2)``, and with two elements in G1 ``('twisted', id, id)`` of G2
==================  ==================================================================================

In three dimensions an id may end with a group element A: the subgroup is then conjugate_id, H -> A^-1 H A. The
tetrahedral and the dihedral subgroups of the platonic groups are documented by escnn but not built by it; they are
built in :mod:`escnn_relax.symmetry.groups.platonic`. The twisted ones, which contain some rotations only together with
the inversion, are explained in :mod:`escnn_relax.symmetry.groups.twisted`; escnn has some of them as ``('cone', M)``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from escnn import group as g

from .finite_groups import group_order
from .platonic import DIHEDRAL, PLATONIC

__all__ = ["accepted_ids", "canonical_id", "class_name", "divisors", "rotation_factor"]


def divisors(n: int) -> list[int]:
    """The divisors of n, small to large."""
    return [m for m in range(1, n + 1) if n % m == 0]


def class_name(group: g.Group) -> str:
    """Which of escnn's kinds of groups it is."""
    return type(group).__name__


def accepted_ids(group: g.Group) -> str:
    """One line, for error messages: the ids accepted for subgroups of ``group``."""
    kind, n = class_name(group), group_order(group)
    if kind == "CyclicGroup":
        return f"an int out of {divisors(n)}"
    if kind == "DihedralGroup":
        turns = divisors(n // 2)
        return f"(None, M) or (k, M) with M out of {turns} and an int 0 <= k < {n // 2}, (k, 1) being one flip"
    if kind == "SO2":
        return "an int M >= 1, or -1 for SO(2) itself"
    if kind == "O2":
        return "(None, M) or (theta, M) with an int M >= 1 or -1, and a float theta in [0, 2 pi], twice the axis"
    if kind in PLATONIC:
        name, orders = PLATONIC[kind]
        more = {"Octahedral": "'tetra', ('edges', 1), ('edges', 2), ", "Icosahedral": "'tetra', "}.get(kind, "")
        return (
            f"'{name}', {more}(False, M) with M out of {list(orders)} or (True, M) with M out of {list(DIHEDRAL[kind])}"
        )
    if kind == "SO3":
        return "'so3', 'ico', 'octa', 'tetra', (False, M) or (True, M) with an int M >= 1 or -1"
    if kind == "O3":
        return (
            "'o3', 'so3', 'fulltetra', (inversion, 'ico'|'octa'|'tetra'), (inversion, flips, M) or ('cone', M) with"
            " bools and an int M >= 1 or -1, or ('twisted', id, id) with ids of SO(3)"
        )
    if isinstance(group, g.DirectProductGroup):
        factors = [f"{factor.name}: {accepted_ids(factor)}" for factor in (group.G1, group.G2)]
        return f"a pair (id1, id2) with id1 of {factors[0]} and id2 of {factors[1]}" + (
            f", or ('twisted', id, id) with ids of {group.G2.name}" if group_order(group.G1) == 2 else ""
        )
    return f"whatever escnn's {kind}.subgroup takes"


def _integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def canonical_id(group: g.Group, id: Any) -> Any:
    """``id`` as escnn stores it (plain ints, floats, tuples), or None when its form is wrong for ``group``."""
    kind = class_name(group)
    if kind in ("CyclicGroup", "SO2"):
        return int(id) if _integer(id) else None
    if kind in ("DihedralGroup", "O2"):
        if not (isinstance(id, tuple) and len(id) == 2 and _integer(id[1])):
            return None
        if id[0] is None:
            return None, int(id[1])
        if kind == "DihedralGroup":
            return (int(id[0]), int(id[1])) if _integer(id[0]) else None
        return (float(id[0]), int(id[1])) if isinstance(id[0], float | np.floating) else None
    if isinstance(id, tuple) and id and id[0] == "twisted":
        rotations = rotation_factor(group)
        halves = () if rotations is None else tuple(canonical_id(rotations, half) for half in id[1:])
        return None if len(halves) != 2 or None in halves else ("twisted", *halves)
    if isinstance(group, g.DirectProductGroup):
        if not (isinstance(id, tuple) and len(id) == 2):
            return id if isinstance(id, str) else None
        pair = canonical_id(group.G1, id[0]), canonical_id(group.G2, id[1])
        return None if None in pair else pair
    entries: tuple[Any, ...] = id if isinstance(id, tuple) else (id,)
    if not entries or not isinstance(entries[0], str | bool | float):
        return None
    if len(entries) > 1 and isinstance(entries[-1], g.GroupElement) and entries[-1] == group.identity:
        entries = entries[:-1]
    if len(entries) == 1 and not isinstance(entries[0], str):
        return None
    entries = tuple(int(p) if _integer(p) else p for p in entries)
    return entries[0] if len(entries) == 1 else entries


def rotation_factor(group: g.Group) -> g.Group | None:
    """R in G = {1, -1} x R; None for other groups."""
    if class_name(group) == "O3":
        return g.so3_group()
    return group.G2 if isinstance(group, g.DirectProductGroup) and group_order(group.G1) == 2 else None
