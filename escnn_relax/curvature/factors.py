"""Curvature blocks: what an approximation leaves of the Gauss-Newton matrix of one set of weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Callable, Optional

import torch
from torch import Tensor

from ..errors import CurvatureError
from ..symmetry.span import LinAlgError

__all__ = ["Factor", "KroneckerFactor", "EigenFactor", "DenseFactor", "GramFactor", "DiagonalFactor"]

#: Negative eigenvalues down to this fraction of the largest are rounding, and are taken as zero: sums in single precision
#: of 1600 products in a row may be off by that, and 5e-6 has been seen.
INDEFINITE_TOLERANCE = 1e-4
#: So are those down to this: products of tiny gradients underflow, and a factor that vanishes in theory is nothing but roundings,
#: the square of a double precision one for each unit of what cancelled. No prior precision comes anywhere near it.
VANISHING = 1e-15


class Factor(ABC):
    """One positive semi-definite block H, P x P.

    Attributes:
        where: names the weights in error messages.
        positions: which weights of the flattened parameter the block holds; ``None`` for all, in order.
    """

    where: str
    positions: Optional[Tensor] = None

    @property
    @abstractmethod
    def dimension(self) -> int:
        """P, the number of weights."""

    @property
    def sides(self) -> tuple[int, ...]:
        """Of the matrices that are decomposed."""
        return (self.dimension,)

    @cached_property
    @abstractmethod
    def spectrum(self) -> Tensor:
        """Eigenvalues of H, shape ``(P,)``, float64 on the CPU, none negative.

        Raises:
            CurvatureError: entries that are not finite, eigenvalues that are clearly negative, or a failed
                decomposition.
        """

    @abstractmethod
    def dense(self) -> Tensor:
        """H itself, shape ``(P, P)``; for tests and small blocks."""

    def whiten(self, vectors: Tensor, scale: float, delta: float) -> Tensor:
        r"""Vectors v, shape ``(..., P)``, times a root of :math:`(hH + \delta)^{-1}`: their inner products are
        :math:`v^\top (hH + \delta)^{-1} v`. h is ``scale``."""
        values, U = self.eigensystem
        return (vectors.to(U) @ U) / (scale * values + delta).sqrt()

    @cached_property
    def eigensystem(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues ``(P,)``, and the eigenvectors in columns, of the block as one matrix."""
        values, vectors = _decompose(torch.linalg.eigh, self.dense(), self.where)
        return _clamped(values, self.where), vectors


@dataclass(frozen=True)
class KroneckerFactor(Factor):
    r""":math:`H = B \otimes A` for weights ``(O, D)``, row-major; ``A`` is ``(D, D)``, ``B`` is ``(O, O)``.

    >>> import torch
    >>> KroneckerFactor("w", torch.diag(torch.tensor([1., 2.])), torch.tensor([[3.]])).spectrum
    tensor([3., 6.], dtype=torch.float64)
    """

    where: str
    A: Tensor
    B: Tensor
    positions: Optional[Tensor] = None
    rows: float = 1  # that A is the mean of, each as often as its sample counts

    @property
    def dimension(self) -> int:
        return len(self.A) * len(self.B)

    @property
    def sides(self) -> tuple[int, ...]:
        return len(self.A), len(self.B)

    @cached_property
    def spectrum(self) -> Tensor:
        return torch.outer(eigenvalues(self.B, self.where), eigenvalues(self.A, self.where)).flatten()

    @cached_property
    def _eigensystems(self) -> tuple[tuple[Tensor, Tensor], ...]:
        return tuple(_decompose(torch.linalg.eigh, matrix, self.where) for matrix in (self.A, self.B))

    @property
    def eigenvalues(self) -> tuple[Tensor, Tensor]:
        """Those of A and of B, ascending, as they come out of the decomposition."""
        return self._eigensystems[0][0], self._eigensystems[1][0]

    @property
    def eigenbases(self) -> tuple[Tensor, Tensor]:
        """Eigenvectors of A and of B, in columns."""
        return self._eigensystems[0][1], self._eigensystems[1][1]

    def dense(self) -> Tensor:
        return torch.kron(self.B.contiguous(), self.A.contiguous())

    def whiten(self, vectors: Tensor, scale: float, delta: float) -> Tensor:
        U_A, U_B = self.eigenbases
        a, b = ((U.T @ m.to(U) @ U).diag().clamp(min=0) for U, m in ((U_A, self.A), (U_B, self.B)))
        return _rotate(vectors, U_A, U_B) / (scale * torch.outer(b, a).flatten() + delta).sqrt()


