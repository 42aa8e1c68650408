"""Moving prior precisions and observation noise up the evidence, curvature and weights fixed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from ..errors import ArgumentError, DataError
from .noise import LARGEST
from .terms import complexity

if TYPE_CHECKING:
    from .evidence import Evidence

__all__ = ["move"]

Point = TypeVar("Point", float, Tensor)


def move(evidence: Evidence, method: str, steps: int, damping: float, rate: float) -> None:
    """So many steps of ``"mackay"`` or ``"gradient"``; ``ArgumentError`` for others."""
    if steps < 0 or not 0 <= damping < 1 or not rate > 0:
        expected = "steps >= 0, 0 <= damping < 1 and rate > 0"
        remedy = "leave them out for the defaults"
        raise ArgumentError(
            "step", expected=expected, got=f"steps={steps}, damping={damping}, rate={rate}", remedy=remedy
        )
    if method not in ("mackay", "gradient"):
        remedy = "leave it out for 'mackay'"
        raise ArgumentError("step", expected="method='mackay' or 'gradient'", got=repr(method), remedy=remedy)
    evidence.spectrum  # there must be one
    for name, square in evidence.squares().items():
        if not math.isfinite(square):
            raise DataError(name, "NaN or infinite weights", remedy="go back to a checkpoint with finite weights")
    ascend(evidence, steps, damping) if method == "mackay" else climb(evidence, steps, rate)


def ascend(evidence: Evidence, steps: int, damping: float) -> None:
    r"""MacKay's update :math:`\delta \leftarrow \gamma / |w|^2` for each group of parameters, and
    :math:`\sigma_c^2 \leftarrow 2L_c / ((N_c - \gamma_c) T)` for the noise, both damped in the logarithm.

    MacKay, *Bayesian interpolation*, 1992. A change is halved until the evidence does not fall by it.
    """
    squares = evidence.squares()
    for _ in range(steps):
        values = evidence.eigenvalues
        gammas = evidence.effective_dimension()
        for members in _free(evidence, squares):
            gamma, square = sum(gammas[n] for n in members), sum(squares[n] for n in members)
            target = evidence.prior.clip(math.log(max(gamma, 1e-12)) - math.log(max(square, 1e-300)))
            change = (1 - damping) * (target - evidence.log_precision[members[0]])
            _move(evidence, members, torch.cat([values[n] for n in members]), change, square)
        if evidence.likelihood.noisy:
            now = torch.as_tensor(evidence.log_noise, dtype=torch.float64)
            goal = evidence.spectrum.stationary_log_noise(evidence.noise, evidence.log_precision)
            _move_noise(evidence, now, (1 - damping) * (goal - now))


def climb(evidence: Evidence, steps: int, rate: float) -> None:
    """Adam's steps on all log precisions and noises together, from the exact gradient; ends at the best point passed.

    Kingma and Ba, *Adam: a method for stochastic optimization*, ICLR 2015.
    """
    groups = list(_free(evidence, evidence.squares()))
    start = [evidence.log_precision[members[0]] for members in groups]
    noise = torch.as_tensor(evidence.log_noise if evidence.likelihood.noisy else [], dtype=torch.float64).view(-1)
    point = torch.cat([torch.tensor(start, dtype=torch.float64), noise])
    descent = torch.optim.Adam([point], lr=rate)
    best, highest = point.clone(), evidence.terms().total
    for _ in range(steps):
        slopes = evidence.gradient()
        of_noise = [slope for name, slope in slopes.items() if name not in evidence.log_precision]
        point.grad = -torch.tensor([*(sum(slopes[n] for n in members) for members in groups), *of_noise]).double()
        descent.step()
        point[: len(groups)].clamp_(*evidence.prior.bounds)
        point[len(groups) :].clamp_(-LARGEST, LARGEST)
        _put(evidence, groups, point)
        if (total := evidence.terms().total) > highest:
            best, highest = point.clone(), total
    _put(evidence, groups, best)


def _free(evidence: Evidence, squares: dict[str, float]) -> Iterator[tuple[str, ...]]:
    """The groups whose precision moves: weights that nothing has moved yet say nothing about their scale."""
    for group, everyone in evidence.prior.groups.items():
        members = tuple(n for n in everyone if n in squares)  # not the closed ones
        if group not in evidence.prior.fixed and any(squares[n] for n in members):
            yield members


def _put(evidence: Evidence, groups: list[tuple[str, ...]], point: Tensor) -> None:
    for members, value in zip(groups, point.tolist()):
        evidence.log_precision.update(dict.fromkeys(members, value))
    if evidence.likelihood.noisy:
        noise = point[len(groups) :]
        evidence.noise.log = noise if evidence.noise.each else float(noise)


def _move(evidence: Evidence, members: tuple[str, ...], values: Tensor, change: float, square: float) -> None:
    """Change one group's log precision."""

    def loss(log_precision: float) -> float:
        return complexity(values, log_precision) + 0.5 * math.exp(log_precision) * square

    now = evidence.log_precision[members[0]]
    new = _descend(loss, lambda by: evidence.prior.clip(now + by * change))
    evidence.log_precision.update(dict.fromkeys(members, new))


def _move_noise(evidence: Evidence, now: Tensor, change: Tensor) -> None:
    """Change the log standard deviations of the observations."""

    def loss(log_noise: Tensor) -> float:
        evidence.noise.log = log_noise
        return -evidence.terms().total

    evidence.noise.log = _descend(loss, lambda by: now + by * change)


def _descend(loss: Callable[[Point], float], moved: Callable[[float], Point]) -> Point:
    """Where a change leads, halved until the loss does not rise by it; nowhere if it always does."""
    before, share = loss(moved(0.0)), 1.0
    for _ in range(20):
        if loss(moved(share)) <= before:
            return moved(share)
        share /= 2
    return moved(0.0)
