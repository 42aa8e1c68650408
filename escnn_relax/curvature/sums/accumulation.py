"""Sums over the data that end in Kronecker factors, and those for a bias; see :mod:`.conventions`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from ..approximation import Approximation, Batch
from ..factors import DenseFactor, Factor, KroneckerFactor
from ..layers.linear_map import WeightBlock
from .contraction import contract
from .moments import MeanPatchMoments, Moments
from .patch_moments import PatchMoments

__all__ = ["Bias", "Expand", "OutputMoments", "Reduce"]


class OutputMoments:
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


class Expand(Approximation):
    """Every place is a sample of its own: a moment of patches for each group, one of gradients for each output
    representation."""

    name = "expand"

    def prepare(self) -> None:
        self._input_moments: MeanPatchMoments | PatchMoments
        self._input_moments = MeanPatchMoments(self.layer) if self.reduce else PatchMoments(self.layer)
        self._output_moments = OutputMoments(self.blocks, self.reduce)
        self._input_factors: dict[
            float, list[Tensor]
        ] = {}  # A of each block by the number of rows, shared with followers

    def read(self, batch: Batch) -> None:
        self._input_moments.add(batch.inputs, batch.counts, batch.total)

    def follow(self, leader: Any, batch: Batch) -> None:
        self._input_moments, self._input_factors = leader._input_moments, leader._input_factors

    def add(self, batch: Batch, gradients: Tensor) -> None:
        self._output_moments.add(gradients)

    def sums(self) -> Iterable[Any]:
        return self._input_moments, self._output_moments

    def row_count(self) -> tuple[float, int]:
        return self._input_moments.rows, self._input_moments.side

    def rehearse(self) -> dict[str, tuple[Factor, ...]]:
        factors = self.factors()
        self._input_factors.clear()
        return factors

    def kronecker_factors(self) -> dict[str, tuple[KroneckerFactor, ...]]:
        """By parameter name within the layer, a factor for each of its blocks."""
        factors: dict[str, tuple[KroneckerFactor, ...]] = {}
        rows = self._input_moments.rows
        if rows not in self._input_factors:
            mean = self._input_moments.mean
            self._input_factors[rows] = [contract(mean[block.group], block, self.reduce) for block in self.blocks]
        for block, A in zip(self.blocks, self._input_factors[rows]):
            B = self._output_moments.total(block)
            factor = KroneckerFactor(self.parameter_name(block.parameter), A, B, block.positions, rows)
            factors[block.parameter] = (*factors.get(block.parameter, ()), factor)
        return factors

    def factors(self) -> dict[str, tuple[Factor, ...]]:
        return dict(self.kronecker_factors())


class Reduce(Expand):
    """Rows are averaged, columns summed over the places of a sample."""

    name, reduce = "reduce", True


class Bias(Approximation):
    """The bias reads a constant, so its block is exact at no cost.

    Args:
        shared: take ``expand``'s B instead.
    """

    name = "bias"

    def __init__(self, shared: bool = False) -> None:
        self.shared = shared

    def prepare(self) -> None:
        self._moments = Moments()

    def add(self, batch: Batch, gradients: Tensor) -> None:
        columns = gradients.flatten(1, 2)  # (N, out channels, places)
        columns = columns.transpose(0, 1).flatten(1) if self.shared else columns.sum(-1).T
        expansion: Any = self.layer.bias  # there is one
        self._moments.add(expansion.T.to(columns) @ columns)

    def sums(self) -> Iterable[Any]:
        return (self._moments,)

    def factors(self) -> dict[str, tuple[Factor, ...]]:
        return {"bias": (DenseFactor(self.parameter_name("bias"), self._moments.total),)}


def _output(block: WeightBlock) -> tuple[Any, ...]:
    """Blocks with the same output fields have the same B."""
    return block.group, tuple(block.channels.flatten().tolist())
