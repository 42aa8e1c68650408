"""What one pass over a data set finds out about the curvature of a model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Sequence

import torch
from torch import Tensor

from .combination import combine, shares
from .factors import Factor

__all__ = ["CurvatureEstimate"]


@dataclass(frozen=True)
class CurvatureEstimate:
    """Sums over one data set.

    Attributes:
        factors: for each parameter's name its curvature blocks, for one unit of the likelihood.
        loss: negative log-likelihood without normaliser (nats), for one unit of the likelihood.
        num_data: number of samples N.
        num_outputs: numbers that the network puts out for a sample; on average, where samples differ in size.
        outputs: the same of each output by itself, where they were taken apart; the whole is their weighted sum.
        constant: the loss of the best output that is the same for every sample (nats), NaN where it is not known.
        weight: of an average over refreshes, the number of samples in it, older ones counted less; else 0.
    """

    factors: dict[str, tuple[Factor, ...]]
    loss: float
    num_data: int
    num_outputs: float
    outputs: tuple[CurvatureEstimate, ...] = ()
    constant: float = math.nan
    weight: float = 0.0

    @classmethod
    def of(cls, outputs: Sequence[CurvatureEstimate], weights: Tensor | None = None) -> CurvatureEstimate:
        """The weighted sum of the estimates of single outputs; all weights are 1 by default."""
        first = outputs[0]
        given = [1.0] * len(outputs) if weights is None else weights.tolist()
        factors = {
            name: tuple(combine(same, given) for same in zip(*(o.factors[name] for o in outputs), strict=True))
            for name in first.factors
        }
        loss = sum(w * o.loss for w, o in zip(given, outputs, strict=True))
        constant = sum(w * o.constant for w, o in zip(given, outputs, strict=True))
        return cls(factors, loss, first.num_data, sum(o.num_outputs for o in outputs), tuple(outputs), constant, first.weight)

    def eigenvalues(self, name: str) -> Tensor:
        """All eigenvalues of a parameter's curvature, shape ``(its size,)``, float64."""
        return torch.cat([factor.spectrum for factor in self.factors[name]])

    def shares(self, name: str) -> Tensor:
        """Of each output in these eigenvalues, ``(outputs, size)``: the diagonal of its own curvature in the eigenbasis of
        the weighted sum."""
        of = zip(*(o.factors[name] for o in self.outputs), strict=True)
        return torch.cat([shares(same, whole) for same, whole in zip(of, self.factors[name], strict=True)], dim=1)
