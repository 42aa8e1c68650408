"""Layers as linear maps with shared weights: what they read, and how their weights see it.

Each supported layer becomes a :class:`LinearMap`: the places where it reads its input, and one :class:`WeightBlock` for
each set of weights that gets a Kronecker factor of its own. All else is the same for all layers.
:mod:`~escnn_relax.curvature.layers.known_layers` knows which layer becomes which map.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .input_positions import Places

__all__ = ["LinearMap", "WeightBlock", "Piece", "width"]


@dataclass(frozen=True)
class Piece:
    """The part of a weight block that reads the fields of one representation.

    Attributes:
        channels: input channels of the fields, within one convolution group, shape ``(I, i)``.
        basis: sampled kernels, shape ``(K, o, i, S)``; ``None`` for the identity (plain layers: K = S, o = i = 1).
    """

    channels: Tensor
    basis: Tensor | None


def width(piece: Piece) -> int:
    """How many numbers it reads at a place, where it has a basis; how many channels, where it has none."""
    return piece.channels.numel() * (1 if piece.basis is None else piece.basis.shape[-1])


@dataclass(frozen=True)
class WeightBlock:
    """Weights ``(O, D)``: from some input fields to the output fields of one representation, in one convolution group.

    Attributes:
        parameter: name of the parameter within its layer; several blocks may share one parameter.
        group: the convolution group.
        channels: output channels of the fields, within the group, shape ``(O, o)``.
        pieces: the input side, in the order of the rows.
        positions: where the weights stand in the flattened parameter, shape ``(O, D)``.
        frame: orthonormal axes of an output field, in columns, ``(o, o)``, along which the kernels are sparse; ``None``
            for its own.
    """

    parameter: str
    group: int
    channels: Tensor
    pieces: tuple[Piece, ...]
    positions: Tensor
    frame: Tensor | None = None


@dataclass(frozen=True)
class LinearMap:
    """A layer as the curvature sees it.

    Attributes:
        blocks: the weight blocks.
        bias: the expansion of the bias coefficients, shape ``(out channels, coefficients)``, or ``None``.
        places: where the layer reads its input.
        groups: number of convolution groups.
        prepare: what happens to the input before the weights see it.
    """

    blocks: tuple[WeightBlock, ...]
    bias: Tensor | None
    places: Places
    groups: int = 1
    prepare: Callable[[Tensor], Tensor] = lambda input: input

    def patches(self, input: Tensor) -> Tensor:
        """What the kernel sees at each place, shape ``(N, groups, in channels / groups * S, places)``."""
        return self.places.patches(input).unflatten(1, (self.groups, -1))

    def gradients(self, gradient: Tensor) -> Tensor:
        """Output gradients as ``(N, groups, out channels / groups, places)``."""
        return self.places.flatten(gradient).unflatten(1, (self.groups, -1))

    @property
    def parameters(self) -> dict[str, int]:
        """Size of each parameter that has weight blocks."""
        sizes: dict[str, int] = {}
        for block in self.blocks:
            sizes[block.parameter] = sizes.get(block.parameter, 0) + block.positions.numel()
        return sizes
