"""A linear family of kernels in its modes: what the likelihood and the prior say of its coefficients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...curvature.factors import Factor
from ...errors import ArgumentError, DataError

__all__ = ["LARGEST", "FamilyBlock", "FamilyModes", "check_weights", "family_modes", "too_large"]

#: Rows of the largest matrix that is decomposed; 8 bytes times its square are 200 MB.
LARGEST = 5_000


@dataclass(frozen=True)
class FamilyBlock:
    """What one curvature block contributes to the coefficients c of a family.

    Attributes:
        name: of the parameter; blocks of one name share a precision.
        factor: the block H of weights ``(O, D)``, or with O = 1 of any weights.
        weights: their values, shape ``(O, D)``, float64.
        log_precision: log of the prior precision at which the weights were found.
        matrix: B for each of the O rows, shape ``(n, D)``, orthonormal together with those of the other blocks.
        slope: r, of the negative log posterior at the weights, in their shape (nats); ``None``: they are its mode.
    """

    name: str
    factor: Factor
    weights: Tensor
    log_precision: float
    matrix: Tensor
    slope: Tensor | None = None


class FamilyModes:
    """c, its curvature, and what the likelihood says to first order.

    Attributes:
        curvature: ``(n, n)``, or one for each row of weights ``(R, n, n)``.
        linear: ``(R, n)``.
        overlaps: :math:`B_p B_p^\\top` by the name of the parameter; with the precisions, the prior of c.
        rows: factors of the curvature for each row ``(R,)``; ``None`` if there are none.
    """

    def __init__(
        self, curvature: Tensor, linear: Tensor, overlaps: dict[str, Tensor], rows: Tensor | None = None
    ) -> None:
        self.curvature, self.linear, self.overlaps, self.rows = curvature, linear, overlaps, rows

    def at(self, logs: Mapping[str, float]) -> tuple[float, dict[str, float], dict[str, float]]:
        """Log evidence, and of each pathway the effective dimension and the squared norm at the mode."""
        scaled = {name: math.exp(logs[name]) * overlap for name, overlap in self.overlaps.items()}
        prior = sum(scaled.values(), torch.zeros_like(next(iter(scaled.values()))))
        root = torch.linalg.cholesky(prior)
        half = torch.linalg.solve_triangular(root, self.curvature, upper=False)
        white = torch.linalg.solve_triangular(root, half.mT, upper=False)
        values, vectors = torch.linalg.eigh((white + white.mT) / 2)  # (..., n), (..., n, n)
        # these whiten the prior, and diagonalise the curvature
        axes = torch.linalg.solve_triangular(root.mT, vectors, upper=True)
        values = values.clamp(min=0)
        values = values if self.rows is None else self.rows[:, None] * values  # (R, n)
        linear = (self.linear.unsqueeze(-2) @ axes).squeeze(-2)
        mode = linear / (1 + values)
        nats = 0.5 * float((linear * mode).sum() - torch.log1p(values).sum())
        shares = values / (1 + values)
        gammas, sizes = {}, {}
        for name, precision in scaled.items():
            weight = (axes.mT @ precision @ axes).diagonal(dim1=-2, dim2=-1)
            gammas[name] = float((shares * weight).sum())
            c = (mode.unsqueeze(-2) @ axes.mT).squeeze(-2)
            sizes[name] = float((c @ precision * c).sum()) / math.exp(logs[name])
        return nats, gammas, sizes


def family_modes(blocks: Sequence[FamilyBlock], scale: float) -> FamilyModes:
    """The modes of blocks with the same c, which may share precisions.

    Args:
        scale: h, what one unit of the likelihood counts.

    Raises:
        ArgumentError: a matrix of more than :data:`LARGEST` rows would have to be decomposed.
        DataError: weights that are not finite.
    """
    for block in blocks:
        check_weights(block.weights, block.factor.name)
    rows, n = len(blocks[0].weights), len(blocks[0].matrix)
    axes = [block.factor.output_axes for block in blocks]
    first = axes[0]
    shared = (
        first is not None
        and len(first) == rows
        and all(a is not None and torch.allclose(a, first, atol=1e-10) for a in axes)
    )
    size = n if shared else rows * n
    if size > LARGEST:
        raise too_large(size)
    if shared:
        curvature, factors, linear = _joined([_turned(block, scale) for block in blocks])
        return FamilyModes(curvature, linear, _overlaps(blocks, [b.matrix @ b.matrix.T for b in blocks]), factors)
    eye = torch.eye(rows, dtype=torch.float64)
    curvature = torch.zeros(size, size, dtype=torch.float64)
    linear, overlaps = torch.zeros(1, size, dtype=torch.float64), []
    for block in blocks:
        if block.factor.dimension > LARGEST:
            raise too_large(block.factor.dimension)
        H, N = block.factor.dense().detach().to(linear), torch.kron(eye, block.matrix)
        weights = block.weights.flatten()
        curvature += scale * N @ H @ N.T
        linear += N @ (scale * H @ weights + math.exp(block.log_precision) * weights)
        if block.slope is not None:
            linear -= N @ block.slope.to(linear).flatten()
        overlaps.append(torch.kron(eye, block.matrix @ block.matrix.T))
    return FamilyModes(curvature, linear, _overlaps(blocks, overlaps))


def _overlaps(blocks: Sequence[FamilyBlock], overlaps: Sequence[Tensor]) -> dict[str, Tensor]:
    """The sums of those with one name."""
    sums: dict[str, Tensor] = {}
    for block, overlap in zip(blocks, overlaps):
        sums[block.name] = sums[block.name] + overlap if block.name in sums else overlap
    return sums


class TurnedBlock(NamedTuple):
    """One block in the eigenbasis of the outputs, where its curvature does not couple rows."""

    curvature: Tensor  # (n, n), or (R, n, n)
    rows: Tensor | None  # (R,), by which ``curvature`` is multiplied; ``None`` if it has one for each row
    linear: Tensor  # (R, n)


def _turned(block: FamilyBlock, scale: float) -> TurnedBlock:
    N = block.matrix
    curvature, rows, linear = block.factor.restriction(N, block.weights, scale, math.exp(block.log_precision))
    U: Any = block.factor.output_axes  # there are some, or the rows would not be apart
    back: Any = 0.0 if block.slope is None else U.T @ block.slope.to(N) @ N.T
    return TurnedBlock(curvature, rows, linear - back)


def _joined(blocks: Sequence[TurnedBlock]) -> TurnedBlock:
    """The sum of the blocks, with one curvature for all rows where those of the blocks have proportional outputs."""
    linear = torch.stack([f.linear for f in blocks]).sum(0)
    rows = [f.rows for f in blocks if f.rows is not None]
    if len(rows) == len(blocks):
        most = max(rows, key=lambda r: float(r.max()))
        shares = [float(r @ most / (most @ most)) if most.any() else 0.0 for r in rows]
        if all(torch.allclose(r, c * most, rtol=1e-9, atol=1e-12 * float(most.max())) for r, c in zip(rows, shares)):
            return TurnedBlock(torch.stack([c * f.curvature for c, f in zip(shares, blocks)]).sum(0), most, linear)
    if len(linear) * linear.shape[1] ** 2 > LARGEST**2:
        raise too_large(linear.numel())
    each = [f.curvature if f.rows is None else f.rows[:, None, None] * f.curvature for f in blocks]
    return TurnedBlock(torch.stack(each).sum(0), None, linear)


def check_weights(weights: Tensor, name: str) -> None:
    """Raise ``DataError`` for weights that are not finite."""
    if not torch.isfinite(weights).all():
        raise DataError(name, "NaN or infinite weights", remedy="go back to a checkpoint with finite weights")


def too_large(size: int) -> ArgumentError:
    """What is said of a matrix that is too large to be decomposed."""
    remedy = (
        "take the curvature 'expand', which has a Kronecker form, or read the kernel by energy alone: without the"
        " evidence"
    )
    return ArgumentError("", f"{size} coupled coefficients", expected=f"at most {LARGEST}", remedy=remedy)
