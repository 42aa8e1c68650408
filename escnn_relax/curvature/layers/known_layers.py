"""Which layer is which linear map."""

from __future__ import annotations

from functools import singledispatch
from typing import Any

import numpy as np
import torch
from escnn.nn import EquivariantModule, FieldType, Linear, R2Conv, R2ConvTransposed, R3Conv, R3ConvTransposed
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ... import _escnn
from ...errors import UnsupportedModuleError
from ...nn.kernels.pathway_sum import PathwaySum
from ...nn.mixed.kernel import MixtureKernel
from ...nn.steerable import SteerableConvolution
from ...nn.translation.anchors import Anchors
from ...nn.translation.grouped import GroupedLinear
from ...nn.translation.sparse_layers import SparseR2Conv, SparseR3Conv
from .input_positions import Channelwise, Everywhere, Places, TransposedWindow, Window
from .linear_map import LinearMap, Piece, WeightBlock

__all__ = ["alike", "linear_map", "obstacle"]


@singledispatch
def linear_map(module: nn.Module) -> LinearMap:
    """The linear map of a supported layer; ``UnsupportedModuleError`` for others.

    >>> linear_map(nn.Linear(3, 2)).blocks[0].channels.shape
    torch.Size([2, 1])
    """
    raise UnsupportedModuleError(
        type(module), f"no curvature is known for a {type(module).__name__}", remedy="freeze its parameters"
    )


def obstacle(module: nn.Module, normalisation: bool = False) -> str:
    """Why the curvature does not know this layer; empty if it does.

    A subclass is known if it computes what its parent does: if it has the parent's ``forward``.

    Args:
        normalisation: whether scales and shifts of batch normalisation are wanted.
    """
    kind = type(module).__name__
    known = next(
        (parent for parent in type(module).__mro__ if parent in linear_map.registry and parent is not object), None
    )
    if any(base.__name__ in ("R2PointConv", "R3PointConv") for base in type(module).__mro__):
        return f"{kind} reads one graph of all samples' points, in which the samples cannot be told apart"
    if known is None:
        return f"no curvature is known for {kind}"
    if isinstance(module, _BatchNorm) and not normalisation:
        return f"scale and shift of {kind} are covered with normalisation=True only"
    if isinstance(module, _BatchNorm) and module.running_mean is None:
        return f"{kind} without running statistics mixes the samples of a batch"
    if any(
        getattr(type(module), name, None) is not getattr(known, name, None) for name in ("forward", "_conv_forward")
    ):
        return f"{kind} has another forward than {known.__name__}"
    return ""


def alike(first: nn.Module, second: nn.Module, parameter: str) -> bool:
    """Whether two layers use a parameter of theirs in the same way, so that it may be one and the same."""
    if type(first) is not type(second) or isinstance(first, _BatchNorm):
        return False
    if any(isinstance(module, (Anchors, MixtureKernel)) for module in first.modules()):  # scales or shares of their own
        return False
    a, b = linear_map(first), linear_map(second)
    if a.places != b.places or a.groups != b.groups:
        return False
    if parameter == "bias":
        return _same(a.bias, b.bias)
    tensors = [[t for block in m.blocks if block.parameter == parameter for t in _tensors(block)] for m in (a, b)]
    return len(tensors[0]) == len(tensors[1]) and all(_same(x, y) for x, y in zip(*tensors))


def _same(x: Tensor | None, y: Tensor | None) -> bool:
    return x is y or (x is not None and y is not None and x.shape == y.shape and torch.equal(x, y))


def _tensors(block: WeightBlock) -> list[torch.Tensor | None]:
    sides = [tensor for piece in block.pieces for tensor in (piece.channels, piece.basis)]
    return [torch.tensor(block.group), block.channels, block.positions, *sides]


# --- plain layers: every channel is a field of size 1, every weight a basis element -----------------------------------


@linear_map.register
def _(module: nn.Linear) -> LinearMap:
    positions = torch.arange(module.weight.numel()).view(1, module.out_features, -1)
    return _plain(module, module.out_features, module.in_features, positions, Everywhere(), 1)


