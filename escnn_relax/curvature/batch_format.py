"""How a batch of a user's loader is read: which entries go into the network, which are the targets, which the
weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from escnn.nn import GeometricTensor
from torch import Tensor, nn

from ..errors import DataError, naming

__all__ = ["Batch", "Batches", "Query", "Weighted", "input_tensors", "map_tensors", "read", "select_samples"]

#: What entries of a dictionary or named tuple are called.
TARGETS = ("target", "targets", "label", "labels", "y")
WEIGHTS = ("weight", "weights", "sample_weight")
#: Entries that say which samples these are, and are no input.
NUMBERS = ("index", "indices", "idx", "id", "ids")

_REMEDY = "wrap the loader: escnn_relax.Batches(loader, lambda batch: (input, target)), or (input, target, weight)"


class Batch(NamedTuple):
    """One minibatch.

    Attributes:
        input: what the network is called with: a tensor or ``GeometricTensor``; several in a tuple (by position) or a
            dictionary (by name).
        target: what the likelihood compares the output with.
        weight: what each sample counts in the likelihood, ``(N,)``, or each number observed, of the output's shape.
            Zero leaves it out. ``None`` counts each once.
    """

    input: Any
    target: Any
    weight: Tensor | None = None


class Query:
    """An input, and how the network is asked about it.

    Args:
        input: see :class:`Batch`.
        forward: from the network and the input to the outputs.
    """

    def __init__(self, input: Any, forward: Callable[[nn.Module, Any], Any]) -> None:
        self.input, self.forward = input, forward


class Batches:
    """A loader whose batches are read by a function; it is taken wherever a loader is, and says how the network is
    called.

    Dictionaries and named tuples are read without it if the target is called ``target(s)``, ``label(s)`` or ``y``:
    entries called ``weight(s)`` or ``sample_weight`` weigh the samples, ``index``, ``idx``, ``id`` (plural too) are
    left out, and all others are the network's input: by name, or by position where it is only one.

    Args:
        loader: re-iterable.
        read: from a batch to ``(input, target)`` or ``(input, target, weight)``, see :class:`Batch`; by the names in it
            if ``None``.
        forward: from the network and the input to the outputs, for networks that return something else than the outputs
            of the likelihood, or want to be asked in another way than ``model(input)``.

    >>> import torch
    >>> batch = {"image": torch.zeros(4, 1), "class": torch.ones(4), "path": "a"}
    >>> loader = Batches([batch], lambda b: (b["image"], b["class"]))
    >>> next(iter(loader)).target
    tensor([1., 1., 1., 1.])
    >>> from escnn_relax import Evidence
    >>> class Detector(nn.Sequential):
    ...     def forward(self, image):
    ...         return {"classes": super().forward(image), "boxes": None}
    >>> loader = Batches([(torch.ones(4, 3), torch.tensor([0, 1, 1, 0]))], forward=lambda model, x: model(x)["classes"])
    >>> Evidence(Detector(nn.Linear(3, 2)), relaxed_only=False).refresh(loader).num_data
    4
    """

    def __init__(
        self,
        loader: Iterable[Any],
        read: Callable[[Any], Any] | None = None,
        forward: Callable[[nn.Module, Any], Any] | None = None,
    ) -> None:
        self.loader: Any = loader  # with a length or without
        self.read, self.forward = read, forward

    def __iter__(self) -> Iterator[Batch]:
        for index, batch in enumerate(self.loader):
            with naming(f"batch {index}"):
                entries = read(batch) if self.read is None else self.read(batch)
            if not isinstance(entries, (tuple, list)) or len(entries) not in (2, 3):
                expected = "(input, target) or (input, target, weight) from the function that reads batches"
                remedy = "let the function given as read= return such a tuple"
                raise DataError(f"batch {index}", expected=expected, got=type(entries).__name__, remedy=remedy)
            input, *others = entries
            yield Batch(input if self.forward is None else Query(input, self.forward), *others)

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        if name in ("sampler", "batch_sampler", "batch_size", "dataset", "generator"):
            return getattr(self.loader, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


class Weighted:
    """Targets, and what each counts."""

    def __init__(self, target: Tensor, weight: Tensor) -> None:
        self.target, self.weight = target, weight

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, rows: Any) -> Weighted:
        return Weighted(self.target[rows], self.weight[rows])

    def cpu(self) -> Weighted:
        return Weighted(self.target.cpu(), self.weight.cpu())

    def tensor_split(self, parts: int) -> list[Weighted]:
        pairs = zip(self.target.tensor_split(parts), self.weight.tensor_split(parts))
        return [Weighted(target, weight) for target, weight in pairs]

    @classmethod
    def cat(cls, parts: Sequence[Weighted]) -> Weighted:
        return cls(torch.cat([p.target for p in parts]), torch.cat([p.weight for p in parts]))


def read(batch: Any) -> Batch:
    """A batch by its form and the names in it; ``DataError`` where these do not tell what is what."""
    if isinstance(batch, Batch):
        return batch
    if hasattr(batch, "_asdict"):  # a named tuple
        named = batch._asdict()
        return _read_named(named) if any(name in named for name in TARGETS) else _read_pair(batch)
    if isinstance(batch, Mapping):
        return _read_named(batch)
    return _read_pair(batch)


def _read_pair(batch: Any) -> Batch:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        got = f"{type(batch).__name__} of {len(batch)}" if isinstance(batch, (tuple, list)) else type(batch).__name__
        raise DataError("", expected="a pair (input, target)", got=got, remedy=_REMEDY)
    return Batch(*batch)


def _read_named(batch: Mapping[str, Any]) -> Batch:
    targets, weights = ([name for name in names if name in batch] for names in (TARGETS, WEIGHTS))
    inputs = {n: v for n, v in batch.items() if n not in (*targets, *weights, *NUMBERS)}
    if len(targets) != 1 or len(weights) > 1 or not inputs:
        expected = f"one entry named as in {TARGETS}, at most one as in {WEIGHTS}, and an input"
        raise DataError("", expected=expected, got=f"entries {list(batch)}", remedy=_REMEDY)
    input = next(iter(inputs.values())) if len(inputs) == 1 else inputs
    return Batch(input, batch[targets[0]], batch[weights[0]] if weights else None)


def map_tensors(input: Any, function: Callable[[Any], Any]) -> Any:
    """An input with a function applied to each tensor in it."""
    if isinstance(input, Query):
        return Query(map_tensors(input.input, function), input.forward)
    if isinstance(input, Mapping):
        return {name: function(value) for name, value in input.items()}
    if isinstance(input, (tuple, list)):
        return tuple(function(value) for value in input)
    return function(input)


def select_samples(input: Any, rows: Any, samples: int) -> Any:
    """Some samples of an input, by index or slice; what it holds beside ``samples`` rows stays whole."""

    def chosen(part: Any) -> Any:
        tensor = part.tensor if isinstance(part, GeometricTensor) else part
        if not tensor.dim() or len(tensor) != samples:
            return part
        return GeometricTensor(tensor[rows], part.type) if tensor is not part else tensor[rows]

    return map_tensors(input, chosen)


def input_tensors(input: Any) -> list[Any]:
    """All that an input consists of, ``GeometricTensor`` as its tensor."""
    if isinstance(input, Query):
        return input_tensors(input.input)
    several = isinstance(input, (tuple, list, Mapping))
    parts = list(input.values()) if isinstance(input, Mapping) else list(input) if several else [input]
    return [part.tensor if isinstance(part, GeometricTensor) else part for part in parts]
