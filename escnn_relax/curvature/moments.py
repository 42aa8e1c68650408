"""Second moments: sums of outer products over the data, of what a layer reads in particular."""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .conventions import FACTOR_DTYPE
from .linear_map import LinearMap

__all__ = ["Moments", "PatchMoments", "MeanPatchMoments"]

#: Sums in the network's own precision are carried over to float64 after so many rows.
FLUSH = 1 << 16

#: Largest side of a second moment of whole inputs (its memory is eight times the square, 128 MiB).
LARGEST_INPUT = 4096


class Moments:
    r""":math:`\sum_r x_r x_r^\top` for batches of columns, shape ``(groups, D, rows)``; float64 at the end."""

    def __init__(self) -> None:
        self.rows = 0
        self._total: Tensor | float = 0.0
        self._partial: Tensor | None = None
        self._pending = 0

    def add(self, columns: Tensor) -> None:
        """Add the outer products of all columns."""
        columns = columns if columns.dtype in (torch.float32, torch.float64) else columns.float()
        rows = columns.transpose(-1, -2)
        if self._partial is None:
            self._partial = columns @ rows
        elif columns.dim() == 2:
            self._partial.addmm_(columns, rows)
        else:
            self._partial.baddbmm_(columns, rows)
        self.rows += columns.shape[-1]
        self._pending += columns.shape[-1]
        if self._pending >= FLUSH:
            self._flush()

    def _flush(self) -> None:
        if self._partial is not None:
            self._total = self._total + self._partial.to(FACTOR_DTYPE)
        self._partial, self._pending = None, 0

    @property
    def total(self) -> Tensor:
        """The sum so far, shape ``(groups, D, D)``, float64."""
        self._flush()
        return self._total


class PatchMoments:
    """Second moment of patches, ``(groups, C S, C S)``, with every place a row of its own.

    Small inputs with large kernels overlap so much that it is cheaper to take the second moment of whole inputs, and
    to sum it over the windows once at the end. Both ways are exact.
    """

    def __init__(self, layer: LinearMap) -> None:
        self._layer = layer
        self._patches = Moments()
        self._inputs: dict[tuple[int, ...], Moments] = {}
        self.rows = 0

    def add(self, inputs: Sequence[Tensor]) -> None:
        """Add one minibatch: the inputs of all uses of the layer."""
        for input in inputs:
            shape = self._layer.places.shape(input)
            table = self._layer.places.table(shape)
            self.rows += len(input) * table.shape[1]
            flat = self._layer.places.flatten(input)
            channels, sites = flat.shape[1] // self._layer.groups, flat.shape[2]
            if _whole_is_cheaper(channels, sites, table):
                whole = flat.reshape(len(flat), self._layer.groups, channels * sites).permute(1, 2, 0)
                self._inputs.setdefault((*shape, channels), Moments()).add(whole)
            else:
                self._patches.add(self._layer.patches(input).permute(1, 2, 0, 3).flatten(2))

    @property
    def mean(self) -> Tensor:
        """Divided by the number of rows, float64."""
        total: Tensor | float = self._patches.total
        for (*shape, channels), moments in self._inputs.items():
            total = total + _windowed(moments.total, channels, self._layer.places.table(tuple(shape)))
        return total / self.rows


class MeanPatchMoments:
    """Second moment of each sample's mean patch, ``(groups, C S, C S)``."""

    def __init__(self, layer: LinearMap) -> None:
        self._layer = layer
        self._moments = Moments()

    def add(self, inputs: Sequence[Tensor]) -> None:
        """Add one minibatch: the inputs of all uses of the layer, whose places are averaged together."""
        total: Tensor | float = 0.0
        places = 0
        for input in inputs:
            shape = self._layer.places.shape(input)
            counts = self._layer.places.counts(shape).to(input)
            places += self._layer.places.table(shape).shape[1]
            total = total + (self._layer.places.flatten(input) @ counts).flatten(1)
        self._moments.add((total / places).unflatten(1, (self._layer.groups, -1)).permute(1, 2, 0))

    @property
    def rows(self) -> int:
        """How many samples there were."""
        return self._moments.rows

    @property
    def mean(self) -> Tensor:
        """Divided by the number of samples, float64."""
        return self._moments.total / self._moments.rows


def _whole_is_cheaper(channels: int, sites: int, table: Tensor) -> bool:
    width, places = table.shape
    whole = channels * sites
    return width > 1 and whole <= LARGEST_INPUT and whole**2 < places * (channels * width) ** 2


def _windowed(moments: Tensor, channels: int, table: Tensor) -> Tensor:
    """From the second moment of whole inputs ``(groups, C sites, C sites)`` to that of all patches."""
    width = table.shape[0]
    padded = F.pad(moments.unflatten(2, (channels, -1)).unflatten(1, (channels, -1)), (0, 1, 0, 0, 0, 1))
    sites = padded.shape[-1]
    table = table.to(moments.device)
    windowed = []
    for of_group in padded:  # (C, sites, C, sites)
        pairs = of_group.permute(1, 3, 0, 2).reshape(sites * sites, channels * channels)
        rows = [F.embedding_bag(table[s] * sites + table, pairs, mode="sum") for s in range(width)]  # each (S, C C)
        whole = torch.stack(rows).view(width, width, channels, channels)
        windowed.append(whole.permute(2, 0, 3, 1).reshape(channels * width, channels * width))
    return torch.stack(windowed)
