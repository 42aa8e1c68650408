"""What the evidence says to a subgroup being demanded of a layer: the evidence of the kernels that it fixes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...curvature.factors import Factor
from ...curvature.layers.coverage import join
from ...errors import ArgumentError, CoverageError, CurvatureError
from ...nn.kernels.pathway_sum import Block
from ...nn.measured.stabiliser import KernelSymmetry
from ...symmetry.groups.lattice import Subgroup
from ...symmetry.kernels.pathway import Pathway
from .joint_curvature import JointCurvature, Marginal, marginals
from .restricted_evidence import LARGEST, Part, evidence_of_all, evidence_of_coupled, evidence_of_family

__all__ = ["Demands", "gain_of_demanding"]

Pair = tuple[str, str]

#: A kernel of a subgroup counts where closed pathways leave more than this of its energy (fraction).
OPEN = 0.5

#: A vector of coefficients reaches into a pathway if it has more than this norm there.
REACHES = 1e-5


class Demands:
    r"""What the evidence says to subgroups being demanded of one layer: of each the gain over the layer with all its
    freedom.

    The log evidence of the kernels that a subgroup H fixes minus that of all kernels (nats), by
    :mod:`escnn_relax.evidence.verdicts.restricted_evidence`: the curvature and the other weights stay. Closed pathways
    stay closed: they are zero without any freedom, so of what H contradicts only the part among the open ones costs
    anything, and of its kernels the open parts are meant.

    Args:
        symmetry: the layer.
        factors, log_precision: by parameter name in the model.
        scale: h, what one unit of the likelihood counts for these factors.
        bounds: of the log precisions: either side of the comparison takes those that suit it best. ``None``: both keep
            the present ones, of which H gets the prior that is conditioned on its kernels.
        joint: the curvature with the blocks between the pathways, bias and equivariant kernels included, where it fits
            into memory (:class:`~escnn_relax.evidence.verdicts.joint_curvature.JointCurvature`). Without it pathways
            are independent in the posterior: exact where the data hold all transforms of each sample, and wrong by nats
            where they are few.
        slopes: of the negative log posterior at the weights, by parameter name (nats); with a ``joint``, which knows
            them, anything but ``None``. Without them the weights are taken for its mode, which they are where the
            training has ended.

    Attributes:
        coupled: whether cross blocks are in the gains.

    Raises:
        CoverageError: a pathway that the evidence does not cover.
    """

    def __init__(
        self,
        symmetry: KernelSymmetry,
        factors: Mapping[str, Sequence[Factor]],
        log_precision: Mapping[str, float],
        scale: float,
        bounds: tuple[float, float] | None = None,
        joint: JointCurvature | None = None,
        slopes: Mapping[str, Tensor] | None = None,
    ) -> None:
        shut: frozenset[str] = getattr(symmetry.layer, "closed", frozenset())
        names = {p.name: join(symmetry.name, f"weights.{p.name}") for p in symmetry.residual if p.name not in shut}
        missing = [n for n in names.values() if n not in factors or n not in log_precision]
        if missing:
            problem, remedy = f"no curvature of {missing[0]}", "only covered weights have a margin"
            raise CoverageError(symmetry.where, problem, remedy=remedy)
        self.symmetry, self.scale, self.bounds = symmetry, scale, bounds
        self.open = tuple(p for p in symmetry.residual if p.name in names)
        self.factors = {p.name: factors[names[p.name]] for p in self.open}
        self.log_precision = {p.name: log_precision[names[p.name]] for p in self.open}
        self.weights = {p.name: symmetry.layer.weights[p.name].detach().to("cpu", torch.float64) for p in self.open}
        self._known: dict[Any, float] = {}
        self._whole: dict[str, float] = {}
        known = {} if slopes is None else slopes
        self.slopes = {
            p.name: known[names[p.name]].to("cpu", torch.float64) for p in self.open if names[p.name] in known
        }
        self._marginal = marginals(joint, {n: names[n] for n in self.weights}, settled=slopes is None)
        self._free: float | None = None

    @property
    def coupled(self) -> bool:
        return self._marginal is not None

    def gain(self, kept: Subgroup) -> float:
        """The change of the log evidence (nats) if the layer's kernel had to be equivariant under ``kept``.

        Raises:
            ArgumentError: more coupled coefficients than can be decomposed.
            CurvatureError: an evidence that is not finite.
        """
        if kept.id not in self._known:
            gain = self._gain(kept)
            if not math.isfinite(gain):  # would be neither refuted nor preferred
                problem, remedy = (
                    f"the evidence of {kept.name} is not finite",
                    "look for NaN or huge weights, inputs or precisions",
                )
                raise CurvatureError(self.symmetry.where, problem, got=gain, remedy=remedy)
            self._known[kept.id] = gain
        return self._known[kept.id]

    def _gain(self, kept: Subgroup) -> float:
        fixed = {pair: self.symmetry.fixed(pair, kept) for pair in self.symmetry.pairs}
        if self._marginal is not None:
            every = {
                pair: _own(self.symmetry, pair, self.symmetry.residual, self.open, basis)
                for pair, basis in fixed.items()
            }
            if all(len(rows) == rows.shape[1] for rows in every.values()):
                return 0.0
            return self._together(every, self._marginal) - self._with_all(self._marginal)
        total = 0.0
        for group in _coupled(self.symmetry, fixed):
            members = [p for p in group if p in self.open]
            own = {pair: _own(self.symmetry, pair, group, members, basis) for pair, basis in fixed.items()}
            if not members or all(len(rows) == rows.shape[1] for rows in own.values()):
                continue  # H leaves all of it
            if any(len(rows) for rows in own.values()):
                total += evidence_of_family(self._blocks(members, own), self.scale, self.bounds, self.symmetry.where)
            total -= sum(self._all_of(p.name) for p in members)
        return total

    def _together(self, own: Mapping[Pair, Tensor], known: Marginal) -> float:
        matrices = _matrices(self.symmetry, self.open, own, self.weights)
        return evidence_of_coupled(
            known.curvature, known.linear, matrices, self.log_precision, self.bounds, self.symmetry.where
        )

    def _with_all(self, known: Marginal) -> float:
        if self._free is None:
            whole = torch.eye(len(known.linear), dtype=torch.float64)
            matrices = {p.name: part for p, part in zip(self.open, whole.split(list(known.sizes), dim=1))}
            where = self.symmetry.where
            self._free = evidence_of_coupled(
                known.curvature, known.linear, matrices, self.log_precision, self.bounds, where
            )
        return self._free

    def _all_of(self, name: str) -> float:
        """The log evidence of all weights of a pathway, relative to their being zero."""
        if name not in self._whole:
            weights, delta, slope = self.weights[name], self.log_precision[name], self.slopes.get(name)
            parts = [(f, _part(weights, f), delta) for f in self.factors[name]]
            slopes = None if slope is None else [_part(slope, f) for f in self.factors[name]]
            self._whole[name] = evidence_of_all(parts, self.scale, self.bounds, slopes)
        return self._whole[name]

    def _blocks(self, members: Sequence[Pathway], own: Mapping[Pair, Tensor]) -> list[list[Part]]:
        return _parts(self.symmetry, members, own, self.factors, self.weights, self.log_precision, self.slopes)


def gain_of_demanding(
    kept: Subgroup,
    symmetry: KernelSymmetry,
    factors: Mapping[str, Sequence[Factor]],
    log_precision: Mapping[str, float],
    scale: float,
    bounds: tuple[float, float] | None = None,
    joint: JointCurvature | None = None,
) -> float:
    """:meth:`Demands.gain` of one subgroup."""
    return Demands(symmetry, factors, log_precision, scale, bounds, joint).gain(kept)


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


def _own(
    symmetry: KernelSymmetry, pair: Pair, group: Sequence[Pathway], members: Sequence[Pathway], basis: Tensor
) -> Tensor:
    """Orthonormal coefficient vectors of the open pathways of a group that the subgroup fixes."""
    sections = symmetry.pairs[pair].sections
    of = dict(zip(symmetry.pairs[pair].pathways, sections))
    columns = torch.cat([torch.arange(of[p].start, of[p].stop) for p in group])
    rows = basis[:, columns]
    rows = rows[rows.norm(dim=1) > 0.5]  # each lives in one group of pathways only
    if len(members) == len(group):
        return rows
    opened = torch.cat([torch.full((of[p].stop - of[p].start,), p in members) for p in group])
    if not len(rows) or not int((~opened).sum()):
        return rows[:, opened]
    # a grid that mixes irreps gives the kernels of C3 a part in C6's irrep 1: where that is closed, their open parts
    # are meant
    _, sizes, axes = torch.linalg.svd(rows[:, opened], full_matrices=False)
    return axes[sizes.square() > OPEN]


def _part(weights: Tensor, factor: Factor) -> Tensor:
    return weights if factor.positions is None else weights[factor.positions.flatten().cpu()]


def _parts(
    symmetry: KernelSymmetry,
    members: Sequence[Pathway],
    kept: Mapping[Pair, Tensor],
    factors: Mapping[str, Sequence[Factor]],
    weights: Mapping[str, Tensor],
    deltas: Mapping[str, float],
    slopes: Mapping[str, Tensor],
) -> list[list[Part]]:
    """Lists of parts that share their c."""
    layer = symmetry.layer
    if any(f.positions is None for of in factors.values() for f in of):
        return [_flat(symmetry, members, kept, factors, weights, deltas, slopes)]
    found: dict[tuple[Any, ...], list[Part]] = {}
    for pathway in members:
        blocks = layer.kernel.blocks[pathway.name]
        for factor in factors[pathway.name]:
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
            matrix = _columns(symmetry, pathway, members, kept, columns)
            values, slope = weights[pathway.name][positions], slopes.get(pathway.name)
            slope = None if slope is None else slope[positions]
            found.setdefault(key, []).append(Part(pathway.name, factor, values, deltas[pathway.name], matrix, slope))
    return [c for c in found.values() if len(c[0].matrix)]


def _columns(
    symmetry: KernelSymmetry,
    pathway: Pathway,
    members: Sequence[Pathway],
    kept: Mapping[Pair, Tensor],
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
            rows[pair[0], i] = total, kept[pair]
            total += len(kept[pair])
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
    kept: Mapping[Pair, Tensor],
    factors: Mapping[str, Sequence[Factor]],
    weights: Mapping[str, Tensor],
    deltas: Mapping[str, float],
    slopes: Mapping[str, Tensor],
) -> list[Part]:
    """All weights as one row, for blocks without a Kronecker form."""
    found = []
    for name, matrix in _matrices(symmetry, members, kept, weights).items():
        for factor in factors[name]:
            columns = slice(None) if factor.positions is None else factor.positions.flatten().cpu()
            values = weights[name][columns].view(1, -1)
            slope = slopes[name][columns].view(1, -1) if name in slopes else None
            found.append(Part(name, factor, values, deltas[name], matrix[:, columns], slope))
    return found


def _matrices(
    symmetry: KernelSymmetry, members: Sequence[Pathway], kept: Mapping[Pair, Tensor], weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """B for all weights of each pathway, ``(n, size)``: for each pair of fields the vectors of its representations."""
    kernel = symmetry.layer.kernel
    fields = {p: len(kernel.in_fields[p[0]].channels) * len(kernel.out_fields[p[1]].channels) for p in symmetry.pairs}
    total = sum(fields[pair] * len(kept[pair]) for pair in symmetry.pairs)
    if total > LARGEST:
        raise ArgumentError(
            symmetry.where,
            f"{total} coupled coefficients to drop",
            expected=f"at most {LARGEST}",
            remedy="take the curvature 'expand', which has a Kronecker form",
        )
    found = {}
    for pathway in members:
        matrix, row = torch.zeros(total, len(weights[pathway.name]), dtype=torch.float64), 0
        blocks = {(b.in_name, b.out_name): b for b in kernel.blocks[pathway.name]}
        for pair in symmetry.pairs:
            N, block = kept[pair], blocks.get(pair)
            if block is not None:
                offset = _offset(symmetry, pair, pathway, members)
                part = N[:, offset : offset + block.stop_row - block.row]
                rows = slice(row, row + fields[pair] * len(N))
                matrix[rows, block.start : block.stop] = torch.kron(torch.eye(fields[pair], dtype=torch.float64), part)
            row += fields[pair] * len(N)
        found[pathway.name] = matrix
    return found
