r"""The part of a relaxed layer's residual kernels that a subgroup fixes.

A kernel is fixed by H if it lies in the span of the equivariant kernels and of the H-fixed vectors of all irreps
(:mod:`escnn_relax.symmetry.kernels.graded`). Residual kernels of a layer are orthonormal on the pixel grid, so the
H-fixed ones become a subspace of their coefficients, and the nearest H-equivariant kernel of the layer an orthogonal
projection there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from escnn.group import IrreducibleRepresentation, Representation
from torch import Tensor

from ..grid.kernel_action import grid_permutation, isotypic_projection
from ..groups.irreps import irreps_up_to
from ..groups.subgroup import Subgroup
from .graded import fixed_kernels, fixed_vectors, isotypic_tuples
from .linear_algebra import orthonormal, orthonormal_sections, singular_values
from .pathway import Pathway
from .pathway_kernels import Relaxation
from .position_search import TurningKernels
from .sampling import Band, FiberBand

__all__ = ["FixedKernels"]

#: Cosine from which on a kernel of the layer counts as one of the subgroup's. Kernels are sampled in float32, which
#: leaves 1e-7; those that only overlap with the subgroup's have been seen up to 0.9.
CONTAINED = 1 - 1e-5


class FixedKernels:
    """The part of the residual kernels between one pair of representations that each subgroup fixes.

    Args:
        rule: the pathways of the layer.
        band: its sampling rule.
        equivariant: the layer's equivariant kernels, shape ``(K, out size, in size, S)``.
        residual: orthonormal kernels of each residual pathway ``(K_p, out size, in size, S)``, in the order of the
            pathways; ``K_p`` may be 0.
    """

    def __init__(
        self,
        rule: Relaxation,
        band: Band | FiberBand,
        in_repr: Representation,
        out_repr: Representation,
        equivariant: Tensor,
        residual: Sequence[tuple[Pathway, Tensor]],
    ) -> None:
        self._rule, self._band, self._pair = rule, band, (in_repr, out_repr)
        self._equivariant = equivariant.detach().to("cpu", torch.float64)
        self._rows = torch.cat([kernels.detach().to("cpu", torch.float64) for _, kernels in residual]).flatten(1)
        self.pathways = tuple(p for p, _ in residual)
        ends = np.cumsum([0, *(len(kernels) for _, kernels in residual)]).tolist()
        #: where each pathway's coefficients stand among those of the pair
        self.sections = tuple(slice(a, b) for a, b in zip(ends, ends[1:]))
        self._coordinates: list[tuple[IrreducibleRepresentation, Tensor]] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def fixed(self, subgroup: Subgroup) -> Tensor:
        """Orthonormal coefficient vectors of the kernels that the subgroup fixes, shape ``(f, number of residual
        kernels)``.

        Where the sampling grid does not mix irreps, each vector belongs to one pathway only.
        """
        if not len(self._rows):
            return self._rows.new_zeros(0, 0)
        if subgroup.order == 1:
            return torch.eye(len(self._rows), dtype=torch.float64)
        if self._rule.basis == "pixel":
            average = self._average(subgroup)
            if average is not None:
                return self._coefficients(average)
        if any(p.kind == "subgroup" for p in self.pathways):
            irreps = irreps_up_to(self._rule.gspace.fibergroup, self._rule.frequencies)
            return self._coefficients(
                fixed_kernels(self._band, self._rule.gspace, *self._pair, subgroup, irreps).flatten(1)
            )
        vectors = [self._rows.new_zeros(0, len(self._rows))]
        for psi, coordinates in self._tuples():
            vectors.append(torch.einsum("fa,kac->fkc", fixed_vectors(psi, subgroup), coordinates).flatten(0, 1))
        return orthonormal_sections(torch.cat(vectors), list(self.sections), reference=vectors[0])

    @property
    def irreps_only(self) -> bool:
        """Whether all residual kernels belong to irreps, so that tuples of these say what any subgroup fixes."""
        return self._rule.basis != "pixel" and all(p.kind == "irrep" for p in self.pathways)

    def turning_kernels(self, weights: Tensor) -> TurningKernels:
        """Coefficients of these kernels, ``(fields, number of residual kernels)``, with the irreps that they turn
        by."""
        return TurningKernels(weights, tuple(self._tuples()) if len(self._rows) else ())

    def _tuples(self) -> list[tuple[IrreducibleRepresentation, Tensor]]:
        """Coefficients of the tuples of each irrep that has a pathway, ``(K, dim psi, number of residual kernels)``."""
        if self._coordinates is None:
            group, coordinates = self._rule.gspace.fibergroup, []
            for pathway, section in zip(self.pathways, self.sections):
                if pathway.kind != "irrep" or section.start == section.stop:
                    continue
                psi = group.irrep(*(pathway.irrep or ()))
                tuples = isotypic_tuples(self._band, self._rule.gspace, *self._pair, psi)
                coordinates.append((psi, tuples.flatten(2) @ self._rows.T))
            self._coordinates = coordinates
        return self._coordinates

    def _average(self, subgroup: Subgroup) -> Tensor | None:
        """All kernels of the grid averaged over a subgroup that moves pixels to pixels, as rows; ``None`` for
        others."""
        if subgroup.order < 0:
            return None
        gspace, points = self._rule.gspace, self._band.points
        permutations = {g: grid_permutation(gspace, g, points) for g in subgroup.elements}
        moves = {g: move for g, move in permutations.items() if move is not None}
        if len(moves) < len(permutations):
            return None
        # the layer has all kernels of the grid, so it is enough to average its own
        kernels = torch.cat([self._equivariant, self._rows.view(-1, *self._equivariant.shape[1:])])
        return isotypic_projection(kernels, *self._pair, moves).flatten(1)

    def _coefficients(self, rows: Tensor) -> Tensor:
        """Coefficients of the residual kernels that lie in the span of these rows and the equivariant kernels."""
        first = orthonormal(self._equivariant.flatten(1))
        basis = orthonormal(rows, reference=first)
        _, values, vectors = singular_values(basis @ self._rows.T)
        return vectors[values > CONTAINED]
