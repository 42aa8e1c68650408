"""Smoke that rises in one of four directions: how does its velocity change until the next frame?

Films of the solver of ``fluid.py`` on a torus of 10×10 pixels. Each has a source, and a buoyancy away from it in one of
the four directions of the grid. The law is exactly that of C4 where the buoyancy is as strong in all of them. At a
degree of breaking d it is ``1 + d``, 1, ``1 - d`` and 1 times as strong to the right, up, to the left and down: the
construction of Wang, Walters and Yu (*Approximately equivariant networks for imperfectly symmetric dynamics*, ICML
2022), smaller. In: velocity and smoke. Out: the change of the velocity, a field of vectors.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from benchmark.fluid import projected, step
from benchmark.networks import PlainFieldNet, field_network
from benchmark.question import Data, Pairs, Question
from benchmark.turns import IDS_OF_C4, OF_C4, Moves

SIDE, TEST = 10, 300
#: Steps of the solver before the frame that is seen, and from there to the next.
BEFORE, BETWEEN = 12, 4
BUOYANCY = 0.35
RIGHT = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]], dtype=torch.float64)


def scene(films: int, degree: float, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Velocity, source and buoyancy that films begin with."""
    numbers = {"generator": generator, "dtype": torch.float64}
    heading = torch.randint(4, (films,), generator=generator)
    direction = RIGHT[heading]
    strength = BUOYANCY * (1 + degree * direction[:, :1])
    middle = -3 * direction + torch.randn(films, 2, **numbers)
    place = torch.arange(SIDE, dtype=torch.float64) - (SIDE - 1) / 2

    def near(centre: Tensor, places: Tensor) -> Tensor:
        away = (places[None] - centre[:, None] + SIDE / 2) % SIDE - SIDE / 2
        return torch.exp(-0.5 * (away / 1.2) ** 2)

    source = near(middle[:, 1], -place)[:, None, :, None] * near(middle[:, 0], place)[:, None, None, :]
    velocity = projected(torch.randn(films, 2, SIDE, SIDE, **numbers), 1.0)
    return velocity, source, strength * direction


def frames(velocity: Tensor, source: Tensor, buoyancy: Tensor) -> tuple[Tensor, Tensor]:
    """Velocity and smoke ``(n, 3, side, side)``, and the velocity a frame later."""
    smoke = torch.zeros_like(source)
    for _ in range(BEFORE):
        velocity, smoke = step(velocity, smoke, source, buoyancy)
    seen = torch.cat([velocity, smoke], 1)
    for _ in range(BETWEEN):
        velocity, smoke = step(velocity, smoke, source, buoyancy)
    return seen, velocity


def make(count: int, degree: float, seed: int, folder: Path | None = None) -> Data:
    generator = torch.Generator().manual_seed(7000 + seed)
    films = [scene(number, degree, generator) for number in (count, TEST)]
    (x, y), (x_test, y_test) = (frames(*film) for film in films)
    y, y_test = y - x[:, :2], y_test - x_test[:, :2]
    # units by which no direction is preferred, from the training films
    speed, change, smoke = x[:, :2].square().mean().sqrt(), y.square().mean().sqrt(), x[:, 2].std()
    units = torch.stack([speed, speed, smoke]).view(1, 3, 1, 1)
    train, test = Pairs(x / units, y / change), Pairs(x_test / units, y_test / change)
    return Data(*(Pairs(pairs.x.float(), pairs.y.float()) for pairs in (train, test)))


QUESTION = Question(
    name="smoke",
    title="smoke: the next velocity",
    make=make,
    network=lambda fields: field_network(fields, vectors_in=1, scalars_in=1, vectors_out=1),
    plain=lambda channels: PlainFieldNet(3, channels, 2),
    fields=3,
    channels=12,
    statics=IDS_OF_C4,
    elements=OF_C4,
    truth=lambda degree: "C1" if degree else "C4",
    passes={48: 120, 192: 36},
    batch=16,
    moves=Moves((0,), (0,), labels=False),
    classes=None,
    spoken="buoyancy stronger in one direction",
)
