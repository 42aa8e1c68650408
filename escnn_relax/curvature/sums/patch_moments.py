"""Second moments of patches, by whichever of three exact ways is the cheapest for the shape at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.nn import functional as F

from ..conventions import FACTOR_DTYPE
from ..distributed import sum_processes
from ..enough_data import INPUTS, PLENTY
from ..layers.input_positions import Places, Window
from ..layers.linear_map import LinearMap
from .moments import Moments, number, weigh_samples

__all__ = ["PatchMoments", "RowMoments"]

#: Largest side of a second moment of whole inputs (its memory is eight times the square, 128 MiB).
LARGEST_INPUT = 4096


#: Numbers in the patches that are formed at a time: it bounds the memory, and small parts stay in the processor's
#: cache.
LARGEST_CHUNK = 1 << 22


class PatchMoments:
    """Mean outer product of patches, ``(groups, C S, C S)``, with every place a row of its own.

    Patches overlap, so forming them all and multiplying is wasteful. For small inputs it is cheaper to take the second
    moment of whole inputs and sum it over the windows once at the end, else to go row by row (:class:`RowMoments`).
    """

    def __init__(self, layer: LinearMap) -> None:
        self._layer = layer
        self._sums: dict[tuple[Any, ...], _Patches | _Whole | RowMoments] = {}
        self.rows, self.side = 0.0, 0
        self._seen = 0
        self._gathered: Tensor | None = None

    def gather(self) -> None:
        """Add up those of all processes."""
        self._gathered = sum_processes(self._total)
        self.rows = float(sum_processes(torch.tensor(self.rows, dtype=FACTOR_DTYPE)))

    def add(self, inputs: Sequence[Tensor], counts: Tensor | None = None, total: int | None = None) -> None:
        """Add one minibatch: the inputs of all uses of the layer; see :func:`~.moments.weigh_samples`.

        Args:
            total: samples of all minibatches; where these are plenty, evenly spaced ones are taken.
        """
        first, self._seen = self._seen, self._seen + len(inputs[0])
        for whole in inputs:
            shape = self._layer.places.shape(whole)
            if shape not in self._sums:
                self._sums[shape] = self._cheapest(whole, shape)
            width, count = self._layer.places.table(shape).shape
            channels = self._layer.places.flatten(whole[:1]).shape[1]
            self.side = max(self.side, channels // self._layer.groups * width)
            step = 1 if total is None else max(1, min(int(total * count / (PLENTY * self.side)), total // INPUTS))
            input, weights = whole[-first % step :: step], counts
            if counts is not None:
                weights = counts[-first % step :: step]
            if not len(input):
                continue
            self.rows += number(input, weights) * count
            patches = channels * width * count  # of a sample, if all are formed
            size = max(1, LARGEST_CHUNK // patches)
            chunk_counts = [None] * len(input) if weights is None else weights.split(size)
            for chunk, chunk_count in zip(input.split(size), chunk_counts):
                self._sums[shape].add(weigh_samples(chunk, chunk_count))

    @property
    def mean(self) -> Tensor:
        """Divided by the number of rows, float64."""
        return (self._total if self._gathered is None else self._gathered) / (self.rows or 1.0)

    @property
    def _total(self) -> Tensor:
        totals = [sums.total for sums in self._sums.values()]
        return sum(totals[1:], totals[0])

    def _cheapest(self, input: Tensor, shape: tuple[int, ...]) -> _Patches | _Whole | RowMoments:
        """By the number of multiplications a sample."""
        places, groups = self._layer.places, self._layer.groups
        channels = places.flatten(input[:1]).shape[1] // groups
        sites, (width, count) = torch.Size(shape).numel(), places.table(shape).shape
        costs: dict[type[Any], int] = {_Patches: count * (channels * width) ** 2}
        if width > 1 and channels * sites <= LARGEST_INPUT:
            costs[_Whole] = (channels * sites) ** 2
        if RowMoments.applies(places, shape):
            kernel, across = places.kernel_size, count // _height(places, shape)
            costs[RowMoments] = kernel[0] * shape[0] * across * (channels * kernel[1]) ** 2
        kind = min(costs, key=costs.__getitem__)
        if kind is RowMoments and isinstance(places, Window):
            return RowMoments(places, groups, shape)
        return kind(self._layer, shape)


class _Patches:
    """Form the patches, and multiply."""

    def __init__(self, layer: LinearMap, shape: tuple[int, ...]) -> None:
        self._layer, self._moments = layer, Moments()

    def add(self, input: Tensor) -> None:
        self._moments.add(self._layer.patches(input).permute(1, 2, 0, 3).flatten(2))

    @property
    def total(self) -> Tensor:
        return self._moments.total


class _Whole:
    """Multiply whole inputs, and sum over the windows at the end."""

    def __init__(self, layer: LinearMap, shape: tuple[int, ...]) -> None:
        self._layer, self._shape, self._moments = layer, shape, Moments()

    def add(self, input: Tensor) -> None:
        flat = self._layer.places.flatten(input)
        self._moments.add(flat.reshape(len(flat), self._layer.groups, -1).permute(1, 2, 0))

    @property
    def total(self) -> Tensor:
        return _sum_windows(self._moments.total, self._layer.places.table(self._shape), torch.Size(self._shape).numel())


class RowMoments:
    """Patches of a convolution in the plane with vertical stride 1, row by row, for inputs of one shape.

    Two kernel rows j and j' read two image rows that are always the same distance apart. So what the pair contributes,
    summed over all places, is a sum over image rows u of products of row u with row u + (j' - j), over the rows that
    the window reaches; pairs with the same distance share all but the rows at the border. Patches are formed along rows
    only, and products are taken once for each distance instead of once for each pair of kernel rows: for a k x k
    kernel, about k times less work. Exact.

    Args:
        window: the convolution.
        groups: its groups.
        shape: height and width of the input.
    """

    def __init__(self, window: Window, groups: int, shape: tuple[int, ...]) -> None:
        self.window, self.groups = window, groups
        padded = window.padding_mode != "zeros"
        self._margin = 0 if padded else window.padding[0]  # rows of zeros are left out, others are really there
        self._height = shape[0] + (2 * window.padding[0] if padded else 0)
        self._reach = self._height + 2 * self._margin - window.dilation[0] * (window.kernel_size[0] - 1)
        self._sums: dict[tuple[int, int, int], Moments] = {}

    @staticmethod
    def applies(places: Places, shape: tuple[int, ...]) -> TypeGuard[Window]:
        """Whether this way of summing is possible."""
        return isinstance(places, Window) and len(shape) == 2 and places.stride[0] == 1 and places.kernel_size[0] > 1

    def add(self, input: Tensor) -> None:
        """Add a minibatch ``(N, channels, height, width)``."""
        window, dilation = self.window, self.window.dilation[0]
        padding = (0, window.padding[1])
        if window.padding_mode != "zeros":
            across, down = window.padding[1], window.padding[0]
            input, padding = F.pad(input, [across, across, down, down], mode=window.padding_mode), (0, 0)
        along = F.unfold(input, (1, window.kernel_size[1]), (1, window.dilation[1]), padding, (1, window.stride[1]))
        rows = along.view(len(input), self.groups, -1, self._height, along.shape[-1] // self._height)
        rows = rows.permute(1, 2, 3, 0, 4).flatten(3)  # (groups, C k, height, N width)
        for lag in range(window.kernel_size[0]):
            for start, stop in self._bands(lag):
                upper = rows[:, :, start:stop].flatten(2)
                lower = rows[:, :, start + lag * dilation : stop + lag * dilation].flatten(2)
                self._sums.setdefault((lag, start, stop), Moments()).add(upper, lower)

    def _bands(self, lag: int) -> list[tuple[int, int]]:
        """Rows of the image to be summed apart: those that all kernel rows reach together, the others one by one."""
        last = self._height - lag * self.window.dilation[0]
        start, stop = self._image_rows(self.window.kernel_size[0] - 1 - lag)[0], min(self._image_rows(0)[1], last)
        if start >= stop:
            return [(u, u + 1) for u in range(last)]
        return [(start, stop), *((u, u + 1) for u in (*range(start), *range(stop, last)))]

    def _image_rows(self, row: int) -> tuple[int, int]:
        """Image rows that a kernel row reads."""
        first = row * self.window.dilation[0] - self._margin
        return max(first, 0), min(first + self._reach, self._height)

    @property
    def total(self) -> Tensor:
        """Second moment of all patches, ``(groups, C S, C S)``, float64."""
        k, across = self.window.kernel_size[0], self.window.kernel_size[1]
        size = next(iter(self._sums.values())).total.shape[-1] // across
        like = next(iter(self._sums.values())).total
        whole = like.new_zeros(self.groups, size, k, across, size, k, across)
        for lag in range(k):
            for row in range(k - lag):
                first, last = self._image_rows(row)
                block = sum(
                    moments.total
                    for (l, start, stop), moments in self._sums.items()
                    if l == lag and first <= start and stop <= last
                )
                if isinstance(block, int):  # a kernel row that only ever sees padding
                    continue
                block = block.view(self.groups, size, across, size, across)
                whole[:, :, row, :, :, row + lag] = block
                whole[:, :, row + lag, :, :, row] = block.permute(0, 3, 4, 1, 2)
        return whole.flatten(4).flatten(1, 3)


def _height(places: Window, shape: tuple[int, ...]) -> int:
    """Rows of the output of a convolution with vertical stride 1."""
    return shape[0] + 2 * places.padding[0] - places.dilation[0] * (places.kernel_size[0] - 1)


def _sum_windows(moments: Tensor, table: Tensor, sites: int) -> Tensor:
    """From the second moment of whole inputs ``(groups, C sites, C sites)`` to that of all patches."""
    width = table.shape[0]
    padded = F.pad(moments.unflatten(2, (-1, sites)).unflatten(1, (-1, sites)), (0, 1, 0, 0, 0, 1))
    table = table.to(moments.device)
    windowed = []
    for group in padded:  # (C, sites + 1, C, sites + 1)
        channels = len(group)
        pairs = group.permute(1, 3, 0, 2).reshape((sites + 1) ** 2, channels**2)
        rows = [
            F.embedding_bag(table[s] * (sites + 1) + table, pairs, mode="sum") for s in range(width)
        ]  # each (S, C C)
        whole = torch.stack(rows).view(width, width, channels, channels)
        windowed.append(whole.permute(2, 0, 3, 1).reshape(channels * width, channels * width))
    return torch.stack(windowed)
