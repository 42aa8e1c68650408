"""Data with a planted symmetry: fields filtered by a random kernel, and digits moved by a group. For the examples.

In each case a network equivariant under a larger group is relaxed and trained; the right answer is the planted
subgroup.
"""

from __future__ import annotations

import math
import warnings

warnings.filterwarnings("ignore", message="`py3nj` package not found")  # escnn does without it

from pathlib import Path  # noqa: E402
from typing import NamedTuple  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
import escnn_relax  # noqa: E402, I001  # before escnn, which may need what it brings
from escnn import gspaces, nn as enn  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from escnn_relax.symmetry.groups.subgroup import subgroup  # noqa: E402

#: For each start the ids of the subgroups that are planted, by name. Of D4, D8 and O(2) "D1" is one reflection.
PLANTED = {
    "C8": {"C8": 8, "C4": 4, "C2": 2, "C1": 1},
    "D4": {"D4": (0, 4), "C4": (None, 4), "C2": (None, 2), "D1": (0, 1), "C1": (None, 1)},
    "D8": {"D8": (0, 8), "C4": (None, 4), "C2": (None, 2), "D1": (0, 1), "C1": (None, 1)},
    "SO2": {"SO2": -1, "C4": 4, "C2": 2, "C1": 1},
    "O2": {"O2": (0.0, -1), "C4": (None, 4), "C2": (None, 2), "D1": (0.0, 1), "C1": (None, 1)},
}


def start(name: str) -> gspaces.GSpace2D:
    """The G-space in which the search starts."""
    if name in ("SO2", "O2"):
        return (gspaces.rot2dOnR2 if name == "SO2" else gspaces.flipRot2dOnR2)(-1, maximum_frequency=4)
    return (gspaces.rot2dOnR2 if name[0] == "C" else gspaces.flipRot2dOnR2)(int(name[1:]))


def reading(kept) -> str:
    """The name of a subgroup as in :data:`PLANTED`: without its axis."""
    return "C1" if kept.name == "trivial" else kept.name.split("_")[0]


class Tensors(nn.Module):
    """An equivariant layer between plain tensors."""

    def __init__(self, layer: enn.EquivariantModule) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer.in_type(x)).tensor


class Fields(NamedTuple):
    """A regression: a scalar and a vector field on a torus, filtered, with noise. ``axis`` in degrees, of a
    reflection."""

    model: nn.Module
    train: tuple[Tensor, Tensor]
    axis: float

    def loader(self, seed: int = 0) -> DataLoader:
        generator = torch.Generator().manual_seed(seed)
        return DataLoader(TensorDataset(*self.train), 20, shuffle=True, generator=generator)


def fields(group: str, planted: str, seed: int, samples: int = 80, side: int = 7, noise: float = 0.3) -> Fields:
    """Data of a random 5x5 filter with exactly the planted symmetry, and the filter of the full symmetry to start from.

    The filter is escnn's own layer of the subgroup with random weights, in which 10 % of the energy is not equivariant
    under the full group. From O(2) the axis of the reflection is random. The fields are a scalar and a vector.
    """
    torch.manual_seed(seed)
    space, id, axis = start(group), PLANTED[group][planted], 0.0
    if (group, planted) == ("O2", "D1"):
        axis = 180 * float(torch.rand(()))
        id = (2 * math.radians(axis), 1)
    vector = space.irrep(*((1, 1) if group[0] in "DO" else (1,)))
    both = enn.FieldType(space, [space.trivial_repr, vector])
    strict = enn.R2Conv(both, both, 5, padding=2, padding_mode="circular", bias=False)
    with torch.no_grad():
        kernel = strict.expand_parameters()[0]
        kernel = kernel / kernel.norm()
        if planted != group:
            broken = escnn_relax.restrict(strict, id)
            broken.weights.normal_()
            other = broken.expand_parameters()[0]
            other = other - escnn_relax.project(broken, like=strict).expand_parameters()[0]  # orthogonal to the group's
            kernel = 0.9**0.5 * kernel + 0.1**0.5 * other / other.norm()
        x = torch.randn(samples, both.size, side, side)
        y = F.conv2d(F.pad(x, (2, 2, 2, 2), "circular"), 2 * kernel)
        y = y + noise * torch.randn_like(y)
    return Fields(
        Tensors(escnn_relax.relax(enn.R2Conv(both, both, 5, padding=2, padding_mode="circular"))), (x, y), axis
    )


