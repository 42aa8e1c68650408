"""Which animal, of its silhouette turned by an angle between -θ and θ and looking left or right?

Ten classes at 14×14 pixels, from ``animal_shape_28.npz`` of a data folder. The network has D4. The degree of breaking
is 1 - θ / 180°: what is left beyond zero is the mirror.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmark.networks import PlainImageNet, image_network
from benchmark.question import Data, Pairs, Question
from benchmark.questions.digits import turned
from benchmark.turns import IDS_OF_D4, OF_D4, Moves

TEST, STORED = 400, "animal_shape_28.npz"


@cache
def images(folder: Path | None) -> tuple[Tensor, Tensor]:
    """All images, and their labels."""
    if folder is None:
        raise FileNotFoundError(f"pass --data with a folder that holds {STORED}")
    archive = np.load(folder / STORED, allow_pickle=False)
    x = torch.from_numpy(np.concatenate([archive["x_train"], archive["x_test"]])).float()
    x = x.mean(-1) if x.dim() == 4 else x
    y = torch.from_numpy(np.concatenate([archive["y_train"], archive["y_test"]])).long()
    return F.avg_pool2d(x[:, None] - x.median(), 2), y  # the ground is zero, so that turning adds no edges


def make(count: int, degree: float, seed: int, folder: Path | None = None) -> Data:
    x, y = images(folder)
    generator = torch.Generator().manual_seed(10000 + seed)
    order = torch.randperm(len(x), generator=generator)[: count + TEST]
    angles = torch.pi * (1 - degree) * (2 * torch.rand(len(order), generator=generator) - 1)
    looks_back = torch.rand(len(order), generator=generator) < 0.5
    x, y = x[order], y[order]
    x = turned(torch.where(looks_back.view(-1, 1, 1, 1), x.flip(-1), x), angles)
    x = (x - x[:count].mean()) / x[:count].std()
    return Data(Pairs(x[:count], y[:count]), Pairs(x[count:], y[count:]))


QUESTION = Question(
    name="animals",
    title="animals turned by ±θ, mirrored",
    make=make,
    network=lambda fields: image_network("D4", fields, 10),
    plain=lambda channels: PlainImageNet(channels, 10),
    fields=2,
    channels=16,
    statics=IDS_OF_D4,
    elements=OF_D4,
    truth=lambda degree: "D1" if degree else "D4",
    passes={200: 40, 800: 16},
    batch=25,
    moves=Moves(),
    classes=10,
    spoken="θ from 180° down to 0°",
    stored=STORED,
)
