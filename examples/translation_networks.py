"""Networks of layers that share weights over the image, or do not: the configurations of the layer-wise-equivariance
paper.

Van der Ouderaa, Immer, van der Wilk, *Learning layer-wise equivariances automatically using gradients*, NeurIPS 2023. A
network is eight blocks and two linear layers; each block is the mean (or the sum) of one or several layers:

======  ========================================================================================================
FC      every pixel to every pixel: ``DensePathway``
CONV    a plain 3 x 3 convolution on a torus
F-FC    ``FactoredPathway``
S-FC    ``FactoredPathway`` with anchors, half as many as pixels
S-CONV  ``SparseR2Conv``, with seven anchors where it stands alone
======  ========================================================================================================

Where a convolution halves the image, each sample keeps the one of four grids of pixels on which the output is largest
(:class:`LargestGrid`), so that a network of convolutions alone is exactly invariant under translations; or every sample
keeps the same grid (:class:`FixedGrid`), which is easier to train and exactly invariant under translations by half the
image. Either way no sample depends on the others of its batch. Channels are scalars of the trivial group here; the
steerable versions come from ``escnn_relax.relax_translation``.
"""

from __future__ import annotations

import math

import torch
import escnn_relax  # noqa: E402, F401, I001  # before escnn, which may need what it brings
from escnn import gspaces
from escnn import nn as enn
from torch import Tensor, nn

from escnn_relax.nn import DensePathway, FactoredPathway, SparseR2Conv
from escnn_relax.symmetry.groups.lattice import subgroup

PLANE = gspaces.trivialOnR2()
#: Channels of the blocks in units of alpha, and the factor by which each shrinks the image.
WIDTHS, STRIDES = (1, 2, 2, 4, 4, 8, 8, 16), (1, 2, 1, 2, 1, 2, 2, 2)


def scalars(count: int) -> enn.FieldType:
    return enn.FieldType(PLANE, count * [PLANE.trivial_repr])


class OnTensors(nn.Module):
    """A steerable layer for plain tensors."""

    def __init__(self, layer: enn.EquivariantModule) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer.in_type(x)).tensor


class LargestGrid(nn.Module):
    """A layer of stride one, of whose output each sample keeps every second pixel: those of the four grids with the
    largest norm.

    A translated input gives the same numbers, translated (Chaman and Dokmanić, *Truly shift-invariant convolutional
    neural networks*, CVPR 2021).
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        grids = torch.stack([y[..., i::2, j::2] for i in (0, 1) for j in (0, 1)], 1)
        largest = grids.detach().flatten(2).square().sum(-1).argmax(1)
        return grids[torch.arange(len(x), device=x.device), largest]


class FixedGrid(nn.Module):
    """A layer of stride one, every second pixel of whose output is kept, and of two by two pixels their mean.

    An input translated by a number of pixels that all the halvings of a network divide gives the same numbers,
    translated. Half the image is such a number up to the last halving, from two pixels to one, and the mean does not
    see it there.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return y[..., ::2, ::2] if y.shape[-1] > 2 else y.mean((-2, -1), keepdim=True)


GRIDS = {"largest": LargestGrid, "fixed": FixedGrid}


def layer(
    kind: str,
    ins: int,
    outs: int,
    before: int,
    after: int,
    alone: bool,
    seed: int,
    silent: bool = False,
    grid: str = "largest",
) -> nn.Module:
    """One layer from ``ins`` channels of ``before`` squared pixels to ``outs`` channels of ``after`` squared ones."""
    shapes = (scalars(ins), scalars(outs), (before, before), (after, after), subgroup(PLANE, 1))
    stride = before // after
    halved = GRIDS[grid] if stride == 2 else lambda convolution: convolution
    if kind == "CONV":
        convolution = nn.Conv2d(ins, outs, 3, padding=1, padding_mode="circular")
        nn.init.kaiming_uniform_(convolution.weight, nonlinearity="relu")
        nn.init.zeros_(convolution.bias)
        return halved(convolution)
    if kind == "S-CONV":
        options = {"padding_mode": "circular", "fraction": 0.8 if alone else 0.5, "subgroup": "free", "seed": seed}
        return halved(OnTensors(SparseR2Conv(*shapes[:2], 3, 1, **options)))
    made = {"FC": DensePathway, "F-FC": FactoredPathway, "S-FC": FactoredPathway}[kind]
    pathway = made(*shapes, fraction=0.5 if kind == "S-FC" else None, seed=seed)
    pathway.reset_parameters(silent)
    return pathway


class Block(nn.Module):
    """The mean of some layers, or their sum, and ReLU."""

    def __init__(self, layers: dict[str, nn.Module], average: bool = True) -> None:
        super().__init__()
        self.layers, self.average = nn.ModuleDict(layers), average

    def forward(self, x: Tensor) -> Tensor:
        outputs = torch.stack([of(x) for of in self.layers.values()])
        return (outputs.mean(0) if self.average else outputs.sum(0)).relu()


class Network(nn.Module):
    """Blocks and two linear layers.

    Args:
        kinds: what each block is the mean of, as ``"F-FC+CONV"``.
        alpha: channels of the first block.
        size: pixels of a side of the image, which each block that halves it must be able to, down to one pixel.
        silent: start what stands beside a convolution with zeros and add it, instead of taking the mean, so that the
            network starts as a convolutional one.
        grid: which pixels a convolution keeps that halves the image, ``"largest"`` or ``"fixed"``.
    """

    def __init__(
        self,
        kinds: str,
        alpha: int = 10,
        channels: int = 1,
        classes: int = 10,
        size: int = 32,
        blocks: int | None = None,
        silent: bool = False,
        grid: str = "largest",
    ) -> None:
        super().__init__()
        parts, before, ins = kinds.split("+"), size, channels
        widths, strides = WIDTHS[:blocks], STRIDES[:blocks]
        halved = math.prod(strides)
        if size < 1 or (size % halved and halved % size):
            times = halved.bit_length() - 1
            raise ValueError(f"size: expected an image that can be halved {times} times, or to one pixel, got {size}")
        self.blocks = nn.Sequential()
        for index, (width, stride) in enumerate(zip(widths, strides)):
            after, outs = max(1, before // stride), alpha * width
            shapes, alone = (ins, outs, before, after), len(parts) == 1
            made = {kind: layer(kind, *shapes, alone, index, silent and not alone, grid) for kind in parts}
            self.blocks.append(Block(made, not silent))
            before, ins = after, outs
        self.hidden, self.linear = nn.Linear(ins * before**2, 4 * ins), nn.Linear(4 * ins, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.hidden(self.blocks(x).flatten(1)).relu())


def relative_dimensions(model: Network, gammas: dict[str, float]) -> list[dict[str, float]]:
    r"""For each block the share of each layer, :math:`r_p = (\gamma_p / P_p) / \sum_q (\gamma_q / P_q)` (fractions).

    :math:`\gamma_p` is the sum over the weights of the layer, without biases, :math:`P_p` their number.
    """
    found = []
    for index, block in enumerate(model.blocks):
        shares = {}
        for kind, of in block.layers.items():
            names = [n for n, p in of.named_parameters() if "bias" not in n]
            keys = [f"blocks.{index}.layers.{kind}.{n}" for n in names]
            size = sum(p.numel() for n, p in of.named_parameters() if n in names)
            shares[kind] = sum(gammas[k] for k in keys) / size
        total = sum(shares.values()) or math.nan
        found.append({kind: share / total for kind, share in shares.items()})
    return found
