"""Sums over the data that end in Kronecker factors, and those for a bias; see :mod:`.conventions`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..approximation import Approximation, Batch
from ..factors import DenseFactor, Factor, KroneckerFactor
from ..output_hessian import OutputHessian
from .contraction import contract
from .moments import MeanPatchMoments, Moments
from .output_moments import OutputMoments
from .patch_moments import PatchMoments

__all__ = ["Bias", "Expand", "OutputMoments", "Reduce"]


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

    def add_hessian(self, batch: Batch, hessian: OutputHessian) -> bool:
        self._output_moments.add_hessian(hessian, self.layer.groups)
        return True

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
        expansion: Any = self.layer.bias  # there is one
        height, width = expansion.shape
        self._plain = height == width and torch.equal(expansion, torch.eye(height).to(expansion))

    def add(self, batch: Batch, gradients: Tensor) -> None:
        columns = gradients.flatten(1, 2)  # (N, out channels, places)
        columns = columns.transpose(0, 1).flatten(1) if self.shared else columns.sum(-1).T
        expansion: Any = self.layer.bias
        self._moments.add(expansion.T.to(columns) @ columns)

    def add_hessian(self, batch: Batch, hessian: OutputHessian) -> bool:
        expansion: Any = self.layer.bias
        wide = expansion.to(hessian.total)
        self._moments.add_total(hessian.total if self._plain else wide.T @ hessian.total @ wide)
        return True

    def sums(self) -> Iterable[Any]:
        return (self._moments,)

    def factors(self) -> dict[str, tuple[Factor, ...]]:
        return {"bias": (DenseFactor(self.parameter_name("bias"), self._moments.total),)}
