"""The one optimizer that all methods have: Adam, a cosine schedule, so many passes over the training data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmark.networks import answer
from benchmark.question import Pairs, Question
from benchmark.turns import NOTHING, Element, scattered

#: That of ``fit`` too: from the first to a fiftieth of it.
RATE = 5e-3


class Counted(DataLoader):
    """Shuffled batches of a seed's own order; counts the images that were asked for."""

    def __init__(self, pairs: Pairs, batch: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        super().__init__(TensorDataset(*pairs), batch, shuffle=True, generator=generator)
        self.images = 0

    def __iter__(self):
        for batch in super().__iter__():
            self.images += len(batch[0])
            yield batch


def loss(output, target: Tensor) -> Tensor:
    """Cross entropy of labels; half the squared error of fields, averaged over pixels and components."""
    output = getattr(output, "tensor", output)
    if target.is_floating_point():
        return 0.5 * F.mse_loss(output, target)
    return F.cross_entropy(output, target)


def train(
    model: nn.Module,
    question: Question,
    loader: DataLoader,
    passes: int,
    elements: Sequence[Element] = NOTHING,
    penalty: Callable[[], Tensor] | None = None,
) -> nn.Module:
    """Train a model in place.

    Args:
        elements: each sample is moved by one of these, drawn anew in each pass.
        penalty: added to the loss.
    """
    adam = torch.optim.Adam(model.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, max(passes, 1), eta_min=RATE / 50)
    generator = torch.Generator().manual_seed(len(elements))
    model.train()
    for _ in range(passes):
        for x, y in loader:
            if len(elements) > 1:
                x, y = scattered(x, y, question.moves, elements, generator)
            value = loss(model(x), y)
            if penalty is not None:
                value = value + penalty()
            if not math.isfinite(float(value.detach())):
                raise ArithmeticError("the loss is not finite")
            adam.zero_grad()
            value.backward()
            adam.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def outputs(model: nn.Module, x: Tensor) -> Tensor:
    """Of many inputs, a few hundred at a time, in evaluation mode."""
    model.eval()
    return torch.cat([answer(model, part) for part in x.split(200)])
