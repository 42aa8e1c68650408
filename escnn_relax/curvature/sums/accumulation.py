"""Sums over the data for the weights of one layer, and the factors they end in; see :mod:`.conventions`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..factors import DenseFactor, Factor, KroneckerFactor
from ..layers.extraction import Use
from ..layers.linear_map import LinearMap, WeightBlock
from .contraction import contract
from .moments import MeanPatchMoments, Moments, accurate
from .patch_moments import PatchMoments

__all__ = ["Accumulator", "Batch", "Bias", "Expand", "Reduce", "WrittenMoments"]


class Batch:
    """What a layer read in one minibatch, and, column by column, what is back-propagated to it.

    A layer that is used twice in a pass just has more places.

    Args:
        counts: how often each sample counts, ``(N,)``; each once where there is none.
    """

    def __init__(self, layer: LinearMap, inputs: Sequence[Tensor], counts: Tensor | None = None) -> None:
        self.layer, self.inputs = layer, tuple(layer.prepare(accurate(x)) for x in inputs)
        self.counts = counts

    @cached_property
    def patches(self) -> Tensor:
        """Patches of all uses, shape ``(N, groups, C S, places)``."""
        return _joined([self.layer.patches(x) for x in self.inputs])

    def gradients(self, uses: Sequence[Use]) -> Tensor:
        """One column at the same places, shape ``(N, groups, out channels / groups, places)``."""
        return _joined([accurate(self.layer.gradients(use.gradient)) for use in uses])


class Accumulator(ABC):
    """Takes a layer's inputs and output gradients batch by batch; ends in factors for some of its parameters.

    Args:
        name: the layer's.
        layer: the linear map.
        parameters: the names, within the layer, of those whose factors are wanted.
    """

    def __init__(self, name: str, layer: LinearMap, parameters: Sequence[str]) -> None:
        self.name, self.layer = name, layer
        self.blocks = tuple(block for block in layer.blocks if block.parameter in parameters)

    def read(self, batch: Batch) -> None:
        """A new minibatch."""

    def follow(self, leader: Accumulator) -> None:
        """Share the sums over what is read with an accumulator of the same kind and layer, which alone reads from
        now on."""

    @abstractmethod
    def add(self, batch: Batch, gradients: Tensor) -> None:
        """One column of the same minibatch."""

    @abstractmethod
    def sums(self) -> Iterable[Any]:
        """All that is summed over the data; each has a ``gather()`` that adds up the sums of all processes."""

    @abstractmethod
    def factors(self) -> dict[str, tuple[Factor, ...]]:
        """Factors by parameter name within the layer."""

    def rehearsed(self) -> dict[str, tuple[Factor, ...]]:
        """:meth:`factors` of the sums so far, which go on; of the size that they will have in the end."""
        return self.factors()

    def growth(self) -> tuple[int, int]:
        """Bytes by which the sums may still grow, and bytes more that growing and ending takes for a while."""
        return 0, 0

    def read_so_far(self) -> tuple[float, int]:
        """Number of rows, and of the directions that they have; zeros where it is not rows that are summed."""
        return 0, 0

    def where(self, parameter: str) -> str:
        """The parameter as error messages call it."""
        return f"{self.name}.{parameter}" if self.name else parameter


class WrittenMoments:
    """Second moments of the gradients of output fields: B of each block; blocks with the same fields share it.

    Args:
        reduce: sum over the places of a sample first.
    """

    def __init__(self, blocks: Sequence[WeightBlock], reduce: bool = False) -> None:
        self._fields = {_output(block): block.channels for block in blocks}
        self._moments = {key: Moments() for key in self._fields}
        self.reduce = reduce

    def add(self, gradients: Tensor) -> None:
        """One column of a minibatch, ``(N, groups, out channels / groups, places)``."""
        for key, channels in self._fields.items():
            group = gradients[:, key[0]]
            whole = key[1] == tuple(range(group.shape[1]))
            fields = group.unflatten(1, channels.shape) if whole else group[:, channels]  # (N, O, o, places)
            if self.reduce:
                self._moments[key].add(fields.flatten(2).sum(-1).T)
            else:
                self._moments[key].add_samples(fields.flatten(2))

    def gather(self) -> None:
        """Add up those of all processes."""
        for moments in self._moments.values():
            moments.gather()

    def total(self, block: WeightBlock) -> Tensor:
        """B of a block, ``(O, O)``, float64."""
        return self._moments[_output(block)].total


class _Kronecker(Accumulator):
    """Both Kronecker forms: a moment of patches for each group, one of gradients for each output representation."""

    reduce: bool

    def __init__(self, name: str, layer: LinearMap, parameters: Sequence[str]) -> None:
        super().__init__(name, layer, parameters)
        self._read = MeanPatchMoments(layer) if self.reduce else PatchMoments(layer)
        self._written = WrittenMoments(self.blocks, self.reduce)
        self._contracted: dict[float, list[Tensor]] = {}  # A of each block by the number of rows, shared with followers

    def read(self, batch: Batch) -> None:
        self._read.add(batch.inputs, batch.counts)

    def follow(self, leader: Any) -> None:
        self._read, self._contracted = leader._read, leader._contracted

    def add(self, batch: Batch, gradients: Tensor) -> None:
        self._written.add(gradients)

    def sums(self) -> Iterable[Any]:
        return self._read, self._written

    def read_so_far(self) -> tuple[float, int]:
        return self._read.rows, self._read.side

    def rehearsed(self) -> dict[str, tuple[Factor, ...]]:
        found = self.factors()
        self._contracted.clear()
        return found

    def factors(self) -> dict[str, tuple[Factor, ...]]:
        found: dict[str, tuple[Factor, ...]] = {}
        rows = self._read.rows
        if rows not in self._contracted:
            mean = self._read.mean
            self._contracted[rows] = [contract(mean[block.group], block, self.reduce) for block in self.blocks]
        for block, A in zip(self.blocks, self._contracted[rows]):
            B = self._written.total(block)
            factor = KroneckerFactor(self.where(block.parameter), A, B, block.positions, rows)
            found[block.parameter] = (*found.get(block.parameter, ()), factor)
        return found


class Expand(_Kronecker):
    """Every place is a sample of its own."""

    reduce = False


class Reduce(_Kronecker):
    """Rows are averaged, columns summed over the places of a sample."""

    reduce = True


class Bias(Accumulator):
    """The bias reads a constant, so its block is exact at no cost; ``shared`` takes ``expand``'s B instead."""

    def __init__(self, name: str, layer: LinearMap, expansion: Tensor, shared: bool = False) -> None:
        super().__init__(name, layer, ())
        self.expansion, self.shared = expansion, shared
        self._moments = Moments()

    def add(self, batch: Batch, gradients: Tensor) -> None:
        columns = gradients.flatten(1, 2)  # (N, out channels, places)
        columns = columns.transpose(0, 1).flatten(1) if self.shared else columns.sum(-1).T
        self._moments.add(self.expansion.T.to(columns) @ columns)

    def sums(self) -> Iterable[Any]:
        return (self._moments,)

    def factors(self) -> dict[str, tuple[Factor, ...]]:
        return {"bias": (DenseFactor(self.where("bias"), self._moments.total),)}


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def _output(block: WeightBlock) -> tuple[Any, ...]:
    """Blocks with the same output fields have the same B."""
    return block.group, tuple(block.channels.flatten().tolist())
