"""Moving prior precisions and observation noise up the evidence, curvature and weights fixed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Callable

import torch
from torch import Tensor

from .terms import complexity

if TYPE_CHECKING:
    from .evidence import Evidence

__all__ = ["ascend"]


def ascend(evidence: "Evidence", steps: int, damping: float) -> None:
    r"""MacKay's update :math:`\delta \leftarrow \gamma / |w|^2` for each group of parameters, and
    :math:`\sigma^2 \leftarrow 2L / ((NC - \gamma) T)` for the noise, both damped in the logarithm.

    MacKay, *Bayesian interpolation*, 1992. A change is halved until the evidence does not fall by it.
    """
    squares = evidence.squares()
    for _ in range(steps):
        values = evidence.eigenvalues
        gammas = evidence.effective_dimension()
        for group, members in evidence.prior.groups.items():
            if group not in evidence.prior.fixed:
                gamma, square = sum(gammas[n] for n in members), sum(squares[n] for n in members)
                if square == 0:  # weights that nothing has moved yet say nothing about their scale
                    continue
                target = evidence.prior.clip(math.log(max(gamma, 1e-12)) - math.log(max(square, 1e-300)))
                change = (1 - damping) * (target - evidence.log_precision[members[0]])
                _move(evidence, members, torch.cat([values[n] for n in members]), change, square)
        if evidence.likelihood.noisy:
            free = evidence.observations - sum(evidence.effective_dimension().values())
            variance = 2 * evidence.mean_loss * evidence.num_data / (max(free, 1.0) * evidence.temperature)
            _move_noise(evidence, (1 - damping) * (0.5 * math.log(max(variance, 1e-12)) - evidence.log_noise))


def _move(evidence: "Evidence", members: tuple[str, ...], values: Tensor, change: float, square: float) -> None:
    """Change one group's log precision."""

    def loss(log_precision: float) -> float:
        return complexity(values, log_precision) + 0.5 * math.exp(log_precision) * square

    now = evidence.log_precision[members[0]]
    new = _descend(loss, now, lambda by: evidence.prior.clip(now + by), change)
    evidence.log_precision.update(dict.fromkeys(members, new))


def _move_noise(evidence: "Evidence", change: float) -> None:
    """Change the log standard deviation of the observations."""
    now = evidence.log_noise

    def loss(log_noise: float) -> float:
        evidence.log_noise = log_noise
        return -evidence.terms().total

    evidence.log_noise = _descend(loss, now, lambda by: now + by, change)


def _descend(loss: Callable[[float], float], now: float, moved: Callable[[float], float], change: float) -> float:
    """Where a change leads, halved until the loss does not rise by it."""
    before = loss(now)
    for _ in range(20):
        if loss(moved(change)) <= before:
            return moved(change)
        change /= 2
    return now
