"""Kernels of a band in the coordinates of its patterns, solved once for each pair of irreps.

Within a band all kernels are made of a few pictures that scalars see: 10 of the 27 numbers of 3 x 3 x 3 pixels, 19 of
125. And kernels between any representations, or with values in a tensor product, are made of those between irreps. The
regular field of the octahedral group holds 10 irreps of 5 kinds, and each of its 5 pathways a tensor product with
another: 25 pairs are solved in the place of 1000.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from escnn.group import Representation
from escnn.gspaces import GSpace
from torch import Tensor

from ..groups.decomposition import generating_elements
from ..groups.irreps import irreps_up_to
from .linear_algebra import orthonormal
from .sampling import Band

__all__ = ["Patterns", "band_patterns"]

#: So many bands are remembered, with what was solved for in them.
REMEMBERED = 8

_PATTERNS: OrderedDict[Any, Patterns] = OrderedDict()


class Patterns:
    """The pictures of which a band's kernels are made, and kernels in their coordinates; from :func:`band_patterns`.

    Attributes:
        pictures: orthonormal, shape ``(r, S)``, float64.
    """

    def __init__(self, band: Band, gspace: GSpace) -> None:
        group = gspace.fibergroup
        self._band = band
        self._solved: dict[tuple[Any, Any], Tensor] = {}
        self._sampled: dict[tuple[Any, Any], Tensor] = {}
        scalar = group.trivial_representation
        targets = irreps_up_to(group, band.highest if group.continuous else None)
        samples = [band.sample(gspace, scalar, psi).flatten(0, 2) for psi in targets]
        self.pictures = orthonormal(torch.cat(samples))

    @property
    def points(self) -> range:
        """As many as there are pictures."""
        return range(len(self.pictures))

    def project(self, kernels: Tensor) -> Tensor:
        """Kernels ``(..., S)`` to coordinates ``(..., r)``."""
        return kernels @ self.pictures.T

    def sample(self, gspace: GSpace, in_repr: Representation, out_repr: Representation) -> Tensor:
        """A basis of the kernels equivariant from ``in_repr`` to ``out_repr``, shape ``(K, out size, in size, r)``,
        float64."""
        out_change = torch.as_tensor(np.asarray(out_repr.change_of_basis), dtype=torch.float64)
        in_change = torch.as_tensor(np.asarray(in_repr.change_of_basis_inv), dtype=torch.float64)
        blocks = [torch.zeros(0, out_repr.size, in_repr.size, len(self.pictures), dtype=torch.float64)]
        row = 0
        for out_id in out_repr.irreps:
            height, column = gspace.fibergroup.irrep(*out_id).size, 0
            for in_id in in_repr.irreps:
                kernels = self._project_pair(gspace, in_id, out_id)
                width = kernels.shape[2]
                if len(kernels):
                    rows, columns = out_change[:, row : row + height], in_change[column : column + width]
                    blocks.append(torch.einsum("oa,kabr,bi->koir", rows, kernels, columns))
                column += width
            row += height
        return torch.cat(blocks)

    def sample_pair(self, gspace: GSpace, in_id: Any, out_id: Any) -> Tensor:
        """What the band samples between two irreps, shape ``(K, out size, in size, S)``, float64; not to be written
        to."""
        if (in_id, out_id) not in self._sampled:
            psi, phi = (gspace.fibergroup.irrep(*id) for id in (in_id, out_id))
            self._sampled[in_id, out_id] = self._band.sample(gspace, psi, phi)
        return self._sampled[in_id, out_id]

    def _project_pair(self, gspace: GSpace, in_id: Any, out_id: Any) -> Tensor:
        if (in_id, out_id) not in self._solved:
            psi, phi = (gspace.fibergroup.irrep(*id) for id in (in_id, out_id))
            self._solved[in_id, out_id] = self.project(self._band.sample(gspace, psi, phi))
        return self._solved[in_id, out_id]


def band_patterns(band: Band, gspace: GSpace) -> Patterns:
    """The patterns of a band under a group, with whatever was solved for in them before in this process.

    >>> from escnn import gspaces, nn
    >>> space = gspaces.octaOnR3()
    >>> vector = nn.FieldType(space, [space.irrep(1)])
    >>> band = Band.from_layer(nn.R3Conv(vector, vector, 3, initialize=False))
    >>> band_patterns(band, space).pictures.shape
    torch.Size([10, 27])
    """
    group = gspace.fibergroup
    # by what the elements do, since names would not tell one axis from another
    moves = [np.round(np.asarray(gspace.basespace_action(g)), 6) + 0.0 for g in generating_elements(group)]
    key = type(gspace).__name__, type(group).__name__, group.name, tuple(m.tobytes() for m in moves), band.key
    if key not in _PATTERNS:
        _PATTERNS[key] = Patterns(band, gspace)
    _PATTERNS.move_to_end(key)
    while len(_PATTERNS) > REMEMBERED:
        _PATTERNS.popitem(last=False)
    return _PATTERNS[key]
