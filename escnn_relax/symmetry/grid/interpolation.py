r"""Interpolation from anchors to sites, as the mean of a Gaussian process.

.. math:: \Psi = K_{xz} (K_{zz} + \sigma^2)^{-1}, \qquad K = (s^2 + 10^{-6})\, e^{-\omega^2 |x - z|^2 / 2}

with anchors z, sites x and an inverse length scale :math:`\omega` (1 / pixels), as in van der Ouderaa, Immer, van der
Wilk, *Learning layer-wise equivariances automatically using gradients*, NeurIPS 2023. The kernel depends on distances
only: a rotation that permutes anchors and sites commutes with :math:`\Psi`.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from ...errors import ArgumentError, layer_name

__all__ = ["RANGE", "interpolation", "sufficient_noise"]

#: Largest condition number that a solution survives, times the rounding of float64.
SOLVABLE = 1e-4
#: Inverse length scales that can be told from none and from infinite ones (1 / pixels).
RANGE = (1e-6, 1e6)


def interpolation(
    anchors: Tensor,
    sites: Tensor,
    omega: Tensor,
    amplitude: float = 1.0,
    noise: float = 0.01,
    layer: str | type = "interpolation",
) -> Tensor:
    """The matrix from values at anchors to values at sites, shape ``(S, P)``; differentiable in ``omega``.

    Args:
        anchors, sites: shapes ``(P, d)`` and ``(S, d)`` (pixels).
        omega: inverse length scale, a positive scalar (1 / pixels).
        amplitude: s.
        noise: standard deviation of the values at the anchors; keeps the system solvable.
        layer: the class of the layer that asks, for errors and warnings.

    It is solved in float64. A system that is still singular gets more noise (:func:`sufficient_noise`), and a
    warning says how much.

    Raises:
        ArgumentError: half precision; an amplitude, noise or ``omega`` that is not positive and finite (noise may be
            0); an ``omega`` below 1e-6 or above 1e6.

    >>> line = torch.tensor([[-1.0], [0.0], [1.0]])
    >>> interpolation(line, line, torch.tensor(3.0), noise=0.0).round(decimals=3).abs()
    tensor([[1., 0., 0.],
            [0., 1., 0.],
            [0., 0., 1.]])
    """
    sufficient = sufficient_noise(anchors, omega, amplitude, noise, layer)
    if sufficient != noise:
        warnings.warn(
            f"{layer_name(layer)}: singular with noise {noise:.3g}; {sufficient:.3g} is used instead", stacklevel=2
        )
    z, x = anchors.double(), sites.double()  # the system is nearly singular where anchors crowd
    anchor_covariance, cross_covariance = _covariance(z, z, omega, amplitude), _covariance(x, z, omega, amplitude)
    identity = torch.eye(len(z), dtype=z.dtype, device=z.device)
    return torch.linalg.solve(anchor_covariance + sufficient**2 * identity, cross_covariance.T).T.to(anchors.dtype)


def sufficient_noise(
    anchors: Tensor, omega: Tensor, amplitude: float = 1.0, noise: float = 0.01, layer: str | type = "interpolation"
) -> float:
    """The noise with which the system can be solved: the given one, or that raised tenfold until it can.

    Arguments and errors are those of :func:`interpolation`.

    >>> crowded = torch.zeros(3, 2)
    >>> sufficient_noise(crowded, torch.tensor(1.0)), sufficient_noise(crowded, torch.tensor(1.0), noise=0.0)
    (0.01, 0.0001)
    """
    if anchors.dtype not in (torch.float32, torch.float64):
        remedy = "keep the layer in float32, under autocast where that is too slow"
        raise ArgumentError(layer, expected="float32 or float64", got=anchors.dtype, remedy=remedy)
    value = float(omega.detach())
    if not (0 < amplitude < math.inf and 0 <= noise < math.inf and RANGE[0] <= value <= RANGE[1]):
        got = {"amplitude": amplitude, "noise": noise, "omega": value}
        expected = f"a positive amplitude and omega, omega between {RANGE[0]:g} and {RANGE[1]:g}, noise >= 0"
        remedy = "if omega ran away in training, let the evidence move it (fit) instead of the loss"
        raise ArgumentError(layer, expected=expected, got=got, remedy=remedy)
    rounding = torch.finfo(torch.float64).eps / SOLVABLE
    if noise**2 >= rounding * len(anchors) * _variance(amplitude):  # the trace bounds the largest eigenvalue
        return noise
    with torch.no_grad():
        z = anchors.double()
        values = torch.linalg.eigvalsh(_covariance(z, z, omega.detach(), amplitude))
    sufficient, threshold = noise, rounding * float(values[-1])
    while float(values[0]) + sufficient**2 < threshold:
        sufficient = max(10 * sufficient, 1e-4 * amplitude)
    return sufficient


def _variance(amplitude: float) -> float:
    return amplitude**2 + 1e-6


def _covariance(a: Tensor, b: Tensor, omega: Tensor, amplitude: float) -> Tensor:
    squares = (a[:, None] - b[None]).square().sum(-1)
    return _variance(amplitude) * torch.exp(-0.5 * omega.double() ** 2 * squares)
