"""Sums over the data for one layer, and the factors they end in; the scalings are those of :mod:`.conventions`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Sequence

import torch
from torch import Tensor

from ..errors import ArgumentError
from .conventions import APPROXIMATIONS, FACTOR_DTYPE
from .extraction import Use
from .factors import DenseFactor, DiagonalFactor, Factor, KroneckerFactor
from .linear_map import LinearMap, WeightBlock

__all__ = ["Accumulator", "accumulator"]


class Accumulator(ABC):
    """Takes a layer's inputs and output gradients batch by batch; ends in one factor for each block."""

    def __init__(self, name: str, layer: LinearMap, exact_bias: bool) -> None:
        self.name, self.layer, self.exact_bias = name, layer, exact_bias
        self._bias: Tensor | float = 0.0

    def batch(self, inputs: Sequence[Tensor]) -> None:
        """The inputs of all uses of the layer in one minibatch; a layer used twice just has more places."""
        self._read(_joined([self.layer.patches(x) for x in inputs]))

    def column(self, uses: Sequence[Use]) -> None:
        """The output gradients that one column of the loss Hessian's square root sends to the same uses."""
        gradients = _joined([self.layer.gradients(use.gradient) for use in uses])
        if self.layer.bias is not None:
            rows = gradients.flatten(1, 2)  # (N, out channels, sites)
            rows = rows.sum(-1) if self.exact_bias else rows.transpose(1, 2).flatten(0, 1)
            rows = rows @ self.layer.bias.to(rows)
            self._bias = self._bias + (rows.T @ rows).to(FACTOR_DTYPE)
        self._gradients(gradients)

    def factors(self) -> dict[str, tuple[Factor, ...]]:
        """Factors by parameter name, as the layer calls it."""
        found: dict[str, list[Factor]] = {}
        for index, block in enumerate(self.layer.blocks):
            where = f"{self.name}.{block.parameter}"
            found.setdefault(block.parameter, []).append(self._factor(index, block, where))
        if self.layer.bias is not None:
            found["bias"] = [DenseFactor(f"{self.name}.bias", self._bias)]
        return {name: tuple(of) for name, of in found.items()}

    @abstractmethod
    def _read(self, patches: Tensor) -> None: ...

    @abstractmethod
    def _gradients(self, gradients: Tensor) -> None: ...

    @abstractmethod
    def _factor(self, index: int, block: WeightBlock, where: str) -> Factor: ...


class _Kronecker(Accumulator):
    """Both Kronecker forms: a covariance of patches for each group, one of gradients for each output representation."""

    reduce: bool

    def __init__(self, name: str, layer: LinearMap, exact_bias: bool) -> None:
        super().__init__(name, layer, exact_bias)
        self._covariance: Tensor | float = 0.0  # (groups, C S, C S)
        self._rows = 0
        self._outputs = {_output(block): block.channels for block in layer.blocks}
        self._B: dict[tuple, Tensor] = {}

    def _read(self, patches: Tensor) -> None:
        if self.reduce:
            patches = patches.mean(-1, keepdim=True)
        self._rows += patches.shape[0] * patches.shape[-1]
        rows = patches.permute(1, 2, 0, 3).flatten(2)
        self._covariance = self._covariance + (rows @ rows.transpose(1, 2)).to(FACTOR_DTYPE)

    def _gradients(self, gradients: Tensor) -> None:
        for key, channels in self._outputs.items():
            group = gradients[:, key[0]]
            whole = channels.numel() == group.shape[1] and key[1] == tuple(range(channels.numel()))
            fields = group.unflatten(1, channels.shape) if whole else group[:, channels]  # (N, O, o, sites)
            columns = fields.flatten(2).sum(-1).T if self.reduce else fields.transpose(0, 1).flatten(1)
            self._B[key] = self._B.get(key, 0.0) + (columns @ columns.T).to(FACTOR_DTYPE)

    def _factor(self, index: int, block: WeightBlock, where: str) -> Factor:
        covariance = self._covariance[block.group] / self._rows
        return KroneckerFactor(where, self._contract(covariance, block), self._B[_output(block)])

    def _contract(self, covariance: Tensor, block: WeightBlock) -> Tensor:
        """Pull the covariance of patches back to (field, basis element)."""
        sides = [_row_basis(piece, covariance) for piece in block.pieces]
        members = block.channels.shape[1]
        if self.reduce:
            sides = [(rows, None if basis is None else basis.mean(1, keepdim=True)) for rows, basis in sides]
            members = 1
        total: Tensor | float = 0.0
        for d in range(members):
            half = torch.cat([_apply(basis, covariance[rows], d) for rows, basis in sides])  # (D, C S)
            total = total + torch.cat([_apply(basis, half.T[rows], d) for rows, basis in sides])
        return total / members


