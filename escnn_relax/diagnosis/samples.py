"""Samples in groups that share one random element: from batches as they come to minibatches of one group each."""

from __future__ import annotations

import hashlib
from typing import Any, Iterator, Sized

import torch
from escnn.nn import GeometricTensor
from torch import Tensor

from ..errors import DataError

__all__ = ["Grouping", "group_size", "raw"]

#: Repeated samples of a group wait until there are so many, instead of being looked at one by one.
TOGETHER = 16
#: Samples of a group where a loader does not tell how many it has.
UNKNOWN = 8


def raw(input: Any) -> Tensor:
    """The tensor of an input."""
    tensor: Tensor = input.tensor if isinstance(input, GeometricTensor) else input
    return tensor


def group_size(loader: Any, groups: int) -> int:
    """How many samples a group gets, so that the different ones of a loader fill all groups about once.

    >>> group_size(torch.utils.data.DataLoader(range(1300), 100), 64)
    20
    """
    counts = [len(of) for of in (getattr(loader, name, None) for name in ("dataset", "sampler")) if isinstance(of, Sized)]
    if not counts and isinstance(loader, (list, tuple)):
        counts = [sum(len(batch[1]) for batch in loader if isinstance(batch, (list, tuple)) and len(batch) == 2)]
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
        self._waiting: dict[int, list[tuple[Any, Tensor]]] = {}

    @property
    def repeated(self) -> int:
        """How many samples had come before."""
        return self.seen - len(self.known)

    def add(self, input: Any, target: Tensor) -> Iterator[tuple[int, Any, Tensor]]:
        """One batch; yields ``(group, input, target)`` whenever a minibatch of one group is full."""
        tensor, count = raw(input), len(target)
        if len(tensor) != count:
            raise DataError("batch", expected=f"as many targets as inputs, {len(tensor)}", got=count)
        chosen_groups = []
        for x, y in zip(tensor.detach().to("cpu"), target.detach().to("cpu")):
            key = hashlib.blake2b(_bytes(x) + _bytes(y), digest_size=16).digest()
            chosen_groups.append(self.known.setdefault(key, len(self.known) // self.size % self.groups))
        chosen = torch.tensor(chosen_groups)
        self.seen += count
        full = max(self.size, TOGETHER) if self.repeated else self.size
        for group in chosen.unique().tolist():
            where = (chosen == group).nonzero().flatten().to(tensor.device)
            part = tensor[where]
            one = GeometricTensor(part, input.type) if isinstance(input, GeometricTensor) else part
            self._waiting.setdefault(group, []).append((one, target[where.to(target.device)]))
            if sum(len(y) for _, y in self._waiting[group]) >= full:
                yield self._joined(group)

    def rest(self) -> Iterator[tuple[int, Any, Tensor]]:
        """What is left over."""
        for group in sorted(self._waiting):
            yield self._joined(group)

    def _joined(self, group: int) -> tuple[int, Any, Tensor]:
        parts = self._waiting.pop(group)
        first = parts[0][0]
        if len(parts) == 1:
            return group, *parts[0]
        tensor = torch.cat([raw(x) for x, _ in parts])
        input = GeometricTensor(tensor, first.type) if isinstance(first, GeometricTensor) else tensor
        return group, input, torch.cat([y for _, y in parts])


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
