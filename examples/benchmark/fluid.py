"""A small solver for smoke on a torus: semi-Lagrangian advection, buoyancy, viscosity and a projection that keeps the
velocity free of sources.

J. Stam, *Stable fluids*, SIGGRAPH 1999, with the pressure solved by Fourier transforms. Each step commutes exactly with
quarter turns and mirrors of the grid, if the buoyancy turns with it. Lengths are pixels; the first component of a
velocity points to the right, the second up, against the order of the rows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def advected(field: Tensor, velocity: Tensor, time: float) -> Tensor:
    """What velocity ``(n, 2, side, side)`` has carried here: the field ``(n, c, side, side)`` where each pixel came
    from, bilinear between pixels."""
    samples, channels, side, _ = field.shape
    place = torch.arange(side, dtype=field.dtype)
    row = place[:, None] + time * velocity[:, 1]
    column = place[None, :] - time * velocity[:, 0]
    above, left = row.floor(), column.floor()
    down, right = (row - above).unsqueeze(1), (column - left).unsqueeze(1)
    flat = field.flatten(2)

    def at(rows: Tensor, columns: Tensor) -> Tensor:
        index = rows.long() % side * side + columns.long() % side
        return flat.gather(2, index.view(samples, 1, -1).expand(-1, channels, -1)).view(field.shape)

    upper = (1 - right) * at(above, left) + right * at(above, left + 1)
    lower = (1 - right) * at(above + 1, left) + right * at(above + 1, left + 1)
    return (1 - down) * upper + down * lower


def wave_numbers(side: int) -> tuple[Tensor, Tensor]:
    """Right and up, radians a pixel; zero at the Nyquist frequency, whose sign a grid does not know."""
    k = 2 * math.pi * torch.fft.fftfreq(side, dtype=torch.float64)
    if side % 2 == 0:
        k[side // 2] = 0
    up, right = torch.meshgrid(-k, k, indexing="ij")
    return right, up


def projected(velocity: Tensor, viscosity: float = 0.0) -> Tensor:
    """Without its gradient part, and smoothed by viscosity times time (pixels²)."""
    right, up = wave_numbers(velocity.shape[-1])
    square = right**2 + up**2
    spectrum = torch.fft.fft2(velocity)
    along = (right * spectrum[:, 0] + up * spectrum[:, 1]) / square.clamp(min=1e-12)
    kept = torch.stack([spectrum[:, 0] - right * along, spectrum[:, 1] - up * along], 1)
    return torch.fft.ifft2(kept * torch.exp(-viscosity * square)).real


def divergence(velocity: Tensor) -> Tensor:
    """``(n, side, side)``, 1 / time."""
    right, up = wave_numbers(velocity.shape[-1])
    spectrum = torch.fft.fft2(velocity)
    return torch.fft.ifft2(1j * (right * spectrum[:, 0] + up * spectrum[:, 1])).real


def step(
    velocity: Tensor, smoke: Tensor, source: Tensor, buoyancy: Tensor, time: float = 0.5, viscosity: float = 0.02
) -> tuple[Tensor, Tensor]:
    """Velocity ``(n, 2, side, side)`` and smoke ``(n, 1, side, side)`` a little later.

    Args:
        source: smoke that comes in per unit of time, ``(n, 1, side, side)``.
        buoyancy: acceleration per smoke, ``(n, 2)``.
    """
    carried = advected(torch.cat([velocity, smoke], 1), velocity, time)
    smoke = carried[:, 2:] + time * source
    pushed = carried[:, :2] + time * buoyancy[:, :, None, None] * smoke
    return projected(pushed, viscosity * time), smoke
