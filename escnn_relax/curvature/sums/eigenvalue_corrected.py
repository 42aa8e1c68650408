r"""The exact diagonal in the eigenbasis of Kronecker factors.

Where the factors have equal eigenvalues, the basis within them is the one in which the exact block, summed over the
other factor's axes, is diagonal: the numbers then do not depend on rounding, and come closer to the block's own
spectrum.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..approximation import Approximation
from ..conventions import FACTOR_DTYPE
from ..distributed import broadcast_first, sum_processes
from ..factors import EigenFactor, Factor, KroneckerFactor
from ..factors.eigenvalue_clusters import clusters, turn_clusters
from ..layers.linear_map import WeightBlock
from .accumulation import Expand
from .exact import Samplewise

__all__ = ["EigenvalueCorrected"]

#: Where fewer columns than this share are wanted, they are copied out.
SPARSE = 0.15


class EigenvalueCorrected(Expand):
    r"""``expand`` in the first pass, the diagonal in its eigenbasis in a second one.

    George, Laurent, Bouthillier, Ballas, Vincent: *Fast approximate natural gradient descent in a Kronecker-factored
    eigenbasis*, NeurIPS 2018. By Hadamard's inequality :math:`\log|H + \delta|` is never below the exact block's.
    """

    name, separable, differentiable, passes = "eigenvalue-corrected", False, False, 2

    def second_pass(self) -> Approximation | None:
        diagonal = _Diagonal().start(self.layer_name, self.layer, self.parameters)
        for name, factors in self.kronecker_factors().items():
            diagonal.second[name] = [_Second(factor) for factor in factors]
        return diagonal


class _Diagonal(Samplewise):
    """The second pass."""

    def prepare(self) -> None:
        self.second: dict[str, list[_Second]] = {}

    def _take(self, parameter: str, blocks: list[WeightBlock], gradients: list[Tensor]) -> None:
        for gradient, second in zip(gradients, self.second[parameter]):
            second.add(gradient)

    def sums(self) -> Iterable[Any]:
        return [second for blocks in self.second.values() for second in blocks]

    def factors(self) -> dict[str, tuple[Factor, ...]]:
        factors: dict[str, tuple[Factor, ...]] = {}
        for parameter, blocks in self._by_parameter().items():
            name, pairs = self.parameter_name(parameter), zip(blocks, self.second[parameter])
            factors[parameter] = tuple(
                EigenFactor(name, *second.diagonal(), block.positions) for block, second in pairs
            )
        return factors


class _Second:
    """Second moments of the rotated gradients of one block: all squares, and products within clusters of equal
    eigenvalues.

    Eigenvalues ascend, so clusters are contiguous, and products are those of an entry (o, i) of the gradient with the
    entries a few rows and columns further on.
    """

    def __init__(self, factor: KroneckerFactor) -> None:
        self.U_A, self.U_B = (broadcast_first(U) for U in factor.eigenbases)
        self._a, self._b = (clusters(broadcast_first(values)) for values in factor.eigenvalues)
        rows, columns = _steps(self._b), _steps(self._a)
        ahead = [(down, right) for down in rows for right in columns if down or right >= 0]
        self._at = {(down, right): (rows[down], columns[right]) for down, right in ahead}
        self._products = {step: torch.zeros((), dtype=FACTOR_DTYPE) for step in self._at}

    def add(self, gradients: Tensor) -> None:
        """Those of samples, ``(N, O, D)``."""
        # in float64: the small eigenvalues are differences of large numbers
        wide = gradients.to(FACTOR_DTYPE)
        rotated = self.U_B.T.to(wide) @ wide @ self.U_A.to(wide)
        for step, (rows, columns) in self._at.items():
            self._products[step] = self._products[step] + _products(rotated, rows, columns, *step)

    def gather(self) -> None:
        """Add up those of all processes."""
        self._products = {step: sum_processes(total) for step, total in self._products.items()}

    def diagonal(self) -> tuple[Tensor, Tensor, Tensor]:
        """Axes of A and of B, and the diagonal ``(O, D)`` in them."""
        U_A, U_B, values = self.U_A.clone(), self.U_B.clone(), self._products[0, 0].clone()
        groups = [(i, j) for i, b in enumerate(self._b) for j, a in enumerate(self._a) if b.shape[1] * a.shape[1] > 1]
        moments = {(i, j): self._moments(self._b[i], self._a[j]) for i, j in groups}
        unit = values.new_ones(1, 1, 1)
        turns_a, turns_b = [unit] * len(self._a), [unit] * len(self._b)
        for j, where in enumerate(self._a):
            if where.shape[1] > 1:
                products = [m.diagonal(dim1=2, dim2=4).sum((0, -1)) for (_, at), m in moments.items() if at == j]
                turns_a[j] = turn_clusters(U_A, where, sum(products[1:], products[0]))
        for i, where in enumerate(self._b):
            if where.shape[1] > 1:
                products = [m.diagonal(dim1=3, dim2=5).sum((1, -1)) for (at, _), m in moments.items() if at == i]
                turns_b[i] = turn_clusters(U_B, where, sum(products[1:], products[0]))
        for (i, j), m in moments.items():
            rows, columns = self._b[i].to(m.device), self._a[j].to(m.device)
            values[rows[:, None, :, None], columns[None, :, None, :]] = _in_axes(m, turns_b[i], turns_a[j])
        return U_A, U_B, values

    def _moments(self, b: Tensor, a: Tensor) -> Tensor:
        """On the products of clusters of B ``(K, q)`` and of A ``(C, p)``: ``(K, C, q, p, q, p)``."""
        (K, q), (C, p) = b.shape, a.shape
        moments = self._products[0, 0].new_zeros(K, C, q, p, q, p)
        for o, down in ((o, down) for o in range(q) for down in range(q - o)):
            for i, right in ((i, right) for i in range(p) for right in range(-i, p - i) if down or right >= 0):
                rows, columns = self._at[down, right]
                product = self._products[down, right]
                at = (
                    torch.searchsorted(rows, b[:, o].contiguous()).to(product.device),
                    torch.searchsorted(columns, a[:, i].contiguous()).to(product.device),
                )
                entries = product[at[0][:, None], at[1]]
                moments[:, :, o, i, o + down, i + right] = moments[:, :, o + down, i + right, o, i] = entries
        return moments


def _in_axes(moments: Tensor, b: Tensor, a: Tensor) -> Tensor:
    """The diagonal ``(K, C, q, p)`` of moments ``(K, C, q, p, q, p)`` in axes ``(K, q, q)`` and ``(C, p, p)``."""
    K, C, q, p = moments.shape[:4]
    if q == 1:  # as everywhere but where outputs are exchanged by a symmetry, too
        moments = moments.view(K, C, p, p)
        return ((moments @ a) * a).sum(-2).view(K, C, q, p)
    axes = torch.einsum("kom,cil->kcoiml", b, a.expand(C, p, p)).reshape(K, C, q * p, q * p)
    return ((moments.reshape(K, C, q * p, q * p) @ axes) * axes).sum(-2).view(K, C, q, p)


def _steps(clusters_by_size: list[Tensor]) -> dict[int, Tensor]:
    """By how far a member of the same cluster is further on, or back: the members that have one there, ascending."""
    largest = max(where.shape[1] for where in clusters_by_size)
    steps = {}
    for step in range(1 - largest, largest):
        starts = [
            where[:, max(0, -step) : where.shape[1] - max(0, step)].flatten()
            for where in clusters_by_size
            if where.shape[1] > abs(step)
        ]
        steps[step] = torch.cat(starts).sort().values
    return steps


def _products(rotated: Tensor, rows: Tensor, columns: Tensor, down: int, right: int) -> Tensor:
    """Of some entries of ``(N, O, D)`` with those so many rows and columns further on, summed over the samples."""
    here_values, there_values = rotated, rotated
    if down or len(rows) < rotated.shape[1]:
        here = rows.to(rotated.device)
        here_values, there_values = here_values[:, here], there_values[:, here + down]
    columns = columns.to(rotated.device)
    if len(columns) < SPARSE * rotated.shape[2]:
        return (here_values[..., columns] * there_values[..., columns + right]).sum(0)
    size = rotated.shape[2] - abs(right)  # slices are faster than copies
    start = max(0, -right)
    products = (here_values[..., start : start + size] * there_values[..., start + right : start + right + size]).sum(0)
    return products if len(columns) == size else products[:, columns - start]
