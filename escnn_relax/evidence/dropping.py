r"""What the evidence says to coefficients being zero, exactly: Savage and Dickey's ratio on the Laplace posterior.

Demanding :math:`Nw = 0` of weights with prior :math:`\mathcal N(0, \Lambda^{-1})` and Laplace posterior
:math:`\mathcal N(w, \Sigma)`, :math:`\Sigma = (hH + \Lambda)^{-1}`, changes the log evidence by

.. math::
    \log \frac{q(Nw = 0)}{p(Nw = 0)} = \tfrac12 \Big[ \log\det N \Lambda^{-1} N^\top - \log\det N \Sigma N^\top
    - w^\top N^\top (N \Sigma N^\top)^{-1} N w \Big]

(Dickey, *The weighted likelihood ratio, linear hypotheses on normal location parameters*, Ann. Math. Statist. 42, 1971).
Exact for a linear model with Gaussian noise; positive where the evidence prefers the weights gone. The precisions stay as
they are. Weights of different pathways are independent in the posterior, as everywhere in the evidence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Iterable, Optional, Sequence

import torch
from torch import Tensor

from ..curvature.factors import EigenFactor, Factor, KroneckerFactor
from ..errors import ArgumentError, DataError

__all__ = ["Constraint", "gain_of_dropping", "gain_of_zero", "LARGEST"]

#: Rows of the largest matrix that is decomposed; 8 bytes times its square are 200 MB.
LARGEST = 5_000


@dataclass(frozen=True)
class Constraint:
    """What one curvature block contributes to Nw.

    Attributes:
        factor: the block H of weights ``(O, D)``, or with O = 1 of any weights.
        weights: their values, shape ``(O, D)``.
        log_precision: log prior precision.
        matrix: N for each of the O rows, shape ``(n, D)``, orthonormal rows together with those of the other blocks.
    """

    factor: Factor
    weights: Tensor
    log_precision: float
    matrix: Tensor


def gain_of_zero(factor: Factor, weights: Tensor, scale: float, log_precision: float) -> float:
    r"""All weights of a block zero: :math:`\tfrac12 [\log\det(hH + \delta) - P\log\delta - w^\top (hH + \delta) w]` (nats).

    >>> from escnn_relax.curvature.factors import DenseFactor
    >>> gain_of_zero(DenseFactor("w", torch.zeros(2, 2)), torch.zeros(2), 1.0, 3.0)
    0.0
    """
    delta = math.exp(log_precision)
    _finite(weights, factor.where)
    occam = 0.5 * float(torch.log1p(scale * factor.spectrum / delta).sum())
    rotated = factor.whiten(weights.flatten(), 0.0, 1.0)  # in H's eigenbasis
    white = factor.whiten(weights.flatten(), scale, delta)  # the same over the root of each eigenvalue of hH + delta
    alive = white != 0
    return occam - 0.5 * float((rotated[alive] ** 4 / white[alive] ** 2).sum())


def gain_of_dropping(constraints: Sequence[Constraint], scale: float, where: str = "") -> float:
    """The change of the log evidence (nats) if the sum of the blocks' Nw is set to zero.

    Args:
        constraints: blocks with the same O; what they contribute is added up.
        scale: h, what one unit of the likelihood counts.

    Raises:
        ArgumentError: a matrix of more than :data:`LARGEST` rows would have to be decomposed.
    """
    for c in constraints:
        _finite(c.weights, where or c.factor.where)
    rows, n = len(constraints[0].weights), len(constraints[0].matrix)
    if not n:
        return 0.0
    value = _sum(c.weights.double() @ c.matrix.T for c in constraints)
    prior = _sum(c.matrix @ c.matrix.T * math.exp(-c.log_precision) for c in constraints)
    log_prior = rows * float(torch.linalg.slogdet(prior)[1])
    bases = [b for b in (_rows_basis(c.factor) for c in constraints) if b is not None]
    shared = len(bases) == len(constraints) and all(torch.allclose(b, bases[0], atol=1e-10) for b in bases)
    size = n if shared else rows * n
    if size > LARGEST:
        raise ArgumentError(
            where,
            f"{size} coupled coefficients to drop",
            expected=f"at most {LARGEST}",
            remedy="drop whole pathways instead",
        )
    if shared:
        columns = [_columns(c, scale) for c in constraints]
        value = bases[0].T @ value
        parts = [_sum(turned * d[j] @ turned.T for turned, d in columns) for j in range(rows)]
        values = list(value)
    else:
        # N for all rows at once
        full = [torch.kron(torch.eye(rows, dtype=torch.float64), c.matrix) for c in constraints]
        white = [c.factor.whiten(N, scale, math.exp(c.log_precision)) for c, N in zip(constraints, full)]
        parts, values = [_sum(w @ w.T for w in white)], [value.flatten()]
    total = 0.0
    for covariance, v in zip(parts, values):
        root = torch.linalg.cholesky((covariance + covariance.T) / 2)
        solved = torch.linalg.solve_triangular(root, v[:, None], upper=False)
        total += 2 * float(root.diagonal().log().sum()) + float(solved.square().sum())
    return 0.5 * (log_prior - total)


def _finite(weights: Tensor, where: str) -> None:
    if not torch.isfinite(weights).all():
        raise DataError(where, "NaN or infinite weights", remedy="go back to a checkpoint with finite weights")


def _sum(terms: Iterable[Tensor]) -> Tensor:
    first, *others = terms
    return sum(others, first)


def _rows_basis(factor: Factor) -> Optional[Tensor]:
    """Eigenvectors on the side of the outputs, ``(O, O)``, of factors that have them."""
    if isinstance(factor, KroneckerFactor):
        return factor.eigenbases[1]
    return factor.U_B.detach().to("cpu", torch.float64) if isinstance(factor, EigenFactor) else None


def _columns(constraint: Constraint, scale: float) -> tuple[Tensor, Tensor]:
    """N in the eigenbasis on the side of the inputs, ``(n, D)``, and for each output direction the variances ``(O, D)``."""
    factor: Any = constraint.factor
    if isinstance(factor, KroneckerFactor):
        U_A, U_B = factor.eigenbases
        a, b = ((U.T @ m.to(U) @ U).diag().clamp(min=0) for U, m in ((U_A, factor.A), (U_B, factor.B)))
        values = torch.outer(b, a)
    else:
        U_A = factor.U_A.detach().to("cpu", torch.float64)
        values = factor.spectrum.view(factor.values.shape)
    return constraint.matrix @ U_A, 1 / (scale * values + math.exp(constraint.log_precision))
