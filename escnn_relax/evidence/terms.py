"""The log marginal likelihood in its parts, and the formulas that each prior precision enters by."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["EvidenceTerms", "complexity", "doubt", "effective_dimension"]


@dataclass(frozen=True)
class EvidenceTerms:
    r"""The log marginal likelihood in nats, and what it consists of.

    Attributes:
        data_fit: log-likelihood of the data under the trained weights.
        complexity: :math:`\tfrac12 \sum [\log(h\lambda+\delta) - \log\delta]`, what the data determine (Occam factor).
        prior: :math:`\tfrac12 \sum \delta |w|^2`.
        num_data: number of samples, so that ``total / num_data`` compares across data sets.

    >>> EvidenceTerms(data_fit=-10.0, complexity=3.0, prior=2.0, num_data=5).total
    -15.0
    """

    data_fit: float
    complexity: float
    prior: float
    num_data: int

    @property
    def total(self) -> float:
        """``data_fit - complexity - prior``."""
        return self.data_fit - self.complexity - self.prior


def complexity(eigenvalues: Tensor, log_precision: float) -> float:
    r""":math:`\tfrac12 \sum_i \log(1 + \lambda_i / \delta)` (nats), eigenvalues already scaled by the likelihood.

    >>> round(complexity(torch.tensor([math.e - 1]), 0.0), 6)
    0.5
    """
    return 0.5 * float(torch.log1p(eigenvalues * math.exp(-log_precision)).sum())


def effective_dimension(eigenvalues: Tensor, log_precision: float) -> float:
    r""":math:`\gamma = \sum_i \lambda_i / (\lambda_i + \delta)`.

    >>> effective_dimension(torch.tensor([1.0, 0.0]), 0.0)
    0.5
    """
    return float((eigenvalues / (eigenvalues + math.exp(log_precision))).sum())


def doubt(gain: float, dimension: float, outputs: float) -> str:
    """What is said of a network that is not known to be better than a constant output.

    Args:
        gain: by how much the data are likelier under it than under the best constant output (nats).
        dimension: its effective dimension.
        outputs: their number.

    >>> doubt(-3.0, 10.0, 2)
    'the network is no better than a constant output: its precisions and pathways say nothing about the data'
    >>> doubt(8.0, 10.0, 2)  # doctest: +NORMALIZE_WHITESPACE
    'the network is not known to be better than a constant output: the data are likelier under it than under the best
    constant by 8 nats, no more than what noise may gain by its effective dimension of 10 and 2 outputs'
    """
    if not gain > 0:
        return "the network is no better than a constant output: its precisions and pathways say nothing about the data"
    return (
        "the network is not known to be better than a constant output: the data are likelier under it than under the"
        f" best constant by {gain:.4g} nats, no more than what noise may gain by its effective dimension of"
        f" {dimension:.4g} and {outputs:.4g} outputs"
    )
