"""One network with a group convolution, a plain convolution and a fully connected map beside each other in every layer.

The "several groups" network of van der Ouderaa, Immer, van der Wilk, *Learning layer-wise equivariances automatically
using gradients*, NeurIPS 2023, from steerable layers: an escnn network of C4, relaxed to nothing by a second
convolution, and by a factored map between all pixels that keeps neither C4 nor translations.

=====  ==========================================  ==================================================
GCONV  escnn's own C4-equivariant convolution      commutes with quarter turns and translations
CONV   the other kernels that a convolution has    commutes with translations
FC     ``FactoredPathway``                         commutes with nothing
=====  ==========================================  ==================================================

Strides go with even kernels, for which the middle of an even image stays the middle: with GCONV alone the network is
exactly invariant under quarter turns, and its convolutions commute with translations by their stride; a sample never
depends on the others of its batch.
"""

from __future__ import annotations

import escnn_relax  # noqa: E402, F401, I001  # before escnn, which may need what it brings
from escnn import gspaces
from escnn import nn as enn
from torch import Tensor, nn


#: The names of each pathway's weights end in this, or contain it.
PATHWAYS = {
    "GCONV": ("weights.equivariant",),
    "CONV": ("weights.trivial", "weights.off_band"),
    "FC": (".factored_free.",),
}
#: Fields of the blocks in units of alpha; strides, which take 32 pixels to one.
WIDTHS, STRIDES = (1, 1, 2, 2, 4, 4, 4), (2, 1, 2, 1, 2, 2, 2)


class Network(nn.Module):
    """The strict network: blocks of a C4-equivariant convolution and ReLU, pooled over C4, and two linear layers.

    Args:
        alpha: regular fields of the first block.
        size: pixels of a side of the image: 32, or 16, with which the first block is left out.
        blocks: how many; all by default.
        padding_mode: of the convolutions; ``"circular"`` lets the borders of the image meet.
    """

    def __init__(
        self,
        alpha: int = 3,
        channels: int = 1,
        classes: int = 10,
        size: int = 32,
        blocks: int = 7,
        padding_mode: str = "zeros",
    ) -> None:
        super().__init__()
        space = gspaces.rot2dOnR2(4)
        self.input = before = enn.FieldType(space, channels * [space.trivial_repr])
        parts: list[nn.Module] = []
        first = 0 if size > 16 else 1
        for width, stride in list(zip(WIDTHS, STRIDES))[first : first + blocks]:
            after = enn.FieldType(space, alpha * width * [space.regular_repr])
            parts += [enn.R2Conv(before, after, 2 + stride, padding=1, stride=stride, padding_mode=padding_mode)]
            parts += [enn.ReLU(after)]
            before, size = after, size // stride
        self.features = enn.SequentialModule(*parts, enn.GroupPooling(before))
        self.hidden, self.linear = (
            nn.Linear(len(before) * size**2, 4 * len(before)),
            nn.Linear(4 * len(before), classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.hidden(self.features(self.input(x)).tensor.flatten(1)).relu())


def with_several_groups(strict: Network, example: Tensor) -> nn.Module:
    """GCONV, CONV and FC in every block; the same function as the strict network, whose GCONV they start from."""
    convolutions = escnn_relax.relax(strict, subgroups=[1], basis="pixel")
    return escnn_relax.relax_translation(convolutions, example, [("factored", "free")])


def relative_dimensions(model: nn.Module, gammas: dict[str, float]) -> list[dict[str, float]]:
    r"""For each block the share of each pathway, :math:`r_p = (\gamma_p / P_p) / \sum_q (\gamma_q / P_q)`
    (fractions)."""
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    layers: dict[str, dict[str, list[str]]] = {}
    for name in gammas:
        for pathway, marks in PATHWAYS.items():
            if any(mark in name for mark in marks) and "bias" not in name:
                layer = name.split(".convolution.")[0].split(".sites.")[0]
                layers.setdefault(layer, {}).setdefault(pathway, []).append(name)
    found = []
    for pathways in layers.values():
        used = {p: sum(gammas[n] for n in names) / sum(sizes[n] for n in names) for p, names in pathways.items()}
        total = sum(used.values())
        found.append({p: value / total if total > 0 else 0.0 for p, value in used.items()})
    return found
