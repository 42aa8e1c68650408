"""Layers as linear maps with shared weights: what they read, and how their weights see it.

Each supported layer becomes a :class:`LinearMap`: patches of its input, and one :class:`WeightBlock` for each set of weights
that gets a curvature factor of its own. Everything else (which patches, which sums) is the same for all layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch
from typing import Optional

import torch
from escnn.nn import R2Conv
from torch import Tensor, nn
from torch.nn import functional as F
from unfoldNd import unfoldNd

from .. import _escnn
from ..errors import UnsupportedModuleError
from ..nn.kernel import PathwayKernel
from ..nn.relaxed import RelaxedConvolution

__all__ = ["LinearMap", "WeightBlock", "Piece", "linear_map", "is_covered"]


@dataclass(frozen=True)
class Piece:
    """The part of a weight block that reads the fields of one representation.

    Attributes:
        channels: input channels of the fields, within one convolution group, shape ``(I, i)``.
        basis: sampled kernels, shape ``(K, o, i, S)``; ``None`` for the identity (plain layers: K = S, o = i = 1).
    """

    channels: Tensor
    basis: Optional[Tensor]


@dataclass(frozen=True)
class WeightBlock:
    """Weights ``(O, D)``: from some input fields to the output fields of one representation, in one convolution group.

    Attributes:
        parameter: name of the parameter within its layer; several blocks may share one parameter.
        group: the convolution group.
        channels: output channels of the fields, within the group, shape ``(O, o)``.
        pieces: the input side, in the order of the rows.
    """

    parameter: str
    group: int
    channels: Tensor
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class LinearMap:
    """A layer as the curvature sees it.

    Attributes:
        blocks: the weight blocks.
        bias: the expansion of the bias coefficients, shape ``(out channels, coefficients)``, or ``None``.
        groups: number of convolution groups.
        kernel_size: spatial size of the kernel, empty for a linear layer.
    """

    blocks: tuple[WeightBlock, ...]
    bias: Optional[Tensor]
    groups: int = 1
    kernel_size: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    padding_mode: str = "zeros"

    def patches(self, input: Tensor) -> Tensor:
        """What the kernel sees at each output site, shape ``(N, groups, in channels / groups * S, sites)``."""
        if not self.kernel_size:
            return input.reshape(len(input), -1, input.shape[-1]).transpose(1, 2).unsqueeze(1)
        if any(self.padding):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            input = F.pad(input, [p for p in reversed(self.padding) for _ in range(2)], mode=mode)
        if set(self.kernel_size) == {1} and set(self.stride) == {1}:
            columns = input.flatten(2)
        else:
            unfold = F.unfold if len(self.kernel_size) == 2 else unfoldNd
            columns = unfold(input, self.kernel_size, dilation=self.dilation, padding=0, stride=self.stride)
        return columns.unflatten(1, (self.groups, -1))

    def gradients(self, gradient: Tensor) -> Tensor:
        """Output gradients as ``(N, groups, out channels / groups, sites)``."""
        if not self.kernel_size:
            return gradient.reshape(len(gradient), -1, gradient.shape[-1]).transpose(1, 2).unsqueeze(1)
        return gradient.flatten(2).unflatten(1, (self.groups, -1))


@singledispatch
def linear_map(module: nn.Module, where: str = "") -> LinearMap:
    """The linear map of a supported layer; ``UnsupportedModuleError`` for others.

    >>> linear_map(nn.Linear(3, 2)).blocks[0].channels.shape
    torch.Size([2, 1])
    """
    raise UnsupportedModuleError(
        where, f"no curvature is known for a {type(module).__name__}", remedy="freeze its parameters"
    )


def is_covered(module: nn.Module) -> bool:
    """Whether the curvature knows this layer."""
    return linear_map.dispatch(type(module)) is not linear_map.dispatch(object)


@linear_map.register
def _(module: nn.Linear, where: str = "") -> LinearMap:
    return _plain(module, module.out_features, module.in_features, 1)


@linear_map.register(nn.Conv1d)
@linear_map.register(nn.Conv2d)
@linear_map.register(nn.Conv3d)
def _(module, where: str = "") -> LinearMap:
    padding = module.padding
    if padding == "valid":
        padding = (0,) * len(module.kernel_size)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size)]
        if any(t % 2 for t in total):
            raise UnsupportedModuleError(
                where, "padding='same' is lopsided for an even kernel", remedy="pad by hand before the layer"
            )
        padding = tuple(t // 2 for t in total)
    return _plain(
        module,
        module.out_channels,
        module.in_channels,
        module.groups,
        kernel_size=module.kernel_size,
        stride=module.stride,
        dilation=module.dilation,
        padding=padding,
        padding_mode=module.padding_mode,
    )


@linear_map.register
def _(module: RelaxedConvolution, where: str = "") -> LinearMap:
    blocks = [b for p in module.pathways for b in _steerable(f"weights.{p.name}", module.kernel, p.name, module.groups)]
    return _convolution(module, blocks)


@linear_map.register
def _(module: R2Conv, where: str = "") -> LinearMap:
    in_reprs = module.in_type.representations[: len(module.in_type) // module.groups]
    bases = {(i, o): basis.detach() for i, o, basis, _ in _escnn.blocks(module.basisexpansion)}
    kernel = PathwayKernel(in_reprs, module.out_type.representations, {"equivariant": bases}).to(module.weights)
    return _convolution(module, _steerable("weights", kernel, "equivariant", module.groups))


def _convolution(module, blocks: list[WeightBlock]) -> LinearMap:
    tupled = {
        name: value if isinstance(value, tuple) else (value,) * module.d
        for name in ("kernel_size", "stride", "dilation", "padding")
        for value in [getattr(module, name)]
    }
    bias = None if module.bias is None else module.bias_expansion
    return LinearMap(tuple(blocks), bias, module.groups, padding_mode=module.padding_mode, **tupled)


def _plain(module, outputs: int, inputs: int, groups: int, **geometry) -> LinearMap:
    """Every channel is a field of size 1, and every weight a basis element."""
    out, into = outputs // groups, inputs // groups
    piece = Piece(torch.arange(into).unsqueeze(1), None)
    blocks = [WeightBlock("weight", g, torch.arange(out).unsqueeze(1), (piece,)) for g in range(groups)]
    bias = None if module.bias is None else torch.eye(outputs).to(module.bias)
    return LinearMap(tuple(blocks), bias, groups, **geometry)


def _steerable(parameter: str, kernel: PathwayKernel, pathway: str, groups: int) -> list[WeightBlock]:
    found = []
    per_group = kernel.out_size // groups
    for name, fields in kernel.out_fields.items():
        pieces = tuple(
            Piece(kernel.in_fields[b.in_name].channels, kernel.basis(b).detach())
            for b in kernel.blocks[pathway]
            if b.out_name == name
        )
        if pieces:
            for g, channels in enumerate(fields.channels.chunk(groups)):
                found.append(WeightBlock(parameter, g, channels - g * per_group, pieces))
    return found
