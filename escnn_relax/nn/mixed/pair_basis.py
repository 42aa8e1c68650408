"""The orthonormal kernels that all groups of a mixture share, by pairs of irreps, and where the kernels of one group
lie there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from escnn.group import Representation
from torch import Tensor

from ...symmetry.kernels.irrep_pairs import BlockKernels, IrrepBlock, irrep_channels
from ...symmetry.kernels.linear_algebra import orthonormal
from ..kernels.block_products import Blocks

__all__ = ["Sections"]

#: A section lies within a group's kernels if its projection on them keeps this share of its norm.
WHOLE = 1 - 1e-4

#: Kernels whose norm in a block is a smaller share of the largest are the rounding of escnn's sampling (1e-8 seen).
VANISHING = 1e-4

Key = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Sections:
    """Orthonormal kernels between two representations: the group's own first, then those of one irrep after the other.

    Attributes:
        shared: all of them.
        first: the group's own.
        counts: of kernels in each section.
        where: for each pair of irreps the section, the first row and the kernels of each part of ``shared`` there.
    """

    shared: BlockKernels
    first: BlockKernels
    counts: tuple[int, ...]
    where: Mapping[Key, Sequence[tuple[int, int, IrrepBlock]]]

    @classmethod
    def build(
        cls, strict: Tensor, bases: Sequence[BlockKernels], in_repr: Representation, out_repr: Representation
    ) -> Sections:
        """Of the group's own kernels, in any basis, ``(K, out size, in size, S)``, and those of each irrep."""
        frame, irrep = bases[0].frame, in_repr.group.irrep
        turned, first = frame.coordinates(strict), []
        least = VANISHING * float(strict.flatten(1).norm(dim=1).max()) if len(strict) else 0.0
        for phi, rows in irrep_channels(out_repr).items():
            for psi, columns in irrep_channels(in_repr).items():
                height, width = irrep(*phi).size, irrep(*psi).size
                block = turned[:, rows[0] : rows[0] + height, columns[0] : columns[0] + width].flatten(1)
                basis = orthonormal(block[block.norm(dim=1) > least])
                if len(basis):
                    first.append(IrrepBlock(rows, columns, basis.view(-1, height, width, frame.depth)))
        sections = [BlockKernels(frame, tuple(first)), *bases]
        where: dict[Key, list[tuple[int, int, IrrepBlock]]] = {}
        row = 0
        for n, section in enumerate(sections):
            for irrep_block in section.blocks:
                where.setdefault((irrep_block.outs, irrep_block.ins), []).append((n, row, irrep_block))
                row += irrep_block.copies * len(irrep_block.kernels)
        shared = BlockKernels(frame, tuple(irrep_block for section in sections for irrep_block in section.blocks))
        return cls(shared, sections[0], tuple(map(len, sections)), where)

    @property
    def strict_count(self) -> int:
        """How many are the group's own."""
        return self.counts[0]

    def coordinates(self, strict: Tensor) -> Tensor:
        """The group's kernels in the coordinates of its orthonormal ones, ``(K, own)``."""
        return self.shared.frame.coordinates(strict).flatten(1) @ self.first.coordinates().flatten(1).T

    def placed(self, kernels: BlockKernels) -> tuple[list[tuple[int, int]], list[Blocks]]:
        """Where a subgroup's kernels, orthonormal and orthogonal to the group's own, lie among the shared ones.

        Returns:
            the stretches of shared kernels that are all of a section, and combinations of the others: their columns are
            among all shared kernels, their rows count from 0.
        """
        tables = {}
        energy = [0.0] * len(self.counts)
        for block in kernels.blocks:
            shared = torch.cat([p.kernels.flatten(1) for _, _, p in self.where[block.outs, block.ins]])
            table = block.kernels.flatten(1) @ shared.T
            tables[block.outs, block.ins] = table
            for n, piece in self._by_section((block.outs, block.ins), table):
                energy[n] += block.copies * float(piece.square().sum())
        whole = [n for n, count in enumerate(self.counts) if n and count and energy[n] > WHOLE * count]
        starts = [sum(self.counts[:n]) for n in range(len(self.counts))]
        blocks, row = [], 0
        for key, table in tables.items():
            rest = table.clone()
            for n, piece in self._by_section(key, rest):
                if n == 0 or n in whole:
                    piece.zero_()
            if len(table) <= sum(len(p.kernels) for n, _, p in self.where[key] if n in whole):
                continue
            left = orthonormal(rest)
            used = (left.abs().amax(0) > 1e-6).nonzero().flatten()
            copies = self.where[key][0][2].copies
            taken = row + torch.arange(copies * len(left)).view(copies, -1)
            blocks.append(Blocks(taken, left[:, used].contiguous(), self._rows(key)[:, used]))
            row += taken.numel()
        return [(starts[n], starts[n] + self.counts[n]) for n in whole], blocks

    def _by_section(self, key: Key, table: Tensor) -> list[tuple[int, Tensor]]:
        """The columns of a table of coordinates that belong to each section, as views."""
        members = self.where[key]
        return [
            (n, piece) for (n, _, _), piece in zip(members, table.split([len(p.kernels) for _, _, p in members], 1))
        ]

    def _rows(self, key: Key) -> Tensor:
        """Where the shared kernels of each copy of a pair of irreps stand, ``(copies, K)``."""
        rows = [row + torch.arange(p.copies * len(p.kernels)).view(p.copies, -1) for _, row, p in self.where[key]]
        return torch.cat(rows, dim=1)