class TurnedNet(nn.Module):
    """Two steerable convolutions, the second to scalars, then the mean over the image: invariant under the group."""

    def __init__(self, classes: int, space: gspaces.GSpace2D, fields: int = 2, scalars: int = 12) -> None:
        super().__init__()
        self.gray = enn.FieldType(space, [space.trivial_repr])
        if space.fibergroup.continuous:
            irreps = (
                [(f,) for f in range(3)] if space.fibergroup.name == "SO(2)" else [(0, 0), *((1, f) for f in range(3))]
            )
            self.activation = enn.FourierELU(space, fields, irreps, N=8)
        else:
            self.activation = enn.ELU(enn.FieldType(space, fields * [space.regular_repr]))
        hidden, invariant = self.activation.in_type, enn.FieldType(space, scalars * [space.trivial_repr])
        self.conv1 = enn.R2Conv(self.gray, hidden, 5, padding=2)
        self.shrink = enn.PointwiseAvgPool2D(hidden, 2)
        self.conv2 = enn.R2Conv(hidden, invariant, 5, padding=2)
        self.last = enn.ELU(invariant)
        self.linear = nn.Linear(scalars, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shrink(self.activation(self.conv1(self.gray(x))))
        return self.linear(self.last(self.conv2(x)).tensor.mean((-2, -1)))


class Turned(NamedTuple):
    """Digits moved by random elements of a group; the label says by which, as far as the planted subgroup shows it."""

    model: nn.Module
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    def loader(self, seed: int = 0) -> DataLoader:
        generator = torch.Generator().manual_seed(seed)
        return DataLoader(TensorDataset(*self.train), 50, shuffle=True, generator=generator)


def turned(group: str, planted: str, seed: int, samples: int = 350) -> Turned:
    """Images of 4, 6 and 7, each moved by a random g of C8, D4 or D8; the label is the coset Hg of the planted subgroup
    H.

    The label of h x is that of x for h in H and no other, which is all that the network can know of H. If H is the
    whole group, the label is the digit. From SO(2) and O(2) the moves are those of C8 and D8. For these two the images
    are turned by 22.5 degrees beforehand, so that all are equally blurred by interpolation: else the grid itself would
    break C8, since turns by odd multiples of 45 degrees blur and those by even ones do not.
    """
    archive = np.load(Path(__file__).parent / "data" / "digits8.npz", allow_pickle=False)
    generator = torch.Generator().manual_seed(1000 + seed)
    torch.manual_seed(seed)
    chosen = np.isin(archive["y"], (4, 6, 7))
    x = torch.from_numpy(archive["x"][chosen]).float().unsqueeze(1)
    digit = torch.from_numpy(np.searchsorted((4, 6, 7), archive["y"][chosen]))
    order = torch.randperm(len(x), generator=generator)
    moves = {"SO2": "C8", "O2": "D8"}.get(group, group)
    space = start(moves)
    elements = list(space.fibergroup.elements)
    count = samples + TESTED
    pick = torch.randint(len(elements), (count,), generator=generator)
    which = torch.cat([order[TESTED:][torch.arange(samples) % (len(order) - TESTED)], order[:TESTED]])
    x, digit = x[which], digit[which]
    if moves == "D4":
        matrices = [space.basespace_action(g) for g in elements]
    else:
        x = F.pad(x, (2, 2, 2, 2))  # 12 x 12: nothing is cut off
        half = start("C16").basespace_action(start("C16").fibergroup.element(1))
        matrices = [space.basespace_action(g) @ half for g in elements]
    x = torch.cat([moved(image, matrices[k]) for image, k in zip(x, pick)])
    x = (x - x.mean()) / x.std()
    label = digit
    if planted != group:
        kept = subgroup(space, PLANTED[moves][planted])
        cosets = kept.coset_representatives("right")  # G = union of H t
        of = [next(n for n, t in enumerate(cosets) if kept.contains(g @ ~t)) for g in elements]
        label = torch.tensor(of)[pick]
    model = escnn_relax.relax(TurnedNet(int(label.max()) + 1, start(group)))
    return Turned(model, (x[:samples], label[:samples]), (x[samples:], label[samples:]))


#: Digits kept for testing; none of them is trained on in another position.
TESTED = 140


def moved(image: Tensor, matrix: np.ndarray) -> Tensor:
    """An image ``(1, side, side)`` moved by an orthogonal matrix of the plane, by bicubic interpolation."""
    inverse = matrix.T * np.array([[1, -1], [-1, 1]])  # y points down in images
    theta = torch.as_tensor(np.concatenate([inverse, np.zeros((2, 1))], axis=1), dtype=image.dtype)
    grid = F.affine_grid(theta[None], [1, 1, *image.shape[-2:]], align_corners=False)
    return F.grid_sample(image[None], grid, "bicubic", align_corners=False)
