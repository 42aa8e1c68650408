r"""The exact null: the same data, each group of samples moved by a random element of the group.

For groups of samples b with features :math:`\Gamma_b`, :math:`T = |\sum_b \Gamma_b|^2` has under the hypothesis the law of

.. math:: T^* = \Big|\sum_b M(h_b) \Gamma_b\Big|^2 = \sum_{b,b'} \Gamma_b^\top M(h_b^{-1} h_{b'}) \Gamma_{b'}

with :math:`h_b` uniform and independent, given the orbits (Lehmann and Romano, *Testing statistical hypotheses*, ch. 17).
The identity counts among the draws: :math:`p = (1 + \#\{T^* \ge T\}) / (1 + R)` (Phipson and Smyth, 2010). One set of draws
for all tests keeps their dependence, so that the largest of them on one scale adjusts for their number (Westfall and Young,
1993). For a subgroup H the draws come from H, and the part that H leaves in place is taken out first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import torch
from torch import Tensor

__all__ = ["Randomisation", "randomise"]

#: Draws that are looked at together.
CHUNK = 64
#: Statistics closer than this are equal (relative): sums of some thousand products in float64.
EQUAL = 1e-9
#: A part smaller than this share of the whole is not moved: kernels are sampled in float32.
STILL = 1e-5


@dataclass(frozen=True)
class Randomisation:
    """What draws from one group say about several statistics; all of shape ``(tests,)``.

    Attributes:
        statistics: T, studentised by the mean under the hypothesis, which the draws cannot change.
        largest: the largest of the draws, in the same unit.
        p_values, adjusted: of each test, and for the whole family.
        moved: share of the features' square that the group moves (fraction); where it is 0 nothing can be tested.
    """

    statistics: Tensor
    largest: Tensor
    p_values: Tensor
    adjusted: Tensor
    moved: Tensor


def randomise(
    tables: Sequence[Tensor], quotients: Tensor, positions: Sequence[int], draws: int, generator: torch.Generator
) -> Randomisation:
    r"""Test invariance under a subgroup.

    Args:
        tables: for each test :math:`\Gamma_b^\top M(g) \Gamma_{b'}`, ``(order, B, B)``, float64.
        quotients: position of :math:`g_i^{-1} g_j`.
        positions: of the subgroup's elements.
    """
    inside = torch.as_tensor(list(positions))
    groups = tables[0].shape[-1]
    chosen = inside[torch.randint(len(inside), (draws, groups), generator=generator)]
    chosen = torch.cat([torch.zeros(1, groups, dtype=torch.long), chosen])
    cells = torch.arange(groups * groups).view(groups, groups)
    parts, means, moved = [], [], []
    for table in tables:
        fixed = table[inside].mean(0)
        trace, still = float(table[0].trace()), float(fixed.trace())
        share = (trace - still) / trace if trace > 0 else 0.0
        moved.append(share if share > STILL else 0.0)
        parts.append((table - fixed).flatten())
        means.append(max(trace - still, 1e-300))
    drawn = torch.zeros(len(tables), draws + 1, dtype=torch.float64)
    for start in range(0, draws + 1, CHUNK):
        h = chosen[start : start + CHUNK]
        index = quotients[h[:, :, None], h[:, None, :]] * groups * groups + cells
        for n, part in enumerate(parts):
            if moved[n]:
                drawn[n, start : start + CHUNK] = part[index].sum((1, 2)) / means[n]
    observed = drawn[:, :1] - EQUAL * drawn[:, :1].abs()
    p = (drawn >= observed).double().mean(1)
    scores = _normal(drawn)
    adjusted = (scores.max(0).values >= scores[:, :1] - EQUAL).double().mean(1)
    for values in (p, adjusted):
        values[torch.tensor(moved) == 0] = torch.nan
    largest = drawn[:, 1:].max(1).values if draws else torch.full((len(tables),), torch.nan)
    return Randomisation(drawn[:, 0], largest, p, adjusted, torch.tensor(moved, dtype=torch.float64))


def _normal(drawn: Tensor) -> Tensor:
    """Statistics on one scale, about a standard normal one: the cube root of a chi-square of fitted degrees of freedom.

    Without it the statistic with the fewest directions, whose tail is the longest, would decide for all (Wilson and Hilferty,
    1931). The fit looks at all draws and the observation alike, so that the level stays exact.
    """
    mean = drawn.mean(1, keepdim=True).clamp(min=1e-300)
    width = 2 / 9 * (drawn.var(1, keepdim=True) / (2 * mean.square())).clamp(min=1e-12)
    scores = ((drawn / mean).clamp(min=0) ** (1 / 3) - 1 + width) / width.sqrt()
    return torch.where(drawn.abs().sum(1, keepdim=True) > 0, scores, -torch.inf)
