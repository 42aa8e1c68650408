"""From kernels to coefficients: moments of patches and gradients of kernels, pulled back through a steerable basis."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..layers.linear_map import Piece, WeightBlock

__all__ = ["contract", "pull_back", "row_basis"]

#: A kernel whose norm on a component of the output field is a smaller share of the whole is taken to vanish there: a
#: few float32 roundings.
VANISHING = 1e-6

#: Smaller bases, in numbers, are multiplied as they are.
WORTHWHILE = 2**14


def contract(moments: Tensor, block: WeightBlock, average: bool) -> Tensor:
    """Second moment of a block's rows, ``(D, D)``, from that of the patches of its group, ``(C S, C S)``.

    Args:
        average: take the mean row over the components of the output field first (``reduce``), instead of the mean of
            the components' second moments (``expand``).
    """
    numbers = sum(0 if piece.basis is None else piece.basis.numel() for piece in block.pieces)
    frame = None if average or numbers < WORTHWHILE else block.frame
    sides, size = [], 0
    for piece in block.pieces:
        sides.append(_Side.prepare(piece, moments, size, frame, average))
        size += sides[-1].size
    members = 1 if average else block.channels.shape[1]
    total = moments.new_zeros(size, size)
    for d in range(members):
        half = torch.cat([side.coefficients(side.read, d) for side in sides])  # (D, C S), or fewer rows
        product = torch.cat([side.coefficients(_take(half.T, side.rows, 0), d) for side in sides])
        at = torch.cat([side.places(d) for side in sides]).to(total.device)
        if len(at) == size:
            total += product
        else:
            total[at[:, None], at] += product
    return total / members


@dataclass(frozen=True)
class _Side:
    """One piece of a block: from patches, or from anything with the same rows, to coefficients.

    Attributes:
        rows: where the piece's channels stand among the patch rows, ``(I, i S)``.
        read: those rows of the moments, ``(I, i S, C S)``.
        basis: ``(K, o, i S)``; ``None`` for the identity.
        alive: which kernels are not zero on which components, ``(K, o)``; ``None`` for all.
        start: the place of the first coefficient among the block's.
    """

    rows: Tensor
    read: Tensor
    basis: Tensor | None
    alive: Tensor | None
    start: int

    @classmethod
    def prepare(cls, piece: Piece, moments: Tensor, start: int, frame: Tensor | None, average: bool) -> _Side:
        rows, basis = row_basis(piece, moments)
        alive = None
        if basis is not None and average:
            basis = basis.mean(1, keepdim=True)
        elif basis is not None and frame is not None:
            # the sum over components is the same in all orthonormal frames, and in this one most kernels miss most of
            # them
            basis = torch.einsum("koj,ot->ktj", basis, frame.to(basis))
            # in float64 they are kept, down to the rounding of escnn's sampling
            if piece.basis is not None and piece.basis.dtype == torch.float32:
                norms = basis.norm(dim=2)
                alive = norms > VANISHING * norms.norm(dim=1, keepdim=True)
        return cls(rows, _take(moments, rows, 0), basis, alive, start)

    @property
    def size(self) -> int:
        return len(self.rows) * (self.rows.shape[1] if self.basis is None else len(self.basis))

    def coefficients(self, read: Tensor, member: int) -> Tensor:
        """Rows ``(I, i S, ...)`` to coefficients ``(I K, ...)`` for one component of the output field."""
        if self.basis is None:
            return read.flatten(0, 1)
        basis = self.basis[:, member] if self.alive is None else self.basis[self.alive[:, member], member]
        return (basis @ read).flatten(0, 1)

    def places(self, member: int) -> Tensor:
        """Where these coefficients stand among the block's."""
        places = torch.arange(self.size) + self.start
        if self.alive is None:
            return places
        return places.view(len(self.rows), -1)[:, self.alive[:, member].to("cpu")].flatten()


def pull_back(kernels: Tensor, block: WeightBlock) -> Tensor:
    """Gradients of a block's weights, ``(N, O, D)``, from those of the kernel, ``(N, groups, channels, C S)``."""
    group = kernels[:, block.group]
    fields = _take(group, block.channels, 1)  # (N, O, o, C S)
    columns = []
    for piece in block.pieces:
        rows, basis = row_basis(piece, kernels)
        rotated = _take(fields, rows, 3)  # (N, O, o, I, i S)
        if basis is None:
            columns.append(rotated.flatten(2))
        else:
            flat = rotated.transpose(2, 3).flatten(3)  # (N, O, I, o i S)
            columns.append((flat @ basis.flatten(1).T).flatten(2))
    return columns[0] if len(columns) == 1 else torch.cat(columns, dim=2)


def _take(tensor: Tensor, index: Tensor, dimension: int) -> Tensor:
    """``tensor`` indexed along a dimension; a view where the index is simply all of it, in order."""
    if index.numel() == tensor.shape[dimension] and torch.equal(index.flatten(), torch.arange(index.numel())):
        return tensor.unflatten(dimension, index.shape)
    return tensor.index_select(dimension, index.flatten().to(tensor.device)).unflatten(dimension, index.shape)


def row_basis(piece: Piece, like: Tensor) -> tuple[Tensor, Tensor | None]:
    """Where the piece's channels stand among the patch rows, ``(I, i S)``, and its basis as ``(K, o, i S)``."""
    fields = len(piece.channels)
    sites = like.shape[-1] // fields if piece.basis is None else piece.basis.shape[-1]
    rows = (piece.channels * sites).unsqueeze(-1) + torch.arange(sites)
    return rows.flatten(1), None if piece.basis is None else piece.basis.flatten(2).to(like)
