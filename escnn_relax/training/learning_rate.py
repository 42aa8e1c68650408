"""The default descent, and how its learning rate falls."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler

__all__ = ["adam", "anneal", "cosine"]


def adam(parameters: list[Any], lr: float) -> Optimizer:
    """Adam, in one kernel where torch has one: a quarter of the time for many small pathways.

    >>> adam([torch.zeros(1, requires_grad=True)], 0.5).param_groups[0]["lr"]
    0.5
    """
    tensors = [p for group in parameters for p in (group["params"] if isinstance(group, dict) else [group])]
    usual = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in tensors)
    try:
        return torch.optim.Adam(parameters, lr=lr, fused=usual)
    except RuntimeError:  # older torch has it for CUDA only
        return torch.optim.Adam(parameters, lr=lr)


def cosine(optimizer: Optimizer, epochs: int) -> LRScheduler:
    """From the learning rate of each group to a fiftieth of it.

    >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.5)
    >>> scheduler = cosine(optimizer, 1)
    >>> optimizer.step(), scheduler.step()
    (None, None)
    >>> optimizer.param_groups[0]["lr"]
    0.01
    """
    rates = {group["lr"] for group in optimizer.param_groups}
    if len(rates) == 1:
        return CosineAnnealingLR(optimizer, max(epochs, 1), eta_min=optimizer.param_groups[0]["lr"] / 50)
    falling = lambda epoch: 0.51 + 0.49 * math.cos(math.pi * epoch / max(epochs, 1))
    return LambdaLR(optimizer, falling)


def anneal(scheduler: Any, loss: float) -> None:
    """One epoch on; some schedulers look at its loss."""
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        scheduler.step(loss)
    else:
        scheduler.step()
