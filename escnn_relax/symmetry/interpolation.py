r"""Interpolation from anchors to sites, as the mean of a Gaussian process.

.. math:: \Psi = K_{xz} (K_{zz} + \sigma^2)^{-1}, \qquad K = (s^2 + 10^{-6})\, e^{-\omega^2 |x - z|^2 / 2}

with anchors z, sites x and an inverse length scale :math:`\omega` (1 / pixels), as in van der Ouderaa, Immer, van der Wilk,
*Learning layer-wise equivariances automatically using gradients*, NeurIPS 2023. The kernel depends on distances only: a
rotation that permutes anchors and sites commutes with :math:`\Psi`.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from ..errors import ArgumentError

__all__ = ["interpolation"]

#: Largest condition number that a solution survives, times the rounding of float64.
SOLVABLE = 1e-4


def interpolation(anchors: Tensor, sites: Tensor, omega: Tensor, scale: float = 1.0, noise: float = 0.01) -> Tensor:
    """The matrix from values at anchors to values at sites, shape ``(S, P)``; differentiable in ``omega``.

    Args:
        anchors, sites: shapes ``(P, d)`` and ``(S, d)`` (pixels).
        omega: inverse length scale, a positive scalar (1 / pixels).
        scale: s.
        noise: standard deviation of the values at the anchors; keeps the system solvable.

    It is solved in float64. A system that is singular even so gets more noise, ten times more at a time, with a warning that says
    how much.

    Raises:
        ArgumentError: half precision, a scale, noise or ``omega`` that is not positive (noise may be 0).

    >>> line = torch.tensor([[-1.0], [0.0], [1.0]])
    >>> interpolation(line, line, torch.tensor(3.0), noise=0.0).round(decimals=3).abs()
    tensor([[1., 0., 0.],
            [0., 1., 0.],
            [0., 0., 1.]])
    """
    if anchors.dtype not in (torch.float32, torch.float64):
        remedy = "keep the layer in float32"
        raise ArgumentError("interpolation", expected="float32 or float64", got=anchors.dtype, remedy=remedy)
    if not (scale > 0 and noise >= 0 and float(omega.detach()) > 0):
        got = {"scale": scale, "noise": noise, "omega": float(omega.detach())}
        raise ArgumentError("interpolation", expected="a positive scale and omega, noise >= 0", got=got)
    amplitude = scale**2 + 1e-6

    z, x = anchors.double(), sites.double()  # the system is nearly singular where anchors crowd

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        squares = (a[:, None] - b[None]).square().sum(-1)
        return amplitude * torch.exp(-0.5 * omega.double() ** 2 * squares)

    among, across = kernel(z, z), kernel(x, z)
    identity = torch.eye(len(z), dtype=z.dtype, device=z.device)
    with torch.no_grad():
        values = torch.linalg.eigvalsh(among)
        needed, wanted = noise, torch.finfo(z.dtype).eps / SOLVABLE * float(values[-1])
        while float(values[0]) + needed**2 < wanted:
            needed = max(10 * needed, 1e-4 * scale)
        if needed != noise:
            warnings.warn(f"interpolation is singular with noise {noise:.3g}; {needed:.3g} is used instead", stacklevel=2)
    return torch.linalg.solve(among + needed**2 * identity, across.T).T.to(anchors.dtype)
