r"""Kernels kept by pairs of irreps, expanded by small products.

Coefficients of kernels between equal pairs of irreps meet the same small matrix, whichever copies of the irreps it is
between; what comes out is put into its place among the irreps of output and input, and turned to channels and pixels
once. For regular octahedral fields, 3 x 3 x 3, the matrices hold 57 600 numbers with the equivariant kernels, where all
have 90 million.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...symmetry.kernels.irrep_pairs import BlockKernels, IrrepBlock
from .block_products import BlockProducts, Blocks

__all__ = ["ComposedBasis"]


class ComposedBasis(nn.Module):
    """The kernels of several pathways, one after the other, between two representations.

    Args:
        kernels: of each pathway, all in the same frame.
    """

    out_change: Tensor | None
    in_change: Tensor | None
    pictures: Tensor | None

    def __init__(self, kernels: Sequence[BlockKernels]) -> None:
        super().__init__()
        frame = kernels[0].frame
        self.shape = (sum(map(len, kernels)), *kernels[0].shape[1:])
        for name in ("out_change", "in_change"):
            change = getattr(frame, name)
            self.register_buffer(name, None if torch.equal(change, torch.eye(len(change)).to(change)) else change)
        self.register_buffer("pictures", frame.pictures)
        pairs: dict[tuple[tuple[int, ...], tuple[int, ...]], list[tuple[int, IrrepBlock]]] = {}
        row = 0
        for pathway in kernels:
            for block in pathway.blocks:
                pairs.setdefault((block.outs, block.ins), []).append((row, block))
                row += block.copies * len(block.kernels)
        blocks = []
        for members in pairs.values():
            taken = [row + torch.arange(p.copies * len(p.kernels)).view(p.copies, -1) for row, p in members]
            matrix = torch.cat([p.kernels.flatten(1) for _, p in members])
            blocks.append(Blocks(torch.cat(taken, dim=1), matrix, frame.channel_indices(members[0][1])))
        self.products = BlockProducts(blocks, self.shape[1] * self.shape[2] * frame.depth)

    def expand(self, coefficients: Tensor, beside: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """``(F, K)`` to the sum of the kernels, ``(F, out size, in size, S)``.

        Args:
            beside: coefficients ``(F, L)`` and dense kernels ``(L, out size, in size, S)`` to be added.
        """
        _, out, size, sites = self.shape
        fields = len(coefficients)
        turned: Tensor = self.products(coefficients)
        if self.out_change is not None:
            turned = torch.matmul(self.out_change, turned.view(fields, out, -1))
        if self.in_change is not None:
            turned = torch.matmul(self.in_change, turned.view(fields * out, size, -1))
        if self.pictures is not None:
            turned = turned.view(-1, len(self.pictures)) @ self.pictures
        total = turned.view(fields, out * size * sites)
        if beside is not None:
            total = torch.addmm(total, beside[0], beside[1].flatten(1))
        return total.view(fields, out, size, sites)

    def rows(self, start: int, stop: int) -> Tensor:
        """Kernels ``start`` to ``stop`` of the dense stack, ``(stop - start, out size, in size, S)``."""
        chosen = self.products.matrix(0).new_zeros(stop - start, self.shape[0])
        chosen[torch.arange(stop - start), torch.arange(start, stop)] = 1
        return self.expand(chosen)

    def extra_repr(self) -> str:
        return f"{self.shape[0]} kernels"
