"""A small relaxed network and data for it, for the tests of the evidence."""

from __future__ import annotations

import torch
from escnn import gspaces
from escnn import nn as enn
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from escnn_relax.nn import RelaxedR2Conv

C4 = gspaces.rot2dOnR2(4)


class Net(nn.Module):
    def __init__(self, outputs=3):
        super().__init__()
        self.gray = enn.FieldType(C4, [C4.trivial_repr])
        fields = enn.FieldType(C4, 2 * [C4.regular_repr])
        self.first = RelaxedR2Conv(self.gray, fields, 3, padding=1)
        self.act = enn.ReLU(fields)
        self.norm = enn.InnerBatchNorm(fields)
        self.second = RelaxedR2Conv(fields, fields, 3)
        self.linear = nn.Linear(8, outputs)

    def forward(self, x):
        x = self.norm(self.act(self.first(self.gray(x))))
        return self.linear(self.second(x).tensor.tanh().mean((-2, -1)))


def network():
    model = Net()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.4)
    return model.double()


def dataset(likelihood="categorical", count=12):
    x = torch.randn(count, 1, 6, 6).double()
    return TensorDataset(
        x, torch.randint(3, (count,)) if likelihood == "categorical" else torch.randn(count, 3).double()
    )


def loader(likelihood="categorical", count=12, batch_size=5, **options):
    return DataLoader(dataset(likelihood, count), batch_size=batch_size, **options)


#: The likelihoods that these data are made for.
LIKELIHOODS = ["categorical", "gaussian"]
