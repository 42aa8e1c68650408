r"""The evidence of a linear family of kernels, at the precisions that suit it best: Laplace's likelihood with another
prior.

A Laplace posterior :math:`\mathcal N(\hat w, (hH + \Lambda)^{-1})` says what the likelihood is near :math:`\hat w`: as
a function of w it is :math:`\exp(b^\top w - \tfrac12 w^\top hH w)` up to a constant, with :math:`b = (hH + \Lambda)\hat
w - r`, where r is the slope of the negative log posterior, zero at its mode: where a training ended before it, b
without r takes for data what is left of the way. So the evidence of :math:`w = B^\top c`, with orthonormal rows B and
the prior :math:`p(w)` conditioned on that form, relative to that of w = 0, is

.. math::
    \log Z = \tfrac12 \Big[ \log\det T - \log\det (B hH B^\top + T) + b^\top B^\top (B hH B^\top + T)^{-1} B b \Big],
    \qquad T = B \Lambda B^\top ,

and the precisions :math:`\Lambda` in it are free. Their best values are fixed points of
:math:`\delta_p = \gamma_p / |w_p|^2` (MacKay, *Bayesian interpolation*, Neural Computation 4, 1992) for this family,
too. All of w is the family B = 1. Exact for a linear model with Gaussian noise if H is; where H holds no blocks between
parameters, as the evidence's, that is so only of data that do not couple them, such as all transforms of each sample
(:mod:`escnn_relax.evidence.verdicts.joint_curvature` has the blocks). Which precisions a family has matters: one that
needs only a few directions of a pathway is not to be judged by the width that the others have left it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...curvature.factors import Factor
from ...errors import ArgumentError, DataError

__all__ = ["LARGEST", "Part", "evidence_of_all", "evidence_of_coupled", "evidence_of_family"]

#: Rows of the largest matrix that is decomposed; 8 bytes times its square are 200 MB.
LARGEST = 5_000

#: Fixed-point steps at most, and the change of a log evidence (nats) that ends them: no verdict hangs on a hundredth of
#: one.
STEPS, SETTLED = 50, 0.01


@dataclass(frozen=True)
class Part:
    """What one curvature block contributes to c.

    Attributes:
        name: of the parameter; parts of one name share a precision.
        factor: the block H of weights ``(O, D)``, or with O = 1 of any weights.
        weights: their values, shape ``(O, D)``, float64.
        log_precision: log of the prior precision at which the weights were found.
        matrix: B for each of the O rows, shape ``(n, D)``, its rows orthonormal together with those of the other parts.
        slope: r, of the negative log posterior at the weights, in their shape (nats); ``None``: they are its mode.
    """

    name: str
    factor: Factor
    weights: Tensor
    log_precision: float
    matrix: Tensor
    slope: Tensor | None = None


def evidence_of_all(
    parts: Sequence[tuple[Factor, Tensor, float]],
    scale: float,
    bounds: tuple[float, float] | None = None,
    slopes: Sequence[Tensor] | None = None,
) -> float:
    """The log evidence (nats) of all weights of some blocks under one precision, relative to all of them being zero.

    Args:
        parts: blocks with the values of their weights ``(P,)``, and the log precision at which they were found.
        scale: h, what one unit of the likelihood counts.
        bounds: of the log precision, for the best one within; that of the parts without.
        slopes: of the negative log posterior at the weights of each block; ``None``: they are its mode.

    Raises:
        DataError: weights that are not finite.

    >>> from escnn_relax.curvature.factors import DenseFactor
    >>> block = DenseFactor("w", torch.diag(torch.tensor([8., 8.]))), torch.ones(2), 0.0
    >>> round(evidence_of_all([block], 1.0), 2), round(evidence_of_all([block], 1.0, (-9.0, 9.0)), 2)
    (6.8, 6.81)
    """
    for factor, weights, _ in parts:
        _check(weights, factor.where)
    rest: Sequence[Tensor | None] = len(parts) * [None] if slopes is None else slopes
    values, counts, linear = (torch.cat(of) for of in zip(*(_modes(*part, scale, r) for part, r in zip(parts, rest))))
    log_precision = parts[0][2]

    def at(log_delta: float) -> tuple[float, float]:
        delta = math.exp(log_delta)
        total = values + delta
        nats = 0.5 * float((linear / total).sum() - (counts * torch.log1p(values / delta)).sum())
        gamma, size = float((counts * values / total).sum()), float((linear / total**2).sum())
        return nats, math.log(gamma / size) if gamma > 0 and size > 0 else math.inf

    return _climb(lambda logs: _single(at(logs[""])), {"": log_precision}, bounds)


def evidence_of_family(
    blocks: Sequence[Sequence[Part]], scale: float, bounds: tuple[float, float] | None = None, where: str = ""
) -> float:
    """The log evidence (nats) of the weights that the families of some blocks span, relative to all of them being zero.

    Args:
        blocks: lists of parts with the same O and the same n each; the lists are independent but for their precisions.
        scale: h, what one unit of the likelihood counts.
        bounds: of the log precisions, for the best ones within; those of the parts without.
        where: the layer, for error messages.

    Raises:
        ArgumentError: a matrix of more than :data:`LARGEST` rows would have to be decomposed.
        DataError: weights that are not finite.
    """
    families: list[_Modes] = [_Family(parts, scale, where) for parts in blocks if len(parts[0].matrix)]
    start = {part.name: part.log_precision for parts in blocks for part in parts}
    return _evidence_of(families, start, bounds)


def evidence_of_coupled(
    curvature: Tensor,
    linear: Tensor,
    matrices: Mapping[str, Tensor],
    log_precision: Mapping[str, float],
    bounds: tuple[float, float] | None = None,
    where: str = "",
) -> float:
    r"""The log evidence (nats) of the weights :math:`w = B^\top c`, relative to all of them being zero, with a
    likelihood :math:`\exp(b^\top w - \tfrac12 w^\top H w)` that couples all of them.

    Args:
        curvature, linear: H ``(P, P)``, the likelihood's scale included, and b ``(P,)``.
        matrices: B by the name of the parameter, each ``(n, its size)``, in the order of the weights.
        log_precision, bounds: as of :func:`evidence_of_family`.
        where: the layer, for error messages.

    Raises:
        ArgumentError: a matrix of more than :data:`LARGEST` rows would have to be decomposed.
    """
    B = torch.cat(list(matrices.values()), dim=1)
    if not len(B):
        return 0.0
    if len(B) > LARGEST:
        raise _too_large(len(B), where)
    overlaps = {name: N @ N.T for name, N in matrices.items()}
    family = _Modes(B @ curvature @ B.T, (B @ linear).unsqueeze(0), overlaps)
    return _evidence_of([family], dict(log_precision), bounds)


def _evidence_of(families: Sequence[_Modes], start: Mapping[str, float], bounds: tuple[float, float] | None) -> float:
    def at(logs: Mapping[str, float]) -> tuple[float, dict[str, float]]:
        found = [family.at(logs) for family in families]
        gammas = {n: sum(f[1].get(n, 0.0) for f in found) for n in logs}
        sizes = {n: sum(f[2].get(n, 0.0) for f in found) for n in logs}
        better = {n: math.log(gammas[n] / sizes[n]) if gammas[n] > 0 and sizes[n] > 0 else logs[n] for n in logs}
        return sum(f[0] for f in found), better

    return _climb(at, start, bounds)


class _Modes:
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
        own = {name: math.exp(logs[name]) * overlap for name, overlap in self.overlaps.items()}
        prior = sum(own.values(), torch.zeros_like(next(iter(own.values()))))
        root = torch.linalg.cholesky(prior)
        half = torch.linalg.solve_triangular(root, self.curvature, upper=False)
        white = torch.linalg.solve_triangular(root, half.mT, upper=False)
        values, vectors = torch.linalg.eigh((white + white.mT) / 2)  # (..., n), (..., n, n)
        axes = torch.linalg.solve_triangular(
            root.mT, vectors, upper=True
        )  # whiten the prior, and diagonalise the curvature
        values = values.clamp(min=0)
        values = values if self.rows is None else self.rows[:, None] * values  # (R, n)
        linear = (self.linear.unsqueeze(-2) @ axes).squeeze(-2)
        mode = linear / (1 + values)
        nats = 0.5 * float((linear * mode).sum() - torch.log1p(values).sum())
        shares = values / (1 + values)
        gammas, sizes = {}, {}
        for name, part in own.items():
            weight = (axes.mT @ part @ axes).diagonal(dim1=-2, dim2=-1)
            gammas[name] = float((shares * weight).sum())
            c = (mode.unsqueeze(-2) @ axes.mT).squeeze(-2)
            sizes[name] = float((c @ part * c).sum()) / math.exp(logs[name])
        return nats, gammas, sizes


class _Family(_Modes):
    """That of one list of parts."""

    def __init__(self, parts: Sequence[Part], scale: float, where: str) -> None:
        for part in parts:
            _check(part.weights, where or part.factor.where)
        rows, n = len(parts[0].weights), len(parts[0].matrix)
        axes = [part.factor.output_axes for part in parts]
        first = axes[0]
        shared = (
            first is not None
            and len(first) == rows
            and all(a is not None and torch.allclose(a, first, atol=1e-10) for a in axes)
        )
        size = n if shared else rows * n
        if size > LARGEST:
            raise _too_large(size, where)
        if shared:
            self.curvature, self.rows, self.linear = _joined([_turned(part, scale) for part in parts], where)
            overlaps = [part.matrix @ part.matrix.T for part in parts]
        else:
            eye = torch.eye(rows, dtype=torch.float64)
            self.curvature, self.rows = torch.zeros(size, size, dtype=torch.float64), None
            self.linear, overlaps = torch.zeros(1, size, dtype=torch.float64), []
            for part in parts:
                if part.factor.dimension > LARGEST:
                    raise _too_large(part.factor.dimension, where)
                H, N = part.factor.dense().detach().to(self.linear), torch.kron(eye, part.matrix)
                weights = part.weights.flatten()
                self.curvature += scale * N @ H @ N.T
                self.linear += N @ (scale * H @ weights + math.exp(part.log_precision) * weights)
                if part.slope is not None:
                    self.linear -= N @ part.slope.to(self.linear).flatten()
                overlaps.append(torch.kron(eye, part.matrix @ part.matrix.T))
        self.overlaps: dict[str, Tensor] = {}
        for part, overlap in zip(parts, overlaps):
            self.overlaps[part.name] = self.overlaps[part.name] + overlap if part.name in self.overlaps else overlap


def _climb(
    at: Callable[[Mapping[str, float]], tuple[float, dict[str, float]]],
    start: Mapping[str, float],
    bounds: tuple[float, float] | None,
) -> float:
    """The best value on the way of the fixed-point steps."""
    logs = dict(start)
    best, better = at(logs)
    if bounds is None:
        return float(best)
    last = best
    for _ in range(STEPS):
        logs = {name: min(max(value, bounds[0]), bounds[1]) for name, value in better.items()}
        nats, better = at(logs)
        best = max(best, nats)
        if abs(nats - last) < SETTLED:
            break
        last = nats
    return float(best)


def _single(found: tuple[float, float]) -> tuple[float, dict[str, float]]:
    return found[0], {"": found[1]}


def _modes(
    factor: Factor, weights: Tensor, log_precision: float, scale: float, slope: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues of hH, how often each occurs, and the sums of the squares of b along its eigenvectors."""
    rest = torch.zeros_like(weights) if slope is None else slope.to(weights)
    return factor.modes(weights, rest, scale, math.exp(log_precision))


