"""A Kronecker product of which one factor is known by a sketch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ...errors import naming
from .factor import Factor, eigenvalues, eigenvectors, rayleigh, same_kind, weighted_total
from .sketch import Sketch

__all__ = ["SketchedFactor"]


@dataclass(frozen=True)
class SketchedFactor(Factor):
    r""":math:`H = B \otimes A` for weights ``(O, D)``, row-major, with a
    :class:`~escnn_relax.curvature.factors.sketch.Sketch` of A.

    The spectrum has all that the sketch knows. All else takes the mean of A's smaller eigenvalues for all of them.
    """

    name: str
    A: Sketch
    B: Tensor
    positions: Tensor | None = None
    rows: float = 1

    @property
    def dimension(self) -> int:
        return len(self.A.axes) * len(self.B)

    @cached_property
    def spectrum(self) -> Tensor:
        with naming(self.name):
            return torch.outer(eigenvalues(self.B), self.A.values).flatten()

    def dense(self) -> Tensor:
        return torch.kron(self.B.contiguous().cpu(), self.A.dense())

    @cached_property
    def output_axes(self) -> Tensor:
        """Eigenvectors of B, in columns."""
        with naming(self.name):
            return eigenvectors(self.B)

    @cached_property
    def output_values(self) -> Tensor:
        """What B is along each of them, ``(O,)``."""
        U = self.output_axes
        return (U.T @ self.B.to(U) @ U).diag().clamp(min=0)

    def whiten(self, vectors: Tensor, scale: float, delta: float) -> Tensor:
        U, b = self.output_axes, self.output_values.unsqueeze(1)
        along = U.T @ vectors.to(U).unflatten(-1, (len(U), -1))  # (..., O, D)
        inside = along @ self.A.axes
        outside = (along - inside @ self.A.axes.T) / (scale * b * self.A.level + delta).sqrt()
        return (outside + (inside / (scale * b * self.A.top + delta).sqrt()) @ self.A.axes.T).flatten(-2)

    def modes(self, weights: Tensor, slope: Tensor, scale: float, delta: float) -> tuple[Tensor, Tensor, Tensor]:
        U, b = self.output_axes, scale * self.output_values.unsqueeze(1)
        along, back = ((U.T @ vector.to(U).view(len(U), -1)) for vector in (weights, slope))
        inside, back_inside = along @ self.A.axes, back @ self.A.axes
        outside, back_outside = along - inside @ self.A.axes.T, back - back_inside @ self.A.axes.T
        values = torch.cat([b * self.A.top, b * self.A.level], dim=1)
        counts = torch.ones_like(values)
        counts[:, -1] = along.shape[1] - inside.shape[1]
        total = values + delta
        first = (total[:, :-1] * inside - back_inside).square()
        last = (total[:, -1:] * outside - back_outside).square().sum(1, keepdim=True)
        return values.flatten(), counts.flatten(), torch.cat([first, last], dim=1).flatten()

    def restriction(
        self, matrix: Tensor, weights: Tensor, scale: float, delta: float
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        along, b = self.output_axes.T @ weights, scale * self.output_values
        axes, extra, level = self.A.axes.to(matrix), (self.A.top - self.A.level).to(matrix), self.A.level
        X = matrix @ axes
        image = level * along + (along @ axes * extra) @ axes.T
        curvature = level * matrix @ matrix.T + (X * extra) @ X.T
        return curvature, b, (b[:, None] * image + delta * along) @ matrix.T

    @classmethod
    def weighted_sum(cls, factors: Sequence[Factor], weights: Sequence[float]) -> Factor:
        first, *others = same_kind(cls, factors)
        return replace(first, B=weighted_total([factor.B for factor in (first, *others)], weights))

    def diagonals(self, factors: Sequence[Factor]) -> Tensor:
        U = self.output_axes
        alike = same_kind(SketchedFactor, factors)
        return torch.stack([torch.outer(rayleigh(factor.B, U), self.A.values).flatten() for factor in alike])
