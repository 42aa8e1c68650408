"""Which pathways a relaxed layer has, and the mutually orthogonal kernels of each.

The plan is made once for a layer (:func:`plan`), the kernels once for each pair of an input and an output
representation (:meth:`Relaxation.bases`). Later pathways are orthogonal to earlier ones on the pixel grid, in the order of
the plan, and orthonormal among themselves.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Iterable, Optional, Sequence

import torch
from escnn.group import Representation
from escnn.gspaces import GSpace
from torch import Tensor

from ..errors import ArgumentError, SubgroupError
from .band import Band
from .graded import fixed_kernels, isotypic_kernels
from .grid import grid_permutation, isotypic_projection
from .grid_action import acts_on_grid
from .input_irreps import Splitting
from .pathway import BEYOND_BAND, EQUIVARIANT, OFF_BAND, Pathway
from .span import complement
from .subgroups import Subgroup, subgroup

__all__ = ["Relaxation", "plan", "BASES"]

#: Band-limited as escnn's own kernels are, or complete on the pixel grid.
BASES = ("band-limited", "pixel")

_CACHE: dict[tuple, dict[str, Tensor]] = {}


@dataclass(frozen=True)
class Relaxation:
    """The ways in which a layer on ``gspace`` may break its symmetry.

    Attributes:
        gspace: the G-space whose group is relaxed.
        pathways: the equivariant one first, then the residual ones in the order of the grading.
        basis: one of :data:`BASES`.
    """

    gspace: GSpace
    pathways: tuple[Pathway, ...]
    basis: str = "band-limited"

    def bases(
        self, band: Band, in_repr: Representation, out_repr: Representation, equivariant: Tensor
    ) -> dict[str, Tensor]:
        """Kernels of every pathway for one pair of representations.

        Args:
            equivariant: the layer's own equivariant kernels, shape ``(K, out size, in size, S)``; kept as they are.

        Returns:
            for each pathway's name a tensor ``(K_p, out size, in size, S)``, float64; ``K_p`` may be 0.
        """
        equivariant = equivariant.detach().to("cpu", torch.float64, copy=True)
        # By value: the signs of escnn's solutions differ between machines, and a checkpoint may have brought others.
        value = hashlib.sha256(equivariant.numpy().tobytes()).digest()
        key = (self.gspace.name, self.pathways, self.basis, band.key, in_repr, out_repr, value)
        if key not in _CACHE:
            _CACHE[key] = self._split(band, in_repr, out_repr, equivariant)
        residual = {name: kernels.clone() for name, kernels in _CACHE[key].items()}
        return {EQUIVARIANT.name: equivariant, **residual}

    def _split(self, band: Band, in_repr: Representation, out_repr: Representation, equivariant: Tensor) -> dict:
        splitting = Splitting(equivariant, in_repr)
        result = {}
        for pathway in self.pathways[1:]:
            if pathway == BEYOND_BAND:
                rest = complement(splitting.spanned)
                result[pathway.name] = rest.view(-1, *equivariant.shape[1:])
            else:
                result[pathway.name] = splitting.part(self._kernels(pathway, band, in_repr, out_repr))
        return result

    def _kernels(self, pathway: Pathway, band: Band, in_repr: Representation, out_repr: Representation) -> Tensor:
        group = self.gspace.fibergroup
        kept = subgroup(self.gspace, pathway.subgroup) if pathway.kind == "subgroup" else None
        if self.basis == "pixel":
            permutations = self._permutations(band, kept.elements if kept else group.elements)
            if permutations is not None:
                irrep = group.irrep(*pathway.irrep) if pathway.kind == "irrep" else None
                size = out_repr.size * in_repr.size * len(band.points)
                pixels = torch.eye(size, dtype=torch.float64).view(size, out_repr.size, in_repr.size, -1)
                return isotypic_projection(pixels, in_repr, out_repr, permutations, irrep)
        if kept:
            return fixed_kernels(band, self.gspace, in_repr, out_repr, kept)
        return isotypic_kernels(band, self.gspace, in_repr, out_repr, group.irrep(*pathway.irrep))

    def _permutations(self, band: Band, elements: Sequence) -> Optional[dict]:
        permutations = {g: grid_permutation(self.gspace, g, band.points) for g in elements}
        return None if any(p is None for p in permutations.values()) else permutations

    @cached_property
    def residual(self) -> tuple[Pathway, ...]:
        """All pathways but the equivariant one."""
        return self.pathways[1:]


def plan(
    gspace: GSpace,
    relaxation: str = "graded",
    subgroups: Optional[Sequence] = None,
    basis: str = "band-limited",
    where: str = "",
) -> Relaxation:
    """Name the pathways of a relaxed layer.

    Args:
        gspace: the G-space of the layer.
        relaxation: ``"graded"``: one residual pathway for each non-trivial irrep of the group.
        subgroups: ids of proper subgroups; instead of the grading, one residual pathway for each, larger subgroups
            first; a pathway is orthogonal to what the earlier ones span.
        basis: ``"band-limited"``, or ``"pixel"`` for kernels complete on the pixel grid: the part of a symmetry
            that the grid has exactly is then split off pixel by pixel, and what the band limit of escnn leaves out
            becomes the pathway ``off_band``.
        where: the layer's name, for error messages.

    Raises:
        SubgroupError: an id that names no subgroup, or the whole group, or the same subgroup twice.
        ArgumentError: an unknown ``relaxation`` or ``basis``; a group with no symmetry to relax.

    >>> from escnn import gspaces
    >>> [p.name for p in plan(gspaces.rot2dOnR2(4)).pathways]
    ['equivariant', 'irrep_1', 'irrep_2']
    >>> [p.name for p in plan(gspaces.flipRot2dOnR2(4), subgroups=[(None, 1), (None, 4)]).pathways]
    ['equivariant', 'C4', 'trivial']
    """
    if basis not in BASES:
        raise ArgumentError(where, expected=f"basis to be one of {BASES}", got=repr(basis))
    if relaxation != "graded":
        raise ArgumentError(
            where, expected="relaxation='graded'", got=repr(relaxation), remedy="or name subgroups=[...] instead"
        )
    group = gspace.fibergroup
    if group.order() == 1:
        raise ArgumentError(where, f"{gspace.name} has no symmetry to relax", remedy="leave the layer as it is")
    if group.continuous:
        raise ArgumentError(
            where,
            f"{group.name} is continuous; relaxation of continuous groups is not available yet",
            remedy="use a finite group of the plane, e.g. rot2dOnR2(8)",
        )
    if subgroups is None:
        irreps = [psi for psi in group.irreps() if not psi.is_trivial()]
        residual = [Pathway(psi.name, "irrep", True, irrep=psi.id) for psi in irreps]
    else:
        ladder = _ladder(gspace, subgroups, where)
        residual = [Pathway(s.name, "subgroup", True, subgroup=s.id) for s in ladder]
    if basis == "pixel":
        if all(acts_on_grid(gspace, g) for g in group.elements):
            residual.insert(0, OFF_BAND)
        else:
            residual.append(BEYOND_BAND)
    return Relaxation(gspace, (EQUIVARIANT, *residual), basis)


def _ladder(gspace: GSpace, ids: Sequence, where: str) -> tuple[Subgroup, ...]:
    if isinstance(ids, str) or not isinstance(ids, Iterable):
        raise SubgroupError(where, expected="a list of subgroup ids", got=repr(ids), remedy=f"subgroups=[{ids!r}]?")
    ids = list(ids)
    chosen = [subgroup(gspace, id, where) for id in ids]
    if not chosen:
        raise SubgroupError(where, "no subgroup named", remedy="e.g. the trivial one, or relaxation='graded'")
    for s in chosen:
        if s.order == gspace.fibergroup.order():
            raise SubgroupError(
                where,
                f"{s.id!r} is the whole group {gspace.fibergroup.name}: nothing would be relaxed",
                remedy="name proper subgroups only",
            )
    if len({frozenset(s.elements) for s in chosen}) < len(chosen):
        raise SubgroupError(where, f"a subgroup is named twice in {ids!r}", remedy="name each once")
    return tuple(sorted(chosen, key=lambda s: -s.order))
