"""What one pass over a data set finds out about the curvature of a model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..deprecation import former_method
from ..errors import CoverageError
from .factors import Factor

__all__ = ["CurvatureEstimate"]


@dataclass(frozen=True)
class CurvatureEstimate:
    """Sums over one data set.

    The Gauss-Newton matrix is a sum over outputs, each weighted by the precision of its observations. Every
    approximation but ``eigenvalue-corrected`` has that sum: Kronecker forms have their columns, and so the outputs, in
    one factor only.

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
    def weighted_sum(cls, outputs: Sequence[CurvatureEstimate], weights: Tensor | None = None) -> CurvatureEstimate:
        """That of all outputs from the estimates of single ones; all weights are 1 by default."""
        first = outputs[0]
        numbers = [1.0] * len(outputs) if weights is None else weights.tolist()
        factors = {
            name: tuple(
                type(same[0]).weighted_sum(same, numbers)
                for same in zip(*(o.factors[name] for o in outputs), strict=True)
            )
            for name in first.factors
        }
        loss = sum(w * o.loss for w, o in zip(numbers, outputs, strict=True))
        constant = sum(w * o.constant for w, o in zip(numbers, outputs, strict=True))
        return cls(
            factors, loss, first.num_data, sum(o.num_outputs for o in outputs), tuple(outputs), constant, first.weight
        )

    def eigenvalues(self, name: str) -> Tensor:
        """All eigenvalues of a parameter's curvature, shape ``(its size,)``, float64."""
        return torch.cat([factor.spectrum for factor in self.factors[name]])

    def shares(self, name: str) -> Tensor:
        """Of each output in these eigenvalues, ``(outputs, size)``: the diagonal of its own curvature in the eigenbasis
        of the weighted sum."""
        blocks = zip(*(output.factors[name] for output in self.outputs), strict=True)
        return torch.cat([whole.diagonals(same) for same, whole in zip(blocks, self.factors[name], strict=True)], dim=1)

    def plain(self) -> dict[str, Any]:
        """As tensors and numbers, for :meth:`average` and for checkpoints; ``ArgumentError`` for factors that have
        none."""
        return {
            "outputs": [output.plain() for output in self.outputs],
            "factors": {name: [list(factor.tensors()) for factor in factors] for name, factors in self.factors.items()},
            "loss": self.loss,
            "constant": self.constant,
            "num_data": self.num_data,
            "weight": self.weight or float(self.num_data),
        }

    def average(self, previous: Mapping[str, Any], keep: float) -> CurvatureEstimate:
        """The mean with an older estimate per sample, as a sum over this one's samples, so that a refresh need not see
        all data.

        A sample counts ``keep`` times as much as one that was looked at one refresh later, however the samples were
        divided into parts.

        Args:
            previous: :meth:`plain` of the older estimate, itself an average perhaps.
            keep: what a refresh leaves of the weight of older samples (fraction).

        Raises:
            ArgumentError: ``eigenvalue-corrected`` or ``sketched``, whose eigenbasis changes.
            CoverageError: an estimate of another model.
        """
        if self.outputs and len(self.outputs) == len(previous["outputs"]):
            pairs = zip(self.outputs, previous["outputs"])
            return CurvatureEstimate.weighted_sum([output.average(old, keep) for output, old in pairs])
        if set(previous["factors"]) != set(self.factors) or self.outputs or previous["outputs"]:
            remedy = "refresh once with keep=0, or load the state of this model"
            raise CoverageError("running average", "the previous curvature belongs to another model", remedy=remedy)
        ratio = self.num_data / previous["num_data"]
        older = keep * previous.get("weight", previous["num_data"])  # checkpoints of older versions have none
        weight = older + self.num_data
        share = older / weight
        factors = {
            name: tuple(
                new.average(old, share, ratio) for new, old in zip(blocks, previous["factors"][name], strict=True)
            )
            for name, blocks in self.factors.items()
        }
        loss = share * ratio * previous["loss"] + (1 - share) * self.loss
        constant = share * ratio * previous.get("constant", self.constant / ratio) + (1 - share) * self.constant
        return replace(self, factors=factors, loss=loss, constant=constant, weight=weight)


setattr(CurvatureEstimate, "of", classmethod(former_method("of", "weighted_sum")))
