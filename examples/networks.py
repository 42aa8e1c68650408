"""Three networks as people build them: residual, U-Net, actor-critic. Plain tensors in, plain tensors out."""

import argparse
import warnings
from pathlib import Path

import torch
import escnn_relax  # noqa: E402, F401, I001  # before escnn, which may need what it brings
from escnn import gspaces
from escnn import nn as enn
from torch import nn


class Block(enn.EquivariantModule):
    """Two convolutions and a shortcut; a 1x1 convolution on the shortcut where the fields or the size change."""

    def __init__(self, in_type: enn.FieldType, out_type: enn.FieldType, stride: int = 1) -> None:
        super().__init__()
        self.in_type, self.out_type = in_type, out_type
        self.body = enn.SequentialModule(
            enn.R2Conv(in_type, out_type, 3, padding=1, stride=stride, bias=False),
            enn.InnerBatchNorm(out_type),
            enn.ReLU(out_type),
            enn.R2Conv(out_type, out_type, 3, padding=1, bias=False),
            enn.InnerBatchNorm(out_type),
        )
        self.shortcut = enn.R2Conv(in_type, out_type, 1, stride=stride) if stride > 1 or in_type != out_type else None
        self.activation = enn.ReLU(out_type)

    def forward(self, x: enn.GeometricTensor) -> enn.GeometricTensor:
        return self.activation(self.body(x) + (x if self.shortcut is None else self.shortcut(x)))

    def evaluate_output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.body.evaluate_output_shape(input_shape)


class ResidualNet(nn.Module):
    """A residual network on D4 with ``width`` regular fields in its first stage, twice as many in each further one."""

    def __init__(self, width: int = 2, stages: int = 3, classes: int = 10) -> None:
        super().__init__()
        space = gspaces.flipRot2dOnR2(4)
        self.in_type = enn.FieldType(space, [space.trivial_repr])
        types = [enn.FieldType(space, width * 2**n * [space.regular_repr]) for n in range(stages)]
        self.stem = enn.R2Conv(self.in_type, types[0], 5, padding=2)
        for n, (a, b) in enumerate(zip([types[0], *types], types)):
            self.add_module(f"stage{n + 1}", Block(a, b, stride=2 if n else 1))
        self.stages = [f"stage{n + 1}" for n in range(stages)]
        self.pool = enn.GroupPooling(types[-1])
        self.head = nn.Linear(len(types[-1]), classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(self.in_type(x))
        for name in self.stages:
            y = getattr(self, name)(y)
        return self.head(self.pool(y).tensor.mean((2, 3)))


class UNet(nn.Module):
    """Down, down, up, up by transposed convolutions, with concatenated skips; a value at every pixel."""

    def __init__(self, width: int = 2, classes: int = 2, order: int = 4) -> None:
        super().__init__()
        space = gspaces.rot2dOnR2(order)
        fields = lambda n: enn.FieldType(space, n * [space.regular_repr])
        self.in_type, out_type = (
            enn.FieldType(space, [space.trivial_repr]),
            enn.FieldType(space, classes * [space.trivial_repr]),
        )
        self.down1 = self.layer(self.in_type, fields(width))
        self.pool1 = enn.PointwiseMaxPool2D(fields(width), 2)
        self.down2 = self.layer(fields(width), fields(2 * width))
        self.pool2 = enn.PointwiseMaxPool2D(fields(2 * width), 2)
        self.bottom = self.layer(fields(2 * width), fields(2 * width))
        self.up2 = enn.R2ConvTransposed(fields(2 * width), fields(2 * width), 4, stride=2, padding=1)
        self.merge2 = self.layer(fields(4 * width), fields(2 * width))
        self.up1 = enn.R2ConvTransposed(fields(2 * width), fields(width), 4, stride=2, padding=1)
        self.merge1 = self.layer(fields(2 * width), fields(width))
        self.head = enn.R2Conv(fields(width), out_type, 1)

    @staticmethod
    def layer(in_type: enn.FieldType, out_type: enn.FieldType) -> enn.SequentialModule:
        return enn.SequentialModule(
            enn.R2Conv(in_type, out_type, 3, padding=1, bias=False), enn.InnerBatchNorm(out_type), enn.ReLU(out_type)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.down1(self.in_type(x))
        second = self.down2(self.pool1(first))
        y = self.bottom(self.pool2(second))
        y = self.merge2(enn.tensor_directsum([self.up2(y), second]))
        y = self.merge1(enn.tensor_directsum([self.up1(y), first]))
        return self.head(y).tensor


class ActorCritic(nn.Module):
    """A policy over the four directions and a value, of an image and a velocity, equivariant under quarter turns."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        space = gspaces.rot2dOnR2(4)
        point = gspaces.no_base_space(space.fibergroup)
        self.in_type, regular = (
            enn.FieldType(space, [space.trivial_repr]),
            enn.FieldType(space, width * [space.regular_repr]),
        )
        self.vector, hidden = point.type(point.irrep(1)), point.type(*2 * width * [point.regular_repr])
        self.see = enn.SequentialModule(
            enn.R2Conv(self.in_type, regular, 5, padding=2),
            enn.ReLU(regular),
            enn.R2Conv(regular, regular, 5),
            enn.ReLU(regular),
        )
        seen = point.type(*width * [point.regular_repr])
        self.seen = seen
        self.joint = enn.SequentialModule(enn.Linear(seen + self.vector, hidden), enn.ReLU(hidden))
        self.policy = enn.Linear(hidden, point.type(point.regular_repr))
        self.value = enn.Linear(hidden, point.type(point.trivial_repr))

    def forward(self, image: torch.Tensor, velocity: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen = self.seen(self.see(self.in_type(image)).tensor.mean((2, 3)))
        y = self.joint(enn.tensor_directsum([seen, self.vector(velocity)]))
        return self.policy(y).tensor, self.value(y).tensor


def folder(text: str) -> Path:
    """Where an example puts its files."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("examples/output"))
    given: Path = parser.parse_args().out
    given.mkdir(parents=True, exist_ok=True)
    return given


def exported(model: nn.Module, *inputs: torch.Tensor) -> nn.Module:
    """The model as TorchScript has it, without escnn or this package in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in favour of torch.export, still asked for
        return torch.jit.trace(model, inputs, check_trace=False)


def bars(values: dict[str, float], label: str, title: str, path: Path) -> None:
    """A bar for each value."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 0.8 + 0.3 * len(values)), layout="constrained")
    axes.barh(list(values), list(values.values()), color="#0072B2")
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.set_title(title)
    figure.savefig(path, dpi=110)
