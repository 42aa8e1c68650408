"""Blocks without a Kronecker approximation, from the gradient of every sample."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from ..approximation import Approximation, Batch
from ..conventions import DECOMPOSED, FACTOR_BYTES, FACTOR_DTYPE
from ..distributed import gather_processes, sum_processes
from ..factors import DenseFactor, DiagonalFactor, Factor, GramFactor
from ..layers.linear_map import WeightBlock
from .contraction import pull_back
from .moments import Moments

__all__ = ["Exact", "Diagonal", "Samplewise", "in_order"]


class Samplewise(Approximation):
    """Forms the gradient of the kernel for each sample and column, and pulls it back to the weights."""

    def add(self, batch: Batch, gradients: Tensor) -> None:
        kernels = gradients @ batch.patches.transpose(-1, -2)  # (N, groups, channels, C S)
        for parameter, blocks in self._by_parameter().items():
            self._take(parameter, blocks, [pull_back(kernels, block) for block in blocks])

    def _by_parameter(self) -> dict[str, list[WeightBlock]]:
        by_parameter: dict[str, list[WeightBlock]] = {}
        for block in self.blocks:
            by_parameter.setdefault(block.parameter, []).append(block)
        return by_parameter

    @abstractmethod
    def _take(self, parameter: str, blocks: list[WeightBlock], gradients: list[Tensor]) -> None:
        """The gradients of each of a parameter's blocks, ``(N, O, D)``."""


class Exact(Samplewise):
    """The whole matrix of a parameter, all its blocks together.

    The columns V themselves are kept until there are more of them than weights: then the Gram matrix of the columns has
    the same eigenvalues as :math:`V V^\\top` but zeros, and is smaller.
    """

    name = "exact"

    def prepare(self) -> None:
        self._columns: dict[str, list[Tensor]] = {}
        self._H: dict[str, Moments] = {}

    def _take(self, parameter: str, blocks: list[WeightBlock], gradients: list[Tensor]) -> None:
        columns = in_order(blocks, gradients)
        if parameter in self._H:
            self._H[parameter].add(columns.T)
            return
        columns_so_far = self._columns.setdefault(parameter, [])
        columns_so_far.append(columns)
        if sum(len(c) for c in columns_so_far) >= columns.shape[1]:
            self._H[parameter] = Moments()
            self._H[parameter].add(torch.cat(columns_so_far).T)
            del self._columns[parameter]

    def growth(self) -> tuple[int, int]:
        sizes = [sum(b.positions.numel() for b in blocks) ** 2 for blocks in self._by_parameter().values()]
        item = max((columns[0].element_size() for columns in self._columns.values() if columns), default=4)
        present = sum(c.numel() * c.element_size() for columns in self._columns.values() for c in columns)
        present += sum(moments.total.numel() * FACTOR_BYTES for moments in self._H.values())
        # columns become one matrix (item), its square (item) a sum in float64, which is decomposed
        return max(sum(sizes) * (item + FACTOR_BYTES) - present, 0), max(sizes, default=0) * (item + DECOMPOSED)

    def gather(self) -> None:
        """Add up those of all processes: as columns where they are fewer than weights in all of them together."""
        for name in self.parameters:
            columns = self._columns.get(name)
            everywhere = gather_processes(None if columns is None else torch.cat(columns).cpu())
            like = self._H[name].total if columns is None else columns[0]
            if all(rows is not None for rows in everywhere) and sum(map(len, everywhere)) < like.shape[1]:
                self._columns[name] = [torch.cat(everywhere).to(like)]
                continue
            if columns is not None:
                self._H[name] = Moments()
                self._H[name].add(torch.cat(columns).T)
                del self._columns[name]
            self._H[name].gather()

    def factors(self) -> dict[str, tuple[Factor, ...]]:
        factors: dict[str, tuple[Factor, ...]] = {
            name: (DenseFactor(self.parameter_name(name), H.total),) for name, H in self._H.items()
        }
        for name, columns in self._columns.items():
            factors[name] = (GramFactor(self.parameter_name(name), torch.cat(columns).to(FACTOR_DTYPE)),)
        return factors


class Diagonal(Samplewise):
    """Only the diagonal is kept."""

    name = "diagonal"

    def prepare(self) -> None:
        self._squares: dict[str, Tensor] = {name: torch.zeros((), dtype=FACTOR_DTYPE) for name in self.parameters}

    def _take(self, parameter: str, blocks: list[WeightBlock], gradients: list[Tensor]) -> None:
        squares = in_order(blocks, gradients).square().sum(0)
        self._squares[parameter] = self._squares[parameter] + squares.to(FACTOR_DTYPE)

    def gather(self) -> None:
        """Add up those of all processes."""
        self._squares = {name: sum_processes(s) for name, s in self._squares.items()}

    def factors(self) -> dict[str, tuple[Factor, ...]]:
        return {name: (DiagonalFactor(self.parameter_name(name), s),) for name, s in self._squares.items()}


def in_order(blocks: list[WeightBlock], gradients: list[Tensor]) -> Tensor:
    """Gradients of all blocks of a parameter as rows ``(N, size)`` in the order of its weights."""
    flat = torch.cat([gradient.flatten(1) for gradient in gradients], dim=1)
    order = torch.cat([block.positions.flatten() for block in blocks])
    if torch.equal(order, torch.arange(len(order))):
        return flat
    return flat.index_select(1, order.argsort().to(flat.device))
