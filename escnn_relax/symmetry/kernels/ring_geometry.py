r"""Rings and pixels of a sampling rule: which kernels on them a subgroup fixes, and what their samples keep of that.

A turn that moves pixels between each other changes the norm of sampled kernels. :math:`S` samples functions on the
rings, g moves them by the orthogonal :math:`R_g`: on pixels that is :math:`M_g = S R_g S^+`, and :math:`\max
|\sigma(M_g) - 1|` by how much at worst, relative to the kernel; 0 for what moves pixels to pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from escnn.group import IrreducibleRepresentation
from numpy.typing import NDArray

from ..groups.decomposition import generating_elements
from ..groups.subgroup import Subgroup
from .graded import FIXED_TOLERANCE
from .harmonics import harmonic_action, harmonics
from .sampling import Band

__all__ = ["LossSums", "RingGeometry"]

Array = NDArray[np.float64]

Key = tuple[Any, ...]

#: A squared sine that is none.
ROUNDING = 1e-6

#: A sampled kernel with a smaller share of its ring's energy than this is not seen at all; escnn leaves such out, too.
VANISHING = 1e-2

#: Angles at which a continuous group of turns is tried.
ANGLES = 48


class LossSums(NamedTuple):
    """How far the kernels that only a smaller subgroup fixes stand from those of a larger one, once they are sampled.

    Attributes:
        kernels: how many there are.
        squared_sines: of their angles to the larger one's kernels, summed.
        sine: the least.
    """

    kernels: int
    squared_sines: float
    sine: float

    @property
    def fraction(self) -> float:
        """Share of their energy that the grid attributes to the larger one; NaN where there are none."""
        return 1 - self.squared_sines / self.kernels if self.kernels else math.nan

    @classmethod
    def total(cls, losses: Iterable[tuple[LossSums, int]]) -> LossSums:
        """The sum over parts, each so many times."""
        terms = [(sums, times) for sums, times in losses if sums.kernels and times]
        sine = min((sums.sine for sums, _ in terms), default=1.0)
        return cls(sum(t * p.kernels for p, t in terms), float(sum(t * p.squared_sines for p, t in terms)), sine)


class RingGeometry:
    """Rings and pixels of a band, and what of its kernels subgroups fix there."""

    _geometries: dict[Key, RingGeometry] = {}

    def __init__(self, band: Band) -> None:
        points = np.asarray(band.points, dtype=np.float64)
        self.dimension, radii = points.shape[1], np.linalg.norm(points, axis=1)
        #: by frequency, the profiles of the rings that have it ``(rings, S)``, with energies as large as those of
        #: frequency 0
        self.rings: dict[int, Array] = {}
        self.angular: dict[int, Array] = {}
        for frequency in range(band.maximum_frequency + 1):
            rings = [(r, s) for r, s in zip(band.rings, band.sigma) if frequency <= band.cutoff(r)]
            profiles = [np.exp(-((radii - r) ** 2) / (2 * s**2)) for r, s in rings]
            # kernels of even size have no pixel in the middle, where escnn's innermost ring is a point
            profiles = [profile / np.linalg.norm(profile) for profile in profiles if profile.any()]
            if profiles:
                self.rings[frequency] = np.stack(profiles)
                self.angular[frequency] = harmonics(points, frequency)
        self._losses: dict[Key, LossSums] = {}
        self._turning: dict[Key, float] = {}

    @classmethod
    def cached(cls, band: Band) -> RingGeometry:
        if band.key not in cls._geometries:
            if len(cls._geometries) > 64:
                cls._geometries.pop(next(iter(cls._geometries)))
            cls._geometries[band.key] = cls(band)
        return cls._geometries[band.key]

    def loss(self, smaller: Subgroup, larger: Subgroup, psi: IrreducibleRepresentation) -> LossSums:
        key = _key(smaller, psi), _key(larger, psi)
        if key not in self._losses:
            rows = [(self._fixed_rows(psi, larger, f), self._fixed_rows(psi, smaller, f)) for f in self.rings]
            larger_samples, smaller_samples = [], []
            for frequency, (larger_rows, smaller_rows) in zip(self.rings, rows):
                difference = smaller_rows - smaller_rows @ larger_rows.T @ larger_rows
                _, sizes, right = np.linalg.svd(difference, full_matrices=False)
                larger_samples.append(self._sample(larger_rows, frequency, psi.size))
                smaller_samples.append(self._sample(right[sizes > 0.5], frequency, psi.size))
            self._losses[key] = _compare(np.concatenate(smaller_samples), np.concatenate(larger_samples))
        return self._losses[key]

    def turning_error(self, subgroup: Subgroup) -> float:
        key = _key(subgroup)
        if key not in self._turning:
            rows = np.concatenate([self._sample(np.eye(len(a)), f, 1) for f, a in self.angular.items()])
            U, sizes, Vt = np.linalg.svd(rows, full_matrices=False)
            visible = sizes > 1e-6 * sizes[0]
            U, sizes = U[:, visible], sizes[visible]
            worst = 0.0
            for element in _elements(subgroup):
                matrix = np.asarray(subgroup.gspace.basespace_action(element), dtype=np.float64)
                moves = [np.kron(harmonic_action(matrix, f), np.eye(len(r))) for f, r in self.rings.items()]
                action = U.T @ _direct_sum(moves) @ U
                norms = np.linalg.svd(action * sizes / sizes[:, None], compute_uv=False)
                worst = max(worst, float(np.abs(norms - 1).max()))
            self._turning[key] = worst
        return self._turning[key]

    def _fixed_rows(self, psi: IrreducibleRepresentation, subgroup: Subgroup, frequency: int) -> Array:
        """Orthonormal rows ``(n, dim psi * harmonics)`` that a subgroup fixes, on each ring."""
        size = psi.size * len(self.angular[frequency])
        moves = []
        for h in map(subgroup.embed, generating_elements(subgroup.group)):
            matrix = np.asarray(subgroup.gspace.basespace_action(h), dtype=np.float64)
            moves.append(np.kron(np.asarray(psi(h)), harmonic_action(matrix, frequency)) - np.eye(size))
        _, values, vectors = np.linalg.svd(np.concatenate(moves))
        return np.asarray(vectors[values < FIXED_TOLERANCE])

    def _sample(self, vectors: Array, frequency: int, size: int) -> Array:
        """On every ring that has this frequency, at the pixels: ``(n * rings, size * S)``."""
        angular, rings = self.angular[frequency], self.rings[frequency]
        shaped = vectors.reshape(len(vectors), size, len(angular))
        return np.einsum("nsa,ap,rp->nrsp", shaped, angular, rings).reshape(
            len(vectors) * len(rings), size * rings.shape[1]
        )


def _compare(smaller: Array, larger: Array) -> LossSums:
    """The angles between the spans of two sets of sampled kernels."""
    if not len(smaller):
        return LossSums(0, 0.0, 1.0)
    smaller_basis, larger_basis = _orthonormal(smaller), _orthonormal(larger)
    cosines = np.zeros(len(smaller_basis))
    if len(smaller_basis) and len(larger_basis):
        values = np.linalg.svd(smaller_basis @ larger_basis.T, compute_uv=False).clip(0, 1)
        cosines[: len(values)] = values
    sines = np.concatenate([1 - cosines**2, np.zeros(len(smaller) - len(smaller_basis))])
    sines[sines < ROUNDING] = 0.0
    return LossSums(len(smaller), float(sines.sum()), math.sqrt(float(sines.min())))


def _orthonormal(rows: Array) -> Array:
    rows = rows[np.square(rows).sum(1) > VANISHING]
    if not len(rows):
        return rows
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    _, values, vectors = np.linalg.svd(rows, full_matrices=False)
    return np.asarray(vectors[values > 1e-4 * values[0]])


def _direct_sum(blocks: list[Array]) -> Array:
    matrix, start = np.zeros([sum(map(len, blocks))] * 2), 0
    for block in blocks:
        matrix[start : start + len(block), start : start + len(block)] = block
        start += len(block)
    return matrix


def _elements(subgroup: Subgroup) -> Iterable[Any]:
    """All elements, or many of a continuous group."""
    group = subgroup.group
    if subgroup.order > 0:
        return subgroup.elements
    if type(group).__name__ in ("SO2", "O2"):
        angles = 2 * math.pi * np.arange(ANGLES) / ANGLES
        turns = (group.element((0, a)) if type(group).__name__ == "O2" else group.element(a) for a in angles)
        return [subgroup.embed(h) for h in turns]
    return subgroup.testing_elements


def _key(subgroup: Subgroup, psi: IrreducibleRepresentation | None = None) -> Key:
    """By value: the matrices of generators, since names would not tell one axis from another."""
    generators = [subgroup.embed(h) for h in generating_elements(subgroup.group)]
    matrices = [np.asarray(subgroup.gspace.basespace_action(h), dtype=np.float64) for h in generators]
    matrices += [] if psi is None else [np.asarray(psi(h), dtype=np.float64) for h in generators]
    return tuple((p.round(8) + 0.0).tobytes() for p in matrices)
