"""The subgroup ids that escnn understands: what is accepted, what exists, and the group behind each.

==================  ==================================================================================
group               ids
==================  ==================================================================================
C_N                 ``M`` (an int dividing N)
D_N                 ``(None, M)`` rotations, ``(k, M)`` rotations and the flip ``r^k f``, ``(k, 1)`` that flip
SO(2)               ``M`` rotations, ``-1`` all of them
O(2)                ``(None, M)``, ``(None, -1)``, ``(theta, M)``, ``(theta, -1)``; theta a float, twice the axis
SO(3)               ``'so3'``, ``'ico'``, ``'octa'``, ``(False, M)`` turns about z, ``(True, M)`` with flips of z
O(3)                ``'o3'``, ``'so3'``, ``(inversion, 'ico' | 'octa')``, ``(inversion, flips, M)``, ``('cone', M)``
octahedral          ``'octa'``, ``(False, 1 | 2 | 3 | 4)``, ``(True, 2 | 3 | 4)``
icosahedral         ``'ico'``, ``(False, 1 | 2 | 3 | 5)``, ``(True, 2 | 3 | 5)``
G1 x G2             ``(id1, id2)``
==================  ==================================================================================

In three dimensions an id may end with a group element A: the subgroup is then conjugated, H -> A^-1 H A. The
dihedral subgroups of the octahedral and icosahedral groups are documented by escnn but not built by it; they are
built here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from escnn import group as g
from numpy.typing import NDArray

from ..errors import SubgroupError

__all__ = ["accepted_ids", "canonical_id", "listed_ids", "embedding"]

Embedding = tuple[g.Group, Callable[..., Any], Callable[..., Any]]
PLATONIC = {"Octahedral": ("octa", (1, 2, 3, 4)), "Icosahedral": ("ico", (1, 2, 3, 5))}


def _divisors(n: int) -> list[int]:
    return [m for m in range(1, n + 1) if n % m == 0]


def _kind(group: g.Group) -> str:
    return type(group).__name__


def accepted_ids(group: g.Group) -> str:
    """One line, for error messages: the ids accepted for subgroups of ``group``."""
    kind, n = _kind(group), group.order()
    if kind == "CyclicGroup":
        return f"an int out of {_divisors(n)}"
    if kind == "DihedralGroup":
        turns = _divisors(n // 2)
        return f"(None, M) or (k, M) with M out of {turns} and an int 0 <= k < {n // 2}, (k, 1) being one flip"
    if kind == "SO2":
        return "an int M >= 1, or -1 for SO(2) itself"
    if kind == "O2":
        return "(None, M) or (theta, M) with an int M >= 1 or -1, and a float theta in [0, 2 pi], twice the axis"
    if kind in PLATONIC:
        name, orders = PLATONIC[kind]
        return f"'{name}', (False, M) with M out of {list(orders)} or (True, M) with M out of {list(orders[1:])}"
    if kind == "SO3":
        return "'so3', 'ico', 'octa', (False, M) or (True, M) with an int M >= 1 or -1"
    if kind == "O3":
        return (
            "'o3', 'so3', (inversion, 'ico'|'octa'), (inversion, flips, M) or ('cone', M) with bools and "
            "an int M >= 1 or -1"
        )
    if isinstance(group, g.DirectProductGroup):
        both = [f"{part.name}: {accepted_ids(part)}" for part in (group.G1, group.G2)]
        return f"a pair (id1, id2) with id1 of {both[0]} and id2 of {both[1]}"
    return f"whatever escnn's {kind}.subgroup takes"


def _integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def canonical_id(group: g.Group, id: Any) -> Any:
    """``id`` as escnn stores it (plain ints, floats, tuples), or None when its form is wrong for ``group``."""
    kind = _kind(group)
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
    if isinstance(group, g.DirectProductGroup):
        if not (isinstance(id, tuple) and len(id) == 2):
            return id if isinstance(id, str) else None
        pair = canonical_id(group.G1, id[0]), canonical_id(group.G2, id[1])
        return None if None in pair else pair
    parts: tuple[Any, ...] = id if isinstance(id, tuple) else (id,)
    if not parts or not isinstance(parts[0], str | bool | float):
        return None
    if len(parts) > 1 and isinstance(parts[-1], g.GroupElement) and parts[-1] == group.identity:
        parts = parts[:-1]
    if len(parts) == 1 and not isinstance(parts[0], str):
        return None
    parts = tuple(int(p) if _integer(p) else p for p in parts)
    return parts[0] if len(parts) == 1 else parts


def embedding(group: g.Group, id: Any, where: str = "") -> Embedding:
    """The subgroup H with the maps H -> G and G -> H (None outside H).

    Raises:
        SubgroupError: ``id`` has the wrong form, or names no subgroup of ``group``.
    """
    canonical = canonical_id(group, id)
    got = f"{id!r} of type {type(id).__name__}"
    if canonical is None:
        raise SubgroupError(
            where, f"{group.name} has no subgroup id of this form", expected=accepted_ids(group), got=got
        )
    try:
        if _kind(group) in PLATONIC and isinstance(canonical, tuple) and canonical[0] is True and canonical[1] > 1:
            return _platonic_dihedral(group, canonical)
        if isinstance(group, g.DirectProductGroup) and isinstance(canonical, tuple):
            return _product(group, canonical)
        subgroup, embed, pull = group.subgroup(canonical)
        if subgroup.order() == 0:
            raise ValueError("no such subgroup")
        return subgroup, embed, pull
    except SubgroupError as error:  # of a factor of a product
        raise SubgroupError(where, f"{id!r} names no subgroup of {group.name}: {error}") from None
    except (AssertionError, ValueError, NotImplementedError, KeyError, TypeError, IndexError, ZeroDivisionError):
        # escnn answers an impossible id with whatever breaks first
        raise SubgroupError(
            where,
            f"{group.name} has no such subgroup in escnn",
            expected=accepted_ids(group),
            got=got,
            remedy="print(subgroups(gspace)) lists them",
        ) from None


def _platonic_dihedral(group: g.Group, id: tuple[Any, ...]) -> Embedding:
    """D_M in a platonic group: the turns of (False, M) and the first flip that reverses them, along an axis first."""
    order = id[1]
    if order not in PLATONIC[_kind(group)][1]:
        raise ValueError(order)
    turns, embed_turn, _ = group.subgroup((False, *id[1:]))
    r = embed_turn(turns.element(1))
    turned = [embed_turn(e) for e in turns.elements]
    flips = [
        f
        for f in group.elements
        if f not in turned and f @ f == group.identity and f @ r @ f == ~r and f != group.identity
    ]
    # deterministic: the flip whose axis has the fewest nonzero coordinates, x before y before z
    matrices = [f.to("MAT") for f in flips]
    axes = [np.linalg.eigh((m + m.T) / 2)[1][:, -1] for m in matrices]
    keys = [(int((np.abs(a) > 1e-6).sum()), *np.round(-np.abs(a), 6), *np.round(-a, 6)) for a in axes]
    flip = flips[min(range(len(flips)), key=keys.__getitem__)]
    subgroup = g.dihedral_group(order)
    powers = [group.identity]
    for _ in range(order - 1):
        powers.append(r @ powers[-1])
    table = [(h, powers[h.value[1]] @ flip if h.value[0] else powers[h.value[1]]) for h in subgroup.elements]
    inclusion = {h: e for h, e in table}
    inverse = {e: h for h, e in table}
    return subgroup, inclusion.__getitem__, inverse.get


def _product(group: g.DirectProductGroup, id: tuple[Any, ...]) -> Embedding:
    """H1 x H2 in G1 x G2; a trivial factor is dropped, as escnn does."""
    split: Callable[[g.GroupElement], tuple[g.GroupElement, g.GroupElement]]
    join: Callable[[g.GroupElement, g.GroupElement], g.GroupElement]
    left, embed_left, pull_left = embedding(group.G1, id[0])
    right, embed_right, pull_right = embedding(group.G2, id[1])
    if left.order() == 1:
        subgroup = right
        split = lambda h: (left.identity, h)
        join = lambda a, b: b
    elif right.order() == 1:
        subgroup = left
        split = lambda h: (h, right.identity)
        join = lambda a, b: a
    else:
        subgroup = g.direct_product(left, right)
        split, join = subgroup.split_element, subgroup.pair_elements

    def embed(h: g.GroupElement) -> g.GroupElement:
        a, b = split(h)
        return group.pair_elements(embed_left(a), embed_right(b))

    def pull(e: g.GroupElement) -> g.GroupElement | None:
        a, b = group.split_element(e)
        a, b = pull_left(a), pull_right(b)
        return None if a is None or b is None else join(a, b)

    return subgroup, embed, pull


def _conjugates(group: g.Group, id: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """One id for each subgroup A^-1 H A, computed on rotation matrices."""
    all_matrices = np.stack([e.to("MAT") for e in group.elements])
    subgroup, embed, _ = embedding(group, id)
    members = np.stack([embed(h).to("MAT") for h in subgroup.elements])
    seen: dict[frozenset[int], tuple[Any, ...]] = {frozenset(_positions(members, all_matrices)): id}
    for element, a in zip(group.elements, all_matrices):
        seen.setdefault(frozenset(_positions(a.T @ members @ a, all_matrices)), (*id, element))
    return list(seen.values())


def _positions(matrices: NDArray[Any], among: NDArray[Any]) -> list[int]:
    distances = ((matrices[:, None] - among[None]) ** 2).sum((-2, -1))
    return [int(i) for i in distances.argmin(1)]


def listed_ids(group: g.Group, max_order: int) -> list[Any]:
    """The ids of the subgroups of ``group``: all of them for a finite one, the families up to ``max_order`` turns else.

    Conjugates in the octahedral and icosahedral groups come as ids with a group element; some ids may name the same
    set of elements.
    """
    kind = _kind(group)
    turns = list(range(1, max_order + 1))
    if kind == "CyclicGroup":
        return list(_divisors(group.order()))
    if kind == "DihedralGroup":
        n = group.order() // 2
        orders = _divisors(n)
        return [(None, m) for m in orders] + [(k, m) for m in orders for k in range(n // m)]
    if kind == "SO2":
        return [*turns, -1]
    if kind == "O2":
        # axes that a pixel grid knows: multiples of 45 degrees, as far as they differ
        flips = [(2 * math.pi * k / 4, m) for m in turns for k in range(max(1, 4 // m) if m in (1, 2, 4) else 1)]
        return [(None, m) for m in turns] + flips + [(None, -1), (0.0, -1)]
    if kind in PLATONIC:
        name, solid_orders = PLATONIC[kind]
        ids = [(False, m) for m in solid_orders] + [(True, m) for m in solid_orders[1:]]
        return [conjugate for id in ids for conjugate in _conjugates(group, id)] + [name]
    if kind == "SO3":
        planar = [(False, m) for m in turns] + [(True, m) for m in turns if m > 1]
        return [*planar, "octa", "ico", (False, -1), (True, -1), "so3"]
    if kind == "O3":
        turned = [(i, f, m) for i in (False, True) for f in (False, True) for m in turns if m > 1 or not f]
        cones: list[Any] = [("cone", m) for m in turns]
        solids = [(i, s) for i in (False, True) for s in ("octa", "ico")]
        smooth = [(i, f, -1) for i in (False, True) for f in (False, True)] + [("cone", -1), "so3", "o3"]
        return turned + cones + solids + smooth
    if isinstance(group, g.DirectProductGroup):
        return [(a, b) for a in listed_ids(group.G1, max_order) for b in listed_ids(group.G2, max_order)]
    return [group.subgroup_trivial_id, group.subgroup_self_id]
