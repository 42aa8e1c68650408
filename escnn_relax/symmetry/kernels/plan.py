"""Which pathways a relaxed layer has: named once for a layer, from what its user asks for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from escnn.group import Group
from escnn.gspaces import GSpace

from ...errors import ArgumentError, SubgroupError
from ..grid.field_action import acts_on_grid
from ..groups.irreps import check_frequency, frequency, irreps_up_to, select_irreps
from ..groups.lattice import Subgroup, subgroup
from ..groups.subgroup import group_size
from .pathway import BREAKING_OFF_BAND, EQUIVARIANT, OFF_BAND, Pathway
from .pathway_kernels import Relaxation

__all__ = ["BASES", "Freedom", "plan"]

#: Band-limited as escnn's own kernels are, or complete on the pixel grid.
BASES = ("band-limited", "pixel")


@dataclass(frozen=True)
class Freedom:
    """The ways in which a layer may break its symmetry, as a user asks for them: the arguments of every relaxed layer.

    Attributes:
        relaxation: ``"graded"``: one residual pathway for each non-trivial irrep of the group.
        subgroups: ids of proper subgroups, as ``gspace.restrict`` takes them; instead of the grading, one residual
            pathway for each: the kernels equivariant under it, orthogonal to what larger subgroups already span. The
            trivial subgroup is the classical residual pathway.
        basis: ``"band-limited"`` as escnn's kernels are, or ``"pixel"``: complete on the pixel grid. The part of a
            symmetry that the grid has exactly is then split off pixel by pixel, and what the named pathways leave out
            becomes the pathway ``off_band``.
        frequencies: only irreps up to this frequency. By default all irreps of a finite group, and of a continuous one
            all that kernels of the layer can contain: the highest frequencies of the input's and the output's irreps
            and of the kernel's band limit, added up. ``irreps_up_to`` says what the frequency of an irrep is.
        irreps: ids of the irreps that get a pathway, instead of ``frequencies``.
    """

    relaxation: str = "graded"
    subgroups: Sequence[Any] | None = None
    basis: str = "band-limited"
    frequencies: int | None = None
    irreps: Sequence[Any] | None = None


def plan(
    gspace: GSpace,
    relaxation: str = "graded",
    subgroups: Sequence[Any] | None = None,
    basis: str = "band-limited",
    *,
    frequencies: int | None = None,
    irreps: Sequence[Any] | None = None,
    reach: int | None = None,
) -> Relaxation:
    """Name the pathways of a relaxed layer.

    Args:
        gspace: the G-space of the layer.
        relaxation, subgroups, basis, frequencies, irreps: see :class:`Freedom`.
        reach: the highest frequency that kernels of the layer can contain, for continuous groups.

    Raises:
        SubgroupError: an id that names no subgroup, or the whole group, or the same subgroup twice.
        ArgumentError: an unknown ``relaxation`` or ``basis``; subgroups or irreps of the trivial group, which has the
            equivariant pathway only; irreps that the group lacks, a negative cutoff, or one that leaves no irrep at
            all.

    >>> from escnn import gspaces
    >>> [p.name for p in plan(gspaces.rot2dOnR2(4)).pathways]
    ['equivariant', 'irrep_1', 'irrep_2']
    >>> [p.name for p in plan(gspaces.flipRot2dOnR2(4), subgroups=[(None, 1), (None, 4)]).pathways]
    ['equivariant', 'C4', 'trivial']
    >>> [p.name for p in plan(gspaces.flipRot2dOnR2(-1), frequencies=2).pathways]
    ['equivariant', 'irrep_1,0', 'irrep_1,1', 'irrep_1,2']
    """
    if basis not in BASES:
        remedy = "leave it out for the default"
        raise ArgumentError("", expected=f"basis to be one of {BASES}", got=repr(basis), remedy=remedy)
    if relaxation != "graded":
        raise ArgumentError(
            "", expected="relaxation='graded'", got=repr(relaxation), remedy="or name subgroups=[...] instead"
        )
    group = gspace.fibergroup
    if group.order() == 1 and subgroups is None and irreps is None and basis == "band-limited":
        return Relaxation(gspace, (EQUIVARIANT,), basis)
    if group.order() == 1 and basis != "pixel":
        raise ArgumentError(
            "", f"{gspace.name} has no symmetry to relax", remedy="name no subgroups and no irreps for it"
        )
    cutoff = _cutoff(group, frequencies, irreps, subgroups, reach)
    if subgroups is not None:
        ladder = _ladder(gspace, subgroups)
        residual = [Pathway(s.name, "subgroup", True, subgroup=s.id) for s in ladder]
    else:
        selection = irreps_up_to(group, cutoff) if irreps is None else select_irreps(group, irreps)
        residual = [Pathway(psi.name, "irrep", True, irrep=psi.id) for psi in selection if not psi.is_trivial()]
        if not residual:
            problem = f"{group.name} has no irrep up to frequency {cutoff} that would break the symmetry"
            raise ArgumentError("", problem, remedy="allow higher frequencies")
    if basis == "pixel":
        if not group.continuous and all(acts_on_grid(gspace, g) for g in group.elements):
            residual.insert(0, OFF_BAND)
        else:
            residual.append(BREAKING_OFF_BAND)
    return Relaxation(gspace, (EQUIVARIANT, *residual), basis, cutoff if subgroups is not None else None)


def _cutoff(
    group: Group,
    frequencies: object,
    irreps: Sequence[Any] | None,
    subgroups: Sequence[Any] | None,
    reach: int | None,
) -> int | None:
    highest = check_frequency(frequencies)
    if irreps is not None and (highest is not None or subgroups is not None):
        argument = "subgroups" if subgroups is not None else "frequencies"
        raise ArgumentError("", f"irreps and {argument} both say which kernels to have", remedy="give one of them")
    if highest is None:
        if group.continuous and reach is None and irreps is None:
            raise ArgumentError("", f"{group.name} is continuous", remedy="give the highest frequency: frequencies=...")
        return reach if group.continuous else None
    if any(frequency(group, psi.id) is None for psi in irreps_up_to(group, 0 if group.continuous else None)):
        raise ArgumentError("", f"the irreps of {group.name} have no frequency", remedy="choose them by irreps=[...]")
    return highest


def _ladder(gspace: GSpace, ids: Sequence[Any]) -> tuple[Subgroup, ...]:
    if isinstance(ids, str) or not isinstance(ids, Iterable):
        raise SubgroupError("", expected="a list of subgroup ids", got=repr(ids), remedy=f"subgroups=[{ids!r}]?")
    ids = list(ids)
    members = [subgroup(gspace, id) for id in ids]
    if not members:
        raise SubgroupError("", "no subgroup named", remedy="e.g. the trivial one, or relaxation='graded'")
    for s in members:
        if s.index == 1:
            raise SubgroupError(
                "",
                f"{s.id!r} is the whole group {gspace.fibergroup.name}: nothing would be relaxed",
                remedy="name proper subgroups only",
            )
    for n, s in enumerate(members):
        if any(group_size(s.group) == group_size(t.group) and s <= t for t in members[:n]):
            raise SubgroupError("", f"a subgroup is named twice in {ids!r}", remedy="name each once")
    return tuple(sorted(members, key=lambda s: group_size(s.group), reverse=True))