@dataclass(frozen=True)
class EigenFactor(Factor):
    r""":math:`H = (U_B \otimes U_A) \,\mathrm{diag}\, (U_B \otimes U_A)^\top` with ``values`` of shape ``(O, D)``."""

    where: str
    U_A: Tensor
    U_B: Tensor
    values: Tensor
    positions: Optional[Tensor] = None

    @property
    def dimension(self) -> int:
        return self.values.numel()

    @property
    def sides(self) -> tuple[int, ...]:
        return (0,)

    @cached_property
    def spectrum(self) -> Tensor:
        return _clamped(_finite(self.values.flatten(), self.where), self.where)

    def dense(self) -> Tensor:
        U = torch.kron(self.U_B.contiguous(), self.U_A.contiguous())
        return U * self.values.flatten() @ U.T

    def whiten(self, vectors: Tensor, scale: float, delta: float) -> Tensor:
        return _rotate(vectors, self.U_A, self.U_B) / (scale * self.spectrum + delta).sqrt()


@dataclass(frozen=True)
class DenseFactor(Factor):
    """The exact block."""

    where: str
    H: Tensor

    @property
    def dimension(self) -> int:
        return len(self.H)

    @cached_property
    def spectrum(self) -> Tensor:
        return eigenvalues(self.H, self.where)

    def dense(self) -> Tensor:
        return self.H


@dataclass(frozen=True)
class GramFactor(Factor):
    r""":math:`H = V^\top V` from fewer rows V than there are weights: the Gram matrix :math:`V V^\top` has all of H's
    eigenvalues but zeros.

    >>> import torch
    >>> GramFactor("w", torch.tensor([[3., 4.]])).spectrum
    tensor([25.,  0.], dtype=torch.float64)
    """

    where: str
    V: Tensor

    @property
    def dimension(self) -> int:
        return self.V.shape[1]

    @cached_property
    def spectrum(self) -> Tensor:
        values = eigenvalues(self.V @ self.V.T, self.where)
        return torch.cat([values, values.new_zeros(self.dimension - len(values))])

    def dense(self) -> Tensor:
        return self.V.T @ self.V


@dataclass(frozen=True)
class DiagonalFactor(Factor):
    """The diagonal of the exact block."""

    where: str
    diagonal: Tensor

    @property
    def dimension(self) -> int:
        return len(self.diagonal)

    @property
    def sides(self) -> tuple[int, ...]:
        return (0,)

    @cached_property
    def spectrum(self) -> Tensor:
        return _clamped(_finite(self.diagonal, self.where), self.where)

    def dense(self) -> Tensor:
        return torch.diag(self.diagonal)

    def whiten(self, vectors: Tensor, scale: float, delta: float) -> Tensor:
        return vectors.to(self.spectrum) / (scale * self.spectrum + delta).sqrt()


def eigenvalues(matrix: Tensor, where: str) -> Tensor:
    """Eigenvalues of a symmetric positive semi-definite matrix, float64 on the CPU, clamped at 0."""
    return _clamped(_decompose(torch.linalg.eigvalsh, matrix, where), where)


def eigenvectors(matrix: Tensor, where: str) -> Tensor:
    """Its eigenvectors, in columns, float64 on the CPU."""
    return _decompose(torch.linalg.eigh, matrix, where)[1]


def _rotate(vectors: Tensor, U_A: Tensor, U_B: Tensor) -> Tensor:
    """Row-major ``(O, D)`` matrices, flattened, into the eigenbases of both factors."""
    return (U_B.T @ vectors.to(U_A).unflatten(-1, (len(U_B), len(U_A))) @ U_A).flatten(-2)


def _decompose(how: Callable[[Tensor], Any], matrix: Tensor, where: str) -> Any:
    matrix = _finite(matrix, where)
    try:
        return how((matrix + matrix.T) / 2)
    except LinAlgError as error:
        raise CurvatureError(where, f"the eigendecomposition failed: {error}", remedy="lower the learning rate") from error


def _finite(matrix: Tensor, where: str) -> Tensor:
    matrix = matrix.detach().to("cpu", torch.float64)
    if not torch.isfinite(matrix).all():
        raise CurvatureError(
            where, "the curvature is not finite", remedy="look for NaN or huge weights, inputs or activations"
        )
    return matrix


def _clamped(values: Tensor, where: str) -> Tensor:
    if len(values) and values.min() < -max(INDEFINITE_TOLERANCE * float(values.max()), VANISHING):
        raise CurvatureError(
            where,
            f"the curvature has the negative eigenvalue {float(values.min()):.3g} (largest {float(values.max()):.3g})",
            remedy="a factor must be positive semi-definite; report this unless you built it yourself",
        )
    return values.clamp(min=0)
