"""What comes from outside: batches from a user's loader, and the weights of a model, both looked over before use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from inspect import signature
from typing import Any

import torch
from escnn.nn import GeometricTensor
from torch import Tensor, nn

from ..errors import DataError, FieldTypeError, naming
from .batch_format import Query, Weighted, input_tensors, map_tensors, read, select_samples

__all__ = [
    "answer",
    "batches",
    "call",
    "check_iterable",
    "check_weights",
    "detach_input",
    "drop_uncounted",
    "first",
    "halves",
]

#: Minibatches of at least so many samples are taken in two parts.
LARGE = 64


def detach_input(input: Any) -> Any:
    """So that no gradient ends up in the user's data."""

    def alone(part: Any) -> Any:
        return GeometricTensor(part.tensor.detach(), part.type) if isinstance(part, GeometricTensor) else part.detach()

    return map_tensors(input, alone)


def halves(pairs: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
    """Large minibatches in two parts: the sums over samples are the same, and need half the memory, no more than
    training."""
    for input, target in pairs:
        count, parts = len(target), input_tensors(input)
        alone = all(part.dim() and len(part) == count for part in parts)
        if count < LARGE or not alone or _has_points(input):
            yield input, target
            continue
        for rows in torch.arange(count).tensor_split(2):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            yield select_samples(input, part, count), target[part]


def first(input: Any, samples: int, most: int) -> Any:
    """At most so many of the samples of an input, where all of it has one row for each."""
    alone = all(part.dim() and len(part) == samples for part in input_tensors(input))
    return select_samples(input, slice(most), samples) if alone and samples > most and not _has_points(input) else input


def drop_uncounted(input: Any, target: Any) -> tuple[Any, Any]:
    """Without the samples whose weight is zero, where they can be left out: they tell nothing, nor do the rows that
    layers read of them. As it is if none counts."""
    if not isinstance(target, Weighted):
        return input, target
    counts = target.weight.flatten(1).any(1) if target.weight.dim() > 1 else target.weight != 0
    alone = all(part.dim() and len(part) == len(counts) for part in input_tensors(input)) and not _has_points(input)
    if not alone or bool(counts.all()) or not bool(counts.any()):
        return input, target
    where = counts.nonzero().flatten()
    return select_samples(input, where, len(counts)), target[where]


def _has_points(input: Any) -> bool:
    points: list[Any] = []
    map_tensors(input, lambda part: points.append(getattr(part, "coords", None)))
    return any(coords is not None for coords in points)


def call(model: nn.Module, input: Any) -> Any:
    """What a model says to an input: several tensors in a tuple by position, in a dictionary by name; or as the user
    asks.

    ``DataError`` for names and numbers of tensors that it does not take.
    """
    if isinstance(input, Query):
        return input.forward(model, input.input)
    arguments = tuple(input) if isinstance(input, (tuple, list)) else () if isinstance(input, Mapping) else (input,)
    names = dict(input) if isinstance(input, Mapping) else {}
    if len(arguments) != 1:
        try:
            signature(model.forward).bind(*arguments, **names)
        except TypeError as error:
            got = f"{len(arguments)} tensors" if arguments else f"entries {list(names)}"
            remedy = "wrap the loader in escnn_relax.Batches, whose function says what is the input"
            raise DataError(f"forward of {type(model).__name__}", f"{error}", got=got, remedy=remedy) from error
    return model(*arguments, **names)


def answer(model: nn.Module, input: Any) -> Any:
    """:func:`call`, with ``FieldTypeError`` where a bare assertion of escnn's refuses the input, and ``DataError`` for
    inputs in another precision than the weights that a layer refuses."""
    try:
        return call(model, input)
    except RuntimeError as error:
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
        others = {str(part.dtype) for part in input_tensors(input) if part.dtype != dtype}
        if dtype is None or not others or "dtype" not in str(error) and "type" not in str(error):
            raise
        remedy = "give both one precision: model.to(dtype), or convert the input where it is loaded"
        raise DataError(
            f"forward of {type(model).__name__}",
            f"{error}",
            expected=f"inputs of {dtype}",
            got=", ".join(sorted(others)),
            remedy=remedy,
        ) from error
    except AssertionError as error:
        said = f": {error}" if str(error) else ""
        raise FieldTypeError(
            type(model).__name__,
            f"an assertion failed in its forward pass, as escnn's do for fields of another type{said}",
            got=type(input).__name__,
            remedy=(
                "a model for plain tensors makes the GeometricTensor in its forward, and returns outputs (N, C, ...)"
            ),
        ) from error


def check_iterable(loader: Any) -> None:
    """Raise ``DataError`` for what can yield nothing."""
    if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
        expected = "something that yields batches, a DataLoader or a list"
        raise DataError("loader", expected=expected, got=type(loader).__name__, remedy="pass (input, target) pairs")


def check_weights(model: nn.Module) -> None:
    """Raise ``DataError`` that names the first parameter with NaN or infinite values."""
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise DataError(
                name, "NaN or infinite weights", remedy="go back to finite ones, and lower the learning rate"
            )


def batches(
    loader: Iterable[Any], device: torch.device, progress: Callable[[Iterable[Any]], Iterable[Any]] | None = None
) -> Iterator[tuple[Any, Any]]:
    """Pairs of input and target on ``device``: the one way in which all of the package reads data.

    The input may be several tensors, see :func:`answer`; the target is :class:`~.reader.Weighted` where samples have
    weights. Raises ``DataError`` for batches that cannot be read (:mod:`~escnn_relax.curvature.batch_format`) or are
    not finite.
    """
    check_iterable(loader)
    for index, batch in enumerate(progress(loader) if progress else loader):
        with naming(f"batch {index}"):
            checked = _checked(batch, device)
        yield checked


def _checked(batch: Any, device: torch.device) -> tuple[Any, Any]:
    input, target, weight = read(batch)
    parts = input_tensors(input)
    if not parts or not all(isinstance(part, Tensor) for part in (*parts, target)):
        got = f"({', '.join(type(part).__name__ for part in parts)}), {type(target).__name__}"
        remedy = "convert them by torch.as_tensor, or read them by escnn_relax.Batches"
        raise DataError("", expected="tensors", got=got, remedy=remedy)
    if not target.dim() or not len(target):
        raise DataError("", "no samples in it", remedy="leave empty batches out")
    if any(part.layout is not torch.strided for part in (*parts, target)):
        raise DataError("", "sparse tensors", remedy="convert them by .to_dense()")
    input, target = map_tensors(input, lambda part: part.to(device)), target.to(device)
    for tensor in input_tensors(input):
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise DataError("", "NaN or infinite inputs", remedy="clean the data")
    return input, target if weight is None else Weighted(target, _check_weight(weight, len(target)).to(device))


def _check_weight(weight: Any, samples: int) -> Tensor:
    if not isinstance(weight, Tensor) or not weight.dim() or len(weight) != samples:
        got = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        remedy = "pass one weight of at least 0 for each sample, as the third entry of a batch"
        raise DataError("", expected=f"a tensor of weights for {samples} samples", got=got, remedy=remedy)
    if not torch.isfinite(weight).all() or (weight < 0).any():
        raise DataError("", "weights that are negative or not finite", remedy="leave samples out by a weight of zero")
    return weight.to(torch.get_default_dtype()) if not weight.is_floating_point() else weight
