"""Splitting kernels into mutually orthogonal parts, one input irrep at a time where that pays.

In the coordinates of the input's irreps each of escnn's kernels reads a single irrep, so kernels of different ones are
orthogonal from the start. A regular field of the octahedral group has ten irreps, and most of the work falls away.
"""

from __future__ import annotations

import torch
from escnn.group import Representation
from torch import Tensor

from .linear_algebra import orthonormal, orthonormal_sections

__all__ = ["Splitting", "SECTION_THRESHOLD", "orthogonal_change"]

#: From so many entries of one kernel (output x input x pixels) on, irreps are treated one at a time.
SECTION_THRESHOLD = 1_000


class Splitting:
    """Parts of a kernel space, each orthogonal to the earlier ones and orthonormal in itself.

    Args:
        equivariant: the first part, shape ``(K, out size, in size, S)``, float64; any basis, and it stays as it is.
        in_repr: the representation of the kernels' input.
    """

    def __init__(self, equivariant: Tensor, in_repr: Representation) -> None:
        self._shape = equivariant.shape[1:]
        out, _, sites = self._shape
        self._change = orthogonal_change(in_repr) if self._shape.numel() > SECTION_THRESHOLD else None
        sizes = [in_repr.group.irrep(*id).size for id in in_repr.irreps] if self._change is not None else []
        ends = torch.tensor([0, *sizes]).cumsum(0) * out * sites
        self._sections = [slice(a, b) for a, b in zip(ends.tolist(), ends[1:].tolist())]
        self._first = orthonormal(equivariant.flatten(1))
        self._span = self._first
        if self._change is not None:
            self._span = orthonormal_sections(
                self._irrep_rows(equivariant, self._change), self._sections, reference=self._first[:0]
            )

    def increment(self, kernels: Tensor) -> Tensor:
        """Orthonormal basis of what these kernels add to the earlier parts, ``(r, out size, in size, S)``."""
        if self._change is None:
            basis = orthonormal(kernels.flatten(1), reference=self._span)
            self._span = torch.cat([self._span, basis])
            return basis.view(-1, *self._shape)
        basis = orthonormal_sections(self._irrep_rows(kernels, self._change), self._sections, reference=self._span)
        self._span = torch.cat([self._span, basis])
        return self._clear(basis, self._change).view(-1, *self._shape)

    @property
    def span(self) -> Tensor:
        """All parts so far, orthonormal rows ``(n, out size * in size * S)``."""
        if self._change is None:
            return self._span
        return torch.cat([self._first, self._clear(self._span[len(self._first) :], self._change)])

    def _clear(self, rows: Tensor, change: Tensor) -> Tensor:
        """Turned back, and rid of the trace of 1e-7 that single precision left of equivariant kernels on other
        irreps."""
        rows = self._back(rows, change)
        return rows - (rows @ self._first.T) @ self._first

    def _irrep_rows(self, kernels: Tensor, change: Tensor) -> Tensor:
        """Rows in the coordinates of the irreps, the input's channels first, so that an irrep is a range of columns."""
        return (kernels.transpose(2, 3) @ change).permute(0, 3, 1, 2).flatten(1)

    def _back(self, rows: Tensor, change: Tensor) -> Tensor:
        out, size, sites = self._shape
        kernels = rows.view(-1, size, out, sites).permute(0, 2, 3, 1) @ change.T
        return kernels.transpose(2, 3).flatten(1)


def orthogonal_change(representation: Representation) -> Tensor | None:
    """The nearest orthogonal change to irreps, None where the representation has no such."""
    change = torch.as_tensor(representation.change_of_basis, dtype=torch.float64)
    U, _, Vt = torch.linalg.svd(change)
    return U @ Vt if torch.allclose(U @ Vt, change, atol=1e-6) else None
