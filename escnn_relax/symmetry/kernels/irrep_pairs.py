r"""Kernels between two representations, kept by the pairs of irreps between which each of them maps.

With orthogonal changes of basis, :math:`\rho = Q (\psi_1 \oplus \psi_2 \oplus \ldots) Q^\top`, a kernel from the b-th
irrep of the input to the a-th of the output is :math:`Q_{out}[:, a] \, K \, Q_{in}[:, b]^\top`. Kernels of different a
or b are orthogonal, whatever they are; so the pathways of two representations are those of all pairs of their irreps,
and those of equal pairs are equal. Of a regular field of the octahedral group, 3 x 3 x 3, 5760 kernels of 15 552
numbers are kept as 155 520 numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from escnn.group import Representation
from torch import Tensor

from .input_irreps import orthogonal_change

__all__ = ["IrrepBlock", "BlockKernels", "Frame", "Kernels", "make_frame", "irrep_channels"]


class IrrepBlock(NamedTuple):
    """Kernels from one irrep to another, and where the two stand.

    Attributes:
        outs, ins: the first channel, in the coordinates of the irreps, of each copy in the output and in the input.
        kernels: ``(K, out irrep size, in irrep size, r)``.
    """

    outs: tuple[int, ...]
    ins: tuple[int, ...]
    kernels: Tensor

    @property
    def copies(self) -> int:
        """Pairs of a copy in the output and one in the input."""
        return len(self.outs) * len(self.ins)


@dataclass(frozen=True)
class Frame:
    """The coordinates of the irreps of an output and an input, and of the pictures that kernels are made of.

    Attributes:
        out_change, in_change: orthogonal, ``(size, size)``, columns by irrep.
        pictures: orthonormal, ``(r, S)``; ``None`` for the pixels themselves.
        sites: pixels, S.
    """

    out_change: Tensor
    in_change: Tensor
    pictures: Tensor | None
    sites: int

    @property
    def depth(self) -> int:
        """Numbers of a kernel between two channels, r."""
        return self.sites if self.pictures is None else len(self.pictures)

    def channel_indices(self, block: IrrepBlock) -> Tensor:
        """Where the numbers of each copy stand among ``(out size, in size, r)``, shape ``(copies, numbers)``."""
        _, height, width, r = block.kernels.shape
        rows = torch.tensor(block.outs)[:, None, None, None, None] + torch.arange(height)[:, None, None]
        columns = torch.tensor(block.ins)[:, None, None, None] + torch.arange(width)[:, None]
        return ((rows * len(self.in_change) + columns) * r + torch.arange(r)).flatten(2).flatten(0, 1)

    def coordinates(self, kernels: Tensor) -> Tensor:
        """Kernels ``(K, out size, in size, S)`` in these coordinates, ``(K, out size, in size, r)``."""
        return torch.einsum("oa,kois,ib->kabs", self.out_change, self.project(kernels), self.in_change)

    def project(self, kernels: Tensor) -> Tensor:
        """Kernels on pixels, ``(..., S)``, in the coordinates of the pictures, ``(..., r)``."""
        return kernels if self.pictures is None else kernels @ self.pictures.T

    def restore(self, kernels: Tensor) -> Tensor:
        """The inverse of :meth:`coordinates`."""
        kernels = kernels if self.pictures is None else kernels @ self.pictures
        return torch.einsum("oa,kabs,ib->kois", self.out_change, kernels, self.in_change)


def irrep_channels(representation: Representation) -> dict[Any, tuple[int, ...]]:
    """For each irrep the first channels of its copies, in the coordinates of the irreps."""
    channels: dict[Any, tuple[int, ...]] = {}
    position = 0
    for id in representation.irreps:
        channels[id] = (*channels.get(id, ()), position)
        position += representation.group.irrep(*id).size
    return channels


def make_frame(in_repr: Representation, out_repr: Representation, pictures: Tensor | None, sites: int) -> Frame | None:
    """The frame of two representations, ``None`` where these are not orthogonal."""
    outs, ins = orthogonal_change(out_repr), orthogonal_change(in_repr)
    return None if outs is None or ins is None else Frame(outs, ins, pictures, sites)


@dataclass(frozen=True)
class BlockKernels:
    """Kernels between two representations: for each of ``blocks`` all copies of it, the output's outermost.

    Attributes:
        frame: the coordinates that the parts are in.
        blocks: kernels by pairs of irreps.
    """

    frame: Frame
    blocks: tuple[IrrepBlock, ...]

    def __len__(self) -> int:
        return sum(block.copies * len(block.kernels) for block in self.blocks)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """That of the dense stack: ``(K, out size, in size, S)``."""
        return len(self), len(self.frame.out_change), len(self.frame.in_change), self.frame.sites

    def numel(self) -> int:
        """Numbers of the dense stack."""
        count, out, size, sites = self.shape
        return count * out * size * sites

    def coordinates(self) -> Tensor:
        """The stack of all kernels in the coordinates of the frame, ``(K, out size, in size, r)``."""
        _, out, size, _ = self.shape
        stacks = [self.frame.out_change.new_zeros(0, out * size * self.frame.depth)]
        for block in self.blocks:
            stack = block.kernels.new_zeros(block.copies, len(block.kernels), stacks[0].shape[1])
            for indices, copy in zip(self.frame.channel_indices(block), stack):
                copy[:, indices] = block.kernels.flatten(1)
            stacks.append(stack.flatten(0, 1))
        return torch.cat(stacks).view(-1, out, size, self.frame.depth)

    def dense(self) -> Tensor:
        """The stack of all kernels, ``(K, out size, in size, S)``."""
        return self.frame.restore(self.coordinates())


#: The kernels of one pathway between two representations: all of them, or by pairs of irreps.
Kernels = Tensor | BlockKernels
