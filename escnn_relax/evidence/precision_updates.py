"""Prior precisions and observation noise moved up the evidence, curvature and weights fixed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ..errors import ArgumentError, DataError
from .noise import LARGEST, Noise
from .prior import Prior
from .spectrum import Spectrum
from .terms import complexity

__all__ = ["FixedWeights", "adam_updates", "check_step", "mackay_updates", "updated"]

Point = TypeVar("Point", float, Tensor)
#: Log precisions by parameter name, and the noise.
Updated = tuple[dict[str, float], Noise]


class FixedWeights(NamedTuple):
    """What does not move meanwhile.

    Attributes:
        spectrum: the curvature's eigenvalues and the losses.
        prior: which precisions are tied, which fixed.
        squares: :math:`|w|^2` by parameter name; weights of closed pathways are left out.
    """

    spectrum: Spectrum
    prior: Prior
    squares: Mapping[str, float]


def check_step(method: str, steps: int, damping: float, rate: float) -> None:
    """Raise ``ArgumentError`` for what makes no sense."""
    if steps < 0 or not 0 <= damping < 1 or not rate > 0:
        expected = "steps >= 0, 0 <= damping < 1 and rate > 0"
        remedy = "leave them out for the defaults"
        raise ArgumentError(
            "step", expected=expected, got=f"steps={steps}, damping={damping}, rate={rate}", remedy=remedy
        )
    if method not in ("mackay", "gradient"):
        remedy = "leave it out for 'mackay'"
        raise ArgumentError("step", expected="method='mackay' or 'gradient'", got=repr(method), remedy=remedy)


def updated(
    fixed: FixedWeights,
    log_precision: Mapping[str, float],
    noise: Noise,
    method: str,
    steps: int,
    damping: float,
    rate: float,
) -> Updated:
    """Log precisions and noise after so many steps of ``"mackay"`` or ``"gradient"``.

    Raises:
        DataError: weights that are not finite.
    """
    for name, square in fixed.squares.items():
        if not math.isfinite(square):
            raise DataError(name, "NaN or infinite weights", remedy="go back to a checkpoint with finite weights")
    if method == "mackay":
        return mackay_updates(fixed, log_precision, noise, steps, damping)
    return adam_updates(fixed, log_precision, noise, steps, rate)


def mackay_updates(
    fixed: FixedWeights, log_precision: Mapping[str, float], noise: Noise, steps: int, damping: float
) -> Updated:
    r"""MacKay's update :math:`\delta \leftarrow \gamma / |w|^2` for each group of parameters, and
    :math:`\sigma_c^2 \leftarrow 2L_c / ((N_c - \gamma_c) T)` for the noise, both damped in the logarithm.

    MacKay, *Bayesian interpolation*, 1992. A change is halved until the evidence does not fall by it.
    """
    spectrum, prior, squares = fixed
    logs = dict(log_precision)
    for _ in range(steps):
        values = spectrum.eigenvalues(noise)
        gammas = spectrum.effective_dimension(noise, logs)
        for members in _moving(prior, squares):
            gamma, square = sum(gammas[n] for n in members), sum(squares[n] for n in members)
            target = prior.clip(math.log(max(gamma, 1e-12)) - math.log(max(square, 1e-300)))
            now = logs[members[0]]
            change = (1 - damping) * (target - now)
            joined = torch.cat([values[n] for n in members])

            def loss(log: float) -> float:
                return complexity(joined, log) + 0.5 * math.exp(log) * square

            new = _descend(loss, lambda share: prior.clip(now + share * change))
            logs.update(dict.fromkeys(members, new))
        if noise.likelihood.noisy:
            log_noise = torch.as_tensor(noise.log, dtype=torch.float64)
            shift = (1 - damping) * (spectrum.stationary_log_noise(noise, logs) - log_noise)
            noise = noise.at(
                _descend(
                    lambda log: -spectrum.terms(noise.at(log), logs, squares).total,
                    lambda share: log_noise + share * shift,
                )
            )
    return logs, noise


def adam_updates(
    fixed: FixedWeights, log_precision: Mapping[str, float], noise: Noise, steps: int, rate: float
) -> Updated:
    """Adam's steps on all log precisions and noises together, from the exact gradient; ends at the best point passed.

    Kingma and Ba, *Adam: a method for stochastic optimization*, ICLR 2015.
    """
    spectrum, prior, squares = fixed
    groups = list(_moving(prior, squares))
    noisy = noise.likelihood.noisy
    start = [log_precision[members[0]] for members in groups]
    log_noise = torch.as_tensor(noise.log if noisy else [], dtype=torch.float64).view(-1)
    point = torch.cat([torch.tensor(start, dtype=torch.float64), log_noise])

    def at(point: Tensor) -> Updated:
        logs = dict(log_precision)
        for members, value in zip(groups, point.tolist()):
            logs.update(dict.fromkeys(members, value))
        rest = point[len(groups) :]
        return logs, noise.at(rest if noise.each else float(rest)) if noisy else noise

    optimizer = torch.optim.Adam([point], lr=rate)
    logs, now = at(point)
    best, highest = point.clone(), spectrum.terms(now, logs, squares).total
    for _ in range(steps):
        slopes = spectrum.gradient(now, logs, squares)
        noise_slopes = [slope for name, slope in slopes.items() if name not in logs]
        point.grad = -torch.tensor([*(sum(slopes[n] for n in members) for members in groups), *noise_slopes]).double()
        optimizer.step()
        point[: len(groups)].clamp_(*prior.bounds)
        point[len(groups) :].clamp_(-LARGEST, LARGEST)
        logs, now = at(point)
        if (total := spectrum.terms(now, logs, squares).total) > highest:
            best, highest = point.clone(), total
    return at(best)


def _moving(prior: Prior, squares: Mapping[str, float]) -> Iterator[tuple[str, ...]]:
    """The groups whose precision moves: weights that nothing has moved yet say nothing about their scale."""
    for group, everyone in prior.groups.items():
        members = tuple(n for n in everyone if n in squares)  # not the closed ones
        if group not in prior.fixed and any(squares[n] for n in members):
            yield members


def _descend(loss: Callable[[Point], float], moved: Callable[[float], Point]) -> Point:
    """Where a change leads, halved until the loss does not rise by it; nowhere if it always does."""
    before, share = loss(moved(0.0)), 1.0
    for _ in range(20):
        if loss(moved(share)) <= before:
            return moved(share)
        share /= 2
    return moved(0.0)
