"""Four questions about 8×8 digits, and one small network for all of them. Used by the demo and the table of runs."""

from __future__ import annotations

import warnings

warnings.filterwarnings("ignore", message="`py3nj` package not found")  # escnn does without it

from pathlib import Path  # noqa: E402
from typing import NamedTuple  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
import escnn_relax  # noqa: E402, F401, I001  # before escnn, which may need what it brings
from escnn import gspaces, nn as enn  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

#: What is asked, and the symmetry under quarter turns that the answer has.
TASKS = {
    "rot": "which digit, turned by random multiples of 90°",
    "half-turn": "turned by 90° or 270°, or not? (label = turn mod 180°)",
    "turn": "by how much is the digit turned? (label = the turn)",
    "upright": "which digit, none turned",
}


class Data(NamedTuple):
    """Images (n, 1, 8, 8) and labels (n,) for training and test."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    classes: int

    def loader(self, batch_size: int = 100, seed: int = 0) -> DataLoader:
        generator = torch.Generator().manual_seed(seed)
        return DataLoader(TensorDataset(*self.train), batch_size, shuffle=True, generator=generator)

    def evidence_loader(self, count: int = 650) -> DataLoader:
        """Half of the training data, which is enough for the curvature and takes half the time."""
        return DataLoader(TensorDataset(*(part[:count] for part in self.train)), 250)


def task(name: str, seed: int) -> Data:
    """One of :data:`TASKS`; the seed chooses the split (1300 / 497) and the turns."""
    archive = np.load(Path(__file__).parent / "data" / "digits8.npz", allow_pickle=False)
    generator = torch.Generator().manual_seed(1000 + seed)
    order = torch.randperm(len(archive["x"]), generator=generator)
    x = torch.from_numpy(archive["x"]).float().unsqueeze(1)[order]
    y = torch.from_numpy(archive["y"]).long()[order]
    x = (x - x.mean()) / x.std()
    turns = torch.randint(4, (len(x),), generator=generator)
    if name != "upright":
        x = torch.stack([torch.rot90(image, int(k), (-2, -1)) for image, k in zip(x, turns)])
    y = {"turn": turns, "half-turn": turns % 2}.get(name, y)
    return Data((x[:1300], y[:1300]), (x[1300:], y[1300:]), int(y.max()) + 1)


class DigitNet(nn.Module):
    """Three steerable convolutions, pooling over the group and the image, one linear layer: invariant under the
    group."""

    def __init__(self, classes: int, fields: int = 6, gspace=None) -> None:
        super().__init__()
        space = gspace or gspaces.rot2dOnR2(4)
        self.gray = enn.FieldType(space, [space.trivial_repr])
        hidden = enn.FieldType(space, fields * [space.regular_repr])
        self.conv1 = enn.R2Conv(self.gray, hidden, 5, padding=2)
        self.conv2 = enn.R2Conv(hidden, hidden, 5, padding=2)
        self.conv3 = enn.R2Conv(hidden, hidden, 5, padding=2)
        self.activation = enn.ReLU(hidden)
        self.shrink = enn.PointwiseAvgPool2D(hidden, 2)
        self.pool = enn.GroupPooling(hidden)
        self.linear = nn.Linear(fields, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.conv1(self.gray(x)))
        x = self.shrink(self.activation(self.conv2(x)))
        x = self.pool(self.activation(self.conv3(x)))
        return self.linear(x.tensor.mean((-2, -1)))


def train_strict(model: nn.Module, loader: DataLoader, epochs: int = 100, lr: float = 5e-3) -> None:
    """The loop of :func:`escnn_relax.fit` without priors: Adam, cosine schedule, cross entropy."""
    optimiser = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(epochs, 1), eta_min=lr / 50)
    for _ in range(epochs):
        for x, y in loader:
            loss = nn.functional.cross_entropy(model(x), y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        schedule.step()


@torch.no_grad()
def accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Share of correct answers (fraction)."""
    return float((model.eval()(data[0]).argmax(1) == data[1]).float().mean())


@torch.no_grad()
def change_under_turns(model: nn.Module, x: Tensor) -> float:
    """Largest relative change of the logits when the images are turned by 90°, 180° or 270°."""
    logits = model.eval()(x)
    turned = [model(torch.rot90(x, k, (-2, -1))) for k in (1, 2, 3)]
    return max(float((t - logits).norm() / logits.norm()) for t in turned)
