"""The kernel of a steerable layer as a sum of pathways, expanded by few products a block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from escnn.group import Representation
from torch import Tensor, nn

from ...symmetry.kernels.irrep_pairs import BlockKernels, Kernels
from ...symmetry.kernels.pathway import EQUIVARIANT
from ..buffer_dict import BufferDict, rename_entries
from .dense_copy import DenseCopy
from .pair_sum import ComposedBasis
from .sectioned import SectionedBasis

__all__ = ["Block", "PathwaySum"]

Pair = tuple[str, str]


class Block(NamedTuple):
    """All fields of one input representation to all fields of one output representation, in one pathway.

    ``weights[start:stop].view(outputs, inputs, stop_row - row)`` are its coefficients, ``basis[row:stop_row]`` its
    kernels.
    """

    in_name: str
    out_name: str
    inputs: int
    outputs: int
    start: int
    stop: int
    row: int
    stop_row: int


class _Fields(NamedTuple):
    """The fields of one representation: which channels they occupy, shape ``(fields, size)``."""

    channels: Tensor
    size: int


class PathwaySum(nn.Module):
    r"""Expands coefficients into a convolution kernel,

    .. math:: W = \sum_p s_p \Phi_p w_p .

    The bases are plain buffers, kept in the state dict: some of escnn's Clebsch-Gordan coefficients are determined up
    to sign only, and differ between machines. There is no state that depends on train or eval mode. The equivariant
    kernels are kept as they are; large stacks of residual ones by input irrep (:class:`SectionedBasis`), the largest by
    pairs of irreps (:class:`ComposedBasis`).

    Args:
        in_reprs, out_reprs: representations of the fields, in channel order.
        bases: for each pathway, and for each pair of an input and an output representation's name, sampled kernels
            ``(K, out size, in size, S)``; pairs without kernels may be missing. Those by blocks are composed in all
            pathways of a pair, but for the equivariant.

    The coefficients of a pathway are one flat vector, pairs in sorted order, each ``(out fields, in fields, K)`` as in
    escnn, so that an escnn layer's weights are those of the equivariant pathway.
    """

    graded: Any  # a ModuleDict of the kernels that are kept by irrep, by the pair's number as the bases are
    _gather: Tensor | None

    def __init__(
        self,
        in_reprs: Sequence[Representation],
        out_reprs: Sequence[Representation],
        bases: Mapping[str, Mapping[Pair, Kernels]],
    ) -> None:
        super().__init__()
        self.in_fields, self.out_fields = _fields(in_reprs), _fields(out_reprs)
        self.in_size = sum(r.size for r in in_reprs)
        self.out_size = sum(r.size for r in out_reprs)
        self.pathways = tuple(bases)
        self.pairs = sorted({pair for stacks in bases.values() for pair, b in stacks.items() if len(b)})
        self.sites = next(b.shape[-1] for stacks in bases.values() for b in stacks.values())
        self.bases, self.graded = BufferDict(), nn.ModuleDict()
        self.blocks: dict[str, list[Block]] = {name: [] for name in bases}
        representations = {r.name: r for r in (*in_reprs, *out_reprs)}
        rows = dict.fromkeys(bases, 0)
        for index, pair in enumerate(self.pairs):
            start = 0
            inputs, outputs = len(self.in_fields[pair[0]].channels), len(self.out_fields[pair[1]].channels)
            for name, stacks in bases.items():
                count = len(stacks[pair]) if pair in stacks else 0
                if count:
                    first = rows[name]
                    rows[name] += outputs * inputs * count
                    self.blocks[name].append(Block(*pair, inputs, outputs, first, rows[name], start, start + count))
                    start += count
            kernels = {name: stacks[pair] for name, stacks in bases.items() if pair in stacks and len(stacks[pair])}
            # by irrep only beside equivariant kernels, and those come first: a basis without them is dense
            equivariant = [kernels.pop(name) for name in list(kernels) if name == EQUIVARIANT.name]
            graded: nn.Module | None = None
            composed = [k for k in kernels.values() if isinstance(k, BlockKernels)]
            sampled = [k for k in kernels.values() if not isinstance(k, BlockKernels)]
            if composed:
                graded = ComposedBasis(composed)
            elif EQUIVARIANT.name in bases and sampled:
                graded = SectionedBasis.from_dense(torch.cat(sampled), representations[pair[0]])
            dense: Any = equivariant if graded is not None else [*equivariant, *sampled]
            sizes = (representations[pair[1]].size, representations[pair[0]].size, self.sites)
            self.bases[str(index)] = torch.cat(dense) if dense else torch.zeros(0, *sizes)
            if graded is not None:
                self.graded[str(index)] = graded
        self.dimensions = rows
        self._copies: dict[int, DenseCopy] = {}
        self.register_buffer("_gather", self._channel_order(), persistent=False)

    def basis(self, block: Block) -> Tensor:
        """Sampled kernels of one block, shape ``(K, out size, in size, S)``."""
        index = self.pairs.index((block.in_name, block.out_name))
        dense, graded = self.bases[str(index)], self._graded(index)
        if graded is None or block.stop_row <= len(dense):
            return dense[block.row : block.stop_row]
        rows: Tensor = graded.rows(block.row - len(dense), block.stop_row - len(dense))
        return rows

    def forward(self, weights: Mapping[str, Tensor], multipliers: Mapping[str, Tensor] | None = None) -> Tensor:
        """The kernel, shape ``(out channels, in channels, S)``; ``weights[p]`` has shape ``(dimensions[p],)``.

        Pathways missing from ``weights`` are left out of the sum.
        """
        pieces: list[list[tuple[Block, Tensor]]] = [[] for _ in self.pairs]
        for name in self.pathways:  # the order of the rows, whatever the order of the mapping
            if name not in weights:
                continue
            vector = weights[name]
            if multipliers is not None and name in multipliers:
                vector = vector * multipliers[name]
            for block in self.blocks[name]:
                coefficients = vector[block.start : block.stop].view(block.outputs * block.inputs, -1)
                pieces[self.pairs.index((block.in_name, block.out_name))].append((block, coefficients))
        kernels = []
        for index, (pair, blocks) in enumerate(zip(self.pairs, pieces)):
            basis = self.bases[str(index)]
            i, o = self.in_fields[pair[0]], self.out_fields[pair[1]]
            shape = (len(o.channels), len(i.channels), o.size, i.size, self.sites)
            if not blocks:
                kernels.append(basis.new_zeros(shape))
                continue
            kernels.append(self._expand(index, blocks).view(shape))
        if self._gather is None:
            return kernels[0].transpose(1, 2).reshape(self.out_size, self.in_size, self.sites)
        rows = torch.cat([k.reshape(-1, self.sites) for k in kernels])
        rows = torch.cat([rows, rows.new_zeros(1, self.sites)])
        return rows[self._gather].view(self.out_size, self.in_size, self.sites)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_copies": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({"_copies": {}, **state})  # type: ignore[no-untyped-call]  # older pickles have none

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.out_size} x {self.in_size} channels, {self.sites} places)"

    def _graded(self, index: int) -> Any:
        """The module that keeps a pair's kernels by irrep, ``None`` where all are dense."""
        return self.graded._modules.get(str(index))

    def _expand(self, index: int, blocks: list[tuple[Block, Tensor]]) -> Tensor:
        """Coefficients of one pair, ``(fields, K_p)`` for each pathway, to ``(fields, out size, in size, S)``."""
        basis, graded = self.bases[str(index)], self._graded(index)
        if isinstance(graded, SectionedBasis):
            ranges = tuple((block.row, block.stop_row) for block, _ in blocks)
            kernels = self._copies.setdefault(index, DenseCopy()).rows(basis, graded, ranges, len(blocks[0][1]))
            if kernels is not None:
                coefficients = torch.cat([c for _, c in blocks], dim=1) if len(blocks) > 1 else blocks[0][1]
                return (coefficients @ kernels).view(-1, *basis.shape[1:])
        plain = blocks if graded is None else [(b, c) for b, c in blocks if b.stop_row <= len(basis)]
        dense = None
        if plain:
            coefficients = torch.cat([c for _, c in plain], dim=1) if len(plain) > 1 else plain[0][1]
            rows = basis
            if len(plain) == 1:
                rows = basis[plain[0][0].row : plain[0][0].stop_row]
            elif coefficients.shape[1] < len(basis):
                rows = torch.cat([basis[b.row : b.stop_row] for b, _ in plain])
            dense = coefficients, rows
        if dense is not None and len(plain) == len(blocks):
            return (dense[0] @ dense[1].flatten(1)).view(-1, *basis.shape[1:])
        rest = blocks[len(plain) :]
        if isinstance(graded, SectionedBasis):
            present = tuple((block.row - len(basis), block.stop_row - len(basis)) for block, _ in rest)
            return graded.expand(
                torch.cat([c for _, c in rest], dim=1) if len(rest) > 1 else rest[0][1], dense, present
            )
        # all rows in order, with zeros where a pathway is missing
        pieces, row, stop = [], len(basis), len(basis) + graded.shape[0]
        for block, coefficients in rest:
            if block.row > row:
                pieces.append(coefficients.new_zeros(len(coefficients), block.row - row))
            pieces.append(coefficients)
            row = block.stop_row
        if row < stop:
            pieces.append(pieces[-1].new_zeros(len(pieces[-1]), stop - row))
        expanded: Tensor = graded.expand(torch.cat(pieces, dim=1) if len(pieces) > 1 else pieces[0], dense)
        return expanded

    def _channel_order(self) -> Tensor | None:
        """Where each (out channel, in channel) finds its row among the blocks' products; ``None`` if plainly in
        order."""
        table = torch.full((self.out_size, self.in_size), -1)
        offset = 0
        for in_name, out_name in self.pairs:
            i, o = self.in_fields[in_name], self.out_fields[out_name]
            shape = (len(o.channels), len(i.channels), o.size, i.size)
            count = shape[0] * shape[1] * shape[2] * shape[3]
            index = torch.arange(offset, offset + count).view(shape)
            table[o.channels[:, None, :, None], i.channels[None, :, None, :]] = index
            offset += count
        table[table < 0] = offset
        single_block = len(self.pairs) == 1 and offset == self.out_size * self.in_size
        return None if single_block else table.flatten()

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *arguments: Any) -> None:
        """The bases and what is kept by irrep had numbers in their names in layout 1."""
        rename_entries(state, prefix, r"basis_(\d+)$", r"bases.\1")
        rename_entries(state, prefix, r"(?:composed|sectioned)_(\d+)\.", r"graded.\1.")
        super()._load_from_state_dict(state, prefix, *arguments)


def _fields(reprs: Sequence[Representation]) -> dict[str, _Fields]:
    channels: dict[str, list[range]] = {}
    position = 0
    for r in reprs:
        channels.setdefault(r.name, []).append(range(position, position + r.size))
        position += r.size
    return {name: _Fields(torch.tensor([list(r) for r in ranges]), len(ranges[0])) for name, ranges in channels.items()}
