"""Weighted sums of the curvature of single outputs of a network, and what each contributes to their eigenvalues.

The Gauss-Newton matrix is a sum over outputs, each weighted by the precision of its observations. Every approximation
here but ``eigenvalue-corrected`` keeps that: Kronecker forms have their columns, and so the outputs, in one factor only.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Sequence, TypeVar

import torch
from torch import Tensor

from ..errors import CurvatureError
from .factors import DenseFactor, DiagonalFactor, Factor, GramFactor, KroneckerFactor
from .sketched_factor import SketchedFactor

__all__ = ["combine", "shares"]

Kind = TypeVar("Kind", bound=Factor)


def combine(factors: Sequence[Factor], weights: Sequence[float]) -> Factor:
    """The factor of the weighted sum of blocks of the same weights.

    >>> factors = [DiagonalFactor("w", torch.tensor([1.0, 0.0])), DiagonalFactor("w", torch.tensor([1.0, 2.0]))]
    >>> combine(factors, [1, 3]).diagonal
    tensor([4., 6.])
    """
    first = factors[0]
    if isinstance(first, KroneckerFactor):
        return replace(first, B=_sum([f.B for f in _all(KroneckerFactor, factors)], weights))
    if isinstance(first, SketchedFactor):
        return replace(first, B=_sum([f.B for f in _all(SketchedFactor, factors)], weights))
    if isinstance(first, DiagonalFactor):
        return DiagonalFactor(first.where, _sum([f.diagonal for f in _all(DiagonalFactor, factors)], weights))
    grams = [f for f in factors if isinstance(f, GramFactor)]
    if len(grams) == len(factors) and sum(len(f.V) for f in grams) < first.dimension:
        return GramFactor(first.where, torch.cat([f.V * w**0.5 for f, w in zip(grams, weights)]))
    if isinstance(first, (GramFactor, DenseFactor)):
        return DenseFactor(first.where, _sum([f.dense() for f in factors], weights))
    raise CurvatureError(first.where, f"outputs cannot be told apart in an {type(first).__name__}", remedy="use 'expand'")


def shares(factors: Sequence[Factor], whole: Factor) -> Tensor:
    r"""Diagonals :math:`d_{c,i} = u_i^\top H_c u_i` of single outputs' blocks in the eigenbasis of their weighted sum.

    Shape ``(outputs, size)``, float64 on the CPU, in the order of ``whole.spectrum``, which is their weighted sum. For
    other weights :math:`\sum_c h_c d_{c,i}` is the diagonal of the curvature in that basis: right to first order, and by
    Hadamard's inequality never with a smaller log determinant.
    """
    if isinstance(whole, DiagonalFactor):
        return torch.stack([f.diagonal for f in _all(DiagonalFactor, factors)]).to("cpu", torch.float64)
    if isinstance(whole, KroneckerFactor):
        U_A, U_B = whole.eigenbases
        a = _diagonal(whole.A, U_A)
        return torch.stack([torch.outer(_diagonal(f.B, U_B), a).flatten() for f in _all(KroneckerFactor, factors)])
    if isinstance(whole, SketchedFactor):
        U = whole.output_axes
        return torch.stack([torch.outer(_diagonal(f.B, U), whole.A.values).flatten() for f in _all(SketchedFactor, factors)])
    if isinstance(whole, GramFactor):
        Q, R = torch.linalg.qr(whole.V.T.to("cpu", torch.float64))  # Q spans what V reads, however small a row of it is
        axes = Q @ DenseFactor(whole.where, R @ R.T).eigensystem[1]
        found = torch.stack([(f.V.to(axes) @ axes).square().sum(0) for f in _all(GramFactor, factors)])
        return torch.nn.functional.pad(found, (0, whole.dimension - len(R)))
    U = whole.eigensystem[1]
    return torch.stack([_diagonal(f.dense(), U) for f in factors])


def _all(kind: type[Kind], factors: Sequence[Factor]) -> list[Kind]:
    """The factors, which have to be of one kind."""
    found = [f for f in factors if isinstance(f, kind)]
    if len(found) < len(factors):
        got = sorted({type(f).__name__ for f in factors})
        remedy = "take one curvature for all outputs, or noise='shared'"
        raise CurvatureError(factors[0].where, expected=f"a {kind.__name__} for each output", got=got, remedy=remedy)
    return found


def _diagonal(matrix: Tensor, axes: Tensor) -> Tensor:
    return (axes * (matrix.to(axes) @ axes)).sum(0).clamp(min=0)


def _sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    terms = [w * t for w, t in zip(weights, tensors)]
    return sum(terms[1:], terms[0])
