"""What the evidence says to a subgroup being demanded of a layer: the coefficients that it does not fix set to zero."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

import torch
from torch import Tensor

from ..curvature.coverage import join
from ..curvature.factors import Factor
from ..errors import ArgumentError, CoverageError
from ..nn.kernel import Block
from ..nn.stabiliser import KernelSymmetry
from ..symmetry.pathway import Pathway
from ..symmetry.span import complement, singular_values
from ..symmetry.subgroups import Subgroup
from .dropping import LARGEST, Constraint, gain_of_dropping, gain_of_zero

__all__ = ["gain_of_demanding"]

Pair = tuple[str, str]

#: A vector of coefficients reaches into a pathway if it has more than this norm there.
REACHES = 1e-5


def gain_of_demanding(
    kept: Subgroup,
    symmetry: KernelSymmetry,
    factors: Mapping[str, Sequence[Factor]],
    log_precision: Mapping[str, float],
    scale: float,
) -> float:
    r"""The change of the log evidence (nats) if the layer's kernel had to be equivariant under ``kept``.

    Precisions, curvature and the other weights stay; see :mod:`escnn_relax.evidence.dropping`. Closed pathways stay closed:
    they are zero without any freedom, so of what H contradicts only the part among the open ones costs anything.

    Args:
        kept: the subgroup H.
        symmetry: the layer.
        factors, log_precision: by parameter name in the model.
        scale: h, what one unit of the likelihood counts for these factors.

    Raises:
        CoverageError: a pathway that the evidence does not cover.
        ArgumentError: more coupled coefficients than can be decomposed.
    """
    shut = getattr(symmetry.layer, "closed", frozenset())
    names = {p.name: join(symmetry.name, f"weights.{p.name}") for p in symmetry.residual if p.name not in shut}
    missing = [n for n in names.values() if n not in factors or n not in log_precision]
    if missing:
        raise CoverageError(symmetry.where, f"no curvature of {missing[0]}", remedy="only covered weights have a margin")
    fixed = {pair: symmetry.fixed(pair, kept) for pair in symmetry.pairs}
    total = 0.0
    for group in _coupled(symmetry, fixed):
        members = [p for p in group if p.name not in shut]
        if not members:
            continue
        lost = {pair: _lost(symmetry, pair, group, members, basis) for pair, basis in fixed.items()}
        if not any(len(n) for n in lost.values()):
            continue
        own = {p.name: factors[names[p.name]] for p in members}
        deltas = {p.name: log_precision[names[p.name]] for p in members}
        weights = {p.name: symmetry.layer.weights[p.name].detach().to("cpu", torch.float64) for p in members}
        if all(len(n) == n.shape[1] for n in lost.values()):
            for name, of in own.items():
                total += sum(gain_of_zero(f, _part(weights[name], f), scale, deltas[name]) for f in of)
            continue
        for constraints in _constraints(symmetry, members, lost, own, weights, deltas):
            total += gain_of_dropping(constraints, scale, symmetry.where)
    return total


def _coupled(symmetry: KernelSymmetry, fixed: Mapping[Pair, Tensor]) -> list[list[Pathway]]:
    """Pathways in groups: within one, some fixed kernel has a part in several of them, since the grid mixes irreps."""
    groups = [{p} for p in symmetry.residual]
    for pair, basis in fixed.items():
        for row in basis:
            reached = {
                p
                for p, section in zip(symmetry.pairs[pair].pathways, symmetry.pairs[pair].sections)
                if section.start < section.stop and float(row[section].norm()) > REACHES
            }
            joined = [g for g in groups if g & reached]
            if len(joined) > 1:
                groups = [g for g in groups if not g & reached] + [set().union(*joined)]
    return [[p for p in symmetry.residual if p in g] for g in groups]


def _lost(
    symmetry: KernelSymmetry, pair: Pair, group: Sequence[Pathway], members: Sequence[Pathway], basis: Tensor
) -> Tensor:
    """Orthonormal coefficient vectors of the open pathways of a group that the subgroup does not fix."""
    sections = symmetry.pairs[pair].sections
    of = dict(zip(symmetry.pairs[pair].pathways, sections))
    columns = torch.cat([torch.arange(of[p].start, of[p].stop) for p in group])
    rows = basis[:, columns]
    rows = rows[rows.norm(dim=1) > 0.5]  # each lives in one group of pathways only
    lost = complement(rows)
    if len(members) == len(group):
        return lost
    opened = torch.cat([torch.full((of[p].stop - of[p].start,), p in members) for p in group])
    _, sines, directions = singular_values(lost[:, opened])
    return directions[sines > REACHES]


def _part(weights: Tensor, factor: Factor) -> Tensor:
    return weights if factor.positions is None else weights[factor.positions.flatten().cpu()]


def _constraints(
    symmetry: KernelSymmetry,
    members: Sequence[Pathway],
    lost: Mapping[Pair, Tensor],
    own: Mapping[str, Sequence[Factor]],
    weights: Mapping[str, Tensor],
    deltas: Mapping[str, float],
) -> list[list[Constraint]]:
    """Lists of blocks whose Nw belong together."""
    layer = symmetry.layer
    if any(f.positions is None for of in own.values() for f in of):
        return [_flat(symmetry, members, lost, own, weights, deltas)]
    found: dict[tuple[Any, ...], list[Constraint]] = {}
    for pathway in members:
        blocks = layer.kernel.blocks[pathway.name]
        for factor in own[pathway.name]:
            of: Any = factor.positions  # there are some, see above
            positions, columns = of.cpu(), []
            for position in positions[0].tolist():
                block = next(b for b in blocks if b.start <= position < b.stop)
                count = block.stop_row - block.row
                field, k = divmod(position - block.start, count)
                columns.append((block, *divmod(field, block.inputs), k))
            first, o, i, _ = columns[0]
            # which output fields, and in a transposed convolution which group of input fields
            key = first.out_name, o, i * getattr(layer, "groups", 1) // first.inputs
            matrix = _columns(symmetry, pathway, members, lost, columns)
            values = weights[pathway.name][positions]
            found.setdefault(key, []).append(Constraint(factor, values, deltas[pathway.name], matrix))
    return [c for c in found.values() if len(c[0].matrix)]


def _columns(
    symmetry: KernelSymmetry,
    pathway: Pathway,
    members: Sequence[Pathway],
    lost: Mapping[Pair, Tensor],
    columns: Sequence[tuple[Block, int, int, int]],
) -> Tensor:
    """N for one row of weights ``(D,)``: for each input field the vectors of its pair."""
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
            rows[pair[0], i] = total, lost[pair]
            total += len(lost[pair])
    matrix = torch.zeros(total, len(columns), dtype=torch.float64)
    for column, (block, _, i, k) in enumerate(columns):
        row, N = rows[block.in_name, i]
        matrix[row : row + len(N), column] = N[:, _offset(symmetry, (block.in_name, out), pathway, members) + k]
    return matrix


def _offset(symmetry: KernelSymmetry, pair: Pair, pathway: Pathway, members: Sequence[Pathway]) -> int:
    """Where a pathway's coefficients start among those of its group."""
    of = dict(zip(symmetry.pairs[pair].pathways, symmetry.pairs[pair].sections))
    return sum(of[p].stop - of[p].start for p in members[: members.index(pathway)])


