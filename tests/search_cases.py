"""Small networks and questions for the architecture searches."""

from __future__ import annotations

import torch
from escnn import nn as enn
from fields import field_type
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class SmallNet(nn.Module):
    """Two steerable convolutions, pooled over group and image: invariant under the group."""

    def __init__(self, name="C4", copies=2, classes=2, size=3, norm=False):
        super().__init__()
        self.gray, fields = field_type(name, "trivial"), field_type(name, copies=copies)
        self.first = enn.R2Conv(self.gray, fields, size, padding=size // 2)
        self.norm = enn.InnerBatchNorm(fields) if norm else nn.Identity()
        self.relu = enn.ReLU(fields)
        self.second = enn.R2Conv(fields, fields, size, padding=size // 2)
        self.pool = enn.GroupPooling(fields)
        self.readout = nn.Linear(copies, classes)

    def forward(self, x):
        x = self.relu(self.norm(self.first(self.gray(x))))
        return self.readout(self.pool(self.second(x)).tensor.mean((-2, -1)))


def turned_bars(count=96, seed=0):
    """Noisy corners, upright or turned by 90 degrees: nothing that C4 keeps tells them apart, C2 keeps enough."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(2, (count,), generator=generator)
    x = 0.3 * torch.randn(count, 1, 5, 5, generator=generator)
    x[y == 0, :, 2, :] += 1.0
    x[y == 1, :, :, 2] += 1.0
    return x, y


def loader(x, y, batch_size=16, shuffle=True):
    return DataLoader(TensorDataset(x, y), batch_size=batch_size, shuffle=shuffle, generator=torch.Generator())


def accuracy(model):
    """Score of a model on fixed data (fraction)."""
    x, y = turned_bars(64, seed=1)
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


def negative_parameters(model):
    return -float(sum(p.numel() for p in model.parameters()))


def not_a_number(model):
    return float("nan")


def nan_for_c2(model):
    """Fails for whatever is not the whole group's."""
    return float("nan") if "C2" in repr(model.second) else 0.5


def text(model):
    return "good"
