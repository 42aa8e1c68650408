"""Data sets with a planted symmetry, beyond quarter turns of digits: a blob at a random angle, and questions about
the angle."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from escnn import gspaces
from escnn import nn as enn
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

#: Samples of a data set.
COUNT = 1000


class Planted(NamedTuple):
    """A network with random weights, data, and what the test should find.

    Attributes:
        broken: the pathways that the answer breaks, of those that exact elements move, in every layer that has them.
        left: name of the subgroup that is left.
        options: of the test.
    """

    model: nn.Module
    loader: DataLoader
    broken: set[str]
    left: str
    options: dict[str, Any]


class Images(nn.Module):
    """Three steerable layers; the mean over space of the last one is the output."""

    def __init__(self, space, out=None, outputs=2) -> None:
        super().__init__()
        self.gray = enn.FieldType(space, [space.trivial_repr])
        if space.fibergroup.continuous:  # sampled at 16 elements, those of C16
            acts = [enn.FourierELU(space, 2, space.fibergroup.bl_irreps(2), N=16) for _ in range(2)]
        else:
            acts = [enn.ELU(enn.FieldType(space, 2 * [space.regular_repr])) for _ in range(2)]
        self.act, self.again = acts
        kind = self.act.in_type
        conv = {2: enn.R2Conv, 3: enn.R3Conv}[space.dimensionality]
        size = 5 if space.dimensionality == 2 else 3
        self.out_type = enn.FieldType(space, out or outputs * [space.trivial_repr])
        self.one, self.two = conv(self.gray, kind, size, padding=size // 2), conv(kind, kind, size, padding=size // 2)
        self.three = conv(kind, self.out_type, size, padding=size // 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.two(self.act(self.one(self.gray(x)))))
        return self.three(x).tensor.flatten(2).mean(2)


class Vectors(nn.Module):
    """Maps between representations, without space."""

    def __init__(self, group_space) -> None:
        super().__init__()
        self.into = enn.FieldType(group_space, [group_space.regular_repr])
        hidden = enn.FieldType(group_space, 3 * [group_space.regular_repr])
        self.one, self.act = enn.Linear(self.into, hidden), enn.ELU(hidden)
        self.two = enn.Linear(hidden, enn.FieldType(group_space, 2 * [group_space.trivial_repr]))

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.act(self.one(self.into(x)))).tensor


def blobs(
    angles: Tensor, generator: torch.Generator, size: int = 11, radius: float = 3.0, noise: float = 0.5
) -> Tensor:
    """A blob in each image, at an angle from the x axis, counter-clockwise; ``(N, 1, size, size)``."""
    at = torch.arange(size) - (size - 1) / 2
    x, y = at.view(1, 1, -1), -at.view(1, -1, 1)
    away = (x - radius * angles.cos().view(-1, 1, 1)) ** 2 + (y - radius * angles.sin().view(-1, 1, 1)) ** 2
    images = torch.exp(-away / 2)
    return (images + noise * torch.randn(images.shape, generator=generator)).unsqueeze(1)


def _drawn(seed: int) -> tuple[torch.Generator, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return generator, 2 * math.pi * torch.rand(COUNT, generator=generator)


def _asked(model: nn.Module, x: Tensor, y: Tensor, broken: set[str], left: str, **options: Any) -> Planted:
    return Planted(model, DataLoader(TensorDataset(x, y), 100, shuffle=True), broken, left, options)


def diagonal(seed: int) -> Planted:
    """D4; the answer is left alone by the reflection that swaps x and y: is the blob beyond the other diagonal?"""
    generator, angles = _drawn(seed)
    y = (angles.cos() + angles.sin() > 0).long()
    return _asked(Images(gspaces.flipRot2dOnR2(4)), blobs(angles, generator), y, {"irrep_1,1"}, "D1_45deg")


def own_axis(seed: int) -> Planted:
    """Reflections about the diagonal alone; the answer says on which side of it the blob is."""
    generator, angles = _drawn(seed)
    y = (angles.sin() > angles.cos()).long()
    return _asked(Images(gspaces.flip2dOnR2(axis=math.pi / 4)), blobs(angles, generator), y, {"irrep_1"}, "trivial")


def c3_in_c6(seed: int) -> Planted:
    """C6, on vectors: every third turn is left, half turns are not."""
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(COUNT, 6, generator=generator), torch.randint(2, (COUNT,), generator=generator)
    sign = torch.tensor([1.0, -1.0]).repeat(3)
    x = x + 0.7 * sign * (2.0 * y.view(-1, 1) - 1)
    return _asked(Vectors(gspaces.no_base_space(gspaces.rot2dOnR2(6).fibergroup)), x, y, {"irrep_3"}, "C3")


def quarter_turns_in_c12(seed: int) -> Planted:
    """C12; sectors of 45 degrees take turns in the answer, which quarter turns leave alone."""
    generator, angles = _drawn(seed)
    y = ((4 * angles).cos() > 0).long()
    return _asked(Images(gspaces.rot2dOnR2(12)), blobs(angles, generator), y, set(), "C4")


def half_turns_in_c12(seed: int) -> Planted:
    """C12; the same with sectors of 90 degrees, which half turns leave alone: frequencies 2 and 6 turn by a sign."""
    generator, angles = _drawn(seed)
    y = ((2 * angles).cos() > 0).long()
    return _asked(Images(gspaces.rot2dOnR2(12)), blobs(angles, generator), y, {"irrep_2", "irrep_6"}, "C2")


def _continuous(seed: int, frequency: int, broken: set[str], left: str) -> Planted:
    generator, angles = _drawn(seed)
    space = gspaces.rot2dOnR2(-1, maximum_frequency=4)
    return _asked(Images(space), blobs(angles, generator), ((frequency * angles).cos() > 0).long(), broken, left)


def quarter_turns_in_so2(seed: int) -> Planted:
    """SO(2): the answer has its C4."""
    return _continuous(seed, 4, set(), "C4")


def half_turns_in_so2(seed: int) -> Planted:
    """SO(2): the answer has its C2, and jumps, so that frequency 6 is in it too where a layer has it."""
    return _continuous(seed, 2, {"irrep_2", "irrep_6"}, "C2")


def inversion(seed: int) -> Planted:
    """In space: is the blob in the upper half of the volume? Inversion answers by a sign."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(2, (COUNT,), generator=generator)
    x = 0.5 * torch.randn(COUNT, 1, 5, 5, 5, generator=generator)
    for place in (0, 4):
        x[y == place // 4, :, place, 1:4, 1:4] += 1
    return _asked(Images(gspaces.invOnR3()), x, y, {"irrep_1"}, "trivial")


def regression(seed: int) -> Planted:
    """C4; a number that half turns leave alone: how far the blob is along x, squared."""
    generator, angles = _drawn(seed)
    y = (2 * angles).cos().unsqueeze(1) + 0.2 * torch.randn(COUNT, 1, generator=generator)
    model = Images(gspaces.rot2dOnR2(4), outputs=1)
    return _asked(model, blobs(angles, generator), y, {"irrep_2"}, "C2", likelihood="gaussian")


def _arrow(seed: int, wind: float, broken: set[str], left: str) -> Planted:
    generator, angles = _drawn(seed)
    y = torch.stack([angles.cos() + wind, angles.sin()], 1) + 0.2 * torch.randn(COUNT, 2, generator=generator)
    space = gspaces.rot2dOnR2(4)
    model = Images(space, out=[space.irrep(1)])
    return _asked(model, blobs(angles, generator), y, broken, left, likelihood="gaussian", out_type=model.out_type)


def arrow(seed: int) -> Planted:
    """C4; where the blob is, as a vector: it turns with the image."""
    return _arrow(seed, 0.0, set(), "C4")


def arrow_in_wind(seed: int) -> Planted:
    """The same, always blown to the right."""
    return _arrow(seed, 0.5, {"irrep_1"}, "trivial")


#: By name.
PLANTED = {
    "D4, reflection about the diagonal": diagonal,
    "reflection about the diagonal": own_axis,
    "C3 in C6": c3_in_c6,
    "C4 in C12": quarter_turns_in_c12,
    "C2 in C12": half_turns_in_c12,
    "C4 in SO(2)": quarter_turns_in_so2,
    "C2 in SO(2)": half_turns_in_so2,
    "inversion in space": inversion,
    "regression, C2 in C4": regression,
    "vector target": arrow,
    "vector target, wind": arrow_in_wind,
}
