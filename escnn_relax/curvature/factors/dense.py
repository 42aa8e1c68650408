"""Blocks without a Kronecker form: the exact matrix, its root from few samples, its diagonal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ...errors import naming
from .factor import Factor, check_finite, clamp_roundings, eigenvalues, same_kind, weighted_total

__all__ = ["DenseFactor", "DiagonalFactor", "GramFactor"]


@dataclass(frozen=True)
class DenseFactor(Factor):
    """The exact block."""

    name: str
    H: Tensor

    @property
    def dimension(self) -> int:
        return len(self.H)

    @cached_property
    def spectrum(self) -> Tensor:
        with naming(self.name):
            return eigenvalues(self.H)

    def dense(self) -> Tensor:
        return self.H

    def tensors(self, purpose: str = "running average") -> tuple[Tensor, ...]:
        return (self.H,)

    def rebuild(self, tensors: Sequence[Tensor]) -> Factor:
        (H,) = tensors
        return DenseFactor(self.name, H)

    @classmethod
    def weighted_sum(cls, factors: Sequence[Factor], weights: Sequence[float]) -> Factor:
        return DenseFactor(factors[0].name, weighted_total([factor.dense() for factor in factors], weights))


@dataclass(frozen=True)
class GramFactor(Factor):
    r""":math:`H = V^\top V` from fewer rows V than there are weights: the Gram matrix :math:`V V^\top` has all of H's
    eigenvalues but zeros.

    >>> import torch
    >>> GramFactor("w", torch.tensor([[3., 4.]])).spectrum
    tensor([25.,  0.], dtype=torch.float64)
    """

    name: str
    V: Tensor

    @property
    def dimension(self) -> int:
        return self.V.shape[1]

    @cached_property
    def spectrum(self) -> Tensor:
        with naming(self.name):
            values = eigenvalues(self.V @ self.V.T)
        return torch.cat([values, values.new_zeros(self.dimension - len(values))])

    def dense(self) -> Tensor:
        return self.V.T @ self.V

    def tensors(self, purpose: str = "running average") -> tuple[Tensor, ...]:
        return (self.dense(),)

    def rebuild(self, tensors: Sequence[Tensor]) -> Factor:
        (H,) = tensors
        return DenseFactor(self.name, H)

    @classmethod
    def weighted_sum(cls, factors: Sequence[Factor], weights: Sequence[float]) -> Factor:
        roots = [factor.V for factor in factors if isinstance(factor, cls)]
        if len(roots) < len(factors) or sum(map(len, roots)) >= factors[0].dimension:
            return DenseFactor.weighted_sum(factors, weights)
        return cls(factors[0].name, torch.cat([V * w**0.5 for V, w in zip(roots, weights)]))

    def diagonals(self, factors: Sequence[Factor]) -> Tensor:
        Q, R = torch.linalg.qr(self.V.T.to("cpu", torch.float64))  # Q spans what V reads, however small a row of it is
        axes = Q @ DenseFactor(self.name, R @ R.T).eigensystem[1]
        squares = [(factor.V.to(axes) @ axes).square().sum(0) for factor in same_kind(GramFactor, factors)]
        return torch.nn.functional.pad(torch.stack(squares), (0, self.dimension - len(R)))


@dataclass(frozen=True)
class DiagonalFactor(Factor):
    """The diagonal of the exact block.

    >>> import torch
    >>> factors = [DiagonalFactor("w", torch.tensor([1.0, 0.0])), DiagonalFactor("w", torch.tensor([1.0, 2.0]))]
    >>> DiagonalFactor.weighted_sum(factors, [1, 3]).diagonal
    tensor([4., 6.])
    """

    name: str
    diagonal: Tensor

    @property
    def dimension(self) -> int:
        return len(self.diagonal)

    @property
    def sides(self) -> tuple[int, ...]:
        return (0,)

    @cached_property
    def spectrum(self) -> Tensor:
        with naming(self.name):
            return clamp_roundings(check_finite(self.diagonal))

    def dense(self) -> Tensor:
        return torch.diag(self.diagonal)

    @property
    def axis_values(self) -> Tensor:
        return self.spectrum

    def rotate(self, vectors: Tensor) -> Tensor:
        return vectors.to(self.spectrum)

    def tensors(self, purpose: str = "running average") -> tuple[Tensor, ...]:
        return (self.diagonal,)

    def rebuild(self, tensors: Sequence[Tensor]) -> Factor:
        (diagonal,) = tensors
        return DiagonalFactor(self.name, diagonal)

    def smooth_spectrum(self, tensors: Sequence[Tensor]) -> Tensor:
        (diagonal,) = tensors
        return diagonal

    @classmethod
    def weighted_sum(cls, factors: Sequence[Factor], weights: Sequence[float]) -> Factor:
        first, *others = same_kind(cls, factors)
        return cls(first.name, weighted_total([factor.diagonal for factor in (first, *others)], weights))

    def diagonals(self, factors: Sequence[Factor]) -> Tensor:
        return torch.stack([factor.diagonal for factor in same_kind(DiagonalFactor, factors)]).to("cpu", torch.float64)
