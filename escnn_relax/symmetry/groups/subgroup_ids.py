"""The subgroup ids that escnn understands: what is accepted, what exists, and the group behind each.

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

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from escnn import group as g

from ...errors import SubgroupError
from .finite_groups import Embedding, group_elements, group_order, table_embedding
from .platonic import DIHEDRAL, PLATONIC, platonic_embedding, platonic_ids
from .tetrahedral import tetrahedral_group
from .twisted import halves, twisted_embedding

__all__ = ["accepted_ids", "canonical_id", "listed_ids", "embedding", "unlisted"]


def _divisors(n: int) -> list[int]:
    return [m for m in range(1, n + 1) if n % m == 0]


def _kind(group: g.Group) -> str:
    return type(group).__name__


def accepted_ids(group: g.Group) -> str:
    """One line, for error messages: the ids accepted for subgroups of ``group``."""
    kind, n = _kind(group), group_order(group)
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
        factors = [f"{part.name}: {accepted_ids(part)}" for part in (group.G1, group.G2)]
        return f"a pair (id1, id2) with id1 of {factors[0]} and id2 of {factors[1]}" + (
            f", or ('twisted', id, id) with ids of {group.G2.name}" if group_order(group.G1) == 2 else ""
        )
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
    if isinstance(id, tuple) and id and id[0] == "twisted":
        rotations = _rotations(group)
        halves = () if rotations is None else tuple(canonical_id(rotations, part) for part in id[1:])
        return None if len(halves) != 2 or None in halves else ("twisted", *halves)
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
            where,
            f"{group.name} has no subgroup id of this form",
            expected=accepted_ids(group),
            got=got,
            remedy="print(subgroups(gspace)) lists names and ids",
        )
    try:
        if _kind(group) in PLATONIC:
            return platonic_embedding(group, canonical)
        if isinstance(canonical, tuple) and canonical[0] == "twisted":
            return _twisted_subgroup(group, canonical)
        if isinstance(group, g.DirectProductGroup) and isinstance(canonical, tuple):
            return _product(group, canonical)
        if _kind(group) in ("SO3", "O3") and "tetra" in str(
            canonical[:2] if isinstance(canonical, tuple) else canonical
        ):
            return _tetrahedral(group, canonical if isinstance(canonical, tuple) else (canonical,))
        if _kind(group) in ("SO3", "O3") and isinstance(canonical, tuple) and isinstance(canonical[-1], g.GroupElement):
            return _conjugate(group, canonical)
        subgroup, embed, pull = group.subgroup(canonical)
        if group_order(subgroup) == 0:
            raise ValueError("no such subgroup")
        return subgroup, embed, pull
    except SubgroupError as error:  # of a factor of a product
        remedy = "print(subgroups(gspace)) lists names and ids"
        raise SubgroupError(where, f"{id!r} names no subgroup of {group.name}: {error}", remedy=remedy) from None
    except (AssertionError, ValueError, NotImplementedError, KeyError, TypeError, IndexError, ZeroDivisionError):
        # escnn answers an impossible id with whatever breaks first
        raise SubgroupError(
            where,
            f"{group.name} has no such subgroup in escnn",
            expected=accepted_ids(group),
            got=got,
            remedy="print(subgroups(gspace)) lists them",
        ) from None


def _rotations(group: g.Group) -> g.Group | None:
    """R in G = {1, -1} x R; None for other groups."""
    if _kind(group) == "O3":
        return g.so3_group()
    return group.G2 if isinstance(group, g.DirectProductGroup) and group_order(group.G1) == 2 else None


def _twisted_subgroup(group: g.Group, id: tuple[Any, ...]) -> Embedding:
    rotations: Any = _rotations(group)
    whole_part, half = (embedding(rotations, part) for part in id[1:])
    if isinstance(group, g.DirectProductGroup):
        _, minus = group.G1.elements
        whole, position = group_elements(group), {e: i for i, e in enumerate(group_elements(rotations))}
        return twisted_embedding(
            whole_part,
            half,
            lambda inversion, r: whole[(len(position) if inversion else 0) + position[r]],
            lambda e: (group.split_element(e)[0] == minus, group.split_element(e)[1]),
        )
    return twisted_embedding(
        whole_part,
        half,
        lambda inversion, r: group.element((int(inversion), r.value), r.param),
        lambda e: (bool(e.value[0]), rotations.element(e.value[1], e.param)),
    )


def _conjugate(group: g.Group, id: tuple[Any, ...]) -> Embedding:
    """A^-1 H A, turned here: escnn keeps what it built by ids that are equal up to 1e-5, and would answer with one
    that was near."""
    *bare, turn = id
    subgroup, embed, pull = embedding(group, bare[0] if len(bare) == 1 else tuple(bare))
    back = ~turn
    return subgroup, lambda h: back @ embed(h) @ turn, lambda e: pull(turn @ e @ back)


def _tetrahedral(group: g.Group, id: tuple[Any, ...]) -> Embedding:
    """T, T with the inversion or all symmetries of the tetrahedron, in SO(3) or O(3)."""
    adjoint = id[-1] if isinstance(id[-1], g.GroupElement) else group.identity
    tetrahedral = tetrahedral_group()
    if _kind(group) == "SO3":
        if id[0] != "tetra":
            raise ValueError(id)
        inclusion = {h: ~adjoint @ group.element(h.value, h.param) @ adjoint for h in tetrahedral.elements}
        return (
            tetrahedral,
            inclusion.__getitem__,
            lambda e: next((h for h, image in inclusion.items() if image == e), None),
        )
    if id[0] == "fulltetra":
        turn = g.so3_group().element(adjoint.value[1], adjoint.param)
        return _twisted_subgroup(group, ("twisted", ("octa", turn), ("tetra", turn)))
    if id[1] != "tetra":
        raise ValueError(id)
    whole = g.direct_product(g.cyclic_group(2), tetrahedral) if id[0] else tetrahedral

    def embed(h: g.GroupElement) -> g.GroupElement:
        inversion, turn = whole.split_element(h) if id[0] else (tetrahedral.identity, h)
        flag = int(id[0] and inversion != whole.G1.identity)
        return ~adjoint @ group.element((flag, turn.value), turn.param) @ adjoint

    images = {h: embed(h) for h in whole.elements}
    return whole, images.__getitem__, lambda e: next((h for h, image in images.items() if image == e), None)


def _product(group: g.DirectProductGroup, id: tuple[Any, ...]) -> Embedding:
    """H1 x H2 in G1 x G2; a trivial factor is dropped, as escnn does."""
    split: Callable[[g.GroupElement], tuple[g.GroupElement, g.GroupElement]]
    join: Callable[[g.GroupElement, g.GroupElement], g.GroupElement]
    first, embed_first, pull_first = embedding(group.G1, id[0])
    second, embed_second, pull_second = embedding(group.G2, id[1])
    if group_order(first) == 1:
        subgroup = second
        split = lambda h: (first.identity, h)
        join = lambda a, b: b
    elif group_order(second) == 1:
        subgroup = first
        split = lambda h: (h, second.identity)
        join = lambda a, b: a
    else:
        subgroup = g.direct_product(first, second)
        split, join = subgroup.split_element, subgroup.pair_elements

    def embed(h: g.GroupElement) -> g.GroupElement:
        a, b = split(h)
        return group.pair_elements(embed_first(a), embed_second(b))

    if not group.continuous:
        firsts, seconds = ({e: i for i, e in enumerate(group_elements(part))} for part in (group.G1, group.G2))
        whole = group_elements(group)
        images = [
            whole[firsts[embed_first(a)] * len(seconds) + seconds[embed_second(b)]]
            for a in group_elements(first)
            for b in group_elements(second)
        ]
        return table_embedding(subgroup, images)

    def pull(e: g.GroupElement) -> g.GroupElement | None:
        a, b = group.split_element(e)
        a, b = pull_first(a), pull_second(b)
        return None if a is None or b is None else join(a, b)

    return subgroup, embed, pull


def listed_ids(group: g.Group, max_order: int) -> list[Any]:
    """The ids of the subgroups of ``group``: all of them for a finite one, the families up to ``max_order`` turns else.

    Conjugates in the octahedral and icosahedral groups come as ids with a group element; some ids may name the same
    set of elements.
    """
    kind = _kind(group)
    turns = list(range(1, max_order + 1))
    if kind == "CyclicGroup":
        return list(_divisors(group_order(group)))
    if kind == "DihedralGroup":
        n = group_order(group) // 2
        orders = _divisors(n)
        return [(None, m) for m in orders] + [(k, m) for m in orders for k in range(n // m)]
    if kind == "SO2":
        return [*turns, -1]
    if kind == "O2":
        # axes that a pixel grid knows: multiples of 45 degrees, as far as they differ
        flips = [(2 * math.pi * k / 4, m) for m in turns for k in range(max(1, 4 // m) if m in (1, 2, 4) else 1)]
        return [(None, m) for m in turns] + flips + [(None, -1), (0.0, -1)]
    if kind in PLATONIC:
        return platonic_ids(group)
    if kind == "SO3":
        planar = [(False, m) for m in turns] + [(True, m) for m in turns if m > 1]
        return [*planar, "tetra", "octa", "ico", (False, -1), (True, -1), "so3"]
    if kind == "O3":
        axial = [(i, f, m) for i in (False, True) for f in (False, True) for m in turns if m > 1 or not f]
        cones: list[Any] = [("cone", m) for m in turns]
        # by 2 turns these are a mirror and C2v, which are among the cones
        twisted = [("twisted", (f, m), (f, m // 2)) for f in (False, True) for m in turns if m % 2 == 0 and m > 2]
        solids = [(i, s) for i in (False, True) for s in ("tetra", "octa", "ico")] + ["fulltetra"]
        smooth = [(i, f, -1) for i in (False, True) for f in (False, True)] + [("cone", -1), "so3", "o3"]
        return axial + cones + twisted + solids + smooth
    if isinstance(group, g.DirectProductGroup):
        first_ids, second_ids = listed_ids(group.G1, max_order), listed_ids(group.G2, max_order)
        pairs: list[Any] = [(a, b) for a in first_ids for b in second_ids]
        if _rotations(group) is not None and not group.continuous:
            position = {e: i for i, e in enumerate(group_elements(group.G2))}
            members: dict[frozenset[int], Any] = {}
            for id in second_ids:
                subgroup, embed, _ = embedding(group.G2, id)
                members.setdefault(frozenset(position[embed(h)] for h in group_elements(subgroup)), id)
            pairs += [("twisted", h, k) for h, k in halves(members)]
        return pairs
    return [group.subgroup_trivial_id, group.subgroup_self_id]


def unlisted(group: g.Group, max_order: int) -> str:
    """What :func:`listed_ids` leaves out, empty where it is complete."""
    kind = _kind(group)
    if kind in ("SO2", "O2"):
        axes = "; reflection axes at multiples of 45 degrees only, an id (theta, M) takes any" if kind == "O2" else ""
        return f"more than {max_order} turns{axes}"
    if kind in ("SO3", "O3"):
        return f"more than {max_order} turns, and any other position: an id may end with the turn A of H -> A^-1 H A"
    if isinstance(group, g.DirectProductGroup):
        if group.continuous or _rotations(group) is None:
            factors = [part for part in (unlisted(group.G1, max_order), unlisted(group.G2, max_order)) if part]
            return "; ".join(["those that are no product of subgroups of the factors", *factors])
        return unlisted(group.G2, max_order)
    return "" if kind in ("CyclicGroup", "DihedralGroup", *PLATONIC) else "all but the trivial one and the group"
