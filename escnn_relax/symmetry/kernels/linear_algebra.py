"""Orthogonal splitting of a space of kernels into mutually orthogonal parts."""

from __future__ import annotations

from typing import Any

import scipy.linalg
import torch
from torch import Tensor

__all__ = ["RANK_TOLERANCE", "orthonormal", "orthonormal_sections", "complement", "singular_values", "pseudo_inverse"]

#: What torch's decompositions raise.
LinAlgError: Any = getattr(torch.linalg, "LinAlgError")

#: A direction whose singular value falls below this fraction of the largest is not counted. Kernels are sampled in
#: float32, so redundant directions come out near 1e-8; genuine ones have been seen no lower than 0.05.
RANK_TOLERANCE = 1e-4


def orthonormal(rows: Tensor, *, reference: Tensor | None = None) -> Tensor:
    r"""Orthonormal basis of the part of ``span(rows)`` orthogonal to ``span(reference)``.

    Args:
        rows: vectors, shape ``(n, D)``, float64; may be linearly dependent.
        reference: *orthonormal* rows, shape ``(m, D)``.

    Returns:
        orthonormal rows, shape ``(r, D)``, ``r <= n``.

    The singular value decomposition :math:`X = U \Sigma V^\top` is taken through the Gram matrix
    :math:`X X^\top = U \Sigma^2 U^\top`, the smaller of the two sides for kernels.

    >>> import torch
    >>> line = torch.tensor([[1., 0., 0.], [2., 0., 0.]], dtype=torch.float64)
    >>> orthonormal(line).abs()
    tensor([[1., 0., 0.]], dtype=torch.float64)
    >>> orthonormal(torch.eye(3, dtype=torch.float64), reference=orthonormal(line)).shape
    torch.Size([2, 3])
    """
    rows = rows.to(torch.float64)
    if rows.shape[0] == 0:
        return rows
    largest_norm = rows.norm(dim=1).max()
    if not largest_norm > 0:
        return rows[:0]
    if reference is not None and reference.shape[0]:
        rows = _remove(rows, reference)
    values, vectors = torch.linalg.eigh(rows @ rows.T)
    mask = values > (RANK_TOLERANCE * largest_norm) ** 2
    basis = (vectors[:, mask] / values[mask].sqrt()).T @ rows
    # one more pass removes what rounding left along ``reference`` and between the rows themselves
    if reference is not None and reference.shape[0]:
        basis = _remove(basis, reference)
    if basis.shape[0] == 0:
        return basis
    return torch.linalg.solve_triangular(torch.linalg.cholesky(basis @ basis.T), basis, upper=False)


#: A row whose norm within a section is a smaller share of the whole is taken to vanish there.
SECTION_TOLERANCE = 1e-5


def orthonormal_sections(rows: Tensor, sections: list[slice], *, reference: Tensor) -> Tensor:
    r"""The span of :func:`orthonormal`, by many small decompositions, of rows that are zero on most columns.

    Two sections are joined where some row, or some row of ``reference``, is not zero on both; rows of different joined
    sections are orthogonal already. With f equal parts this is :math:`f^2` times cheaper.

    Args:
        rows, reference: as in :func:`orthonormal`.
        sections: column ranges that cover all columns.

    >>> import torch
    >>> eye = torch.eye(6, dtype=torch.float64)
    >>> sections = [slice(0, 2), slice(2, 4), slice(4, 6)]
    >>> orthonormal_sections(eye[[0, 1, 3]] + eye[[1, 0, 4]], sections, reference=eye[:0]).shape
    torch.Size([2, 6])
    """
    row_support, reference_support = _support(rows, sections), _support(reference, sections)
    adjacency = torch.eye(len(sections), dtype=torch.float64)
    for support in (row_support.double(), reference_support.double()):
        adjacency = adjacency + support.T @ support
    adjacency = torch.linalg.matrix_power((adjacency > 0).double(), len(sections)) > 0
    bases = []
    for group in torch.unique(adjacency, dim=0):
        members = [s for s, inside in zip(sections, group) if inside]
        columns = torch.cat([torch.arange(s.start, s.stop) for s in members])
        row_mask, reference_mask = row_support[:, group].any(1), reference_support[:, group].any(1)
        basis = orthonormal(rows[row_mask][:, columns], reference=reference[reference_mask][:, columns])
        padded = rows.new_zeros(len(basis), rows.shape[1])
        padded[:, columns] = basis
        bases.append(padded)
    return torch.cat(bases)


def _support(rows: Tensor, sections: list[slice]) -> Tensor:
    """Which rows live on which sections, shape ``(n, sections)``."""
    norms = torch.stack([rows[:, s].norm(dim=1) for s in sections], dim=1)
    return norms > SECTION_TOLERANCE * norms.norm(dim=1, keepdim=True)


def complement(rows: Tensor) -> Tensor:
    """Orthonormal basis of everything orthogonal to the *orthonormal* ``rows``, shape ``(D - n, D)``.

    >>> import torch
    >>> complement(torch.tensor([[1., 0.]], dtype=torch.float64)).abs()
    tensor([[0., 1.]], dtype=torch.float64)
    """
    count, dimension = rows.shape
    if count == 0:
        return torch.eye(dimension, dtype=torch.float64)
    return torch.linalg.qr(rows.T, mode="complete").Q.T[count:].contiguous()


def _remove(rows: Tensor, reference: Tensor) -> Tensor:
    return rows - (rows @ reference.T) @ reference


def singular_values(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""The reduced decomposition :math:`X = U \Sigma V^\top` as ``U``, the values, and ``V`` transposed.

    LAPACK's divide and conquer now and then gives up on well-conditioned matrices (704 x 1600 of condition 1.7 seen);
    then it is done by its slower QR iteration.

    >>> singular_values(torch.tensor([[3., 4.]], dtype=torch.float64))[1]
    tensor([5.], dtype=torch.float64)
    """
    try:
        return torch.linalg.svd(matrix, full_matrices=False)
    except LinAlgError:
        factors = scipy.linalg.svd(matrix.detach().cpu().numpy(), full_matrices=False, lapack_driver="gesvd")
        U, values, V = (torch.as_tensor(factor).to(matrix) for factor in factors)
        return U, values, V


def pseudo_inverse(matrix: Tensor, rtol: float) -> Tensor:
    """Moore and Penrose's inverse; singular values below ``rtol`` times the largest count as zero.

    >>> pseudo_inverse(torch.tensor([[2., 0.], [0., 0.]], dtype=torch.float64), 1e-5)
    tensor([[0.5000, 0.0000],
            [0.0000, 0.0000]], dtype=torch.float64)
    """
    if not matrix.numel():
        return matrix.T.clone()
    U, values, Vt = singular_values(matrix)
    mask = values > rtol * values[0]
    return (Vt[mask].T / values[mask]) @ U[:, mask].T
