"""Subgroups of SO(3) and O(3) turned to other positions in space: A^-1 H A."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from escnn.group import GroupElement
from torch import Tensor

from .lattice import subgroups
from .rotations import rotation
from .subgroup import Subgroup, subgroup
from .turned_names import conjugate_id

__all__ = ["conjugate", "smaller_subgroups", "standard_position"]


def conjugate(member: Subgroup, vector: Tensor) -> Subgroup:
    """A subgroup of SO(3) or O(3) turned: A^-1 H A, where A turns by this vector.

    >>> import torch
    >>> from escnn import gspaces
    >>> conjugate(subgroup(gspaces.rot3dOnR3(), (False, 3)), torch.tensor([0.0, torch.pi / 2, 0.0])).name
    'C3_x'
    """
    if float(vector.norm()) < 1e-12:
        return member
    group = member.gspace.fibergroup
    return subgroup(member.gspace, conjugate_id(group, member.id, rotation(group, vector)))


def standard_position(member: Subgroup) -> tuple[Subgroup, GroupElement | None]:
    """A subgroup of SO(3) or O(3) in escnn's position, and the turn from there: H and A of A^-1 H A, or None."""
    group, id = member.gspace.fibergroup, member.id
    twisted = isinstance(id, tuple) and id[0] == "twisted"
    entries = id[1] if twisted else id
    if not isinstance(entries, tuple) or not isinstance(entries[-1], GroupElement):
        return member, None

    def bare(turned: Any) -> Any:
        return turned[0] if len(turned) == 2 else turned[:-1]

    element = group.element((0, entries[-1].value), entries[-1].param) if twisted else entries[-1]
    return subgroup(member.gspace, ("twisted", bare(id[1]), bare(id[2])) if twisted else bare(id)), element


def smaller_subgroups(upper: Subgroup, highest: int) -> Iterator[Subgroup]:
    """The subgroups of H where it stands, small to large, that turns by this frequency tell apart."""
    reference, element = standard_position(upper)
    for member in subgroups(upper.gspace, max(1, highest)):
        if member < reference:
            rotated = element is not None and member.order != 1
            yield (
                subgroup(upper.gspace, conjugate_id(upper.gspace.fibergroup, member.id, element)) if rotated else member
            )
