r"""The exact null: the same data, each group of samples moved by a random element of the group.

For groups of samples b with features :math:`\Gamma_b`, :math:`T = |\sum_b \Gamma_b|^2` has under the hypothesis the law
of

.. math:: T^* = \Big|\sum_b M(h_b) \Gamma_b\Big|^2 = \sum_{b,b'} \Gamma_b^\top M(h_b^{-1} h_{b'}) \Gamma_{b'}

with :math:`h_b` uniform and independent, given the orbits (Lehmann and Romano, *Testing statistical hypotheses*, ch.
17). The identity counts among the draws: :math:`p = (1 + \#\{T^* \ge T\}) / (1 + R)` (Phipson and Smyth, 2010). One set
of draws for all tests keeps their dependence, so that the largest of them on one scale adjusts for their number
(Westfall and Young, 1993). For a subgroup H the draws come from H, and the part that H leaves in place is taken out
first.

All that a draw needs are the inner products of moved features. A pivoted Cholesky factor of their matrix turns each
moved group of samples into a few numbers, as many as the features have dimensions, whatever the width of the layer; T*
is the square of their sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg.lapack import dpstrf
from torch import Tensor
from torch.nn.functional import embedding_bag

__all__ = ["Randomisation", "factor", "randomise"]

#: Statistics closer than this are equal (relative): sums of some thousand products in float64.
EQUAL = 1e-9
#: A part smaller than this share of the whole is not moved: kernels are sampled in float32.
FIXED_SHARE = 1e-5
#: Inner products are reproduced up to this share of the largest: kernels are sampled in float32.
EXACT = 1e-7


@dataclass(frozen=True)
class Randomisation:
    """What draws from one group say about several statistics; all of shape ``(tests,)``.

    Attributes:
        statistics: T, studentised by the mean under the hypothesis, which the draws cannot change.
        largest: the largest of the draws, in the same unit.
        p_values, adjusted: of each test, and for the whole family.
        moved_share: share of the features' square that the group moves (fraction); where it is 0 nothing can be tested.
    """

    statistics: Tensor
    largest: Tensor
    p_values: Tensor
    adjusted: Tensor
    moved_share: Tensor


def factor(table: Tensor, quotients: Tensor) -> Tensor:
    r"""Coordinates of moved features from their inner products.

    Args:
        table: :math:`\Gamma_b^\top M(g) \Gamma_{b'}`, ``(order, B, B)``, float64.
        quotients: position of :math:`g_i^{-1} g_j`.

    Returns:
        z, ``(order, B, rank)``, with :math:`z_{gb} \cdot z_{hb'} = \Gamma_b^\top M(g^{-1}h) \Gamma_{b'}`.

    >>> turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    >>> features = torch.randn(5, 2, dtype=torch.float64)
    >>> table = torch.stack([features @ torch.linalg.matrix_power(turn, k).T @ features.T for k in range(4)])
    >>> factor(table, torch.tensor([[(j - i) % 4 for j in range(4)] for i in range(4)])).shape
    torch.Size([4, 5, 2])
    """
    order, groups = len(quotients), table.shape[-1]
    whole = table[quotients].transpose(1, 2).reshape(order * groups, order * groups)
    whole = (whole + whole.T) / 2
    largest = float(whole.diagonal().max())
    if not largest > 0:
        return table.new_zeros(order, groups, 1)
    lower, pivots, rank, _ = dpstrf(whole.numpy(), lower=1, tol=EXACT * largest)
    coordinates = np.empty((order * groups, rank))
    coordinates[pivots - 1] = np.tril(lower)[:, :rank]
    return torch.from_numpy(coordinates).view(order, groups, rank)


def randomise(
    coordinates: Sequence[Tensor], positions: Sequence[int], draws: int, generator: torch.Generator
) -> Randomisation:
    r"""Test invariance under a subgroup.

    Args:
        coordinates: for each test the features of each group of samples, moved by each element, ``(order, B, rank)``,
            float64.
        positions: of the subgroup's elements; the identity is at 0.
    """
    inside = torch.as_tensor(list(positions))
    groups = coordinates[0].shape[1]
    choice = torch.randint(len(inside), (draws, groups), generator=generator)
    first = torch.full((1, groups), positions.index(0))
    cells = torch.cat([first, choice]) * groups + torch.arange(groups)
    moved_share = torch.zeros(len(coordinates), dtype=torch.float64)
    statistics = torch.zeros(len(coordinates), draws + 1, dtype=torch.float64)
    for n, whole in enumerate(coordinates):
        features = whole[inside]
        fixed_part = features.mean(0)
        trace, fixed_square = float(whole[0].square().sum()), float(fixed_part.square().sum())
        if trace > 0 and trace - fixed_square > FIXED_SHARE * trace:
            moved_share[n] = (trace - fixed_square) / trace
            statistics[n] = _squares(features - fixed_part, cells) / (trace - fixed_square)
    observed = statistics[:, :1] - EQUAL * statistics[:, :1].abs()
    p = (statistics >= observed).double().mean(1)
    scores = _normal(statistics)
    adjusted = (scores.max(0).values >= scores[:, :1] - EQUAL).double().mean(1)
    for values in (p, adjusted):
        values[moved_share == 0] = torch.nan
    largest = statistics[:, 1:].max(1).values if draws else torch.full((len(coordinates),), torch.nan)
    return Randomisation(statistics[:, 0], largest, p, adjusted, moved_share)


def _squares(features: Tensor, cells: Tensor) -> Tensor:
    """T* of each draw, ``(draws,)``: the square of the sum of the groups, each moved by the element that is drawn for
    it.

    Args:
        features: coordinates of groups moved by each element, without what all elements leave, ``(order, B, rank)``.
        cells: rows of it that a draw adds up, ``(draws, B)``.
    """
    order, groups, rank = features.shape
    if order == 2 and groups <= rank:  # the second is minus the first: signs, whose inner products are all that counts
        signs = 1.0 - 2.0 * (cells >= groups).double()
        return ((signs @ (features[0] @ features[0].T)) * signs).sum(1)
    return embedding_bag(cells, features.flatten(0, 1), mode="sum").square().sum(1)


def _normal(statistics: Tensor) -> Tensor:
    """Statistics on one scale, about a standard normal one: the cube root of a chi-square of fitted degrees of freedom.

    Without it the statistic with the fewest directions, whose tail is the longest, would decide for all (Wilson and
    Hilferty, 1931). The fit looks at all draws and the observation alike, so that the level stays exact.
    """
    mean = statistics.mean(1, keepdim=True).clamp(min=1e-300)
    width = 2 / 9 * (statistics.var(1, keepdim=True) / (2 * mean.square())).clamp(min=1e-12)
    scores = ((statistics / mean).clamp(min=0) ** (1 / 3) - 1 + width) / width.sqrt()
    return torch.where(statistics.abs().sum(1, keepdim=True) > 0, scores, -torch.inf)
