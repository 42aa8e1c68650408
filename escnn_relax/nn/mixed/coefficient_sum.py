"""Where the coefficients of one summand of a mixture go among those of the kernels that all summands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..kernels.block_products import Blocks, alike
from ..kernels.pathway_sum import Block

__all__ = ["Share", "SummandSum"]


class Share(NamedTuple):
    """Kernels ``first:last`` of a block are the shared kernels ``start:stop``, or combinations of these.

    Attributes:
        table: the name of the matrix, ``None`` for the identity.
        matrix: that matrix, or the blocks it is made of.
    """

    first: int
    last: int
    start: int
    stop: int
    table: str | None
    matrix: Tensor | tuple[Blocks, ...] | None


class _Alike(NamedTuple):
    """Matrices of one size and so many places: each by the name of its table and, of a table of blocks, the group
    there."""

    tables: tuple[tuple[str, int | None], ...]
    members: int
    copies: int
    rows: int


class SummandSum(nn.Module):
    """Adds one summand's coefficients, all pairs of representations together, to those of the shared kernels.

    Many small pairs cost no more than one large one: every number has its index, and matrices of one size are
    multiplied together. The indices are not part of the state, and the matrices are those that the mixture keeps.

    Args:
        blocks: the summand's, each with the shared kernels of the same pair and what it has of them.
        size: of all shared coefficients.
    """

    order: Tensor | None
    target: Tensor | None

    def __init__(self, blocks: Sequence[tuple[Block, Block, Sequence[Share]]], size: int) -> None:
        super().__init__()
        source, target = [], []
        tables: dict[tuple[int, int, int], list[tuple[tuple[str, int | None], Tensor, Tensor]]] = {}
        for block, union, shares in blocks:
            fields = torch.arange(block.outputs * block.inputs)[:, None]
            rows = block.start + fields * (block.stop_row - block.row)
            columns = union.start + fields * (union.stop_row - union.row)
            for share in shares:
                inside, onto = (
                    rows + torch.arange(share.first, share.last),
                    columns + torch.arange(share.start, share.stop),
                )
                if share.table is None:
                    source.append(inside.flatten())
                    target.append(onto.flatten())
                    continue
                for group, taken, placed in _matrices(share.matrix):
                    at, to = inside[:, taken].flatten(0, 1), onto[:, placed].flatten(0, 1)
                    key = (len(at), at.shape[1], to.shape[1])
                    tables.setdefault(key, []).append(((share.table, group), at, to))
        self._same = sum(len(s) for s in source)
        self._groups = []
        for (copies, height, _), members in tables.items():
            names = tuple(dict.fromkeys(name for name, _, _ in members))
            self._groups.append(_Alike(names, len(members), copies, height))
            source += [at.flatten() for _, at, _ in members]
            target += [to.flatten() for _, _, to in members]
        taken, placed = (torch.cat([*indices, torch.arange(0)]) for indices in (source, target))
        in_order = not self._groups and torch.equal(taken, torch.arange(len(taken)))
        self.register_buffer("order", None if in_order else taken.int(), persistent=False)
        in_place = torch.equal(placed, torch.arange(size))
        self.register_buffer("target", None if in_place else placed.int(), persistent=False)

    def forward(self, total: Tensor, coefficients: Tensor, table: Callable[[str], Any]) -> Tensor:
        """``total`` of shape ``(size,)`` with the summand's coefficients added, a new tensor.

        Args:
            table: from a name to the matrix, or the :class:`~escnn_relax.nn.kernels.block_products.BlockProducts`, as
                it is now.
        """
        if self.order is not None:
            coefficients = coefficients.index_select(0, self.order)
        if self._groups:
            sizes = [self._same, *(g.members * g.copies * g.rows for g in self._groups)]
            same, *pieces = coefficients.split(sizes)
            products = [same]
            for g, piece in zip(self._groups, pieces):
                matrices = [_matrix(table(name), group) for name, group in g.tables]
                matrix = torch.cat(matrices) if len(matrices) > 1 else matrices[0]
                products.append(torch.bmm(piece.view(g.members, g.copies, g.rows), matrix).flatten())
            coefficients = torch.cat(products)
        coefficients = coefficients.to(total.dtype)  # products come out narrower under autocast
        return total + coefficients if self.target is None else total.index_add(0, self.target, coefficients)


def _matrices(matrix: Any) -> list[tuple[int | None, Tensor, Tensor]]:
    """For each matrix of a table its group there, the rows of each of its copies and the columns, ``(copies, ...)``."""
    if isinstance(matrix, Tensor):
        rows, columns = matrix.shape
        return [(None, torch.arange(rows)[None], torch.arange(columns)[None])]
    groups = enumerate(alike(matrix).values())
    return [(n, block.taken, block.placed) for n, members in groups for block in members]


def _matrix(table: Any, group: int | None) -> Tensor:
    """``(members, rows, columns)``."""
    matrix: Tensor = table[None] if group is None else table.matrix(group)
    return matrix
