"""Samples in groups that share one random element: from batches as they come to minibatches of one group each."""

from __future__ import annotations

import hashlib
from typing import Any, Iterator, Sized

import torch
from escnn.nn import GeometricTensor
from torch import Tensor

from ..curvature.reader import Batches, Weighted, mapped, of_samples, read, tensors
from ..errors import DataError

__all__ = ["Grouping", "group_size", "length", "raw"]

#: Repeated samples of a group wait until there are so many, instead of being looked at one by one.
TOGETHER = 16
#: Samples of a group where a loader does not tell how many it has.
UNKNOWN = 8


def raw(input: Any) -> Tensor:
    """A tensor, or that of a ``GeometricTensor``."""
    tensor: Tensor = input.tensor if isinstance(input, GeometricTensor) else input
    return tensor


def length(input: Any, samples: int) -> Tensor:
    """Euclidean norm of each sample of an input, over all its tensors, ``(N,)``, float64 on the CPU."""
    parts = [part.detach().double().flatten(1) for part in tensors(input) if _of_samples(part, samples)]
    return torch.stack([part.norm(dim=1).cpu() for part in parts]).norm(dim=0) if parts else torch.zeros(samples).double()


def _of_samples(part: Tensor, samples: int) -> bool:
    return part.dim() > 0 and len(part) == samples


def group_size(loader: Any, groups: int) -> int:
    """How many samples a group gets, so that the different ones of a loader fill all groups about once.

    >>> group_size(torch.utils.data.DataLoader(range(1300), 100), 64)
    20
    """
    counts = [len(of) for of in (getattr(loader, name, None) for name in ("dataset", "sampler")) if isinstance(of, Sized)]
    if not counts and isinstance(loader.loader if isinstance(loader, Batches) else loader, (list, tuple)):
        counts = [sum(len(read(batch, f"batch {index}").target) for index, batch in enumerate(loader))]
    return max(1, min(counts) // groups) if counts else UNKNOWN


class Grouping:
    """Hands every sample to a group; one that comes again goes to the group where it was before.

    Args:
        groups: how many there are, filled one after the other.
        size: samples of one group; more than ``groups * size`` different ones begin anew with the first.

    Attributes:
        known: the group of each different sample.
        seen: number of samples, repeated ones too.
    """

    def __init__(self, groups: int, size: int) -> None:
        self.groups, self.size = groups, size
        self.known: dict[bytes, int] = {}
        self.seen = 0
        self._waiting: dict[int, list[tuple[Any, Any]]] = {}

    @property
    def repeated(self) -> int:
        """How many samples had come before."""
        return self.seen - len(self.known)

    def add(self, input: Any, target: Any) -> Iterator[tuple[int, Any, Any]]:
        """One batch; yields ``(group, input, target)`` whenever a minibatch of one group is full."""
        count, parts = len(target), [part.detach().to("cpu") for part in tensors(input)]
        if len(parts) == 1 and len(parts[0]) != count:
            raise DataError("batch", expected=f"as many targets as inputs, {len(parts[0])}", got=count)
        aims = [target.target, target.weight] if isinstance(target, Weighted) else [target]
        told = [part for part in (*parts, *(aim.detach().to("cpu") for aim in aims)) if _of_samples(part, count)]
        chosen_groups = []
        for sample in zip(*told):
            key = hashlib.blake2b(b"".join(map(_bytes, sample)), digest_size=16).digest()
            chosen_groups.append(self.known.setdefault(key, len(self.known) // self.size % self.groups))
        chosen = torch.tensor(chosen_groups)
        self.seen += count
        full = max(self.size, TOGETHER) if self.repeated else self.size
        for group in chosen.unique().tolist():
            where = (chosen == group).nonzero().flatten().to(tensors(input)[0].device)
            self._waiting.setdefault(group, []).append((of_samples(input, where, count), target[where]))
            if sum(len(y) for _, y in self._waiting[group]) >= full:
                yield self._joined(group)

    def rest(self) -> Iterator[tuple[int, Any, Any]]:
        """What is left over."""
        for group in sorted(self._waiting):
            yield self._joined(group)

    def _joined(self, group: int) -> tuple[int, Any, Any]:
        inputs, targets = zip(*self._waiting.pop(group))
        if len(inputs) == 1:
            return group, inputs[0], targets[0]
        target = Weighted.cat(targets) if isinstance(targets[0], Weighted) else torch.cat(targets)
        columns = zip(*map(tensors, inputs))

        def joined(part: Any) -> Any:
            column = next(columns)
            alike = all(_of_samples(tensor, len(of)) for tensor, of in zip(column, targets))
            tensor = torch.cat(column) if alike else column[0]
            return GeometricTensor(tensor, part.type) if isinstance(part, GeometricTensor) else tensor

        return group, mapped(inputs[0], joined), target


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
