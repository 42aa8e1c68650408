"""The networks of the benchmark: three convolutions each, steerable ones and ordinary ones of the same shape."""

from __future__ import annotations

import warnings

warnings.filterwarnings("ignore", message="`py3nj` package not found")  # escnn does without it

import torch  # noqa: E402
import escnn_relax  # noqa: E402, F401, I001  # before escnn, which may need what it brings
from escnn import gspaces, nn as enn  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402


class FieldNet(nn.Module):
    """Fields on a torus, scalars and vectors, to others; modules in the order of their use."""

    def __init__(self, gray: enn.FieldType, hidden: enn.FieldType, out: enn.FieldType) -> None:
        super().__init__()
        wrap = {"padding": 2, "padding_mode": "circular"}
        self.conv1, self.relu1 = enn.R2Conv(gray, hidden, 5, **wrap), enn.ReLU(hidden)
        self.conv2, self.relu2 = enn.R2Conv(hidden, hidden, 5, **wrap), enn.ReLU(hidden)
        self.conv3 = enn.R2Conv(hidden, out, 5, **wrap)

    def forward(self, x: Tensor) -> enn.GeometricTensor:
        x = self.relu1(self.conv1(self.conv1.in_type(x)))
        return self.conv3(self.relu2(self.conv2(x)))


def field_network(
    fields: int, vectors_in: int = 0, scalars_in: int = 0, vectors_out: int = 0, scalars_out: int = 0
) -> nn.Module:
    """A C4 network between fields; vectors are of ``irrep(1)``, which turns as they do, and come first."""
    space = gspaces.rot2dOnR2(4)
    scalar, vector = [space.trivial_repr], [space.irrep(1)]
    types = (
        vectors_in * vector + scalars_in * scalar,
        fields * [space.regular_repr],
        vectors_out * vector + scalars_out * scalar,
    )
    return FieldNet(*(enn.FieldType(space, parts) for parts in types))


class PlainFieldNet(nn.Module):
    """The same shape in ordinary convolutions."""

    def __init__(self, channels_in: int, channels: int, channels_out: int) -> None:
        super().__init__()
        wrap = {"padding": 2, "padding_mode": "circular"}
        self.conv1 = nn.Conv2d(channels_in, channels, 5, **wrap)
        self.conv2 = nn.Conv2d(channels, channels, 5, **wrap)
        self.conv3 = nn.Conv2d(channels, channels_out, 5, **wrap)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(self.conv2(self.conv1(x).relu()).relu())


class ImageNet(nn.Module):
    """Images of even sides to labels; invariant by scalars in the last layer and a mean over the image. Modules in the
    order of their use."""

    def __init__(self, gray: enn.FieldType, hidden: enn.FieldType, classes: int) -> None:
        super().__init__()
        scalars = enn.FieldType(hidden.gspace, hidden.size * [hidden.gspace.trivial_repr])
        self.conv1, self.norm1 = enn.R2Conv(gray, hidden, 5, padding=2), enn.InnerBatchNorm(hidden)
        self.relu1, self.shrink = enn.ReLU(hidden), enn.PointwiseAvgPool2D(hidden, 2)
        self.conv2, self.norm2 = enn.R2Conv(hidden, hidden, 5, padding=2), enn.InnerBatchNorm(hidden)
        self.relu2, self.conv3 = enn.ReLU(hidden), enn.R2Conv(hidden, scalars, 3, padding=1)
        self.linear = nn.Linear(scalars.size, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shrink(self.relu1(self.norm1(self.conv1(self.conv1.in_type(x)))))
        x = self.conv3(self.relu2(self.norm2(self.conv2(x))))
        return self.linear(x.tensor.relu().mean((-2, -1)))


def image_network(group: str, fields: int, classes: int) -> nn.Module:
    space = gspaces.rot2dOnR2(4) if group == "C4" else gspaces.flipRot2dOnR2(4)
    types = [space.trivial_repr], fields * [space.regular_repr]
    return ImageNet(*(enn.FieldType(space, parts) for parts in types), classes)


class PlainImageNet(nn.Module):
    """The same shape in ordinary convolutions."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, channels, 5, padding=2), nn.BatchNorm2d(channels)
        self.conv2, self.norm2 = nn.Conv2d(channels, channels, 5, padding=2), nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels, 3, padding=1)
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(self.norm1(self.conv1(x)).relu(), 2)
        x = self.conv3(self.norm2(self.conv2(x)).relu())
        return self.linear(x.relu().mean((-2, -1)))


def answer(model: nn.Module, x: Tensor) -> Tensor:
    """A model's output as a tensor."""
    output = model(x)
    return output.tensor if isinstance(output, enn.GeometricTensor) else output


#: Filters of the last layer of a steerable network between fields, as a share of escnn's. With those the first loss was
#: up to thirty times the variance of the targets, that of ordinary convolutions half of it; Adam remembers the first
#: gradients for most of so short a training, and the error came out up to half as large again.
LAST = 0.1


def reinitialised(model: nn.Module) -> nn.Module:
    """The same network, in place, with filters drawn anew: a restricted one begins as a member of the larger group
    otherwise. They are escnn's but for :data:`LAST`."""
    for name, layer in model.named_modules():
        if isinstance(layer, enn.R2Conv):
            enn.init.generalized_he_init(layer.weights.data, layer.basisexpansion)
            if isinstance(model, FieldNet) and name == "conv3":
                layer.weights.data *= LAST
    return model


def weights(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def seeded(seed: int, build) -> nn.Module:
    """A network whose random start is a seed's alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()
