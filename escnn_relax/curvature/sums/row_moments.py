"""Second moments of the patches of a convolution in the plane, row by row.

Two kernel rows j and j' read two image rows that are always the same distance apart. So what the pair contributes,
summed over all places, is a sum over image rows u of products of row u with row u + (j' - j), over the rows that the
window reaches; pairs with the same distance share all but the rows at the border. Patches are formed along rows only,
and products are taken once for each distance instead of once for each pair of kernel rows: for a k x k kernel, about k
times less work. Exact.
"""

from __future__ import annotations

from typing import TypeGuard

from torch import Tensor
from torch.nn import functional as F

from ..layers.input_positions import Places, Window
from .moments import Moments

__all__ = ["RowMoments"]


class RowMoments:
    """For inputs of one shape and a convolution with vertical stride 1.

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
        start, stop = self._reached(self.window.kernel_size[0] - 1 - lag)[0], min(self._reached(0)[1], last)
        if start >= stop:
            return [(u, u + 1) for u in range(last)]
        return [(start, stop), *((u, u + 1) for u in (*range(start), *range(stop, last)))]

    def _reached(self, row: int) -> tuple[int, int]:
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
                first, last = self._reached(row)
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
