r"""The second moment of a block's rows as a direct sum.

It is a mean over the components of an output field, in any orthonormal frame. Along the irreps of the output most
kernels have few components, and kernels that share none do not meet: A is a direct sum over the copies of irreps in the
output field. Copies of one irrep have equal kernels, hence equal summands, of which one is enough: of a regular
octahedral field 5 of 10, of which the largest has an eighth of the coefficients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..layers.linear_map import WeightBlock
from .contraction import VANISHING, row_basis

__all__ = ["Summand", "summands", "undivided"]

#: Kernels of two copies of an irrep are equal up to this share of the largest number: a few float32 roundings.
EQUAL = 1e-5


@dataclass(frozen=True)
class Summand:
    """Coefficients that meet no others, for all copies of an irrep in the output field at once.

    Attributes:
        rows: for each piece, where its channels stand among the patch rows, ``(I, i S)``.
        bases: for each piece the kernels on the components that they have, ``(k, d, i S)``; ``None`` for the identity.
        positions: where the coefficients stand in a block's rows, ``(copies, n)``, with n the sum of ``I k``.
    """

    rows: tuple[Tensor, ...]
    bases: tuple[Tensor | None, ...]
    positions: Tensor

    @property
    def size(self) -> int:
        """Coefficients of one copy, n."""
        return self.positions.shape[1]

    @property
    def members(self) -> int:
        """Components of one copy, d."""
        return next((basis.shape[1] for basis in self.bases if basis is not None), 1)


def summands(block: WeightBlock, like: Tensor) -> list[Summand]:
    """The summands of a block's A, with numbers of the kind of ``like``, patches ``(rows, C S)``.

    >>> from escnn import gspaces, nn as enn
    >>> from escnn_relax import relax
    >>> from escnn_relax.curvature.layers.known_layers import linear_map
    >>> space = gspaces.rot2dOnR2(4)
    >>> fields = enn.FieldType(space, [space.regular_repr])
    >>> block = linear_map(relax(enn.SequentialModule(enn.R2Conv(fields, fields, 3)))[0]).blocks[0]
    >>> [(s.size, s.members, len(s.positions)) for s in summands(block, torch.zeros(1, 36))]
    [(6, 1, 1), (12, 2, 1), (6, 1, 1)]
    """
    whole = undivided(block, like)
    bases = [basis for basis in whole.bases if basis is not None]
    if len(bases) < len(whole.bases) or block.frame is None:
        return [whole]
    rows, counts = whole.rows, [len(basis) for basis in bases]
    bases = [torch.matmul(block.frame.to(basis).T, basis) for basis in bases]
    norms = torch.cat([basis.norm(dim=2) for basis in bases]).cpu()  # (K, o)
    alive = norms > VANISHING * norms.norm(dim=1, keepdim=True)
    distinct: list[tuple[list[Tensor], list[Tensor]]] = []  # kernels on their components, and positions of the copies
    for members in _linked(alive):
        chosen = alive[:, members].any(1).split(counts)
        narrowed = [
            basis[kernels][:, members] for basis, kernels in zip(bases, (c.to(bases[0].device) for c in chosen))
        ]
        positions, start = [], 0
        for r, count, kernels in zip(rows, counts, chosen):
            positions.append((start + count * torch.arange(len(r))[:, None] + kernels.nonzero().T).flatten())
            start += count * len(r)
        _join(distinct, narrowed, torch.cat(positions))
    return [Summand(rows, tuple(narrowed), torch.stack(positions)) for narrowed, positions in distinct]


def undivided(block: WeightBlock, like: Tensor) -> Summand:
    """All coefficients of a block as one summand, on the output's own components."""
    rows, stacks = zip(*(row_basis(piece, like) for piece in block.pieces))
    counts = [len(r) * (r.shape[1] if basis is None else len(basis)) for r, basis in zip(rows, stacks)]
    return Summand(rows, stacks, torch.arange(sum(counts)).unsqueeze(0))


def _linked(alive: Tensor) -> list[Tensor]:
    """Components of the output field in sets that no kernel links, given which has which, ``(K, o)``; those of no
    kernel are left out."""
    touching = (alive.T.double() @ alive.double()) > 0
    reached = touching
    for _ in range(len(touching).bit_length()):
        reached = (reached.double() @ reached.double()) > 0
    sets, seen = [], torch.zeros(len(touching), dtype=torch.bool)
    for member in range(len(touching)):
        if reached[member, member] and not seen[member]:
            seen |= reached[member]
            sets.append(reached[member].nonzero().flatten())
    return sets


def _join(distinct: list[tuple[list[Tensor], list[Tensor]]], narrowed: list[Tensor], positions: Tensor) -> None:
    """As another copy of what is there already, or as a new one."""
    for known, places in distinct:
        if all(a.shape == b.shape for a, b in zip(known, narrowed)) and _close(known, narrowed):
            places.append(positions)
            return
    distinct.append((narrowed, [positions]))


def _close(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return all(bool((a - b).abs().max() <= EQUAL * a.abs().max()) for a, b in zip(first, second) if a.numel())
