"""What comes from outside: batches from a user's loader, and the weights of a model, both looked over before use."""

from __future__ import annotations

from typing import Callable, Iterable, Iterator, Optional

import torch
from escnn.nn import GeometricTensor
from torch import Tensor, nn

from ..errors import DataError

__all__ = ["batches", "check_weights", "detached", "halves"]

#: Minibatches of at least so many samples are taken in two parts.
LARGE = 64


def detached(input):
    """So that no gradient ends up in the user's data."""
    return GeometricTensor(input.tensor.detach(), input.type) if isinstance(input, GeometricTensor) else input.detach()


def halves(pairs: Iterable[tuple]) -> Iterator[tuple]:
    """Large minibatches in two parts: the sums over samples are the same, and need half the memory, no more than training."""
    for input, target in pairs:
        tensor = input.tensor if isinstance(input, GeometricTensor) else input
        if len(target) < LARGE or len(tensor) != len(target) or getattr(input, "coords", None) is not None:
            yield input, target
            continue
        parts = zip(tensor.tensor_split(2), target.tensor_split(2))
        yield from ((GeometricTensor(x, input.type) if tensor is not input else x, y) for x, y in parts)


def check_weights(model: nn.Module) -> None:
    """Raise ``DataError`` that names the first parameter with NaN or infinite values."""
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise DataError(name, "NaN or infinite weights", remedy="go back to finite ones, and lower the learning rate")


def batches(loader: Iterable, device: torch.device, progress: Optional[Callable] = None) -> Iterator[tuple]:
    """Pairs of input and target on ``device``; raises ``DataError`` for batches that are no pair or not finite."""
    for index, batch in enumerate(progress(loader) if progress else loader):
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise DataError(f"batch {index}", expected="a pair (input, target)", got=type(batch).__name__)
        input, target = batch
        if not isinstance(input, (Tensor, GeometricTensor)) or not isinstance(target, Tensor):
            got = f"({type(input).__name__}, {type(target).__name__})"
            raise DataError(f"batch {index}", expected="tensors", got=got, remedy="convert them by torch.as_tensor")
        input, target = input.to(device), target.to(device)
        tensor = input.tensor if isinstance(input, GeometricTensor) else input
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise DataError(f"batch {index}", "NaN or infinite inputs", remedy="clean the data")
        yield input, target
