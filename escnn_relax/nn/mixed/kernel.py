"""The kernel of a mixture of groups: coefficients combined first, expanded once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from escnn.group import Representation
from torch import Tensor, nn

from ...symmetry.kernels.irrep_pairs import BlockKernels, Kernels
from ..buffer_dict import BufferDict, rename_entries
from ..kernels.block_products import BlockProducts
from ..kernels.pathway_sum import Block, PathwaySum
from .basis import MixtureBasis
from .coefficient_sum import Share, SummandSum

__all__ = ["MixtureKernel"]

_SHARED = "shared"

#: Spatial directions of a smaller share of the largest singular value are the rounding of escnn's sampling (1e-8 seen).
ROUNDING = 1e-6


class _Combination(NamedTuple):
    """A :class:`~escnn_relax.nn.mixed.basis.Combination` whose table is a buffer, or a module of blocks, by its key."""

    first: int
    last: int
    start: int
    stop: int
    table: str | None


def _factored(shared: Mapping[tuple[str, str], Kernels]) -> tuple[dict[tuple[str, str], Kernels], Tensor]:
    """Kernels as combinations of a few patterns that all channels share: between scalars of the trivial group the band
    limit leaves 11 of 25 pixels free, and every other kernel is made of those.

    Returns:
        the kernels in the coordinates of the patterns, ``(R, out size, in size, r)``, and the orthonormal patterns,
        ``(r, S)``; their product is what was given, to the accuracy to which escnn samples.
    """
    composed = [kernels for kernels in shared.values() if isinstance(kernels, BlockKernels)]
    if composed:  # they have them already, and so do the others within the same band
        frame = composed[0].frame
        patterns = torch.eye(frame.sites, dtype=torch.float64) if frame.pictures is None else frame.pictures
    else:
        gram = sum(
            kernels.flatten(0, 2).T @ kernels.flatten(0, 2)
            for kernels in shared.values()
            if isinstance(kernels, Tensor)
        )
        values, vectors = torch.linalg.eigh(gram)
        patterns = vectors[:, values > ROUNDING**2 * values.max()].T.contiguous()
    return {pair: _in_patterns(kernels, patterns) for pair, kernels in shared.items()}, patterns


def _in_patterns(kernels: Kernels, patterns: Tensor) -> Kernels:
    if isinstance(kernels, BlockKernels):
        return replace(kernels, frame=replace(kernels.frame, pictures=None, sites=len(patterns)))
    return kernels @ patterns.T


class MixtureKernel(nn.Module):
    r"""Expands the coefficients of all summands into one convolution kernel,

    .. math:: W = \sum_H \pi_H \Phi_H w_H, \qquad \pi = \mathrm{softmax}(\alpha / \tau), \qquad \Phi_H = T_H U

    with one orthonormal basis U for all H: the coefficients are summed in its coordinates and expanded by one product,
    and one more from the few spatial patterns that all channels share to pixels. As of a
    :class:`~escnn_relax.nn.kernels.pathway_sum.PathwaySum`, there is no state that depends on train or eval mode.

    Args:
        in_reprs, out_reprs: representations of the fields, in channel order.
        basis: see :func:`~escnn_relax.nn.mixed.basis.mixture_basis`.
        alpha: architecture weights, shape ``(summands,)``.
        temperature: of the softmax.
    """

    alpha: nn.Parameter
    temperature: Tensor
    spatial: Tensor
    block_tables: Any  # a ModuleDict of BlockProducts

    def __init__(
        self,
        in_reprs: Sequence[Representation],
        out_reprs: Sequence[Representation],
        basis: MixtureBasis,
        alpha: Tensor,
        temperature: float,
    ) -> None:
        super().__init__()
        shared, spatial = _factored(basis.shared)
        self.union = PathwaySum(in_reprs, out_reprs, {_SHARED: shared})
        self.register_buffer("spatial", spatial)
        self.in_fields, self.out_fields = self.union.in_fields, self.union.out_fields
        self.out_size = self.union.out_size
        self.pathways = tuple(basis.combinations)
        self.alpha = nn.Parameter(alpha)
        self.register_buffer("temperature", torch.tensor(float(temperature)))
        self.strict_counts = {pair: basis.counts[pair] for pair in self.union.pairs}
        self.tables, self.block_tables = BufferDict(), nn.ModuleDict()
        self.combinations: dict[str, dict[tuple[str, str], tuple[_Combination, ...]]] = {}
        self.blocks: dict[str, list[Block]] = {}
        self.dimensions: dict[str, int] = {}
        rows = dict.fromkeys(self.union.pairs, 0)
        for summand, (name, combinations) in enumerate(basis.combinations.items()):
            self.combinations[name], self.blocks[name], position = {}, [], 0
            for index, pair in enumerate(self.union.pairs):
                count = basis.dimension(name, pair)
                if not count:
                    continue
                keys = [None if p.table is None else f"{summand}_{index}_{n}" for n, p in enumerate(combinations[pair])]
                for key, combination in zip(keys, combinations[pair]):
                    if key is not None and isinstance(combination.table, Tensor):
                        self.tables[key] = combination.table.clone()
                    elif key is not None and isinstance(combination.table, tuple):
                        self.block_tables[key] = BlockProducts(combination.table, combination.stop - combination.start)
                self.combinations[name][pair] = tuple(
                    _Combination(*p[:4], key) for p, key in zip(combinations[pair], keys)
                )
                inputs, outputs = len(self.in_fields[pair[0]].channels), len(self.out_fields[pair[1]].channels)
                stop = position + outputs * inputs * count
                row = rows[pair]
                self.blocks[name].append(Block(*pair, inputs, outputs, position, stop, row, row + count))
                position, rows[pair] = stop, row + count
            self.dimensions[name] = position
        unions = {(b.in_name, b.out_name): b for b in self.union.blocks[_SHARED]}
        self.sums = nn.ModuleDict()
        for name, combinations in basis.combinations.items():
            blocks = []
            for block in self.blocks[name]:
                pair = block.in_name, block.out_name
                shares = [
                    Share(*named, combination.table)
                    for named, combination in zip(self.combinations[name][pair], combinations[pair])
                ]
                blocks.append((block, unions[pair], shares))
            self.sums[name] = SummandSum(blocks, self.union.dimensions[_SHARED])

    @property
    def shares(self) -> Tensor:
        r""":math:`\pi`, positive and of sum 1, shape ``(summands,)``."""
        return torch.softmax(self.alpha / self.temperature, 0)

    def basis(self, block: Block) -> Tensor:
        r"""Sampled kernels :math:`\pi_H \Phi_H` of one block, shape ``(K, out size, in size, S)``, with a graph to
        alpha."""
        name = next(n for n, blocks in self.blocks.items() if block in blocks)
        return self.shares[self.pathways.index(name)] * self.filters(name, (block.in_name, block.out_name))

    def filters(self, name: str, pair: tuple[str, str]) -> Tensor:
        r""":math:`\Phi_H` of one summand and pair, without its share."""
        (union,) = (b for b in self.union.blocks[_SHARED] if (b.in_name, b.out_name) == pair)
        shared, rows = self.union.basis(union), []
        for combination in self.combinations[name][pair]:
            kernels = shared[combination.start : combination.stop]
            rows.append(
                kernels
                if combination.table is None
                else torch.einsum("kr,rois->kois", self._table(combination.table), kernels)
            )
        return torch.cat(rows) @ self.spatial

    def _stored(self, key: str) -> Any:
        """A table as a tensor, or as the module of its blocks."""
        return self.tables[key] if key in self.tables else self.block_tables[key]

    def _table(self, key: str) -> Tensor:
        return self.tables[key] if key in self.tables else self.block_tables[key].dense()

    def _inverse(self, key: str) -> Tensor:
        if key in self.tables:
            return torch.linalg.pinv(self.tables[key])
        transpose: Tensor = self.block_tables[key].dense().T  # blocks' rows are orthonormal
        return transpose

    def forward(self, weights: Mapping[str, Tensor]) -> Tensor:
        """The kernel, shape ``(out channels, in channels, S)``; ``weights[H]`` has shape ``(dimensions[H],)``.

        Summands missing from ``weights`` are left out; the shares of the others stay as they are.
        """
        scaled = {n: weights[n] * s for n, s in zip(self.pathways, self.shares.unbind()) if n in weights}
        return self.union({_SHARED: self.combine(scaled)}) @ self.spatial

    def plain(self, weights: Mapping[str, Tensor]) -> Tensor:
        """As :meth:`forward`, every share taken as 1."""
        return self.union({_SHARED: self.combine(weights)}) @ self.spatial

    def combine(self, weights: Mapping[str, Tensor]) -> Tensor:
        r""":math:`\sum_H w_H T_H`: coefficients of the shared kernels, one flat vector."""
        like, size = next(iter(weights.values())), self.union.dimensions[_SHARED]
        total = like.new_zeros(size)
        for name in self.pathways:
            if name in weights:
                total = self.sums[name](total, weights[name], self._stored)
        return total

    def breaking(self, weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Squared norms of the part of the whole kernel that G does not keep, and of the whole kernel."""
        scaled = {n: weights[n] * s for n, s in zip(self.pathways, self.shares.unbind())}
        vector = self.combine(scaled)
        broken = vector.new_zeros(())
        for b in self.union.blocks[_SHARED]:
            beyond = vector[b.start : b.stop].view(b.outputs * b.inputs, -1)[
                :, self.strict_counts[b.in_name, b.out_name] :
            ]
            broken = broken + beyond.square().sum()
        return broken, vector.square().sum()

    def read(self, name: str, vector: Tensor) -> Tensor:
        """The inverse of :meth:`combine` for a kernel that is one of this summand's: its coefficients there.

        Args:
            vector: coefficients of the shared kernels.
        """
        coefficients = []
        columns = {(b.in_name, b.out_name): b for b in self.union.blocks[_SHARED]}
        for block in self.blocks[name]:
            pair = block.in_name, block.out_name
            union = columns[pair]
            shared = vector[union.start : union.stop].view(union.outputs * union.inputs, -1)
            for combination in self.combinations[name][pair]:
                piece = shared[:, combination.start : combination.stop]
                coefficients.append(piece if combination.table is None else piece @ self._inverse(combination.table))
            count = len(self.combinations[name][pair])
            coefficients[-count:] = [torch.cat(coefficients[-count:], dim=1).flatten()]
        return torch.cat(coefficients)

    def keep(self, names: Sequence[str]) -> None:
        """Forget all other summands, in place."""
        indices = [index for index, name in enumerate(self.pathways) if name in names]
        for name in set(self.pathways) - set(names):
            for combinations in self.combinations[name].values():
                for combination in combinations:
                    if combination.table is not None:
                        del (self.tables if combination.table in self.tables else self.block_tables)[combination.table]
            del self.sums[name]
        self.pathways = tuple(name for name in self.pathways if name in names)
        for table in (self.combinations, self.blocks, self.dimensions):
            for name in set(table) - set(names):
                del table[name]
        self.alpha = nn.Parameter(self.alpha.detach()[indices].clone(), requires_grad=self.alpha.requires_grad)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.out_size} x {self.union.in_size} channels, {len(self.spatial[0])} places)"

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *arguments: Any) -> None:
        """The tables had numbers in their names in layout 1."""
        rename_entries(state, prefix, r"table_(\d+_\d+_\d+)$", r"tables.\1")
        rename_entries(state, prefix, r"table_(\d+_\d+_\d+)\.", r"block_tables.\1.")
        super()._load_from_state_dict(state, prefix, *arguments)
