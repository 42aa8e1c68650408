"""Blocks with a side of the inputs and a side of the outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ...errors import naming
from .factor import Factor, check_finite, clamp_roundings, decompose, eigenvalues, rayleigh, same_kind, weighted_total

__all__ = ["EigenFactor", "KroneckerFactor"]


@dataclass(frozen=True)
class KroneckerFactor(Factor):
    r""":math:`H = B \otimes A` for weights ``(O, D)``, row-major; ``A`` is ``(D, D)``, ``B`` is ``(O, O)``.

    Averages are taken factor by factor, as is usual (Martens and Grosse, ICML 2015).

    >>> import torch
    >>> KroneckerFactor("w", torch.diag(torch.tensor([1., 2.])), torch.tensor([[3.]])).spectrum
    tensor([3., 6.], dtype=torch.float64)
    """

    name: str
    A: Tensor
    B: Tensor
    positions: Tensor | None = None
    rows: float = 1  # that A is the mean of, each as often as its sample counts

    sums = (False, True)

    @property
    def dimension(self) -> int:
        return len(self.A) * len(self.B)

    @property
    def sides(self) -> tuple[int, ...]:
        return len(self.A), len(self.B)

    @cached_property
    def spectrum(self) -> Tensor:
        with naming(self.name):
            return torch.outer(eigenvalues(self.B), eigenvalues(self.A)).flatten()

    def dense(self) -> Tensor:
        return torch.kron(self.B.contiguous(), self.A.contiguous())

    @cached_property
    def _eigensystems(self) -> tuple[tuple[Tensor, Tensor], ...]:
        with naming(self.name):
            return tuple(decompose(torch.linalg.eigh, matrix) for matrix in (self.A, self.B))

    @property
    def eigenvalues(self) -> tuple[Tensor, Tensor]:
        """Those of A and of B, ascending, as they come out of the decomposition."""
        return self._eigensystems[0][0], self._eigensystems[1][0]

    @property
    def eigenbases(self) -> tuple[Tensor, Tensor]:
        """Eigenvectors of A and of B, in columns."""
        return self._eigensystems[0][1], self._eigensystems[1][1]

    @cached_property
    def axis_values(self) -> Tensor:
        # in the order of the eigenvectors, which that of the spectrum is not
        U_A, U_B = self.eigenbases
        a, b = ((U.T @ m.to(U) @ U).diag().clamp(min=0) for U, m in ((U_A, self.A), (U_B, self.B)))
        return torch.outer(b, a).flatten()

    def rotate(self, vectors: Tensor) -> Tensor:
        return _rotate(vectors, *self.eigenbases)

    @property
    def kronecker_factors(self) -> tuple[Tensor, Tensor]:
        return self.B, self.A

    @property
    def output_axes(self) -> Tensor:
        return self.eigenbases[1]

    def restriction(
        self, matrix: Tensor, weights: Tensor, scale: float, delta: float
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        U, A = self.output_axes, self.A.detach().to(matrix)
        along = U.T @ weights
        b = scale * (U.T @ self.B.to(U) @ U).diag().clamp(min=0)
        return matrix @ A @ matrix.T, b, (b[:, None] * (along @ A) + delta * along) @ matrix.T

    def tensors(self, purpose: str = "running average") -> tuple[Tensor, ...]:
        return self.A, self.B

    def rebuild(self, tensors: Sequence[Tensor]) -> KroneckerFactor:
        A, B = tensors
        return replace(self, A=A, B=B)

    def smooth_spectrum(self, tensors: Sequence[Tensor]) -> Tensor:
        a, b = (torch.linalg.eigvalsh((t + t.T) / 2).clamp(min=0) for t in tensors)
        return torch.outer(b, a).flatten()

    def portion(self, whole: Factor, purpose: str = "hypergradient") -> tuple[Tensor, ...]:
        (all_data,) = same_kind(KroneckerFactor, [whole])
        return self.A * (self.rows / all_data.rows), self.B

    @classmethod
    def weighted_sum(cls, factors: Sequence[Factor], weights: Sequence[float]) -> Factor:
        first, *others = same_kind(cls, factors)
        return replace(first, B=weighted_total([factor.B for factor in (first, *others)], weights))

    def diagonals(self, factors: Sequence[Factor]) -> Tensor:
        U_A, U_B = self.eigenbases
        a = rayleigh(self.A, U_A)
        alike = same_kind(KroneckerFactor, factors)
        return torch.stack([torch.outer(rayleigh(factor.B, U_B), a).flatten() for factor in alike])


@dataclass(frozen=True)
class EigenFactor(Factor):
    r""":math:`H = (U_B \otimes U_A) \,\mathrm{diag}\, (U_B \otimes U_A)^\top` with ``values`` of shape ``(O, D)``."""

    name: str
    U_A: Tensor
    U_B: Tensor
    values: Tensor
    positions: Tensor | None = None

    @property
    def dimension(self) -> int:
        return self.values.numel()

    @property
    def sides(self) -> tuple[int, ...]:
        return (0,)

    @cached_property
    def spectrum(self) -> Tensor:
        with naming(self.name):
            return clamp_roundings(check_finite(self.values.flatten()))

    def dense(self) -> Tensor:
        U = torch.kron(self.U_B.contiguous(), self.U_A.contiguous())
        return U * self.values.flatten() @ U.T

    @property
    def axis_values(self) -> Tensor:
        return self.spectrum

    def rotate(self, vectors: Tensor) -> Tensor:
        return _rotate(vectors, self.U_A, self.U_B)

    @property
    def output_axes(self) -> Tensor:
        return self.U_B.detach().to("cpu", torch.float64)

    def restriction(
        self, matrix: Tensor, weights: Tensor, scale: float, delta: float
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        axes = self.U_A.detach().to(matrix)
        values, X = scale * self.spectrum.view(self.values.shape), matrix @ axes
        linear = ((values + delta) * (self.output_axes.T @ weights @ axes)) @ X.T
        return (X * values.unsqueeze(1)) @ X.T, None, linear


def _rotate(vectors: Tensor, U_A: Tensor, U_B: Tensor) -> Tensor:
    """Row-major ``(O, D)`` matrices, flattened, into the eigenbases of both factors."""
    return (U_B.T @ vectors.to(U_A).unflatten(-1, (len(U_B), len(U_A))) @ U_A).flatten(-2)
