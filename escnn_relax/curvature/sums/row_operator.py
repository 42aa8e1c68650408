"""Products with the second moment of rows that is never formed."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from ..layers.linear_map import Piece, WeightBlock
from .contraction import row_basis

__all__ = ["RowOperator", "gram", "moment_trace"]

#: Numbers in what one product writes at a time.
CHUNK = 1 << 24


class RowOperator:
    r""":math:`v \mapsto A v`, with A the mean outer product of a block's rows at given places.

    Args:
        block: with coefficients :math:`D = \sum I K`.
        patches: of its group, ``(rows, C S)``.
    """

    def __init__(self, block: WeightBlock, patches: Tensor) -> None:
        self._patches, self._members = patches, block.channels.shape[1]
        self._pieces = [_Piece(piece, patches) for piece in block.pieces]
        self.size = sum(piece.size for piece in self._pieces)
        self._read = torch.cat([piece.rows.flatten() for piece in self._pieces])
        self._all = torch.equal(self._read, torch.arange(patches.shape[1]))

    def __call__(self, vectors: Tensor) -> Tensor:
        """``(D, m)`` to the same, float64 on the CPU."""
        total = torch.zeros_like(vectors)
        moved = vectors.to(self._patches)
        patches = self._patches if self._all else self._patches[:, self._read.to(self._patches.device)]
        step = max(1, CHUNK // (len(self._read) * vectors.shape[1]))
        for start in range(0, self._members, step):
            members = slice(start, min(start + step, self._members))
            vector_pieces = moved.split([piece.size for piece in self._pieces])
            kernels = torch.cat(
                [piece.kernels(piece_vectors, members) for piece, piece_vectors in zip(self._pieces, vector_pieces)]
            )  # (C S, o, m)
            images = (patches.T @ (patches @ kernels.flatten(1))).view_as(kernels)
            cut = images.split([piece.rows.numel() for piece in self._pieces])
            total += torch.cat([p.coefficients(image, members) for p, image in zip(self._pieces, cut)]).to(total)
        return total / (len(self._patches) * self._members)

    @property
    def grams(self) -> list[Tensor | None]:
        """Of each piece's kernels, see :func:`gram`; ``None`` where it has none."""
        return [piece.gram for piece in self._pieces]

    def trace(self, known: dict[tuple[int, ...], Tensor] | None = None) -> float:
        """Exactly, of the rows at hand; moments of single fields are kept in ``known``, for other blocks of the same
        patches."""
        known = {} if known is None else known
        total = 0.0
        for piece in self._pieces:
            key = tuple(piece.rows[:, 0].tolist())
            if key not in known:
                fields = self._patches[:, piece.rows.flatten().to(self._patches.device)].unflatten(1, piece.rows.shape)
                flat = fields.flatten(0, 1)
                known[key] = (flat.T @ flat).to(torch.float64)
            total += moment_trace(known[key], piece.gram)
        return total / (len(self._patches) * self._members)


class _Piece:
    """Coefficients ``(I K, m)`` to kernels ``(I i S, members, m)``, and back."""

    def __init__(self, piece: Piece, like: Tensor) -> None:
        self.rows, self.basis = row_basis(piece, like)  # (I, i S) and (K, o, i S)
        self.size = len(self.rows) * (self.rows.shape[1] if self.basis is None else len(self.basis))

    def kernels(self, vectors: Tensor, members: slice) -> Tensor:
        if self.basis is None:
            return vectors.unsqueeze(1)
        fields = vectors.unflatten(0, (len(self.rows), -1)).transpose(0, 1)  # (K, I, m)
        kernels = self.basis[:, members].flatten(1).T @ fields.flatten(1)  # (o i S, I m), one product for all fields
        kernels = kernels.view(-1, self.rows.shape[1], *fields.shape[1:])  # (o, i S, I, m)
        return kernels.permute(2, 1, 0, 3).flatten(0, 1)

    def coefficients(self, image: Tensor, members: slice) -> Tensor:
        if self.basis is None:
            return image.squeeze(1)
        fields = image.unflatten(0, self.rows.shape).permute(2, 1, 0, 3)  # (o, i S, I, m)
        coefficients = self.basis[:, members].flatten(1) @ fields.flatten(2).flatten(0, 1)  # (K, I m)
        return coefficients.view(len(coefficients), len(self.rows), -1).transpose(0, 1).flatten(0, 1)

    @cached_property
    def gram(self) -> Tensor | None:
        return None if self.basis is None else gram(self.basis)


def gram(basis: Tensor) -> Tensor:
    r""":math:`\sum_{k,d} \Phi_{kd} \Phi_{kd}^\top` of kernels ``(K, o, i S)``."""
    flat = basis.flatten(0, 1)
    return flat.T @ flat


def moment_trace(moment: Tensor, gram: Tensor | None) -> float:
    """Sum of the squares of all coefficients, given the second moment of single fields ``(i S, i S)``."""
    return float(moment.trace() if gram is None else (moment * gram).sum())
