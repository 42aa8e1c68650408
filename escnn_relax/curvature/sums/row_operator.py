"""The second moment of rows at given places: formed where it is small, else by its products with vectors."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from .row_summands import Summand

__all__ = ["RowOperator", "gram", "moment_trace"]

#: Numbers in what one product writes at a time.
CHUNK = 1 << 24


class RowOperator:
    r""":math:`v \mapsto A v`, with A a summand of the mean outer product of a block's rows at given places.

    Args:
        summand: with n coefficients.
        patches: of the block's group, ``(rows, C S)``.
        components: of an output field, over which A is a mean.
    """

    def __init__(self, summand: Summand, patches: Tensor, components: int) -> None:
        self._patches, self._members, self._components = patches, summand.members, components
        self._pieces = [_Piece(rows, basis, patches.shape[1]) for rows, basis in zip(summand.rows, summand.bases)]
        self.size = summand.size
        read = torch.cat([piece.rows.flatten() for piece in self._pieces])
        self._all = torch.equal(read, torch.arange(patches.shape[1]))
        self._read = read.to(patches.device)

    def __call__(self, vectors: Tensor) -> Tensor:
        """``(n, m)`` to the same, float64 on the CPU."""
        total = torch.zeros_like(vectors)
        moved = vectors.to(self._patches)
        patches = self._patches if self._all else self._patches[:, self._read]
        step = max(1, CHUNK // (len(self._read) * vectors.shape[1]))
        for start in range(0, self._members, step):
            members = slice(start, min(start + step, self._members))
            vector_pieces = moved.split([piece.size for piece in self._pieces])
            kernels = torch.cat(
                [piece.kernels(piece_vectors, members) for piece, piece_vectors in zip(self._pieces, vector_pieces)]
            )  # (C S, d, m)
            images = (patches.T @ (patches @ kernels.flatten(1))).view_as(kernels)
            cut = images.split([piece.rows.numel() for piece in self._pieces])
            total += torch.cat([p.coefficients(image, members) for p, image in zip(self._pieces, cut)]).to(total)
        return total / (len(self._patches) * self._components)

    def formed(self) -> Tensor:
        """A itself, ``(n, n)``, float64 on the CPU."""
        total = torch.zeros(self.size, self.size, dtype=torch.float64)
        for start in range(0, len(self._patches), max(1, CHUNK // (self._members * self.size))):
            patches = self._patches[start : start + max(1, CHUNK // (self._members * self.size))]
            for member in range(self._members):
                rows = torch.cat([piece.read(patches, member) for piece in self._pieces], dim=1)
                total += (rows.T @ rows).to(total)
        return total / (len(self._patches) * self._components)

    @property
    def grams(self) -> list[Tensor | None]:
        """Of each piece's kernels, see :func:`gram`; ``None`` where it has none."""
        return [piece.gram for piece in self._pieces]

    def trace(self, known: dict[tuple[int, ...], Tensor] | None = None) -> float:
        """Exactly, of the rows at hand; moments of single fields are kept in ``known``, for other summands of the same
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
        return total / (len(self._patches) * self._components)


class _Piece:
    """Coefficients ``(I k, m)`` to kernels ``(I i S, members, m)``, and back.

    Args:
        rows: ``(I, i S)``.
        basis: ``(k, d, i S)``.
        columns: of the patches, C S.
    """

    def __init__(self, rows: Tensor, basis: Tensor | None, columns: int) -> None:
        self.rows, self.basis = rows, basis
        self._all = torch.equal(rows.flatten(), torch.arange(columns))
        self.size = len(self.rows) * (self.rows.shape[1] if self.basis is None else len(self.basis))

    def kernels(self, vectors: Tensor, members: slice) -> Tensor:
        if self.basis is None:
            return vectors.unsqueeze(1)
        fields = vectors.unflatten(0, (len(self.rows), -1)).transpose(0, 1)  # (k, I, m)
        kernels = self.basis[:, members].flatten(1).T @ fields.flatten(1)  # (d i S, I m), one product for all fields
        kernels = kernels.view(-1, self.rows.shape[1], *fields.shape[1:])  # (d, i S, I, m)
        return kernels.permute(2, 1, 0, 3).flatten(0, 1)

    def coefficients(self, image: Tensor, members: slice) -> Tensor:
        if self.basis is None:
            return image.squeeze(1)
        fields = image.unflatten(0, self.rows.shape).permute(2, 1, 0, 3)  # (d, i S, I, m)
        coefficients = self.basis[:, members].flatten(1) @ fields.flatten(2).flatten(0, 1)  # (k, I m)
        return coefficients.view(len(coefficients), len(self.rows), -1).transpose(0, 1).flatten(0, 1)

    def read(self, patches: Tensor, member: int) -> Tensor:
        """What each coefficient reads at places, ``(places, I k)``."""
        fields = patches if self._all else patches[:, self.rows.flatten().to(patches.device)]
        if self.basis is None:
            return fields
        return (fields.unflatten(1, self.rows.shape) @ self.basis[:, member].T).flatten(1)

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
