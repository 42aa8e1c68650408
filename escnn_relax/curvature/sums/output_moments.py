"""Second moments of the gradients of output fields: the outputs' side of all Kronecker factors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..layers.linear_map import WeightBlock
from ..output_hessian import OutputHessian
from .moments import Moments

__all__ = ["OutputMoments"]


class OutputMoments:
    """B of each block; blocks with the same fields share it.

    Where the layer's outputs are those of the network, it is the loss Hessian itself: as many columns as there are
    outputs would cost as many products of ``(C, N)`` matrices. B itself has C C numbers, since the evidence needs all
    its eigenvalues: of thousands of outputs its decomposition is the most of a refresh.

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

    def add_hessian(self, hessian: OutputHessian, groups: int) -> None:
        """All columns of a minibatch, of a layer with the outputs of the network in so many groups."""
        width = hessian.outputs // groups
        for key, channels in self._fields.items():
            places = (channels + key[0] * width).to(hessian.total.device)  # (O, o)
            if self.reduce:
                whole = hessian.total[places.flatten()[:, None], places.flatten()]
                self._moments[key].add_total(whole.view(*places.shape, *places.shape).sum((1, 3)))
                continue
            for member in places.T:
                self._moments[key].add_total(hessian.total[member[:, None], member])

    def gather(self) -> None:
        """Add up those of all processes."""
        for moments in self._moments.values():
            moments.gather()

    def total(self, block: WeightBlock) -> Tensor:
        """B of a block, ``(O, O)``, float64."""
        return self._moments[_output(block)].total


def _output(block: WeightBlock) -> tuple[Any, ...]:
    """Blocks with the same output fields have the same B."""
    return block.group, tuple(block.channels.flatten().tolist())
