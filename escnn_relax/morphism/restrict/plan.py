"""Which subgroup each part of a network is restricted to: one embedding of H throughout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from escnn.group import GroupElement
from escnn.gspaces import GSpace
from escnn.nn import EquivariantModule
from numpy.typing import NDArray

from ...errors import SubgroupError, UnsupportedModuleError
from ...symmetry.groups.lattice import subgroups
from ...symmetry.groups.restriction import Restriction, restriction
from ...symmetry.groups.subgroup import Subgroup, subgroup

__all__ = ["RestrictionPlan"]


class RestrictionPlan:
    """H in G, and the same H in the groups to which the network itself has already stepped down.

    Args:
        chosen: H in the group of the network's input.
    """

    def __init__(self, chosen: Subgroup) -> None:
        self.chosen = chosen
        self._restrictions: list[tuple[GSpace, Restriction]] = [(chosen.gspace, restriction(chosen))]

    def restriction(self, gspace: GSpace) -> Restriction:
        """What a module on this G-space is restricted to.

        Raises:
            UnsupportedModuleError: the network never says how this G-space's group relates to G.
        """
        for known, change in self._restrictions:
            if known is gspace or known == gspace:
                return change
        if gspace.dimensionality == 0:
            for known, change in self._restrictions:
                if known.fibergroup == gspace.fibergroup:
                    result = restriction(subgroup(gspace, change.subgroup.id))
                    self._restrictions.append((gspace, result))
                    return result
        raise UnsupportedModuleError(
            "",
            f"it lives on {gspace}, and nothing relates that to {self.chosen.gspace}",
            remedy="restrict this part by itself",
        )

    def through(self, module: EquivariantModule) -> tuple[Restriction, Restriction]:
        """The restrictions on both sides of a module that steps from G to K: H in G and H in K.

        Raises:
            SubgroupError: H is not contained in K.
        """
        before = self.restriction(module.in_type.gspace)
        space = module.out_type.gspace
        for known, change in self._restrictions:
            if known is space or known == space:
                return before, change
        after = self._inside(before, space, getattr(module, "_id", None))
        self._restrictions.append((space, after))
        return before, after

    def _inside(self, before: Restriction, space: GSpace, id: Any) -> Restriction:
        """H in K, found by how the elements move points, or without a base space by K's id in G."""
        place: Callable[[GroupElement], NDArray[Any]]
        whole = before.subgroup.gspace
        if space.dimensionality:
            place = lambda e: np.asarray(space.basespace_action(e))
            matrices = [np.asarray(whole.basespace_action(h)) for h in before.subgroup.testing_elements]
        else:
            inner = subgroup(whole, id)
            table = list(whole.fibergroup.elements)
            code = np.eye(len(table))
            place = lambda e: code[table.index(inner.embed(e))]
            matrices = [code[table.index(h)] for h in before.subgroup.elements]
        for candidate in subgroups(space):
            if candidate.order != before.subgroup.order:
                continue
            images = [place(e) for e in candidate.testing_elements]
            if all(any(np.abs(w - i).max() < 1e-6 for i in images) for w in matrices):
                return restriction(candidate)
        raise SubgroupError(
            "",
            f"the network has already stepped down to {space}, which does not contain {before.subgroup}",
            remedy="choose a subgroup of both, or restrict only the part before",
        )