class Expand(_Kronecker):
    """Every place is a sample of its own."""

    reduce = False


class Reduce(_Kronecker):
    """Rows are averaged, columns summed over the places of a sample."""

    reduce = True


class Exact(Accumulator):
    """The whole block, from the columns of every sample pulled back to the weights."""

    def __init__(self, name: str, layer: LinearMap, exact_bias: bool) -> None:
        super().__init__(name, layer, exact_bias)
        self._H: list[Tensor | float] = [0.0] * len(layer.blocks)

    def _read(self, patches: Tensor) -> None:
        self._patches = patches

    def _gradients(self, gradients: Tensor) -> None:
        kernels = torch.einsum("ngox,ngzx->ngoz", gradients, self._patches)  # per-sample gradient of the kernel
        for index, block in enumerate(self.layer.blocks):
            columns = []
            for piece in block.pieces:
                rows, basis = _row_basis(piece, kernels)
                part = kernels[:, block.group, block.channels][..., rows]  # (N, O, o, I, i S)
                if basis is None:
                    columns.append(part.flatten(2))
                else:
                    columns.append(torch.einsum("nodiz,kdz->noik", part, basis).flatten(2))
            self._H[index] = self._H[index] + self._square(torch.cat(columns, dim=2).flatten(1).to(FACTOR_DTYPE))

    def _square(self, columns: Tensor) -> Tensor:
        return columns.T @ columns

    def _factor(self, index: int, block: WeightBlock, where: str) -> Factor:
        return DenseFactor(where, self._H[index])


class Diagonal(Exact):
    """Only the diagonal is kept."""

    def _square(self, columns: Tensor) -> Tensor:
        return columns.square().sum(0)

    def _factor(self, index: int, block: WeightBlock, where: str) -> Factor:
        return DiagonalFactor(where, self._H[index])


_KINDS = dict(zip(APPROXIMATIONS, (Expand, Reduce, Exact, Diagonal)))


def accumulator(approximation: str, name: str, layer: LinearMap, exact_bias: bool = True) -> Accumulator:
    """The accumulator of an approximation by its name, see :mod:`.conventions`."""
    if approximation not in _KINDS:
        raise ArgumentError("curvature", expected=f"one of {APPROXIMATIONS}", got=repr(approximation))
    return _KINDS[approximation](name, layer, exact_bias)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def _output(block: WeightBlock) -> tuple:
    """Blocks with the same output fields have the same B."""
    return block.group, tuple(block.channels.flatten().tolist())


def _row_basis(piece, like: Tensor) -> tuple[Tensor, Tensor | None]:
    """Where the piece's channels stand among the patch rows, ``(I, i S)``, and its basis as ``(K, o, i S)``."""
    fields, size = piece.channels.shape
    if piece.basis is None:
        sites = like.shape[-1] // fields
        return (piece.channels * sites).unsqueeze(-1).add(torch.arange(sites)).flatten(1), None
    sites = piece.basis.shape[-1]
    rows = (piece.channels * sites).unsqueeze(-1) + torch.arange(sites)
    return rows.flatten(1), piece.basis.flatten(2).to(like)


def _apply(basis: Tensor | None, rows: Tensor, member: int) -> Tensor:
    """Rows ``(I, i S, ...)`` to coefficients ``(I K, ...)`` for one component of the output field."""
    if basis is None:
        return rows.flatten(0, 1)
    return torch.einsum("kz,izq->ikq", basis[:, member], rows).flatten(0, 1)
