"""Second moments of single fields: all that the trace of a second moment of rows needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..distributed import sum_processes
from ..layers.input_positions import Window
from ..layers.linear_map import LinearMap, Piece, WeightBlock
from .contraction import row_basis
from .moments import at_least_single, number, weigh_samples
from .patch_moments import PatchMoments
from .row_operator import gram, moment_trace

__all__ = ["FieldMoments"]

#: The exact trace is taken where it costs no more than so many forward passes of the layer.
WORTH = 4.0


class FieldMoments:
    r"""Second moment of the patches of single fields, summed over all fields of a representation: all that traces need.

    Where even that is dearer than the layer itself, as for large kernels in space, nothing is summed.
    """

    def __init__(self, layer: LinearMap, blocks: Sequence[WeightBlock]) -> None:
        self._layer, self.rows = layer, 0.0
        self._moments: dict[Any, Any] = {}
        self._members: dict[tuple[Any, ...], Tensor] = {}
        single = LinearMap((), None, layer.places)
        for block in blocks:
            for piece in block.pieces:
                key = _kind(block, piece)
                if key not in self._moments and _affordable(layer, block, piece):
                    self._moments[key], self._members[key] = PatchMoments(single), piece.channels

    def add(self, inputs: Sequence[Tensor], counts: Tensor | None = None) -> None:
        """Add one minibatch: the inputs of all uses of the layer; see :func:`~.moments.weigh_samples`."""
        for input in inputs:
            places = self._layer.places
            self.rows += number(input, counts) * places.table(places.shape(input)).shape[1]
            input = weigh_samples(input, counts)
            axis = -1 if places.channels_last else 1
            grouped = at_least_single(input).unflatten(axis, (self._layer.groups, -1))
            for key, moments in self._moments.items():
                channels = self._members[key].to(input.device)
                group = grouped.select(-2 if places.channels_last else 1, key[0])
                fields = group.index_select(axis, channels.flatten()).unflatten(axis, channels.shape)
                moments.add([fields.movedim(-2 if places.channels_last else 1, 1).flatten(0, 1)])

    def gather(self) -> None:
        """Add up those of all processes."""
        self.rows = float(sum_processes(torch.tensor(self.rows, dtype=torch.float64)))
        for moments in self._moments.values():
            moments.gather()

    def trace(self, block: WeightBlock, grams: Sequence[Tensor | None] | None = None) -> float | None:
        """Of the block's A; ``None`` where it was too dear. ``grams`` are those of its pieces, where they are known."""
        total = 0.0
        for index, piece in enumerate(block.pieces):
            key = _kind(block, piece)
            if key not in self._moments:
                return None
            moments = self._moments[key]
            moment = moments.mean[0] * (moments.rows / (self.rows or 1.0))
            if grams is None:
                _, basis = row_basis(piece, moment)
                total += moment_trace(moment, None if basis is None else gram(basis))
            else:
                total += moment_trace(moment, grams[index])
        return total / block.channels.shape[1]


def _kind(block: WeightBlock, piece: Piece) -> tuple[Any, ...]:
    return block.group, tuple(piece.channels.flatten().tolist())


def _affordable(layer: LinearMap, block: WeightBlock, piece: Piece) -> bool:
    """Against one forward pass of the layer, in multiplications."""
    sites = 1 if piece.basis is None else piece.basis.shape[-1]
    if isinstance(layer.places, Window):
        sites = torch.Size(layer.places.kernel_size).numel()
    saved = 1
    if isinstance(layer.places, Window) and len(layer.places.kernel_size) == 2 and layer.places.stride[0] == 1:
        saved = layer.places.kernel_size[0]  # second moments go row by row
    return piece.channels.shape[1] * sites / saved <= WORTH * max(block.channels.numel(), 64)
