"""The irreps of a group by their frequency: which of them a grading takes.

The frequency of an irrep is the number of turns that it counts: k of the irreps of SO(2) and O(2), the degree l of
those of SO(3) and O(3), and in a product the frequency of its continuous factor.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

from escnn.group import DirectProductGroup, Group, IrreducibleRepresentation, Representation

from ...errors import ArgumentError

__all__ = ["check_frequency", "select_irreps", "frequency", "highest_frequency", "instantiate", "irreps_up_to"]

_POSITION = {"SO2": 0, "O2": 1, "SO3": 0, "O3": 1, "CyclicGroup": 0, "DihedralGroup": 1}


def frequency(group: Group, id: tuple[Any, ...]) -> int | None:
    """The frequency of the irrep with this id; ``None`` where the group's irreps have none (octahedral, icosahedral).

    >>> from escnn.group import o2_group, so3_group
    >>> frequency(o2_group(), (1, 3)), frequency(so3_group(1), (2,))
    (3, 2)
    """
    if isinstance(group, DirectProductGroup):
        frequencies = [
            _irrep_frequency(factor, tuple(factor_id))
            for factor, factor_id in zip((group.G1, group.G2), id)
            if factor.continuous
        ]
        return max(frequencies) if frequencies else frequency(group.G2, tuple(id[1]))
    position = _POSITION.get(type(group).__name__)
    return None if position is None else int(id[position])


def _irrep_frequency(group: Group, id: tuple[Any, ...]) -> int:
    value = frequency(group, id)
    if value is None:
        raise ArgumentError(
            group.name, "the irreps of this group have no frequency", remedy="choose them by irreps=[...]"
        )
    return value


def highest_frequency(representations: Iterable[Representation]) -> int:
    """The highest frequency among the irreps of some representations of a continuous group, 0 for none."""
    return max((_irrep_frequency(r.group, id) for r in representations for id in r.irreps), default=0)


def irreps_up_to(group: Group, highest: int | None) -> list[IrreducibleRepresentation]:
    """The irreps with no more than this frequency, the trivial one first, of a continuous group by growing frequency.

    Of a finite group ``None`` means all.

    >>> from escnn.group import so3_group
    >>> [psi.id for psi in irreps_up_to(so3_group(1), 3)]
    [(0,), (1,), (2,), (3,)]
    """
    if not group.continuous:
        return [psi for psi in group.irreps() if highest is None or _irrep_frequency(group, psi.id) <= highest]
    if highest is None:
        remedy = "pass frequencies="
        raise ArgumentError(
            group.name, "the group is continuous", expected="the highest frequency", got="None", remedy=remedy
        )
    return [group.irrep(*id) for id in _ids(group, highest)]


def _ids(group: Group, highest: int) -> list[tuple[Any, ...]]:
    kind = type(group).__name__
    turns = range(highest + 1)
    if kind in ("SO2", "SO3"):
        return [(k,) for k in turns]
    if kind == "O2":
        return [(0, 0), *((1, k) for k in turns)]
    if kind == "O3":
        return [(parity, k) for k in turns for parity in (0, 1)]
    if isinstance(group, DirectProductGroup):
        factor_ids = [
            _ids(g, highest) if g.continuous else [psi.id for psi in g.irreps()] for g in (group.G1, group.G2)
        ]
        # a product of two irreps of complex type falls into two, of which escnn calls the second (a, b, 1)
        types = [
            {id: g.irrep(*id).sum_of_squares_constituents for id in ids}
            for g, ids in zip((group.G1, group.G2), factor_ids)
        ]
        ids = [(a, b, i) for b in factor_ids[1] for a in factor_ids[0] for i in range(min(2, types[0][a], types[1][b]))]
        return sorted(ids, key=lambda id: _irrep_frequency(group, id))
    raise ArgumentError(
        group.name, "no list of irreps by frequency for this group", remedy="choose them by irreps=[...]"
    )


def instantiate(group: Group, highest: int) -> None:
    """Have a continuous group know its irreps up to this frequency.

    escnn decomposes products into the irreps that happen to exist, and fails where some are missing
    (``InsufficientIrreps``). A finite group has all of its own.
    """
    if group.continuous:
        irreps_up_to(group, highest)


def select_irreps(group: Group, ids: Sequence[Any]) -> list[IrreducibleRepresentation]:
    """The irreps with these ids, in the group's own order.

    Args:
        ids: ids of non-trivial irreps as escnn has them (an int for a tuple of one, a pair for an irrep of a product),
            or the irreps themselves.

    Raises:
        ArgumentError: an id that the group lacks, the trivial irrep, one named twice, or none at all.

    >>> from escnn.group import cyclic_group
    >>> [psi.id for psi in select_irreps(cyclic_group(8), [4, (2,)])]
    [(2,), (4,)]
    """
    if isinstance(ids, (str, Representation)) or not isinstance(ids, Iterable):
        raise ArgumentError("", expected="a list of irrep ids", got=repr(ids), remedy=f"irreps=[{ids!r}]?")
    irreps = [_irrep(group, id) for id in ids]
    if not irreps:
        raise ArgumentError("", "irreps=[] leaves nothing to relax", remedy="name some, or leave irreps out")
    for psi in irreps:
        if psi.is_trivial():
            raise ArgumentError(
                "",
                f"irrep {psi.id} of {group.name} is the trivial one, whose kernels are the equivariant ones",
                remedy="name non-trivial irreps only",
            )
    if len({psi.id for psi in irreps}) < len(irreps):
        raise ArgumentError("", f"an irrep is named twice in {list(ids)!r}", remedy="name each once")
    if not group.continuous:
        return [psi for psi in group.irreps() if psi in irreps]
    order = [psi.id for psi in irreps_up_to(group, max(_irrep_frequency(group, psi.id) for psi in irreps))]
    return sorted(irreps, key=lambda psi: order.index(psi.id))


def _irrep(group: Group, id: Any) -> IrreducibleRepresentation:
    if isinstance(id, IrreducibleRepresentation):
        if id.group != group:
            remedy = "take it from the same fibergroup"
            raise ArgumentError(
                "", expected=f"an irrep of {group.name}", got=f"{id.name} of {id.group.name}", remedy=remedy
            )
        return id
    id = (int(id),) if isinstance(id, Integral) and not isinstance(id, bool) else id
    try:
        degree = _irrep_frequency(group, id) if group.continuous else 0
    except (TypeError, IndexError, ValueError):
        degree = -1
    if degree >= 0:
        for candidate in _ids(group, degree) if group.continuous else [psi.id for psi in group.irreps()]:
            if candidate == id or isinstance(group, DirectProductGroup) and candidate[:2] == id:
                return group.irrep(*candidate)
    some = [psi.id for psi in irreps_up_to(group, 2 if group.continuous else None)]
    raise ArgumentError(
        "",
        f"{group.name} has no such irrep",
        expected=f"ids like {some}" if group.continuous else f"ids out of {some}",
        got=f"{id!r}",
        remedy="pass an id as irrep.id has it",
    )


def check_frequency(value: object) -> int | None:
    """A cutoff as the user gave it: ``None``, or an int of 0 or more.

    Raises:
        ArgumentError: anything else.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
        remedy = "leave it out for all that kernels can contain"
        raise ArgumentError("", expected="frequencies, an int of 0 or more", got=repr(value), remedy=remedy)
    return int(value)
