"""Curvature blocks: what an approximation leaves of the Gauss-Newton matrix of one set of weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..errors import CurvatureError

__all__ = ["Factor", "KroneckerFactor", "DenseFactor", "DiagonalFactor"]

#: Negative eigenvalues down to this fraction of the largest are rounding, and are taken as zero.
INDEFINITE_TOLERANCE = 1e-6


class Factor(ABC):
    """One positive semi-definite block H, P x P; ``where`` names the weights in error messages."""

    where: str

    @property
    @abstractmethod
    def dimension(self) -> int:
        """P, the number of weights."""

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

    @property
    def dimension(self) -> int:
        return len(self.A) * len(self.B)

    @cached_property
    def spectrum(self) -> Tensor:
        return torch.outer(eigenvalues(self.B, self.where), eigenvalues(self.A, self.where)).flatten()

    def dense(self) -> Tensor:
        return torch.kron(self.B.contiguous(), self.A.contiguous())


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
class DiagonalFactor(Factor):
    """The diagonal of the exact block."""

    where: str
    diagonal: Tensor

    @property
    def dimension(self) -> int:
        return len(self.diagonal)

    @cached_property
    def spectrum(self) -> Tensor:
        return _clamped(_finite(self.diagonal, self.where), self.where)

    def dense(self) -> Tensor:
        return torch.diag(self.diagonal)


def eigenvalues(matrix: Tensor, where: str) -> Tensor:
    """Eigenvalues of a symmetric positive semi-definite matrix, float64 on the CPU, clamped at 0."""
    matrix = _finite(matrix, where)
    try:
        values = torch.linalg.eigvalsh((matrix + matrix.T) / 2)
    except torch.linalg.LinAlgError as error:
        raise CurvatureError(where, f"the eigendecomposition failed: {error}", remedy="lower the learning rate") from error
    return _clamped(values, where)


def _finite(matrix: Tensor, where: str) -> Tensor:
    matrix = matrix.detach().to("cpu", torch.float64)
    if not torch.isfinite(matrix).all():
        raise CurvatureError(
            where, "the curvature is not finite", remedy="look for NaN or huge weights, inputs or activations"
        )
    return matrix


def _clamped(values: Tensor, where: str) -> Tensor:
    if len(values) and values.min() < -INDEFINITE_TOLERANCE * max(float(values.max()), 1e-30):
        raise CurvatureError(
            where,
            f"the curvature has the negative eigenvalue {float(values.min()):.3g} (largest {float(values.max()):.3g})",
            remedy="a factor must be positive semi-definite; report this unless you built it yourself",
        )
    return values.clamp(min=0)
