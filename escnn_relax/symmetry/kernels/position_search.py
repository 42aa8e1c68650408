r"""The turn of a subgroup of SO(3) or O(3) at which it leaves least of given kernels.

A kernel is a combination of tuples that turn by irreps :math:`\psi`. Under :math:`A^{-1} H A` are fixed the
combinations by the vectors :math:`\psi(A)^{-1} u`, with u fixed under H; what of the kernel lies outside their span is
a function of the turn A, on the sphere where only H's axis counts. Its least value is looked for from many starts:
first with all tuples taken for orthogonal, where it is a trigonometric polynomial :math:`\sum_\psi \mathrm{tr}(U_\psi
\psi(A) M_\psi \psi(A)^\top)` that is evaluated at a thousand turns at once, then by least squares on the pixel grid
itself. The remainder there is the certificate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from escnn.group import IrreducibleRepresentation
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation
from torch import Tensor

from ..groups.rotations import generators, rotation_matrices
from .linear_algebra import orthonormal

__all__ = ["PositionSearch", "TurningKernels"]

#: Turns that are looked at before the best are followed, and how many of those are.
STARTS, CLIMBS = 1000, 4

#: Newton steps of each of them.
STEPS = 12

#: A share of the energy below which a subgroup may fit, so that its place is worth finding exactly (fraction).
PROMISING = 0.05

#: A share below which no better place is looked for (fraction): that of the rounding.
NOTHING = 1e-12


@dataclass(frozen=True)
class TurningKernels:
    """Residual kernels of a layer between one pair of representations.

    Attributes:
        weights: coefficients in orthonormal kernels, shape ``(fields, n)``, over the square root of the layer's energy.
        tuples: for each irrep the coefficients of its tuples, shape ``(K, dim psi, n)``.
    """

    weights: Tensor
    tuples: tuple[tuple[IrreducibleRepresentation, Tensor], ...]


class PositionSearch:
    """The search for the best turn of a subgroup.

    Args:
        kernels: what the subgroups are to leave as it is.
    """

    def __init__(self, kernels: Sequence[TurningKernels]) -> None:
        self.kernels = tuple(kernels)
        irreps = {psi.id: psi for item in kernels for psi, _ in item.tuples}
        self.irreps = [irreps[id] for id in sorted(irreps)]
        self._generators = {psi.id: generators(psi) for psi in self.irreps}

    def best_turn(self, fixed: dict[Any, Tensor]) -> Tensor:
        """The turn, axis times radians, at which a subgroup leaves least of the kernels.

        Args:
            fixed: the vectors of each irrep that the subgroup fixes in escnn's position, as orthonormal rows.
        """
        origin = torch.zeros(3, dtype=torch.float64)
        if all(len(fixed[psi.id]) in (0, psi.size) for psi in self.irreps):  # it is where it is
            return origin
        projections = {id: u.T @ u for id, u in fixed.items()}
        scores = torch.stack([(self._survey[id] * p).sum((1, 2)) for id, p in projections.items()]).sum(0)
        best, least = origin, math.inf
        for vector in self._follow(projections, starts()[scores.argsort(descending=True)[:CLIMBS]]):
            remainder = self.remainder(fixed, vector)
            if remainder < PROMISING:
                vector = self._refine(fixed, vector)
                remainder = self.remainder(fixed, vector)
            if remainder < least:
                best, least = vector, remainder
            if least < NOTHING:
                break
        return best

    def turn(self, fixed: dict[Any, Tensor], vector: Tensor) -> dict[Any, Tensor]:
        """The vectors of each irrep that the subgroup fixes once it is turned."""
        return {psi.id: fixed[psi.id] @ rotation_matrices(self._generators[psi.id], vector) for psi in self.irreps}

    def remainder(self, fixed: dict[Any, Tensor], vector: Tensor) -> float:
        """What the subgroup leaves of the kernels when it is turned by a vector (fraction, summed over layers)."""
        return float(self._residuals(fixed, vector).square().sum())

    @cached_property
    def _moments(self) -> dict[Any, Tensor]:
        """M for each irrep: the second moments of the kernels' coefficients in its tuples."""
        moments = {psi.id: torch.zeros(psi.size, psi.size, dtype=torch.float64) for psi in self.irreps}
        for item in self.kernels:
            if not len(item.tuples) or not item.weights.numel():
                continue
            rows = torch.cat([tuples.flatten(0, 1) for _, tuples in item.tuples])
            solution = torch.linalg.lstsq(rows.T, item.weights.T, driver="gelsd").solution.T
            start = 0
            for psi, tuples in item.tuples:
                count = tuples.shape[0] * psi.size
                vectors = solution[:, start : start + count].unflatten(1, (tuples.shape[0], psi.size))
                gram = torch.einsum("kan,lan->kl", tuples, tuples) / psi.size
                moments[psi.id] += torch.einsum("fka,kl,flb->ab", vectors, gram, vectors)
                start += count
        return moments

    @cached_property
    def _survey(self) -> dict[Any, Tensor]:
        """The moments turned by many rotations, ``(starts, d, d)``."""
        vectors = starts()
        conjugates = {}
        for psi in self.irreps:
            matrices = rotation_matrices(self._generators[psi.id], vectors)
            conjugates[psi.id] = matrices @ self._moments[psi.id] @ matrices.mT
        return conjugates

    def _follow(self, projections: dict[Any, Tensor], vectors: Tensor) -> Tensor:
        r"""Turns followed uphill on the trigonometric polynomial, the highest first, shape ``(n, 3)``.

        By damped Newton steps: with :math:`A = \psi M \psi^\top`, a further turn by v changes :math:`\mathrm{tr}(U A)`
        by :math:`\sum_a v_a \mathrm{tr}(U [G_a, A]) + \tfrac12 \sum_{ab} v_a v_b \mathrm{tr}(U [G_a, [G_b, A]])`.
        """
        damping = torch.ones(len(vectors), dtype=torch.float64)
        value, gradient, hessian = self._expand(projections, vectors)
        for _ in range(STEPS):
            size = hessian.abs().amax((1, 2)).clamp(min=1e-12)
            # of the Hessian only what curves down is taken, so that the step goes uphill
            values, axes = torch.linalg.eigh(-hessian)
            curvature = values.abs() + (damping * size)[:, None]
            step = torch.einsum("sij,sj,sj->si", axes, 1 / curvature, torch.einsum("sji,sj->si", axes, gradient))
            trial = torch.stack([_compose(v.numpy(), vector) for v, vector in zip(step, vectors)])
            trial_values = self._expand(projections, trial)
            better = trial_values[0] > value
            vectors = torch.where(better[:, None], trial, vectors)
            value, gradient = (
                torch.where(better, trial_values[0], value),
                torch.where(better[:, None], trial_values[1], gradient),
            )
            hessian = torch.where(better[:, None, None], trial_values[2], hessian)
            damping = torch.where(better, damping / 8, damping * 4).clamp(1e-8, 1e8)
        return vectors[value.argsort(descending=True)]

    def _expand(self, projections: dict[Any, Tensor], vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        value = vectors.new_zeros(len(vectors))
        gradient, hessian = vectors.new_zeros(len(vectors), 3), vectors.new_zeros(len(vectors), 3, 3)
        for id, projection in projections.items():
            matrices, moves = rotation_matrices(self._generators[id], vectors), self._generators[id]
            moment = matrices @ self._moments[id] @ matrices.mT
            first = moves[None] @ moment[:, None] - moment[:, None] @ moves[None]
            second = moves[None, :, None] @ first[:, None] - first[:, None] @ moves[None, :, None]
            value = value + (moment * projection).sum((1, 2))
            gradient = gradient + (first * projection).sum((2, 3))
            hessian = hessian + (second * projection).sum((3, 4))
        return value, gradient, (hessian + hessian.mT) / 2

    def _residuals(self, fixed: dict[Any, Tensor], vector: Tensor) -> Tensor:
        """What the turned subgroup leaves of the kernels on the grid, as one vector."""
        remainders = []
        matrices = {psi.id: rotation_matrices(self._generators[psi.id], vector) for psi in self.irreps}
        for item in self.kernels:
            rows = [
                torch.einsum("fa,kan->fkn", fixed[psi.id] @ matrices[psi.id], t).flatten(0, 1) for psi, t in item.tuples
            ]
            basis = orthonormal(torch.cat(rows)) if rows else item.weights[:0]
            remainders.append((item.weights - item.weights @ basis.T @ basis).flatten())
        return torch.cat(remainders)

    def _refine(self, fixed: dict[Any, Tensor], start: Tensor) -> Tensor:
        def cost(step: NDArray[Any]) -> NDArray[Any]:
            return np.asarray(self._residuals(fixed, _compose(step, start)))

        solution = least_squares(cost, np.zeros(3), xtol=1e-12, ftol=1e-12, gtol=1e-12, max_nfev=30, diff_step=1e-6)
        return _compose(solution.x, start)


@lru_cache(maxsize=1)
def starts() -> Tensor:
    """Turns all over SO(3), the first one none, always the same; shape ``(STARTS, 3)``."""
    vectors = Rotation.random(STARTS, random_state=0).as_rotvec()
    vectors[0] = 0
    return torch.as_tensor(vectors)


def _compose(step: NDArray[Any], start: Tensor) -> Tensor:
    turn = Rotation.from_rotvec(np.asarray(step)) * Rotation.from_rotvec(start.numpy())
    return torch.as_tensor(turn.as_rotvec())
