"""What comes from outside: batches from a user's loader, and the weights of a model, both looked over before use."""

from __future__ import annotations

from typing import Any, Callable, Iterable, Iterator, Optional

import torch
from escnn.nn import GeometricTensor
from torch import Tensor, nn

from ..errors import DataError, FieldTypeError

__all__ = ["answer", "batches", "check_weights", "detached", "halves"]

#: Minibatches of at least so many samples are taken in two parts.
LARGE = 64


def detached(input: Any) -> Any:
    """So that no gradient ends up in the user's data."""
    return GeometricTensor(input.tensor.detach(), input.type) if isinstance(input, GeometricTensor) else input.detach()


def halves(pairs: Iterable[tuple[Any, Tensor]]) -> Iterator[tuple[Any, Tensor]]:
    """Large minibatches in two parts: the sums over samples are the same, and need half the memory, no more than training."""
    for input, target in pairs:
        tensor = input.tensor if isinstance(input, GeometricTensor) else input
        if len(target) < LARGE or len(tensor) != len(target) or getattr(input, "coords", None) is not None:
            yield input, target
            continue
        parts = zip(tensor.tensor_split(2), target.tensor_split(2))
        yield from ((GeometricTensor(x, input.type) if tensor is not input else x, y) for x, y in parts)


def answer(model: nn.Module, input: Any) -> Any:
    """What a model says to an input; ``FieldTypeError`` where a bare assertion of escnn's refuses it."""
    try:
        return model(input)
    except AssertionError as error:
        said = f": {error}" if str(error) else ""
        raise FieldTypeError(
            type(model).__name__,
            f"an assertion failed in its forward pass, as escnn's do for fields of another type{said}",
            got=type(input).__name__,
            remedy="a model for plain tensors makes the GeometricTensor in its forward, and returns outputs (N, C, ...)",
        ) from error


def check_weights(model: nn.Module) -> None:
    """Raise ``DataError`` that names the first parameter with NaN or infinite values."""
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise DataError(name, "NaN or infinite weights", remedy="go back to finite ones, and lower the learning rate")


def batches(
    loader: Iterable[Any], device: torch.device, progress: Optional[Callable[[Iterable[Any]], Iterable[Any]]] = None
) -> Iterator[tuple[Any, Tensor]]:
    """Pairs of input and target on ``device``; raises ``DataError`` for batches that are no pair or not finite."""
    for index, batch in enumerate(progress(loader) if progress else loader):
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise DataError(f"batch {index}", expected="a pair (input, target)", got=type(batch).__name__)
        input, target = batch
        if not isinstance(input, (Tensor, GeometricTensor)) or not isinstance(target, Tensor):
            got = f"({type(input).__name__}, {type(target).__name__})"
            raise DataError(f"batch {index}", expected="tensors", got=got, remedy="convert them by torch.as_tensor")
        if not len(target):
            raise DataError(f"batch {index}", "no samples in it", remedy="leave empty batches out")
        input, target = input.to(device), target.to(device)
        tensor = input.tensor if isinstance(input, GeometricTensor) else input
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise DataError(f"batch {index}", "NaN or infinite inputs", remedy="clean the data")
        yield input, target
