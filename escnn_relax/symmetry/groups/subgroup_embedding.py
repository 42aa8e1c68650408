"""The group behind a subgroup's id, with its maps into the whole group and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from escnn import group as g

from ...errors import SubgroupError
from .finite_groups import Embedding, group_elements, group_order, table_embedding
from .platonic import PLATONIC, platonic_embedding
from .subgroup_ids import accepted_ids, canonical_id, class_name, rotation_factor
from .tetrahedral import tetrahedral_group
from .twisted import twisted_embedding

__all__ = ["embedding"]


def embedding(group: g.Group, id: Any) -> Embedding:
    """The subgroup H with the maps H -> G and G -> H (None outside H).

    Raises:
        SubgroupError: ``id`` has the wrong form, or names no subgroup of ``group``.
    """
    canonical = canonical_id(group, id)
    got = f"{id!r} of type {type(id).__name__}"
    if canonical is None:
        raise SubgroupError(
            "",
            f"{group.name} has no subgroup id of this form",
            expected=accepted_ids(group),
            got=got,
            remedy="print(subgroups(gspace)) lists names and ids",
        )
    try:
        if class_name(group) in PLATONIC:
            return platonic_embedding(group, canonical)
        if isinstance(canonical, tuple) and canonical[0] == "twisted":
            return _twisted_subgroup(group, canonical)
        if isinstance(group, g.DirectProductGroup) and isinstance(canonical, tuple):
            return _product(group, canonical)
        if class_name(group) in ("SO3", "O3") and "tetra" in str(
            canonical[:2] if isinstance(canonical, tuple) else canonical
        ):
            return _tetrahedral(group, canonical if isinstance(canonical, tuple) else (canonical,))
        if (
            class_name(group) in ("SO3", "O3")
            and isinstance(canonical, tuple)
            and isinstance(canonical[-1], g.GroupElement)
        ):
            return _conjugate(group, canonical)
        subgroup, embed, pull = group.subgroup(canonical)
        if group_order(subgroup) == 0:
            raise ValueError("no such subgroup")
        return subgroup, embed, pull
    except SubgroupError as error:  # of a factor of a product
        remedy = "print(subgroups(gspace)) lists names and ids"
        raise SubgroupError("", f"{id!r} names no subgroup of {group.name}: {error}", remedy=remedy) from None
    except (AssertionError, ValueError, NotImplementedError, KeyError, TypeError, IndexError, ZeroDivisionError):
        # escnn answers an impossible id with whatever breaks first
        raise SubgroupError(
            "",
            f"{group.name} has no such subgroup in escnn",
            expected=accepted_ids(group),
            got=got,
            remedy="print(subgroups(gspace)) lists them",
        ) from None


def _twisted_subgroup(group: g.Group, id: tuple[Any, ...]) -> Embedding:
    rotations: Any = rotation_factor(group)
    whole_part, half = (embedding(rotations, half_id) for half_id in id[1:])
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
    if class_name(group) == "SO3":
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
        firsts, seconds = ({e: i for i, e in enumerate(group_elements(factor))} for factor in (group.G1, group.G2))
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
