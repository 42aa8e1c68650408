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
    """The mean of two estimates per sample, as a sum over the new one's samples: a sample counts ``keep`` times as much as one
    that was looked at one refresh later, however the samples were divided into parts.

    Kronecker factors are averaged factor by factor, as is usual (Martens and Grosse, ICML 2015).

    Args:
        previous: :func:`parts` of the previous estimate, itself an average perhaps.
        keep: what a refresh leaves of the weight of older samples (fraction).

    Raises:
        ArgumentError: ``eigenvalue-corrected``, whose eigenbasis changes.
        CoverageError: parts of another model.
    """
    if estimate.outputs and len(estimate.outputs) == len(previous["outputs"]):
        pairs = zip(estimate.outputs, previous["outputs"])
        return CurvatureEstimate.of([averaged(output, old, keep) for output, old in pairs])
    if set(previous["factors"]) != set(estimate.factors) or estimate.outputs or previous["outputs"]:
        remedy = "refresh once with keep=0, or load the state of this model"
        raise CoverageError("running average", "the previous curvature belongs to another model", remedy=remedy)
    ratio = estimate.num_data / previous["num_data"]
    older = keep * previous.get("weight", previous["num_data"])  # checkpoints of older versions have none
    weight = older + estimate.num_data
    share = older / weight
    factors = {
        name: tuple(_blend(f, old, share, ratio) for f, old in zip(of, previous["factors"][name], strict=True))
        for name, of in estimate.factors.items()
    }
    loss = share * ratio * previous["loss"] + (1 - share) * estimate.loss
    constant = share * ratio * previous.get("constant", estimate.constant / ratio) + (1 - share) * estimate.constant
    return replace(estimate, factors=factors, loss=loss, constant=constant, weight=weight)


def parts(estimate: CurvatureEstimate) -> dict[str, Any]:
    """An estimate as plain tensors and numbers, for :func:`averaged` and for checkpoints."""
    return {
        "outputs": [parts(output) for output in estimate.outputs],
        "factors": {name: [list(tensors(f)) for f in of] for name, of in estimate.factors.items()},
        "loss": estimate.loss,
        "constant": estimate.constant,
        "num_data": estimate.num_data,
        "weight": estimate.weight or float(estimate.num_data),
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


def _blend(factor: Factor, old: list[Tensor], share: float, ratio: float) -> Factor:
    new = tensors(factor)
    if [o.shape for o in old] != [n.shape for n in new]:
        remedy = "refresh once with keep=0, or take the same curvature as before"
        raise CoverageError("running average", f"the previous curvature of {factor.where} has another form", remedy=remedy)
    old = [o.to(n) for o, n in zip(old, new)]  # what comes from a checkpoint lies on the CPU
    if isinstance(factor, KroneckerFactor):  # A is a mean over rows, B a sum over samples
        A, B = (share * r * o + (1 - share) * n for o, n, r in zip(old, new, (1.0, ratio)))
        return replace(factor, A=A, B=B)
    (mean,) = (share * ratio * o + (1 - share) * n for o, n in zip(old, new))
    return DiagonalFactor(factor.where, mean) if isinstance(factor, DiagonalFactor) else DenseFactor(factor.where, mean)
