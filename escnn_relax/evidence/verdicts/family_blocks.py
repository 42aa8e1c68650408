"""The family of kernels that a subgroup fixes, as blocks of the curvature: B for the weights of each pathway."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...curvature.factors import Factor
from ...errors import ArgumentError
from ...nn.kernels.pathway_sum import Block
from ...nn.measured.kernel_symmetry import KernelSymmetry
from ...symmetry.kernels.pathway import Pathway
from .fixed_coefficients import Pair
from .kernel_family import LARGEST, FamilyBlock

__all__ = ["OpenPathways", "family_blocks", "family_matrices", "of_factor"]


@dataclass(frozen=True)
class OpenPathways:
    """The open pathways of a layer, with what the evidence knows of them, by the pathway's name.

    Attributes:
        symmetry: the layer.
        pathways: those that are open.
        factors: of the curvature.
        weights: their values, float64.
        log_precision: of the prior.
        slopes: of the negative log posterior at the weights (nats), where they are known.
    """

    symmetry: KernelSymmetry
    pathways: tuple[Pathway, ...]
    factors: Mapping[str, Sequence[Factor]]
    weights: Mapping[str, Tensor]
    log_precision: Mapping[str, float]
    slopes: Mapping[str, Tensor]


def of_factor(weights: Tensor, factor: Factor) -> Tensor:
    """Those weights that a factor is of."""
    return weights if factor.positions is None else weights[factor.positions.flatten().cpu()]


def family_blocks(
    layer: OpenPathways, members: Sequence[Pathway], fixed: Mapping[Pair, Tensor]
) -> list[list[FamilyBlock]]:
    """Lists of blocks that share their coefficients.

    Args:
        members: pathways that the grid couples.
        fixed: for each pair of representations the coefficient vectors of these pathways that the subgroup fixes.
    """
    if any(f.positions is None for factors in layer.factors.values() for f in factors):
        return [_flat(layer, members, fixed)]
    symmetry, relaxed = layer.symmetry, layer.symmetry.layer
    families: dict[tuple[Any, ...], list[FamilyBlock]] = {}
    for pathway in members:
        name, slopes = pathway.name, layer.slopes.get(pathway.name)
        for factor in layer.factors[name]:
            everything: Any = factor.positions  # there are some, see above
            positions, columns = everything.cpu(), []
            for position in positions[0].tolist():
                block = next(b for b in relaxed.kernel.blocks[name] if b.start <= position < b.stop)
                field, k = divmod(position - block.start, block.stop_row - block.row)
                columns.append((block, *divmod(field, block.inputs), k))
            first, o, i, _ = columns[0]
            # which output fields, and in a transposed convolution which group of input fields
            key = first.out_name, o, i * getattr(relaxed, "groups", 1) // first.inputs
            matrix = _columns(symmetry, pathway, members, fixed, columns)
            values, slope = layer.weights[name][positions], None if slopes is None else slopes[positions]
            curved = FamilyBlock(name, factor, values, layer.log_precision[name], matrix, slope)
            families.setdefault(key, []).append(curved)
    return [family for family in families.values() if len(family[0].matrix)]


def family_matrices(
    symmetry: KernelSymmetry, members: Sequence[Pathway], fixed: Mapping[Pair, Tensor], sizes: Mapping[str, int]
) -> dict[str, Tensor]:
    """B for all weights of each pathway, ``(n, size)``: for each pair of fields the vectors of its
    representations.

    Args:
        sizes: number of weights of each pathway, by its name.

    Raises:
        ArgumentError: more than :data:`~.kernel_family.LARGEST` coefficients.
    """
    kernel = symmetry.layer.kernel
    fields = {p: len(kernel.in_fields[p[0]].channels) * len(kernel.out_fields[p[1]].channels) for p in symmetry.pairs}
    total = sum(fields[pair] * len(fixed[pair]) for pair in symmetry.pairs)
    if total > LARGEST:
        raise ArgumentError(
            symmetry.title,
            f"{total} coupled coefficients to drop",
            expected=f"at most {LARGEST}",
            remedy="take the curvature 'expand', which has a Kronecker form",
        )
    matrices = {}
    for pathway in members:
        matrix, row = torch.zeros(total, sizes[pathway.name], dtype=torch.float64), 0
        blocks = {(b.in_name, b.out_name): b for b in kernel.blocks[pathway.name]}
        for pair in symmetry.pairs:
            N, block = fixed[pair], blocks.get(pair)
            if block is not None:
                offset = _offset(symmetry, pair, pathway, members)
                block_columns = N[:, offset : offset + block.stop_row - block.row]
                rows = slice(row, row + fields[pair] * len(N))
                matrix[rows, block.start : block.stop] = torch.kron(
                    torch.eye(fields[pair], dtype=torch.float64), block_columns
                )
            row += fields[pair] * len(N)
        matrices[pathway.name] = matrix
    return matrices


def _columns(
    symmetry: KernelSymmetry,
    pathway: Pathway,
    members: Sequence[Pathway],
    fixed: Mapping[Pair, Tensor],
    columns: Sequence[tuple[Block, int, int, int]],
) -> Tensor:
    """B for one row of weights ``(D,)``: for each input field the vectors of its pair."""
    out = columns[0][0].out_name
    chunk = columns[0][2]
    rows: dict[tuple[str, int], tuple[int, Tensor]] = {}
    total = 0
    groups = getattr(symmetry.layer, "groups", 1)
    for pair in symmetry.pairs:
        if pair[1] != out:
            continue
        count = len(symmetry.layer.kernel.in_fields[pair[0]].channels)
        share = count // groups if hasattr(symmetry.layer, "output_padding") else count
        start = chunk // share * share if share else 0
        for i in range(start, start + share):
            rows[pair[0], i] = total, fixed[pair]
            total += len(fixed[pair])
    matrix = torch.zeros(total, len(columns), dtype=torch.float64)
    for column, (block, _, i, k) in enumerate(columns):
        row, N = rows[block.in_name, i]
        matrix[row : row + len(N), column] = N[:, _offset(symmetry, (block.in_name, out), pathway, members) + k]
    return matrix


def _offset(symmetry: KernelSymmetry, pair: Pair, pathway: Pathway, members: Sequence[Pathway]) -> int:
    """Where a pathway's coefficients start among those of its group."""
    section = dict(zip(symmetry.pairs[pair].pathways, symmetry.pairs[pair].sections))
    return sum(section[p].stop - section[p].start for p in members[: members.index(pathway)])


def _flat(layer: OpenPathways, members: Sequence[Pathway], fixed: Mapping[Pair, Tensor]) -> list[FamilyBlock]:
    """All weights as one row, for blocks without a Kronecker form."""
    sizes = {name: len(values) for name, values in layer.weights.items()}
    blocks = []
    for name, matrix in family_matrices(layer.symmetry, members, fixed, sizes).items():
        for factor in layer.factors[name]:
            columns = slice(None) if factor.positions is None else factor.positions.flatten().cpu()
            values = layer.weights[name][columns].view(1, -1)
            slope = layer.slopes[name][columns].view(1, -1) if name in layer.slopes else None
            blocks.append(FamilyBlock(name, factor, values, layer.log_precision[name], matrix[:, columns], slope))
    return blocks
