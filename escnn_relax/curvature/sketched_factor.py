"""A Kronecker product of which one factor is known by a sketch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Optional

import torch
from torch import Tensor

from .factors import Factor, eigenvalues, eigenvectors
from .sketch import Sketch

__all__ = ["SketchedFactor"]


@dataclass(frozen=True)
class SketchedFactor(Factor):
    r""":math:`H = B \otimes A` for weights ``(O, D)``, row-major, with a :class:`~.sketch.Sketch` of A.

    The spectrum has all that the sketch knows. ``dense`` and ``whiten`` take the mean of A's smaller eigenvalues for all of them.
    """

    where: str
    A: Sketch
    B: Tensor
    positions: Optional[Tensor] = None
    rows: float = 1

    @property
    def dimension(self) -> int:
        return len(self.A.axes) * len(self.B)

    @cached_property
    def spectrum(self) -> Tensor:
        return torch.outer(eigenvalues(self.B, self.where), self.A.values).flatten()

    @cached_property
    def output_axes(self) -> Tensor:
        """Eigenvectors of B, in columns."""
        return eigenvectors(self.B, self.where)

    def dense(self) -> Tensor:
        return torch.kron(self.B.contiguous().cpu(), self.A.dense())

    def whiten(self, vectors: Tensor, scale: float, delta: float) -> Tensor:
        U = self.output_axes
        b = (U.T @ self.B.to(U) @ U).diag().clamp(min=0).unsqueeze(1)
        turned = U.T @ vectors.to(U).unflatten(-1, (len(U), -1))  # (..., O, D)
        inside = turned @ self.A.axes
        outside = (turned - inside @ self.A.axes.T) / (scale * b * self.A.level + delta).sqrt()
        return (outside + (inside / (scale * b * self.A.top + delta).sqrt()) @ self.A.axes.T).flatten(-2)
