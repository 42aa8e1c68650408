"""One large, mostly empty matrix as products of its blocks, equal sizes together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Blocks", "BlockProducts", "alike"]


class Blocks(NamedTuple):
    """One matrix that stands in several places.

    Attributes:
        taken: the rows of each copy, ``(copies, rows)``; each row of the large matrix is in one block.
        matrix: ``(rows, columns)``.
        placed: the columns of each copy, ``(copies, columns)``; no two copies or blocks share one.
    """

    taken: Tensor
    matrix: Tensor
    placed: Tensor


class _Group(NamedTuple):
    """Matrices that are multiplied together: ``members`` of ``(rows, columns)``, each in ``copies`` places."""

    members: int
    copies: int
    rows: int
    columns: int


def alike(blocks: Sequence[Blocks]) -> dict[tuple[int, int, int], list[Blocks]]:
    """By number of copies, rows and columns, in the order in which each first occurs."""
    groups: dict[tuple[int, int, int], list[Blocks]] = {}
    for block in blocks:
        rows, columns = block.matrix.shape
        groups.setdefault((len(block.taken), rows, columns), []).append(block)
    return groups


class BlockProducts(nn.Module):
    """Multiplication from the right by a matrix of blocks; columns without a block are zero.

    Args:
        blocks: cover all rows.
        size: columns of the large matrix.

    >>> import torch
    >>> twice = Blocks(torch.tensor([[0], [2]]), torch.tensor([[2.0]]), torch.tensor([[1], [0]]))
    >>> once = Blocks(torch.tensor([[1]]), torch.tensor([[1.0]]), torch.tensor([[3]]))
    >>> BlockProducts([twice, once], 4)(torch.tensor([[1.0, 10.0, 100.0]]))
    tensor([[200.,   2.,   0.,  10.]])
    """

    matrix_0: Tensor
    taken: Tensor
    placed: Tensor

    def __init__(self, blocks: Sequence[Blocks], size: int) -> None:
        super().__init__()
        groups = alike(blocks)
        self.groups = tuple(_Group(len(of), *size) for size, of in groups.items())
        for n, of in enumerate(groups.values()):
            self.register_buffer(f"matrix_{n}", torch.stack([b.matrix for b in of]))
        at = torch.cat([b.placed.flatten() for of in groups.values() for b in of])
        where = torch.full((size,), len(at))  # one more than there are, for the columns that stay zero
        where[at] = torch.arange(len(at))
        self._whole = bool((where < len(at)).all())
        self.register_buffer(
            "taken", torch.cat([b.taken.flatten() for of in groups.values() for b in of]), persistent=False
        )
        self.register_buffer("placed", where, persistent=False)

    def forward(self, coefficients: Tensor) -> Tensor:
        """``(F, rows)`` to ``(F, columns)``."""
        fields, products = len(coefficients), []
        lengths = [g.members * g.copies * g.rows for g in self.groups]
        for n, (piece, g) in enumerate(zip(coefficients.index_select(1, self.taken).split(lengths, 1), self.groups)):
            together = piece.view(fields, g.members, g.copies, g.rows).transpose(0, 1).reshape(g.members, -1, g.rows)
            product = torch.bmm(together, self.matrix(n)).view(g.members, fields, g.copies * g.columns)
            products.append(product.transpose(0, 1).reshape(fields, -1))
        if not self._whole:
            products.append(products[0].new_zeros(fields, 1))
        return torch.cat(products, 1).index_select(1, self.placed)

    def matrix(self, group: int) -> Tensor:
        """The matrices of one group of :func:`alike`, ``(members, rows, columns)``."""
        matrix: Tensor = getattr(self, f"matrix_{group}")
        return matrix

    def dense(self) -> Tensor:
        """The large matrix, ``(rows, columns)``."""
        return self(torch.eye(len(self.taken), dtype=self.matrix_0.dtype, device=self.matrix_0.device))

    def extra_repr(self) -> str:
        kept = sum(self.matrix(n).numel() for n in range(len(self.groups)))
        return f"{len(self.taken)} x {len(self.placed)}, {kept} numbers in {len(self.groups)} groups"
