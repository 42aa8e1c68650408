"""A medium with fibres: how does a reacting scalar change in one time step?

Allen and Cahn's equation, u_t = div(D grad u) + u - u³, on a torus of 10×10 pixels. The fibres lie at 30°. At a degree
of breaking d the scalar spreads ``1 + 0.9 d`` times as fast along them and ``1 - 0.9 d`` times as fast across: C4 where
d is zero, C2 elsewhere. Targets have noise in training.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from benchmark.networks import PlainFieldNet, field_network
from benchmark.question import Data, Pairs, Question
from benchmark.turns import IDS_OF_C4, OF_C4, Moves

SIDE, TEST = 10, 300
ANGLE, RATE, REACTION = math.radians(30), 0.12, 0.15
STEPS = 6
#: Of a target, in units of its own standard deviation.
NOISE = 0.3


def spread(u: Tensor, along: float, across: float) -> Tensor:
    """Diffusion of ``(n, 1, side, side)`` by so many pixels² along and across the fibres, exact for every wave."""
    k = 2 * math.pi * torch.fft.fftfreq(u.shape[-1], dtype=torch.float64)
    up, right = torch.meshgrid(-k, k, indexing="ij")
    parallel = math.cos(ANGLE) * right + math.sin(ANGLE) * up
    normal = math.cos(ANGLE) * up - math.sin(ANGLE) * right
    return torch.fft.ifft2(torch.fft.fft2(u) * torch.exp(-along * parallel**2 - across * normal**2)).real


def later(u: Tensor, degree: float) -> Tensor:
    """The scalar after :data:`STEPS` of diffusion and reaction, in turn."""
    for _ in range(STEPS):
        u = spread(u, RATE * (1 + 0.9 * degree), RATE * (1 - 0.9 * degree))
        u = u + REACTION * (u - u**3)
    return u


def make(count: int, degree: float, seed: int, folder: Path | None = None) -> Data:
    generator = torch.Generator().manual_seed(8000 + seed)
    start = torch.randn(count + TEST, 1, SIDE, SIDE, generator=generator, dtype=torch.float64)
    x = spread(start, 0.3, 0.3)
    x = x / x.std()
    change = later(x, degree) - x
    y = change / change[:count].std()
    noise = NOISE * torch.randn(count, 1, SIDE, SIDE, generator=generator, dtype=torch.float64)
    train, test = Pairs(x[:count], y[:count] + noise), Pairs(x[count:], y[count:])
    return Data(*(Pairs(pairs.x.float(), pairs.y.float()) for pairs in (train, test)))


QUESTION = Question(
    name="diffusion",
    title="diffusion along fibres",
    make=make,
    network=lambda fields: field_network(fields, scalars_in=1, scalars_out=1),
    plain=lambda channels: PlainFieldNet(1, channels, 1),
    fields=3,
    channels=12,
    statics=IDS_OF_C4,
    elements=OF_C4,
    truth=lambda degree: "C2" if degree else "C4",
    passes={24: 160, 96: 50},
    batch=12,
    moves=Moves(labels=False),
    classes=None,
    spoken="faster along fibres than across",
)
