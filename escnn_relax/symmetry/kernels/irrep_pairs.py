r"""Kernels between two representations, kept by the pairs of irreps between which each of them maps.

With orthogonal changes of basis, :math:`\rho = Q (\psi_1 \oplus \psi_2 \oplus \dots) Q^\top`, a kernel from the b-th
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

__all__ = ["Between", "Composed", "Frame", "Kernels", "frame_of", "irrep_places"]


class Between(NamedTuple):
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

    def places(self, part: Between) -> Tensor:
        """Where the numbers of each copy stand among ``(out size, in size, r)``, shape ``(copies, numbers)``."""
        _, height, width, r = part.kernels.shape
        rows = torch.tensor(part.outs)[:, None, None, None, None] + torch.arange(height)[:, None, None]
        columns = torch.tensor(part.ins)[:, None, None, None] + torch.arange(width)[:, None]
        return ((rows * len(self.in_change) + columns) * r + torch.arange(r)).flatten(2).flatten(0, 1)

    def turned(self, kernels: Tensor) -> Tensor:
        """Kernels ``(K, out size, in size, S)`` in these coordinates, ``(K, out size, in size, r)``."""
        return torch.einsum("oa,kois,ib->kabs", self.out_change, self.pictured(kernels), self.in_change)

    def pictured(self, kernels: Tensor) -> Tensor:
        """Kernels on pixels, ``(..., S)``, in the coordinates of the pictures, ``(..., r)``."""
        return kernels if self.pictures is None else kernels @ self.pictures.T

    def back(self, kernels: Tensor) -> Tensor:
        """The inverse of :meth:`turned`."""
        kernels = kernels if self.pictures is None else kernels @ self.pictures
        return torch.einsum("oa,kabs,ib->kois", self.out_change, kernels, self.in_change)


def irrep_places(representation: Representation) -> dict[Any, tuple[int, ...]]:
    """For each irrep the first channels of its copies, in the coordinates of the irreps."""
    places: dict[Any, tuple[int, ...]] = {}
    position = 0
    for id in representation.irreps:
        places[id] = (*places.get(id, ()), position)
        position += representation.group.irrep(*id).size
    return places


def frame_of(in_repr: Representation, out_repr: Representation, pictures: Tensor | None, sites: int) -> Frame | None:
    """The frame of two representations, ``None`` where these are not orthogonal."""
    outs, ins = orthogonal_change(out_repr), orthogonal_change(in_repr)
    return None if outs is None or ins is None else Frame(outs, ins, pictures, sites)


@dataclass(frozen=True)
class Composed:
    """Kernels between two representations: for each of ``parts`` all copies of it, the output's outermost.

    Attributes:
        frame: the coordinates that the parts are in.
        parts: kernels by pairs of irreps.
    """

    frame: Frame
    parts: tuple[Between, ...]

    def __len__(self) -> int:
        return sum(part.copies * len(part.kernels) for part in self.parts)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """That of the dense stack: ``(K, out size, in size, S)``."""
        return len(self), len(self.frame.out_change), len(self.frame.in_change), self.frame.sites

    def numel(self) -> int:
        """Numbers of the dense stack."""
        count, out, size, sites = self.shape
        return count * out * size * sites

    def turned(self) -> Tensor:
        """The stack of all kernels in the coordinates of the frame, ``(K, out size, in size, r)``."""
        _, out, size, _ = self.shape
        stacks = [self.frame.out_change.new_zeros(0, out * size * self.frame.depth)]
        for part in self.parts:
            stack = part.kernels.new_zeros(part.copies, len(part.kernels), stacks[0].shape[1])
            for at, copy in zip(self.frame.places(part), stack):
                copy[:, at] = part.kernels.flatten(1)
            stacks.append(stack.flatten(0, 1))
        return torch.cat(stacks).view(-1, out, size, self.frame.depth)

    def dense(self) -> Tensor:
        """The stack of all kernels, ``(K, out size, in size, S)``."""
        return self.frame.back(self.turned())


#: The kernels of one pathway between two representations: all of them, or by pairs of irreps.
Kernels = Tensor | Composed