class _Turned(NamedTuple):
    """One part in the eigenbasis of the outputs, where its curvature does not couple rows."""

    curvature: Tensor  # (n, n), or (R, n, n)
    rows: Tensor | None  # (R,), by which ``curvature`` is multiplied; ``None`` if it has one for each row
    linear: Tensor  # (R, n)


def _turned(part: Part, scale: float) -> _Turned:
    N = part.matrix
    curvature, rows, linear = part.factor.restriction(N, part.weights, scale, math.exp(part.log_precision))
    U: Any = part.factor.output_axes  # there are some, or the rows would not be apart
    back: Any = 0.0 if part.slope is None else U.T @ part.slope.to(N) @ N.T
    return _Turned(curvature, rows, linear - back)


def _joined(found: Sequence[_Turned], where: str) -> _Turned:
    """The sum of the parts, with one curvature for all rows where those of the parts have proportional outputs."""
    linear = torch.stack([f.linear for f in found]).sum(0)
    rows = [f.rows for f in found if f.rows is not None]
    if len(rows) == len(found):
        most = max(rows, key=lambda r: float(r.max()))
        shares = [float(r @ most / (most @ most)) if most.any() else 0.0 for r in rows]
        if all(torch.allclose(r, c * most, rtol=1e-9, atol=1e-12 * float(most.max())) for r, c in zip(rows, shares)):
            return _Turned(torch.stack([c * f.curvature for c, f in zip(shares, found)]).sum(0), most, linear)
    if len(linear) * linear.shape[1] ** 2 > LARGEST**2:
        raise _too_large(linear.numel(), where)
    each = [f.curvature if f.rows is None else f.rows[:, None, None] * f.curvature for f in found]
    return _Turned(torch.stack(each).sum(0), None, linear)


def _check(weights: Tensor, where: str) -> None:
    if not torch.isfinite(weights).all():
        raise DataError(where, "NaN or infinite weights", remedy="go back to a checkpoint with finite weights")


def _too_large(size: int, where: str) -> ArgumentError:
    remedy = (
        "take the curvature 'expand', which has a Kronecker form, or read the kernel by energy alone: without the"
        " evidence"
    )
    return ArgumentError(where, f"{size} coupled coefficients", expected=f"at most {LARGEST}", remedy=remedy)
