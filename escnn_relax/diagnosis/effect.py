r"""From sums over groups to one sample: mean and variance of its gradient, and what they are worth in evidence.

Of features :math:`\gamma_i` with mean :math:`\mu` and variance :math:`\sigma^2`, drawn :math:`m_i` times each, groups
hold the sums :math:`\Gamma_b = \sum_{i \in b} m_i \gamma_i` of :math:`n_b = \sum_{i \in b} m_i` draws, so that

.. math::
    \mathbb E \sum_{b \ne b'} \Gamma_b^\top \Gamma_{b'} = |\mu|^2 \Big(n^2 - \sum_b n_b^2\Big), \qquad
    \mathbb E \sum_b |\Gamma_b|^2 = \sigma^2 \sum_i m_i^2 + |\mu|^2 \sum_b n_b^2.

Solved for both, these do not depend on how the samples were grouped, as the ratio of the sums does: that never passes
the number of groups, however strong the effect is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Moments", "Sizes", "directions", "gain", "moments", "start"]


@dataclass(frozen=True)
class Sizes:
    """How large groups of samples are.

    Attributes:
        draws: how many samples were drawn into each group, repetitions counted, ``(B,)``.
        squares: the squares of how often each sample came, summed over each group, ``(B,)``.
    """

    draws: Tensor
    squares: Tensor


@dataclass(frozen=True)
class Moments:
    """Moments of one sample's features.

    Attributes:
        mean: squared mean, free of bias, so that it can be negative; summed over components.
        variance: summed over components.
    """

    mean: float
    variance: float

    @property
    def second(self) -> float:
        """Mean square."""
        return max(self.mean, 0.0) + self.variance

    @property
    def effect(self) -> float:
        """Squared mean over mean square (fraction); NaN where there is nothing."""
        return self.mean / self.second if self.second > 0 else math.nan


def moments(total: float, trace: float, sizes: Sizes) -> Moments:
    r"""From :math:`|\sum_b \Gamma_b|^2` and :math:`\sum_b |\Gamma_b|^2`.

    >>> import torch
    >>> gamma = torch.randn(1200, 3, dtype=torch.float64) + 1
    >>> groups = gamma.view(60, 20, 3).sum(1)
    >>> sizes = Sizes(torch.full((60,), 20.0), torch.full((60,), 20.0))
    >>> result = moments(float(groups.sum(0).square().sum()), float(groups.square().sum()), sizes)
    >>> 2 < result.mean < 4 and 1 < result.variance < 6  # 3 and 3
    True
    """
    n, squares, sample_squares = float(sizes.draws.sum()), float(sizes.draws.square().sum()), float(sizes.squares.sum())
    mean = (total - trace) / (n * n - squares) if n * n > squares else math.nan
    return Moments(
        mean, max(trace - max(mean, 0.0) * squares, 0.0) / sample_squares if sample_squares > 0 else math.nan
    )


def directions(table: Tensor) -> float:
    """How many directions features of zero mean take: participation ratio of their covariance, from all inner products.

    Args:
        table: inner products of groups of one size, as far as signs go any element's: ``(elements, B, B)``.
    """
    squares = table[0].diagonal()
    cross = table.square().mean(0)
    cross = (cross.sum() - cross.diagonal().sum()) / max(len(cross) * (len(cross) - 1), 1)
    return max(1.0, float(squares.mean().square() / cross)) if float(cross) > 0 else 1.0


def gain(count: float, surplus: float) -> float:
    r"""Evidence gained by the best precision, :math:`\tfrac d2 (s - \log(1 + s))` (nats), for d directions of one
    curvature.

    Args:
        surplus: s, the squared gradient over its mean under the hypothesis, less one.
    """
    return 0.5 * count * (surplus - math.log1p(surplus)) if surplus > 0 else 0.0


def start(curvature: float, surplus: float) -> float:
    r"""Logarithm of the precision that :func:`gain` assumes, :math:`\delta = \lambda / s`; infinite where the data do
    not ask for the pathway.

    Args:
        curvature: :math:`\lambda`, of one direction, summed over the data.
    """
    return math.log(curvature / surplus) if surplus > 0 and curvature > 0 else math.inf
