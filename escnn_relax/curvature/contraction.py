"""From kernels to coefficients: moments of patches and gradients of kernels, pulled back through a steerable basis."""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

from .linear_map import Piece, WeightBlock

__all__ = ["contract", "pull_back"]


def contract(moments: Tensor, block: WeightBlock, average: bool) -> Tensor:
    """Second moment of a block's rows, ``(D, D)``, from that of the patches of its group, ``(C S, C S)``.

    Args:
        average: take the mean row over the components of the output field first (``reduce``), instead of the mean of
            the components' second moments (``expand``).
    """
    sides = [_row_basis(piece, moments) for piece in block.pieces]
    members = block.channels.shape[1]
    if average:
        sides = [(rows, None if basis is None else basis.mean(1, keepdim=True)) for rows, basis in sides]
        members = 1
    total: Tensor | float = 0.0
    for d in range(members):
        half = torch.cat([_apply(basis, moments[rows], d) for rows, basis in sides])  # (D, C S)
        total = total + torch.cat([_apply(basis, half.T[rows], d) for rows, basis in sides])
    return total / members


def pull_back(kernels: Tensor, block: WeightBlock) -> Tensor:
    """Gradients of a block's weights, ``(N, O, D)``, from those of the kernel, ``(N, groups, channels, C S)``."""
    group = kernels[:, block.group]
    fields = _take(group, block.channels, 1)  # (N, O, o, C S)
    columns = []
    for piece in block.pieces:
        rows, basis = _row_basis(piece, kernels)
        part = _take(fields, rows, 3)  # (N, O, o, I, i S)
        if basis is None:
            columns.append(part.flatten(2))
        else:
            flat = part.transpose(2, 3).flatten(3)  # (N, O, I, o i S)
            columns.append((flat @ basis.flatten(1).T).flatten(2))
    return columns[0] if len(columns) == 1 else torch.cat(columns, dim=2)


def _take(tensor: Tensor, index: Tensor, dimension: int) -> Tensor:
    """``tensor`` indexed along a dimension; a view where the index is simply all of it, in order."""
    if index.numel() == tensor.shape[dimension] and torch.equal(index.flatten(), torch.arange(index.numel())):
        return tensor.unflatten(dimension, index.shape)
    return tensor.index_select(dimension, index.flatten().to(tensor.device)).unflatten(dimension, index.shape)


def _row_basis(piece: Piece, like: Tensor) -> tuple[Tensor, Optional[Tensor]]:
    """Where the piece's channels stand among the patch rows, ``(I, i S)``, and its basis as ``(K, o, i S)``."""
    fields = len(piece.channels)
    sites = like.shape[-1] // fields if piece.basis is None else piece.basis.shape[-1]
    rows = (piece.channels * sites).unsqueeze(-1) + torch.arange(sites)
    return rows.flatten(1), None if piece.basis is None else piece.basis.flatten(2).to(like)


def _apply(basis: Optional[Tensor], rows: Tensor, member: int) -> Tensor:
    """Rows ``(I, i S, ...)`` to coefficients ``(I K, ...)`` for one component of the output field."""
    if basis is None:
        return rows.flatten(0, 1)
    return (basis[:, member] @ rows).flatten(0, 1)