def _flat(
    symmetry: KernelSymmetry,
    members: Sequence[Pathway],
    lost: Mapping[Pair, Tensor],
    own: Mapping[str, Sequence[Factor]],
    weights: Mapping[str, Tensor],
    deltas: Mapping[str, float],
) -> list[Constraint]:
    """All weights as one row, for blocks without a Kronecker form."""
    kernel = symmetry.layer.kernel
    fields = {p: len(kernel.in_fields[p[0]].channels) * len(kernel.out_fields[p[1]].channels) for p in symmetry.pairs}
    total = sum(fields[pair] * len(lost[pair]) for pair in symmetry.pairs)
    if total > LARGEST:
        raise ArgumentError(
            symmetry.where,
            f"{total} coupled coefficients to drop",
            expected=f"at most {LARGEST}",
            remedy="take the curvature 'expand', which has a Kronecker form",
        )
    found = []
    for pathway in members:
        matrix, row = torch.zeros(total, len(weights[pathway.name]), dtype=torch.float64), 0
        blocks = {(b.in_name, b.out_name): b for b in kernel.blocks[pathway.name]}
        for pair in symmetry.pairs:
            N, block = lost[pair], blocks.get(pair)
            if block is not None:
                offset = _offset(symmetry, pair, pathway, members)
                part = N[:, offset : offset + block.stop_row - block.row]
                rows = slice(row, row + fields[pair] * len(N))
                matrix[rows, block.start : block.stop] = torch.kron(torch.eye(fields[pair], dtype=torch.float64), part)
            row += fields[pair] * len(N)
        for factor in own[pathway.name]:
            columns = slice(None) if factor.positions is None else factor.positions.flatten().cpu()
            values = weights[pathway.name][columns].view(1, -1)
            found.append(Constraint(factor, values, deltas[pathway.name], matrix[:, columns]))
    return found