@linear_map.register(nn.Conv1d)
@linear_map.register(nn.Conv2d)
@linear_map.register(nn.Conv3d)
def _(module: Any) -> LinearMap:
    padding = module.padding
    if padding == "valid":
        padding = (0,) * len(module.kernel_size)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size)]
        if any(t % 2 for t in total):
            raise UnsupportedModuleError(
                type(module), "padding='same' is lopsided for an even kernel", remedy="pad by hand before the layer"
            )
        padding = tuple(t // 2 for t in total)
    places = Window(module.kernel_size, module.stride, module.dilation, padding, module.padding_mode)
    groups = module.groups
    positions = torch.arange(module.weight.numel()).view(groups, module.out_channels // groups, -1)
    return _plain(module, module.out_channels, module.in_channels, positions, places, groups)


@linear_map.register(nn.ConvTranspose1d)
@linear_map.register(nn.ConvTranspose2d)
@linear_map.register(nn.ConvTranspose3d)
def _(module: Any) -> LinearMap:
    places = TransposedWindow(module.kernel_size, module.stride, module.dilation, module.padding, module.output_padding)
    groups = module.groups
    positions = torch.arange(module.weight.numel())  # torch keeps these weights as (in, out / groups, S)
    positions = positions.view(groups, module.in_channels // groups, module.out_channels // groups, -1)
    positions = positions.transpose(1, 2).flatten(2)
    return _plain(module, module.out_channels, module.in_channels, positions, places, groups)


def _plain(module: Any, outputs: int, inputs: int, positions: Tensor, places: Places, groups: int) -> LinearMap:
    piece = Piece(torch.arange(inputs // groups).unsqueeze(1), None)
    channels = torch.arange(outputs // groups).unsqueeze(1)
    blocks = tuple(WeightBlock("weight", g, channels, (piece,), positions[g]) for g in range(groups))
    bias = None if module.bias is None else torch.eye(outputs).to(module.bias)
    return LinearMap(blocks, bias, places, groups)


@linear_map.register(nn.BatchNorm1d)
@linear_map.register(nn.BatchNorm2d)
@linear_map.register(nn.BatchNorm3d)
def _(module: Any) -> LinearMap:
    # in evaluation mode a product with one weight a channel: a convolution of as many groups, after normalisation
    channels = module.num_features
    single = torch.zeros(1, 1, dtype=torch.long)
    blocks = tuple(WeightBlock("weight", c, single, (Piece(single, None),), single + c) for c in range(channels))

    def normalise(input: torch.Tensor) -> torch.Tensor:
        shape = (-1, *(1,) * (input.dim() - 2))
        root = (module.running_var + module.eps).sqrt()
        return (input - module.running_mean.view(shape)) / root.view(shape)

    return LinearMap(blocks, torch.eye(channels).to(module.weight), Channelwise(), channels, normalise)


@linear_map.register
def _(module: GroupedLinear) -> LinearMap:
    order = module.order
    into = torch.arange(module.inputs * order).view(module.inputs, order)
    onto = torch.arange(module.outputs * order).view(module.outputs, order)
    masks = [module.table == k for k in range(order)]
    basis = None if order == 1 else torch.stack(masks).to(module.weight.dtype).unsqueeze(-1)
    positions = torch.arange(module.weight.numel()).view(module.groups, module.outputs, -1)
    blocks = tuple(WeightBlock("weight", g, onto, (Piece(into, basis),), p) for g, p in enumerate(positions))
    bias = None
    if module.bias is not None:
        index = module.bias_index.repeat_interleave(order, dim=1).flatten()
        bias = torch.nn.functional.one_hot(index, len(module.bias)).to(module.weight.dtype)
    return LinearMap(blocks, bias, Channelwise(), module.groups)


# --- steerable layers -------------------------------------------------------------------------------------------------


@linear_map.register
def _(module: SteerableConvolution) -> LinearMap:
    open_pathways = [
        p.name for p in module.pathways if p.name not in module.closed
    ]  # of the others no kernel is even looked at
    blocks = [b for name in open_pathways for b in _steerable(module, f"weights.{name}", module.kernel, name)]
    return _steerable_map(module, blocks)


@linear_map.register(R2Conv)
@linear_map.register(R3Conv)
@linear_map.register(R2ConvTransposed)
@linear_map.register(R3ConvTransposed)
@linear_map.register(Linear)
def _(module: Any) -> LinearMap:
    groups = getattr(module, "groups", 1)
    in_reprs, out_reprs = module.in_type.representations, module.out_type.representations
    if _is_transposed(module):
        out_reprs = out_reprs[: len(out_reprs) // groups]
    else:
        in_reprs = in_reprs[: len(in_reprs) // groups]
    bases = {(i, o): basis.detach() for i, o, basis, _ in _escnn.blocks(module.basisexpansion)}
    kernel = PathwaySum(in_reprs, out_reprs, {"equivariant": bases}).to(module.weights)
    return _steerable_map(module, _steerable(module, "weights", kernel, "equivariant"))


@linear_map.register(SparseR2Conv)
@linear_map.register(SparseR3Conv)
def _(module: Any) -> LinearMap:
    return _steerable_map(module, _steerable(module, "weights", module.kernel, "equivariant", module.anchors.matrix()))


def _steerable(
    module: EquivariantModule, parameter: str, kernel: PathwaySum, pathway: str, interpolation: Tensor | None = None
) -> list[WeightBlock]:
    """One block for each representation of the output and convolution group.

    A convolution's kernel maps one group's input to all groups' outputs, a transposed one's the other way round.

    Args:
        interpolation: from the sites of the basis to the pixels, ``(S, P)``.
    """
    groups, transposed = getattr(module, "groups", 1), _is_transposed(module)
    per_group = kernel.out_size // (1 if transposed else groups)
    weight_blocks = []
    for name, fields in kernel.out_fields.items():
        into = [b for b in kernel.blocks[pathway] if b.out_name == name]
        for g in range(groups if into else 0):
            pieces, positions = [], []
            for b in into:
                channels = kernel.in_fields[b.in_name].channels
                order = torch.arange(b.start, b.stop).view(b.outputs, b.inputs, -1)
                if transposed:
                    order, channels = order.chunk(groups, 1)[g], channels.chunk(groups)[0]
                else:
                    order = order.chunk(groups)[g]
                basis = kernel.basis(b)
                pieces.append(Piece(channels, basis if interpolation is None else basis @ interpolation.T.to(basis)))
                positions.append(order.flatten(1))
            channels = fields.channels if transposed else fields.channels.chunk(groups)[g] - g * per_group
            frame = _frame(module.out_type, name)
            weight_blocks.append(WeightBlock(parameter, g, channels, tuple(pieces), torch.cat(positions, dim=1), frame))
    return weight_blocks


def _frame(out_type: FieldType, name: str) -> torch.Tensor | None:
    """The axes of an output representation's irreps, on which most kernels live; ``None`` if they are not
    orthonormal."""
    change = next(r.change_of_basis for r in out_type.representations if r.name == name)
    axes = torch.as_tensor(np.asarray(change), dtype=torch.float64)
    return axes if torch.allclose(axes @ axes.T, torch.eye(len(axes), dtype=torch.float64), atol=1e-10) else None


def _steerable_map(module: EquivariantModule, blocks: list[WeightBlock]) -> LinearMap:
    bias = None if module.bias is None else module.bias_expansion
    return LinearMap(tuple(blocks), bias, _places(module), getattr(module, "groups", 1))


def _is_transposed(module: EquivariantModule) -> bool:
    return hasattr(module, "output_padding")


def _places(module: EquivariantModule) -> Places:
    if not hasattr(module, "kernel_size"):
        return Everywhere()

    def axes_values(name: str) -> tuple[int, ...]:
        value = getattr(module, name)
        return tuple(value) if isinstance(value, (tuple, list)) else (value,) * module.d

    kernel_size, stride, dilation, padding = map(axes_values, ("kernel_size", "stride", "dilation", "padding"))
    if _is_transposed(module):
        return TransposedWindow(kernel_size, stride, dilation, padding, axes_values("output_padding"))
    return Window(kernel_size, stride, dilation, padding, module.padding_mode)
