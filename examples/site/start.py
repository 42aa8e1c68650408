import numpy as np
import torch
from torch.utils.data import DataLoader

import escnn_relax  # noqa: F401 - before escnn, which may need what it brings
from escnn import gspaces
from escnn import nn as enn


class Net(torch.nn.Module):  # an escnn network, blind to quarter turns
    def __init__(self):
        super().__init__()
        c4 = gspaces.rot2dOnR2(4)
        self.gray, fields = enn.FieldType(c4, [c4.trivial_repr]), enn.FieldType(c4, 6 * [c4.regular_repr])
        self.conv1, self.relu1 = enn.R2Conv(self.gray, fields, 5, padding=2), enn.ReLU(fields)
        self.conv2, self.relu2 = enn.R2Conv(fields, fields, 5, padding=2), enn.ReLU(fields)
        self.pool, self.linear = enn.GroupPooling(fields), torch.nn.Linear(6, 2)

    def forward(self, x):
        x = self.relu2(self.conv2(self.relu1(self.conv1(self.gray(x)))))
        return self.linear(self.pool(x).tensor.mean((-2, -1)))


torch.manual_seed(0)
x = torch.from_numpy(np.load("examples/data/digits8.npz")["x"]).float()[:, None] / 8 - 1  # 1797 digits, 8 x 8
y, half = torch.randint(2, (2, len(x)))  # the question: does the digit lie on its side?
x = torch.stack([torch.rot90(image, int(side + 2 * turned), (-2, -1)) for image, side, turned in zip(x, y, half)])
loader = DataLoader(list(zip(x[:1300], y[:1300])), 100, shuffle=True)
