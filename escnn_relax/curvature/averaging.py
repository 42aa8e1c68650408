"""Running averages of the curvature, so that a refresh need not see all the data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Mapping

from torch import Tensor

from ..errors import ArgumentError, CoverageError
from .collect import CurvatureEstimate
from .factors import DenseFactor, DiagonalFactor, Factor, GramFactor, KroneckerFactor

__all__ = ["averaged", "parts", "tensors"]


def averaged(estimate: CurvatureEstimate, previous: Mapping[str, Any], keep: float) -> CurvatureEstimate:
    """The mean of two estimates per sample, with weight ``keep`` on the previous one, as a sum over the new one's samples.

    Kronecker factors are averaged factor by factor, as is usual (Martens and Grosse, ICML 2015).

    Args:
        previous: :func:`parts` of the previous estimate.

    Raises:
        ArgumentError: ``eigenvalue-corrected``, whose eigenbasis changes.
        CoverageError: parts of another model.
    """
    if estimate.outputs and len(estimate.outputs) == len(previous["outputs"]):
        pairs = zip(estimate.outputs, previous["outputs"])
        return CurvatureEstimate.of([averaged(output, old, keep) for output, old in pairs])
    if set(previous["factors"]) != set(estimate.factors) or estimate.outputs or previous["outputs"]:
        raise CoverageError("running average", "the previous curvature belongs to another model")
    ratio = estimate.num_data / previous["num_data"]
    factors = {
        name: tuple(_blend(f, old, keep, ratio) for f, old in zip(of, previous["factors"][name], strict=True))
        for name, of in estimate.factors.items()
    }
    loss = keep * ratio * previous["loss"] + (1 - keep) * estimate.loss
    return replace(estimate, factors=factors, loss=loss)


def parts(estimate: CurvatureEstimate) -> dict[str, Any]:
    """An estimate as plain tensors and numbers, for :func:`averaged` and for checkpoints."""
    return {
        "outputs": [parts(output) for output in estimate.outputs],
        "factors": {name: [list(tensors(f)) for f in of] for name, of in estimate.factors.items()},
        "loss": estimate.loss,
        "num_data": estimate.num_data,
    }


def tensors(factor: Factor, purpose: str = "running average") -> tuple[Tensor, ...]:
    """The tensors that a factor consists of and is smooth in; ``ArgumentError`` for one that has none."""
    if isinstance(factor, KroneckerFactor):
        return factor.A, factor.B
    if isinstance(factor, DiagonalFactor):
        return (factor.diagonal,)
    if isinstance(factor, (DenseFactor, GramFactor)):
        return (factor.dense(),)
    raise ArgumentError(purpose, f"not possible with an {type(factor).__name__}, whose basis changes", remedy="use 'expand'")


def _blend(factor: Factor, old: list[Tensor], keep: float, ratio: float) -> Factor:
    new = tensors(factor)
    if [o.shape for o in old] != [n.shape for n in new]:
        remedy = "refresh once with keep=0, or take the same curvature as before"
        raise CoverageError("running average", f"the previous curvature of {factor.where} has another form", remedy=remedy)
    old = [o.to(n) for o, n in zip(old, new)]  # what comes from a checkpoint lies on the CPU
    if isinstance(factor, KroneckerFactor):  # A is a mean over rows, B a sum over samples
        A, B = (keep * r * o + (1 - keep) * n for o, n, r in zip(old, new, (1.0, ratio)))
        return replace(factor, A=A, B=B)
    (mean,) = (keep * ratio * o + (1 - keep) * n for o, n in zip(old, new))
    return DiagonalFactor(factor.where, mean) if isinstance(factor, DiagonalFactor) else DenseFactor(factor.where, mean)
