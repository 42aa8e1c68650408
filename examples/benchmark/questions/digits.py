"""Which digit, turned by an angle between -θ and θ?

8×8 digits, or, with a data folder, those of MNIST at 14×14. The degree of breaking is 1 - θ / 180°: at none every
angle is as likely, and 6 and 9 are told by their shape alone; at full they stand upright.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmark.networks import PlainImageNet, image_network
from benchmark.question import Data, Pairs, Question
from benchmark.turns import IDS_OF_C4, OF_C4, Moves

TEST, STORED = 400, "mnist.npz"


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """Images ``(n, 1, side, side)`` turned about their middle against the clock (radians), bilinear, zero outside."""
    c, s = angles.cos(), angles.sin()
    matrix = torch.stack([torch.stack([c, -s], 1), torch.stack([s, c], 1)], 1)
    matrix = torch.cat([matrix, torch.zeros(len(x), 2, 1)], 2)
    return F.grid_sample(x, F.affine_grid(matrix, list(x.shape), align_corners=False), align_corners=False)


@cache
def images(folder: Path | None) -> tuple[Tensor, Tensor]:
    """All images, and their labels; those of the repository without a folder."""
    if folder is None:
        archive = np.load(Path(__file__).parents[2] / "data" / "digits8.npz", allow_pickle=False)
        x, y = torch.from_numpy(archive["x"]).float()[:, None], torch.from_numpy(archive["y"]).long()
    else:
        archive = np.load(folder / STORED, allow_pickle=False)
        x = F.avg_pool2d(torch.from_numpy(archive["x_train"][:12000]).float()[:, None], 2)
        y = torch.from_numpy(archive["y_train"][:12000]).long()
    return x / x.std(), y


def make(count: int, degree: float, seed: int, folder: Path | None = None, mnist: bool = False) -> Data:
    x, y = images(folder if mnist else None)
    generator = torch.Generator().manual_seed(9000 + seed)
    order = torch.randperm(len(x), generator=generator)[: count + TEST]
    angles = torch.pi * (1 - degree) * (2 * torch.rand(len(order), generator=generator) - 1)
    x, y = turned(x[order], angles), y[order]
    x = (x - x[:count].mean()) / x[:count].std()
    return Data(Pairs(x[:count], y[:count]), Pairs(x[count:], y[count:]))


QUESTION = Question(
    name="digits",
    title="digits turned by ±θ",
    make=make,
    network=lambda fields: image_network("C4", fields, 10),
    plain=lambda channels: PlainImageNet(channels, 10),
    fields=4,
    channels=16,
    statics=IDS_OF_C4,
    elements=OF_C4,
    truth=lambda degree: "C1" if degree else "C4",
    passes={150: 80, 600: 25},
    batch=25,
    moves=Moves(),
    classes=10,
    spoken="θ from 180° down to 0°",
)

MNIST = replace(QUESTION, name="mnist", title="MNIST turned by ±θ", make=partial(make, mnist=True), stored=STORED)
