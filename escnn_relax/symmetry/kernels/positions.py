r"""Where in space the subgroups of SO(3) and O(3) stand that leave given kernels as they are.

A kernel is a combination of tuples that turn by irreps :math:`\psi`. Under :math:`A^{-1} H A` are fixed the
combinations by the vectors :math:`\psi(A)^{-1} u`, with u fixed under H; what of the kernel lies outside their span is
a function of the turn A, on the sphere where only H's axis counts. Its least value is looked for from many starts:
first with all tuples taken for orthogonal, where it is a trigonometric polynomial :math:`\sum_\psi \mathrm{tr}(U_\psi
\psi(A) M_\psi \psi(A)^\top)` that is evaluated at a thousand turns at once, then by least squares on the pixel grid
itself. The remainder there is the certificate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from escnn.group import GroupElement, IrreducibleRepresentation
from escnn.gspaces import GSpace
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation
from torch import Tensor

from ..groups.lattice import subgroups
from ..groups.rotations import generators, rotation, rotation_matrices
from ..groups.subgroup import Subgroup, subgroup
from ..groups.turned_names import conjugate_id
from .graded import fixed_vectors
from .linear_algebra import orthonormal

__all__ = ["Place", "Positions", "TurningKernels", "conjugate", "smaller_subgroups", "standard_position"]

#: Turns that are looked at before the best are followed, and how many of those are.
STARTS, CLIMBS = 1000, 4

#: Newton steps of each of them.
STEPS = 12

#: A share of the energy below which a subgroup may fit, so that its place is worth finding exactly (fraction).
PROMISING = 0.05

#: A share below which no better place is looked for (fraction): that of the rounding.
NOTHING = 1e-12

#: Subspaces of irreps whose sines are below this are the same.
ALIKE = 1e-3


@dataclass(frozen=True)
class TurningKernels:
    """Residual kernels of a layer between one pair of representations.

    Attributes:
        weights: coefficients in orthonormal kernels, shape ``(fields, n)``, over the square root of the layer's energy.
        tuples: for each irrep the coefficients of its tuples, shape ``(K, dim psi, n)``.
    """

    weights: Tensor
    tuples: tuple[tuple[IrreducibleRepresentation, Tensor], ...]


@dataclass(frozen=True)
class Place:
    """One kind of subgroup where it leaves least of the kernels.

    Attributes:
        kind: the subgroup in escnn's position.
        vector: the turn A that takes it to its place, A^-1 H A (axis times radians).
        fixed: the vectors of each irrep that it leaves as they are there, as orthonormal rows.
        remainder: what of the kernels it leaves (fraction, summed over layers).
    """

    kind: Subgroup
    vector: Tensor
    fixed: dict[Any, Tensor]
    remainder: float

    @cached_property
    def subgroup(self) -> Subgroup:
        """The subgroup at its place."""
        return conjugate(self.kind, self.vector)


class Positions:
    """The best place of each kind of subgroup.

    Args:
        gspace: a G-space of SO(3) or O(3).
        kernels: what the subgroups are to leave as it is.
        highest: the highest frequency of the irreps, beyond which turns cannot be told apart.
    """

    def __init__(self, gspace: GSpace, kernels: Sequence[TurningKernels], highest: int) -> None:
        self.gspace, self.kernels, self.highest = gspace, tuple(kernels), highest
        irreps = {psi.id: psi for item in kernels for psi, _ in item.tuples}
        self.irreps = [irreps[id] for id in sorted(irreps)]
        self._generators = {psi.id: generators(psi) for psi in self.irreps}

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """One for each kind of subgroup, large to small, the whole group and the trivial one among them."""
        return tuple(self._place(member) for member in reversed(list(subgroups(self.gspace, max(1, self.highest)))))

    def maximal(self, survives: Callable[[Subgroup], bool]) -> list[Subgroup]:
        """The subgroups that survive at their places and lie in no other one that does, large to small."""
        maximal_places: list[Place] = []
        for place in self.places:
            if not any(self.contains(larger, place) for larger in maximal_places) and survives(place.subgroup):
                maximal_places.append(place)
        return [place.subgroup for place in maximal_places]

    def smaller(self, member: Subgroup) -> tuple[Subgroup, ...]:
        """Smaller subgroups, small to large: of H those where it stands, and the best places that lie in it."""
        outer = self.place(member)
        inside = [place.subgroup for place in reversed(self.places) if self._is_smaller(outer, place)]
        return tuple(
            {
                h.id: h for h in [*(() if member.index == 1 else smaller_subgroups(member, self.highest)), *inside]
            }.values()
        )

    def larger(self, member: Subgroup) -> tuple[Subgroup, ...]:
        """The next larger of the best places."""
        inner = self.place(member)
        larger = [place for place in self.places if self._is_smaller(place, inner)]
        return tuple(m.subgroup for m in larger if not any(self._is_smaller(m, n) for n in larger))

    def _is_smaller(self, larger: Place, inner: Place) -> bool:
        return self.contains(larger, inner) and not self.contains(inner, larger)

    def place(self, member: Subgroup) -> Place:
        """A subgroup where it stands."""
        for candidate in self.places:
            if candidate.subgroup == member:
                return candidate
        return Place(member, torch.zeros(3, dtype=torch.float64), self._fixed_vectors(member), float("nan"))

    def contains(self, larger: Place, smaller: Place) -> bool:
        """Whether whatever the larger leaves as it is, the smaller does, as far as these irreps can tell."""
        return all(
            float((vectors - vectors @ smaller.fixed[id].T @ smaller.fixed[id]).norm()) < ALIKE
            for id, vectors in larger.fixed.items()
        )

    def _fixed_vectors(self, member: Subgroup) -> dict[Any, Tensor]:
        return {psi.id: fixed_vectors(psi, member) for psi in self.irreps}

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
                part = solution[:, start : start + count].unflatten(1, (tuples.shape[0], psi.size))
                gram = torch.einsum("kan,lan->kl", tuples, tuples) / psi.size
                moments[psi.id] += torch.einsum("fka,kl,flb->ab", part, gram, part)
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

    def _place(self, member: Subgroup) -> Place:
        fixed = self._fixed_vectors(member)
        origin = torch.zeros(3, dtype=torch.float64)
        if all(len(fixed[psi.id]) in (0, psi.size) for psi in self.irreps):  # it is where it is
            return self._make_place(member, fixed, origin)
        projections = {id: u.T @ u for id, u in fixed.items()}
        scores = torch.stack([(self._survey[id] * p).sum((1, 2)) for id, p in projections.items()]).sum(0)
        best, least = origin, math.inf
        for vector in self._follow(projections, starts()[scores.argsort(descending=True)[:CLIMBS]]):
            remainder = self._remainder(fixed, vector)
            if remainder < PROMISING:
                vector = self._refine(fixed, vector)
                remainder = self._remainder(fixed, vector)
            if remainder < least:
                best, least = vector, remainder
            if least < NOTHING:
                break
        return self._make_place(member, fixed, best)

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
        parts = []
        matrices = {psi.id: rotation_matrices(self._generators[psi.id], vector) for psi in self.irreps}
        for item in self.kernels:
            rows = [
                torch.einsum("fa,kan->fkn", fixed[psi.id] @ matrices[psi.id], t).flatten(0, 1) for psi, t in item.tuples
            ]
            basis = orthonormal(torch.cat(rows)) if rows else item.weights[:0]
            parts.append((item.weights - item.weights @ basis.T @ basis).flatten())
        return torch.cat(parts)

    def _refine(self, fixed: dict[Any, Tensor], start: Tensor) -> Tensor:
        def cost(step: NDArray[Any]) -> NDArray[Any]:
            return np.asarray(self._residuals(fixed, _compose(step, start)))

        solution = least_squares(cost, np.zeros(3), xtol=1e-12, ftol=1e-12, gtol=1e-12, max_nfev=30, diff_step=1e-6)
        return _compose(solution.x, start)

    def _make_place(self, member: Subgroup, fixed: dict[Any, Tensor], vector: Tensor) -> Place:
        vectors = {psi.id: fixed[psi.id] @ rotation_matrices(self._generators[psi.id], vector) for psi in self.irreps}
        return Place(member, vector, vectors, self._remainder(fixed, vector))

    def _remainder(self, fixed: dict[Any, Tensor], vector: Tensor) -> float:
        return float(self._residuals(fixed, vector).square().sum())


@lru_cache(maxsize=1)
def starts() -> Tensor:
    """Turns all over SO(3), the first one none, always the same; shape ``(STARTS, 3)``."""
    vectors = Rotation.random(STARTS, random_state=0).as_rotvec()
    vectors[0] = 0
    return torch.as_tensor(vectors)


def _compose(step: NDArray[Any], start: Tensor) -> Tensor:
    turn = Rotation.from_rotvec(np.asarray(step)) * Rotation.from_rotvec(start.numpy())
    return torch.as_tensor(turn.as_rotvec())


def conjugate(member: Subgroup, vector: Tensor) -> Subgroup:
    """A subgroup of SO(3) or O(3) turned: A^-1 H A, where A turns by this vector.

    >>> from escnn import gspaces
    >>> conjugate(subgroup(gspaces.rot3dOnR3(), (False, 3)), torch.tensor([0.0, torch.pi / 2, 0.0])).name
    'C3_x'
    """
    if float(vector.norm()) < 1e-12:
        return member
    group = member.gspace.fibergroup
    return subgroup(member.gspace, conjugate_id(group, member.id, rotation(group, vector)))


def standard_position(member: Subgroup) -> tuple[Subgroup, GroupElement | None]:
    """A subgroup of SO(3) or O(3) in escnn's position, and the turn from there: H and A of A^-1 H A, or None."""
    group, id = member.gspace.fibergroup, member.id
    twisted = isinstance(id, tuple) and id[0] == "twisted"
    part = id[1] if twisted else id
    if not isinstance(part, tuple) or not isinstance(part[-1], GroupElement):
        return member, None

    def bare(parts: Any) -> Any:
        return parts[0] if len(parts) == 2 else parts[:-1]

    element = group.element((0, part[-1].value), part[-1].param) if twisted else part[-1]
    return subgroup(member.gspace, ("twisted", bare(id[1]), bare(id[2])) if twisted else bare(id)), element


def smaller_subgroups(upper: Subgroup, highest: int) -> Iterator[Subgroup]:
    """The subgroups of H where it stands, small to large, that turns by this frequency tell apart."""
    reference, element = standard_position(upper)
    for member in subgroups(upper.gspace, max(1, highest)):
        if member < reference:
            rotated = element is not None and member.order != 1
            yield (
                subgroup(upper.gspace, conjugate_id(upper.gspace.fibergroup, member.id, element)) if rotated else member
            )
