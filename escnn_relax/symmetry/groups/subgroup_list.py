"""The ids of a group's subgroups: all of a finite group, of a continuous one its families up to a number of turns.

Ids are those of :mod:`escnn_relax.symmetry.groups.subgroup_ids`.
"""

from __future__ import annotations

import math
from typing import Any

from escnn import group as g

from .finite_groups import group_elements, group_order
from .platonic import PLATONIC, platonic_ids
from .subgroup_embedding import embedding
from .subgroup_ids import class_name, divisors, rotation_factor
from .twisted import halves

__all__ = ["listed_ids", "unlisted"]


def listed_ids(group: g.Group, max_order: int) -> list[Any]:
    """The ids of the subgroups of ``group``: all of them for a finite one, the families up to ``max_order`` turns else.

    Conjugates in the octahedral and icosahedral groups come as ids with a group element; some ids may name the same
    set of elements.
    """
    kind = class_name(group)
    turns = list(range(1, max_order + 1))
    if kind == "CyclicGroup":
        return list(divisors(group_order(group)))
    if kind == "DihedralGroup":
        n = group_order(group) // 2
        orders = divisors(n)
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
        if rotation_factor(group) is not None and not group.continuous:
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
    kind = class_name(group)
    if kind in ("SO2", "O2"):
        axes = "; reflection axes at multiples of 45 degrees only, an id (theta, M) takes any" if kind == "O2" else ""
        return f"more than {max_order} turns{axes}"
    if kind in ("SO3", "O3"):
        return f"more than {max_order} turns, and any other position: an id may end with the turn A of H -> A^-1 H A"
    if isinstance(group, g.DirectProductGroup):
        if group.continuous or rotation_factor(group) is None:
            factors = [factor for factor in (unlisted(group.G1, max_order), unlisted(group.G2, max_order)) if factor]
            return "; ".join(["those that are no product of subgroups of the factors", *factors])
        return unlisted(group.G2, max_order)
    return "" if kind in ("CyclicGroup", "DihedralGroup", *PLATONIC) else "all but the trivial one and the group"
