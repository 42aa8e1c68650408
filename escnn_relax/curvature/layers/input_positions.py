"""Where a layer reads: for each place at which the weights are used, the input sites under the kernel.

All layers with shared weights differ in this table only: padding modes, strides, dilations, transposition.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Places", "Everywhere", "Channelwise", "Window", "TransposedWindow"]


class Places(ABC):
    """The reading pattern of a layer. Inputs are ``(N, channels, sites)`` when they come here flattened."""

    #: whether the last dimension holds the channels, as in ``nn.Linear``, and not the second one
    channels_last = False

    def flatten(self, tensor: Tensor) -> Tensor:
        """A layer's input, or the gradient of its output, as ``(N, channels, sites)``."""
        if self.channels_last:
            return tensor.reshape(len(tensor), -1, tensor.shape[-1]).transpose(1, 2)
        return tensor.flatten(2) if tensor.dim() > 2 else tensor.unsqueeze(-1)

    def shape(self, input: Tensor) -> tuple[int, ...]:
        """What of the input's shape decides the table."""
        return tuple(input.shape[1:-1]) if self.channels_last else tuple(input.shape[2:])

    @abstractmethod
    def table(self, shape: tuple[int, ...]) -> Tensor:
        """Input site under each kernel site S at each place R, shape ``(S, R)``; the number of sites stands for
        zero."""

    def patches(self, input: Tensor) -> Tensor:
        """What the kernel sees, shape ``(N, channels * S, R)``."""
        flat = self.flatten(input)
        table = self.table(self.shape(input)).to(flat.device)
        return F.pad(flat, (0, 1))[..., table].flatten(1, 2)

    def counts(self, shape: tuple[int, ...]) -> Tensor:
        """How often each kernel site reads each input site, shape ``(sites, S)``."""
        table = self.table(shape)
        counts = torch.zeros(table.shape[0], _size(shape) + 1)
        return counts.scatter_add_(1, table, torch.ones(table.shape))[:, :-1].T


@dataclass(frozen=True)
class Everywhere(Places):
    """A linear layer: each position of the input is a place, and is all that is read there."""

    channels_last = True

    def table(self, shape: tuple[int, ...]) -> Tensor:
        return torch.arange(_size(shape)).unsqueeze(0)

    def patches(self, input: Tensor) -> Tensor:
        return self.flatten(input)


@dataclass(frozen=True)
class Channelwise(Places):
    """A layer with the channels in the second dimension that reads each site by itself."""

    def table(self, shape: tuple[int, ...]) -> Tensor:
        return torch.arange(_size(shape)).unsqueeze(0)

    def patches(self, input: Tensor) -> Tensor:
        return self.flatten(input)


@dataclass(frozen=True)
class Window(Places):
    """A convolution."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[int, ...]
    padding_mode: str = "zeros"

    def table(self, shape: tuple[int, ...]) -> Tensor:
        return _window_table(self, shape)

    def patches(self, input: Tensor) -> Tensor:
        if len(self.kernel_size) != 2:
            return super().patches(input)
        padding: tuple[int, ...] | int = self.padding
        if self.padding_mode != "zeros" and any(self.padding):
            input, padding = F.pad(input, _both_sides(self.padding), mode=self.padding_mode), 0
        if set(self.kernel_size) == set(self.stride) == {1} and not any(self.padding):
            return input.flatten(2)
        return F.unfold(input, self.kernel_size, self.dilation, padding, self.stride)


@dataclass(frozen=True)
class TransposedWindow(Places):
    """A transposed convolution, which is a convolution of the input spread out by its stride, with the kernel
    reversed."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[int, ...]
    output_padding: tuple[int, ...]

    def table(self, shape: tuple[int, ...]) -> Tensor:
        return _transposed_table(self, shape)


@lru_cache(maxsize=64)
def _window_table(window: Window, shape: tuple[int, ...]) -> Tensor:
    sites = torch.arange(_size(shape), dtype=torch.float64).view(1, 1, *shape)
    if any(window.padding):
        if window.padding_mode == "zeros":
            sites = F.pad(sites, _both_sides(window.padding), value=_size(shape))
        else:
            sites = F.pad(sites, _both_sides(window.padding), mode=window.padding_mode)
    return _slide(sites[0, 0].long(), window.kernel_size, window.stride, window.dilation)


@lru_cache(maxsize=64)
def _transposed_table(window: TransposedWindow, shape: tuple[int, ...]) -> Tensor:
    spread = [(n - 1) * s + 1 for n, s in zip(shape, window.stride)]
    sites = torch.full(spread, _size(shape))
    sites[tuple(slice(None, None, s) for s in window.stride)] = torch.arange(_size(shape)).view(shape)
    margins = []
    for k, d, p, extra in zip(window.kernel_size, window.dilation, window.padding, window.output_padding):
        margins.append((d * (k - 1) - p, d * (k - 1) - p + extra))
    sites = F.pad(sites, [m for pair in reversed(margins) for m in pair], value=_size(shape))
    return _slide(sites, window.kernel_size, (1,) * len(shape), window.dilation).flip(0)


def _slide(sites: Tensor, kernel_size: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> Tensor:
    """Slide a window over a grid of sites, shape ``(S, R)``."""
    axes, d = [], sites.dim()
    for axis, (n, k, s, e) in enumerate(zip(sites.shape, kernel_size, stride, dilation)):
        index = e * torch.arange(k).unsqueeze(1) + s * torch.arange((n - e * (k - 1) - 1) // s + 1)
        around = [1] * (2 * d)
        around[axis], around[d + axis] = index.shape
        axes.append(index.view(around))
    return sites[tuple(axes)].flatten(0, d - 1).flatten(1)


def _size(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


def _both_sides(padding: tuple[int, ...]) -> list[int]:
    return [p for p in reversed(padding) for _ in range(2)]
