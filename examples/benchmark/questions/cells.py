"""Red cell, white cell or platelet, under a light that falls off to one side?

Gray crops at 14×14 pixels from ``bccd_cells_28.npz`` of a data folder, trained and tested on different slides, each
turned and mirrored at random. The answer has D4 whatever the light does. At a degree of breaking d the brightness falls
by 2 d standard deviations from top to bottom: the inputs keep the mirror alone, the question all of D4.
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
from benchmark.turns import IDS_OF_D4, OF_D4, Moves, scattered

STORED = "bccd_cells_28.npz"


@cache
def images(folder: Path | None, part: str) -> tuple[Tensor, Tensor]:
    """Images and labels of one part."""
    if folder is None:
        raise FileNotFoundError(f"pass --data with a folder that holds {STORED}")
    archive = np.load(folder / STORED, allow_pickle=False)
    x = torch.from_numpy(archive[f"x_{part}"]).float().mean(-1)[:, None]
    return F.avg_pool2d(x, 2), torch.from_numpy(archive[f"y_{part}"]).long()


def make(count: int, degree: float, seed: int, folder: Path | None = None) -> Data:
    generator = torch.Generator().manual_seed(11000 + seed)
    (x, y), (x_test, y_test) = images(folder, "train"), images(folder, "test")
    chosen = torch.randperm(len(x), generator=generator)[:count]
    x, y = x[chosen], y[chosen]
    mean, std = x.mean(), x.std()
    light = torch.linspace(1, -1, x.shape[-2]).view(1, 1, -1, 1)
    parts = []
    for pictures, labels in ((x, y), (x_test, y_test)):
        pictures, labels = scattered((pictures - mean) / std, labels, Moves(), OF_D4["D4"], generator)
        parts.append(Pairs(pictures + degree * light, labels))
    return Data(*parts)


QUESTION = Question(
    name="cells",
    title="blood cells in slanting light",
    make=make,
    network=lambda fields: image_network("D4", fields, 3),
    plain=lambda channels: PlainImageNet(channels, 3),
    fields=2,
    channels=16,
    statics=IDS_OF_D4,
    elements=OF_D4,
    truth=lambda degree: "D1" if degree else "D4",
    passes={100: 60, 400: 24},
    batch=25,
    moves=Moves(),
    classes=3,
    spoken="brightness falls to one side; the question keeps D4",
    stored=STORED,
)
