"""One large, mostly empty matrix as products of its blocks, equal sizes together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..buffer_dict import BufferDict, rename_entries

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

    taken: Tensor
    placed: Tensor

    def __init__(self, blocks: Sequence[Blocks], size: int) -> None:
        super().__init__()
        groups = alike(blocks)
        self.groups = tuple(_Group(len(members), *shape) for shape, members in groups.items())
        stacks = (torch.stack([b.matrix for b in members]) for members in groups.values())
        self.matrices = BufferDict({str(n): stack for n, stack in enumerate(stacks)})
        columns = torch.cat([b.placed.flatten() for members in groups.values() for b in members])
        source = torch.full((size,), len(columns))  # one more than there are, for the columns that stay zero
        source[columns] = torch.arange(len(columns))
        self._whole = bool((source < len(columns)).all())
        taken = torch.cat([b.taken.flatten() for members in groups.values() for b in members])
        self.register_buffer("taken", taken, persistent=False)
        self.register_buffer("placed", source, persistent=False)

    def forward(self, coefficients: Tensor) -> Tensor:
        """``(F, rows)`` to ``(F, columns)``."""
        fields, products = len(coefficients), []
        lengths = [g.members * g.copies * g.rows for g in self.groups]
        for n, (piece, g) in enumerate(zip(coefficients.index_select(1, self.taken).split(lengths, 1), self.groups)):
            batch = piece.view(fields, g.members, g.copies, g.rows).transpose(0, 1).reshape(g.members, -1, g.rows)
            product = torch.bmm(batch, self.matrix(n)).view(g.members, fields, g.copies * g.columns)
            products.append(product.transpose(0, 1).reshape(fields, -1))
        if not self._whole:
            products.append(products[0].new_zeros(fields, 1))
        return torch.cat(products, 1).index_select(1, self.placed)

    def matrix(self, group: int) -> Tensor:
        """The matrices of one group of :func:`alike`, ``(members, rows, columns)``."""
        return self.matrices[str(group)]

    def dense(self) -> Tensor:
        """The large matrix, ``(rows, columns)``."""
        return self(torch.eye(len(self.taken)).to(self.matrix(0)))

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *arguments: Any) -> None:
        rename_entries(state, prefix, r"matrix_(\d+)$", r"matrices.\1")  # as in layout 1
        super()._load_from_state_dict(state, prefix, *arguments)

    def extra_repr(self) -> str:
        numbers = sum(matrix.numel() for matrix in self.matrices.values())
        return f"{len(self.taken)} x {len(self.placed)}, {numbers} numbers in {len(self.groups)} groups"
