"""Targets and what each of them counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..batch_format import Weighted

__all__ = ["broadcast_weight", "broadcasts", "split_weight"]


def split_weight(target: Any) -> tuple[Tensor, Tensor | None]:
    """Targets and weights; what counts nothing may be anything, even NaN, and comes as 0."""
    if not isinstance(target, Weighted):
        return target, None
    weight, values = broadcast_weight(target.weight, target.target), target.target
    if not broadcasts(weight.shape, values.shape):  # Likelihood.check says so
        return values, target.weight
    return values.masked_fill((weight == 0).expand_as(values), 0), target.weight


def broadcast_weight(weight: Tensor, like: Tensor) -> Tensor:
    """Weights of samples ``(N,)``, of places ``(N, *space)``, or of all, in a shape that broadcasts to ``like``."""
    if weight.dim() == like.dim():
        return weight.to(like.device)
    if weight.dim() == 1:
        return weight.view(-1, *(1,) * (like.dim() - 1)).to(like.device)
    return weight.unsqueeze(1).to(like.device)


def broadcasts(shape: Sequence[int], whole: Sequence[int]) -> bool:
    """Whether a tensor of this shape broadcasts to the whole one, with as many dimensions."""
    return len(shape) == len(whole) and all(a in (1, b) for a, b in zip(shape, whole))
