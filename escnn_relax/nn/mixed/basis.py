r"""The kernels of a mixture of groups: one orthonormal basis that all summands share, and each summand's place in it.

The kernels equivariant under H are sums of parts, one in each irrep of G that H fixes a vector of. So for all H
together it takes the orthonormal kernels of these irreps once, and for each H which combinations of them it has: all of
an irrep, none, or (a reflection in a two-dimensional irrep) some. A mixture of any number of groups thus expands about
as fast as its smallest group alone. Large ones are found by pairs of irreps, :mod:`escnn_relax.nn.mixed.pair_basis`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from escnn.group import Representation
from escnn.gspaces import GSpace
from torch import Tensor

from ... import _escnn
from ...errors import SubgroupError
from ...symmetry.groups.lattice import Subgroup, subgroup
from ...symmetry.kernels.graded import fixed_vectors
from ...symmetry.kernels.irrep_pairs import BlockKernels, Kernels
from ...symmetry.kernels.linear_algebra import orthonormal
from ...symmetry.kernels.pathway import EQUIVARIANT
from ...symmetry.kernels.pathway_kernels import Relaxation
from ...symmetry.kernels.plan import plan
from ...symmetry.kernels.sampling import Band, FiberBand
from ..kernels.block_products import Blocks
from .pair_basis import Sections

__all__ = ["Combination", "MixtureBasis", "mixed_groups", "mixture_basis"]

#: A section of the shared basis lies within a summand's kernels if its projection on them keeps this share of its norm.
WHOLE = 1 - 1e-4


class Combination(NamedTuple):
    """Kernels ``first:last`` of one summand: the shared kernels ``start:stop`` themselves, or combinations of them.

    ``table`` has orthonormal rows, shape ``(last - first, stop - start)``, or is made of blocks; ``None`` stands for
    the identity.
    """

    first: int
    last: int
    start: int
    stop: int
    table: Tensor | tuple[Blocks, ...] | None


class MixtureBasis(NamedTuple):
    """All pairs of an input and an output representation's name.

    Attributes:
        shared: orthonormal kernels ``(R, out size, in size, S)``, float64, G's own first.
        combinations: for each summand's name and each pair, what it has of them.
        counts: how many of them are G's.
    """

    shared: dict[tuple[str, str], Kernels]
    combinations: dict[str, dict[tuple[str, str], tuple[Combination, ...]]]
    counts: dict[tuple[str, str], int]

    def dimension(self, name: str, pair: tuple[str, str]) -> int:
        """Number of kernels of one summand in one pair."""
        return max((combination.last for combination in self.combinations[name][pair]), default=0)


def mixed_groups(gspace: GSpace, ids: Sequence[Any], reach: int | None) -> Relaxation:
    """The summands of a mixture: G first, then the subgroups by size, each with its pathway.

    Args:
        ids: subgroup ids as ``gspace.restrict`` takes them; G itself may be among them.
        reach: the highest frequency of the layer's kernels, for a continuous G.

    Raises:
        SubgroupError: ids that name no subgroup of G, that name one twice, or that name nothing but G.
    """
    if isinstance(ids, str) or not isinstance(ids, (list, tuple, set, frozenset)):
        raise SubgroupError(expected="a list of subgroup ids", got=repr(ids), remedy=f"subgroups=[{ids!r}]?")
    whole = [id for id in ids if subgroup(gspace, id).index == 1]
    if len(whole) > 1:
        raise SubgroupError(problem=f"the whole group is named {len(whole)} times in {ids!r}", remedy="name it once")
    proper = [id for id in ids if id not in whole]
    if not proper:
        problem = f"{ids!r} names no proper subgroup of {gspace.fibergroup.name}"
        raise SubgroupError(problem=problem, remedy="print(subgroups(gspace)) lists them")
    return plan(gspace, subgroups=proper, reach=reach)


def mixture_basis(
    rule: Relaxation,
    band: Band | FiberBand,
    in_reprs: Sequence[Representation],
    out_reprs: Sequence[Representation],
    expansion: Any,
) -> MixtureBasis:
    """Build the kernels of all summands between all representations of a layer.

    Args:
        rule: from :func:`mixed_groups`.
        expansion: escnn's basis expansion of G's own layer.
    """
    groups = {p.name: subgroup(rule.gspace, p.subgroup) for p in rule.residual}
    graded = _needed(plan(rule.gspace, reach=rule.frequencies), groups.values())
    alone = {name: replace(rule, pathways=(EQUIVARIANT, p)) for name, p in zip(groups, rule.residual)}
    equivariant = {(i, o): kernels for i, o, kernels, _ in _escnn.blocks(expansion)}
    basis = MixtureBasis({}, {name: {} for name in (EQUIVARIANT.name, *groups)}, {})
    for i in dict.fromkeys(in_reprs):
        for o in dict.fromkeys(out_reprs):
            pair = i.name, o.name
            strict = equivariant.get(pair)
            if strict is None:
                strict = torch.zeros(0, o.size, i.size, len(band.points))
            bases = graded.bases(band, i, o, strict)
            del bases[EQUIVARIANT.name]
            strict = strict.detach().to("cpu", torch.float64)
            beyond = {name: relaxation.bases(band, i, o, strict)[name] for name, relaxation in alone.items()}
            basis.combinations[EQUIVARIANT.name][pair] = ()
            if any(isinstance(kernels, BlockKernels) for kernels in bases.values()):
                sections = Sections.build(strict, [k for k in bases.values() if isinstance(k, BlockKernels)], i, o)
                basis.shared[pair], size, table = sections.shared, sections.strict_count, sections.coordinates(strict)
                for name, kernels in beyond.items():
                    basis.combinations[name][pair] = _composed_combinations(
                        sections, cast(BlockKernels, kernels)
                    )  # all pathways of a pair are
            else:
                stacks = [orthonormal(strict.flatten(1)), *(_dense(b).flatten(1) for b in bases.values())]
                shared = torch.cat(stacks)
                size = len(stacks[0])
                basis.shared[pair], table = shared.view(-1, *strict.shape[1:]), strict.flatten(1) @ stacks[0].T
                for name, kernels in beyond.items():
                    coordinates = _dense(kernels).flatten(1) @ shared.T
                    basis.combinations[name][pair] = tuple(_combinations(size, coordinates, [len(s) for s in stacks]))
            basis.counts[pair] = size
            if len(strict):
                basis.combinations[EQUIVARIANT.name][pair] = (Combination(0, len(strict), 0, size, table),)
    return basis


def _needed(graded: Relaxation, groups: Collection[Subgroup]) -> Relaxation:
    """Only the irreps that one of the groups fixes a vector of."""
    group = graded.gspace.fibergroup
    pathways = [p for p in graded.residual if any(len(fixed_vectors(group.irrep(*(p.irrep or ())), h)) for h in groups)]
    return replace(graded, pathways=(EQUIVARIANT, *pathways))


def _dense(kernels: Kernels) -> Tensor:
    return kernels.dense() if isinstance(kernels, BlockKernels) else kernels


def _composed_combinations(sections: Sections, kernels: BlockKernels) -> tuple[Combination, ...]:
    """As :func:`_parts`, by pairs of irreps."""
    combinations = (
        [Combination(0, sections.strict_count, 0, sections.strict_count, None)] if sections.strict_count else []
    )
    first = sections.strict_count
    whole, blocks = sections.placed(kernels)
    for start, stop in whole:
        if combinations and combinations[-1].table is None and combinations[-1].stop == start:
            combinations[-1] = combinations[-1]._replace(last=combinations[-1].last + stop - start, stop=stop)
        else:
            combinations.append(Combination(first, first + stop - start, start, stop, None))
        first += stop - start
    if blocks:
        low, high = min(int(b.placed.min()) for b in blocks), max(int(b.placed.max()) for b in blocks) + 1
        count = sum(b.taken.numel() for b in blocks)
        inside = tuple(b._replace(placed=b.placed - low) for b in blocks)
        combinations.append(Combination(first, first + count, low, high, inside))
    return tuple(combinations)


def _combinations(count: int, beyond: Tensor, sizes: list[int]) -> list[Combination]:
    """Where a subgroup's kernels lie: G's own, whole sections, and combinations of what is left.

    Args:
        beyond: orthonormal rows, the subgroup's kernels beyond G's in the coordinates of the shared ones.
        sizes: of the sections of the shared kernels, G's own first.
    """
    combinations = [Combination(0, count, 0, count, None)] if count else []
    first, start, rest = count, count, beyond.clone()
    rest[:, :count] = 0
    for size in sizes[1:]:
        section = rest[:, start : start + size]
        if size and float(section.square().sum()) > WHOLE * size:
            if combinations and combinations[-1].table is None and combinations[-1].stop == start:
                combinations[-1] = combinations[-1]._replace(last=combinations[-1].last + size, stop=start + size)
            else:
                combinations.append(Combination(first, first + size, start, start + size, None))
            first += size
            section.zero_()
        start += size
    left = orthonormal(rest) if len(beyond) > first - count else rest[:0]
    if len(left):
        columns = (left.abs().amax(0) > 1e-6).nonzero().flatten()
        low, high = int(columns[0]), int(columns[-1]) + 1
        combinations.append(Combination(first, first + len(left), low, high, left[:, low:high].contiguous()))
    return combinations
