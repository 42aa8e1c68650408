"""Samples in groups that share one random element: from batches as they come to minibatches of one group each."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator, Sequence, Sized
from typing import Any

import torch
from escnn.nn import GeometricTensor
from torch import Tensor

from ..curvature.batch_format import Batches, Weighted, input_tensors, map_tensors, read, select_samples
from ..deprecation import former_names
from ..errors import ArgumentError, DataError, naming
from .effect import Sizes

__all__ = ["Grouping", "group_size", "concatenate", "raw"]

#: Repeated samples of a group wait until there are so many, instead of being looked at one by one.
MINIBATCH = 16
#: Samples of a group where a loader does not tell how many it has.
UNKNOWN = 8


def raw(input: Any) -> Tensor:
    """A tensor, or that of a ``GeometricTensor``."""
    tensor: Tensor = input.tensor if isinstance(input, GeometricTensor) else input
    return tensor


def _has_samples(part: Tensor, samples: int) -> bool:
    return part.dim() > 0 and len(part) == samples


def group_size(loader: Any, groups: int, units: Sequence[Hashable] | None = None) -> int:
    """How many different samples, or units of them, a group gets, so that they fill all groups about once.

    >>> group_size(torch.utils.data.DataLoader(range(1300), 100), 64)
    20
    """
    if units is not None:
        return max(1, len(set(units)) // groups)
    counts = [
        len(collection)
        for collection in (getattr(loader, name, None) for name in ("dataset", "sampler"))
        if isinstance(collection, Sized)
    ]
    if not counts and isinstance(loader.loader if isinstance(loader, Batches) else loader, (list, tuple)):
        targets = [_target(batch, index) for index, batch in enumerate(loader)]
        counts = [sum(len(collection) for collection in targets if isinstance(collection, Tensor) and collection.dim())]
    return max(1, min(counts) // groups) if counts else UNKNOWN


def _target(batch: Any, index: int) -> Any:
    with naming(f"batch {index}"):
        return read(batch).target


class Grouping:
    """Hands every sample to a group; one that comes again, by its number or its content, goes to the group where it was
    before.

    Args:
        groups: how many there are, filled one after the other.
        size: samples (or units) of one group; more than ``groups * size`` different ones begin anew with the first.
        units: for each sample what it belongs to, by its index in the data set, or in the order in which they come.

    Attributes:
        sample_count: number of samples, repeated ones too.
        distinct: of different samples.
    """

    def __init__(self, groups: int, size: int, units: Sequence[Hashable] | None = None) -> None:
        self.groups, self.size, self.units = groups, size, units
        self.sample_count = self.distinct = self.opened = 0
        self._unit_group: dict[Hashable, int] = {}  # groups of units
        self._number: dict[Hashable, int] = {}
        self._times: list[int] = []
        self._group: list[int] = []
        self._queues: dict[int, list[tuple[Any, Any]]] = {}

    @property
    def repeated(self) -> int:
        """How many samples had come before."""
        return self.sample_count - self.distinct

    def sizes(self, groups: Sequence[int]) -> Sizes:
        """Of these groups: draws, and sums of squares of how often each sample came."""
        times, member = torch.tensor(self._times, dtype=torch.float64), torch.tensor(self._group)
        zeros = torch.zeros(self.groups, dtype=torch.float64)
        index = torch.tensor(list(groups))
        return Sizes(zeros.index_add(0, member, times)[index], zeros.index_add(0, member, times.square())[index])

    def _place(self, content: bytes, index: int | None, number: Hashable | None) -> int:
        """The group of one sample."""
        sample = self._number.get(content)
        if sample is None and number is not None:
            sample = self._number.get(number)
        unit = None if self.units is None else self._unit(self.sample_count if index is None else index)
        if sample is None:
            group = self._unit_group.get(unit) if unit is not None else None
            if group is None:
                group, self.opened = self.opened // self.size % self.groups, self.opened + 1
            sample, self.distinct = self.distinct, self.distinct + 1
            self._times.append(0)
            self._group.append(group)
        self._times[sample] += 1
        if unit is not None:
            self._unit_group.setdefault(unit, self._group[sample])
        self._number[content] = sample
        if number is not None:
            self._number.setdefault(number, sample)
        self.sample_count += 1
        return self._group[sample]

    def _unit(self, index: int) -> Hashable:
        try:
            units: Any = self.units
            return units[index]
        except (IndexError, KeyError) as error:
            remedy = "give one for each sample of the data set"
            raise ArgumentError("units", "no unit of a sample", got=f"sample {index}", remedy=remedy) from error

    def add(
        self, input: Any, target: Any, numbers: Sequence[tuple[Any, Hashable]] | None = None
    ) -> Iterator[tuple[int, Any, Any]]:
        """One batch; yields ``(group, input, target)`` whenever a minibatch of one group is full.

        Args:
            numbers: index of each sample, and what tells it from others beside its content.
        """
        count, parts = len(target), [part.detach().to("cpu") for part in input_tensors(input)]
        if len(parts) == 1 and len(parts[0]) != count:
            remedy = "let each batch be (input, target) with samples along dimension 0 of both"
            raise DataError("batch", expected=f"as many targets as inputs, {len(parts[0])}", got=count, remedy=remedy)
        aims = [target.target, target.weight] if isinstance(target, Weighted) else [target]
        columns = [part for part in (*parts, *(aim.detach().to("cpu") for aim in aims)) if _has_samples(part, count)]
        group_list = []
        for n, sample in enumerate(zip(*columns)):
            key = hashlib.blake2b(b"".join(map(_bytes, sample)), digest_size=16).digest()
            number = numbers[n] if numbers is not None and len(numbers) == count else (None, None)
            group_list.append(self._place(key, *number))
        groups = torch.tensor(group_list)
        full = min(self.size, max(count, MINIBATCH))  # no minibatch is larger than the loader's
        full = max(full, MINIBATCH) if self.repeated or self.units is not None else full
        for group in groups.unique().tolist():
            positions = (groups == group).nonzero().flatten().to(input_tensors(input)[0].device)
            self._queues.setdefault(group, []).append((select_samples(input, positions, count), target[positions]))
            if sum(len(y) for _, y in self._queues[group]) >= full:
                yield self._join(group)

    def rest(self) -> Iterator[tuple[int, Any, Any]]:
        """What is left over."""
        for group in sorted(self._queues):
            yield self._join(group)

    def _join(self, group: int) -> tuple[int, Any, Any]:
        return group, *concatenate(*zip(*self._queues.pop(group)))


def concatenate(inputs: Sequence[Any], targets: Sequence[Any]) -> tuple[Any, Any]:
    """Several batches as one; a part of the inputs that has no row for each sample is taken from the first."""
    if len(inputs) == 1:
        return inputs[0], targets[0]
    target = Weighted.cat(targets) if isinstance(targets[0], Weighted) else torch.cat(tuple(targets))
    columns = zip(*map(input_tensors, inputs))

    def whole(part: Any) -> Any:
        column = next(columns)
        alike = all(_has_samples(tensor, len(target)) for tensor, target in zip(column, targets))
        tensor = torch.cat(column) if alike else column[0]
        return GeometricTensor(tensor, part.type) if isinstance(part, GeometricTensor) else tensor

    return map_tensors(inputs[0], whole), target


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


__getattr__ = former_names(__name__)
