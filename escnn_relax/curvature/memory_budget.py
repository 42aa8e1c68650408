r"""A bound on the memory of a refresh: the bytes of its tensors are counted, and minibatches are cut so that it holds.

Whatever a chunk of n samples needs beside the sums is a sum, and at its peak a maximum, of numbers that are constant,
grow as n, or grow as n up to some size. For all of these :math:`f(n') \le (n'/n) f(n)` if :math:`n' \ge n`. So the
first chunk is a single sample, and each chunk says how many samples may follow. What the end of a refresh takes, where
factors are formed from the sums, does not depend on the data, and is tried on that one sample.

Counted are tensors that operations return, against a part of the limit: the rest is for scratch within single
operations.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from escnn.nn import GeometricTensor
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..errors import MemoryLimitError
from .batch_format import Weighted, input_tensors, map_tensors

__all__ = ["Budget", "MIB", "cut"]

Result = TypeVar("Result")

#: Bytes of a MiB.
MIB = 2**20

#: The part of the limit that tensors may take.
TENSORS = 0.85


class Budget(TorchDispatchMode):
    """While entered, counts the bytes of all tensors that are made, and stops what would go on beyond the limit.

    Args:
        limit: MiB.

    Attributes:
        now, peak: bytes alive; the most since :meth:`mark`.

    >>> with Budget(1.0) as budget:
    ...     x = torch.zeros(1000)
    >>> budget.now
    4000
    """

    def __init__(self, limit: float) -> None:
        mode: Any = super()
        mode.__init__()
        self.limit = limit * MIB * TENSORS
        self.now = self.peak = 0
        self._known: dict[int, int] = {}
        self._taken: dict[
            Any, dict[int, int]
        ] = {}  # bytes that chunks took beside the sums, by pass and shapes, by samples

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.layout == torch.strided and tensor.device.type != "meta":
                self._count(tensor.untyped_storage())
        if self.now > self.limit:
            raise self._limit_error(self.now, "what was alive when the limit was met", "more than")
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        known = self._known.get(key)
        if known is None:
            weakref.finalize(storage, self._free, key)
        if known != size:  # new, or resized
            self._known[key] = size
            self.now += size - (known or 0)
            self.peak = max(self.peak, self.now)

    def _free(self, key: int) -> None:
        self.now -= self._known.pop(key, 0)

    def mark(self) -> int:
        """Forget the peak; returns what is alive."""
        self.peak = self.now
        return self.now

    def taken(self, run: Callable[[], Result]) -> tuple[Result, int]:
        """What a function returns, and the bytes that it took at its peak; which does not count in the peak around
        it."""
        outside, before = self.peak, self.mark()
        result = run()
        taken, self.peak = self.peak - before, outside
        return result, taken

    def chunks(
        self, pairs: Iterable[tuple[Any, Any]], kind: str, reserve: Callable[[], int]
    ) -> Iterator[tuple[Any, Any]]:
        """Minibatches in parts, the first of each shape of one sample and of two, the others of as many as there is
        room for.

        Whoever takes a part has let go of all that it needed by the time that it asks for the next.

        Args:
            kind: which pass this is; what samples take is known for each by itself.
            reserve: bytes that have to stay free.

        Raises:
            MemoryLimitError: no room for a single sample, or for a minibatch that cannot be cut.
        """
        for input, target in pairs:
            key, start = (kind, *(tuple(part.shape[1:]) for part in input_tensors(input))), 0
            while start < len(target):
                left = len(target) - start
                count = min(left, self._fitting(key, reserve())) if _divisible(input, target) else left
                before = self.mark()
                yield cut(input, target, start, start + count)
                known = self._taken.setdefault(key, {})
                known[count] = max(known.get(count, 0), self.peak - before)
                start += count

    def _fitting(self, key: Any, reserve: int) -> int:
        known = self._taken.get(key)
        if not known:
            return 1
        free = self.limit - self.now - reserve
        if set(known) == {1} and known[1] <= free:  # with two for the first time more is looked at than later
            return 2 if 4 * known[1] <= free else 1
        count = max((int(n * free // max(taken, 1)) for n, taken in known.items() if taken <= free), default=0)
        if not count:
            needed = self.now + reserve + min(taken for taken in known.values())
            raise self._limit_error(needed, "the sums, the factors and a single sample")
        return count

    def check(self, more: int, what: str) -> None:
        """Raise ``MemoryLimitError`` unless there is room for so many bytes."""
        if self.now + more > self.limit:
            raise self._limit_error(self.now + more, what)

    def _limit_error(self, needed: float, what: str, how: str = "at least") -> MemoryLimitError:
        return MemoryLimitError(
            "memory",
            f"a refresh cannot do with {self.limit / MIB / TENSORS:.6g} MiB",
            expected=f"{how} {1.01 * max(needed, self.limit) / MIB / TENSORS:.3g} MiB, for {what}",
            remedy="give it more, or take curvature='auto' or 'sketched', smaller images, or samples=1",
        )


def _divisible(input: Any, target: Any) -> bool:
    """Whether every tensor of the input has as many samples as the target, and nothing else."""
    parts = input_tensors(input)
    graph = getattr(input, "coords", None) is not None
    return not graph and all(isinstance(part, Tensor) and part.dim() and len(part) == len(target) for part in parts)


def cut(input: Any, target: Any, start: int, stop: int) -> tuple[Any, Any]:
    """The samples from ``start`` to ``stop``.

    >>> cut(torch.arange(4), torch.arange(4), 1, 3)
    (tensor([1, 2]), tensor([1, 2]))
    """
    if (start, stop) == (0, len(target)):
        return input, target

    def part(piece: Any) -> Any:
        return (
            GeometricTensor(piece.tensor[start:stop], piece.type)
            if isinstance(piece, GeometricTensor)
            else piece[start:stop]
        )

    if isinstance(target, Weighted):
        return map_tensors(input, part), Weighted(target.target[start:stop], target.weight[start:stop])
    return map_tensors(input, part), target[start:stop]
