"""The id behind a printed name of a subgroup, and the nearest name to one that is misspelt."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from escnn import gspaces
from numpy.typing import NDArray

from ...errors import SubgroupError, nearest
from .finite_groups import group_order
from .subgroup_embedding import embedding
from .subgroup_ids import accepted_ids
from .subgroup_list import listed_ids
from .subgroup_names import natural_action, subgroup_name
from .turned_names import parse_name

__all__ = ["lookup_id", "moves", "remedy"]

#: Names of the subgroups that are listed, by G-space: (gspace, {name: id}).
_NAMES: dict[int, tuple[gspaces.GSpace, dict[str, Any]]] = {}

TURNS = 8


def lookup_id(gspace: gspaces.GSpace, name: str) -> Any:
    """The id that ``subgroup(gspace, id).name`` belongs to.

    Of a continuous group any number of turns has a name, with any axis. An angle in a name is rounded to a hundredth of
    a degree, an axis in space to a hundredth of its largest coordinate: a
    :class:`~escnn_relax.symmetry.groups.subgroup.Subgroup` itself says it exactly.

    Raises:
        SubgroupError: no subgroup of this name, with the nearest that there is.

    >>> lookup_id(gspaces.flipRot2dOnR2(4), "D2_0deg")
    (0, 2)
    >>> lookup_id(gspaces.flipRot2dOnR2(4), "D2_0")
    Traceback (most recent call last):
    ...
    escnn_relax.errors.SubgroupError: D4 has no subgroup 'D2_0', expected a printed name or ...; did you mean 'D2_0deg'?
    There are ...
    """
    ids = names(gspace)
    if name in ids:
        return ids[name]
    group = gspace.fibergroup
    if group_order(group) <= 0:
        for id in _unlisted_ids(gspace, name):
            if _name(gspace, id) == name:
                return id
    if type(group).__name__ in ("SO3", "O3"):
        standard = [*ids.items(), *((_name(gspace, id), id) for id in _unlisted_ids(gspace, name))]
        oriented = parse_name(group, name, standard)
        if oriented is not None:
            return oriented
    try:
        embedding(group, name)
    except SubgroupError:
        raise SubgroupError(
            "",
            f"{group.name} has no subgroup {name!r}",
            expected=f"a printed name or {accepted_ids(group)}",
            remedy=remedy(gspace, name),
        ) from None
    return name  # an id of escnn's that is a string


def remedy(gspace: gspaces.GSpace, name: object) -> str:
    """What to do about a name or id that is none of ``gspace``."""
    text = nearest(name, names(gspace)) if isinstance(name, str) else f"names are {', '.join(list(names(gspace))[:8])}"
    return f"{text}; print(subgroups(gspace)) lists them"


def names(gspace: gspaces.GSpace) -> dict[str, Any]:
    """The ids of the subgroups that :func:`~escnn_relax.symmetry.groups.lattice.subgroups` lists, by name; small
    ones first."""
    if id(gspace) not in _NAMES:
        members: dict[str, tuple[int, Any]] = {}
        for member in listed_ids(gspace.fibergroup, TURNS):
            order = group_order(embedding(gspace.fibergroup, member)[0])
            members.setdefault(_name(gspace, member), (order if order > 0 else 10**9, member))
        ranked = sorted(members.items(), key=lambda item: item[1][0])
        _NAMES[id(gspace)] = gspace, {name: member for name, (_, member) in ranked}
    return _NAMES[id(gspace)][1]


def _name(gspace: gspaces.GSpace, id: Any) -> str:
    group, embed, _ = embedding(gspace.fibergroup, id)
    return subgroup_name(group, id, gspace.fibergroup, moves(gspace, embed))


def moves(gspace: gspaces.GSpace, embed: Callable[..., Any]) -> Callable[..., NDArray[Any]] | None:
    """How elements of a subgroup move points, by its map into the group of ``gspace``; None where nothing is moved."""
    if gspace.dimensionality:
        return lambda h: np.asarray(gspace.basespace_action(embed(h)), dtype=np.float64)
    natural = natural_action(gspace.fibergroup)
    return None if natural is None else lambda h: natural(embed(h))


def _unlisted_ids(gspace: gspaces.GSpace, name: str) -> list[Any]:
    """Ids of a continuous group that are not listed and may have this name: more turns, other axes in the plane."""
    match: re.Match[str] | None = re.match(r"[CD](\d+)", name)
    if match is None or not 0 < int(match[1]) <= 10_000:
        return []
    turns, group = int(match[1]), gspace.fibergroup
    angle = re.fullmatch(r"D\d+_(\d+(?:p\d+)?)deg", name)
    if type(group).__name__ == "O2":
        axis = math.radians(float(angle[1].replace("p", "."))) if angle else 0.0
        # escnn's angle is that of the flip at 0, which on R^2 is about either axis
        return [(None, turns), *((2 * (axis + shift) % (2 * math.pi), turns) for shift in (0.0, math.pi / 2))]
    few = listed_ids(group, 3)  # the families, told by their number of turns
    return [_replace_turns(id, turns) for id in few if _replace_turns(id, turns) != id]


def _replace_turns(id: Any, turns: int) -> Any:
    if isinstance(id, tuple):
        return tuple(_replace_turns(entry, turns) for entry in id)
    return turns if isinstance(id, int) and not isinstance(id, bool) and id == 3 else id
