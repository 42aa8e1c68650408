"""Which coefficients of a layer's open pathways a subgroup fixes, where the pixel grid mixes pathways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...nn.measured.kernel_symmetry import KernelSymmetry
from ...symmetry.kernels.pathway import Pathway

__all__ = ["Pair", "coupled_pathways", "fixed_coefficients"]

#: Names of an input representation and an output representation.
Pair = tuple[str, str]

#: A kernel of a subgroup counts where closed pathways leave more than this of its energy (fraction).
OPEN = 0.5

#: A vector of coefficients reaches into a pathway if it has more than this norm there.
REACHES = 1e-5


def coupled_pathways(symmetry: KernelSymmetry, fixed: Mapping[Pair, Tensor]) -> list[list[Pathway]]:
    """Pathways in groups: within one, some fixed kernel has a part in several of them, since the grid mixes irreps."""
    groups = [{p} for p in symmetry.residual]
    for pair, basis in fixed.items():
        for row in basis:
            reached = {
                p
                for p, section in zip(symmetry.pairs[pair].pathways, symmetry.pairs[pair].sections)
                if section.start < section.stop and float(row[section].norm()) > REACHES
            }
            joined = [g for g in groups if g & reached]
            if len(joined) > 1:
                groups = [g for g in groups if not g & reached] + [set().union(*joined)]
    return [[p for p in symmetry.residual if p in g] for g in groups]


def fixed_coefficients(
    symmetry: KernelSymmetry, pair: Pair, group: Sequence[Pathway], members: Sequence[Pathway], basis: Tensor
) -> Tensor:
    """Orthonormal coefficient vectors of the open pathways of a group that a subgroup fixes, ``(n, coefficients)``.

    Args:
        group: pathways that the grid couples.
        members: the open ones of them.
        basis: the kernels that the subgroup fixes, of all pathways.
    """
    sections = symmetry.pairs[pair].sections
    section = dict(zip(symmetry.pairs[pair].pathways, sections))
    columns = torch.cat([torch.arange(section[p].start, section[p].stop) for p in group])
    rows = basis[:, columns]
    rows = rows[rows.norm(dim=1) > 0.5]  # each lives in one group of pathways only
    if len(members) == len(group):
        return rows
    opened = torch.cat([torch.full((section[p].stop - section[p].start,), p in members) for p in group])
    if not len(rows) or not int((~opened).sum()):
        return rows[:, opened]
    # a grid that mixes irreps gives the kernels of C3 a part in C6's irrep 1: where that is closed, their open parts
    # are meant
    _, sizes, axes = torch.linalg.svd(rows[:, opened], full_matrices=False)
    return axes[sizes.square() > OPEN]
