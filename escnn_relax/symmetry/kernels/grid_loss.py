r"""What a pixel grid loses of the difference between two subgroups, as a number.

Kernels between fields of G are sums of :math:`\chi \otimes` harmonics on rings, over the irreps :math:`\chi` of G in
:math:`\rho_{out} \otimes \rho_{in}`. Let :math:`E_H` be those that a subgroup H fixes, before they are sampled, and
:math:`F < H`. Kernels of F that nothing of H is in, :math:`E_F \ominus E_H`, are orthogonal to :math:`E_H`; their
samples on pixels need not be: a grid has the symmetry of a square or cube and mixes frequencies. With :math:`\theta_i`
the principal angles between the samples of :math:`E_F \ominus E_H` and of :math:`E_H`, n dimensions of :math:`E_F
\ominus E_H`, and :math:`\sin \theta_i = 0` for those whose samples vanish,

.. math:: \text{loss} = 1 - \frac1n \sum_i \sin^2 \theta_i,

the mean share of the energy of F's own kernels that the grid gives to H, 0 where H moves pixels to pixels and 1 where
nobody can tell.

A turn that moves pixels between each other changes the norm of sampled kernels. :math:`S` samples functions on the
rings, g moves them by the orthogonal :math:`R_g`: on pixels that is :math:`M_g = S R_g S^+`, and :math:`\max
|\sigma(M_g) - 1|` by how much at worst, relative to the kernel; 0 for what moves pixels to pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from escnn.group import IrreducibleRepresentation, Representation
from numpy.typing import NDArray

from ... import _escnn
from ..groups.decomposition import generating_elements
from ..groups.irreps import highest_frequency, instantiate
from ..groups.subgroup import Subgroup
from .graded import FIXED_TOLERANCE
from .harmonics import harmonic_action, harmonics
from .sampling import Band

__all__ = ["GridLoss", "LossSums", "irrep_multiplicities", "grid_loss", "sufficient_size", "turning_error"]

Array = NDArray[np.float64]
Key = tuple[Any, ...]

#: A loss that is none (fraction), and one that a larger kernel would have to come below.
ROUNDING, NEGLIGIBLE = 1e-6, 0.01

#: A sampled kernel with a smaller share of its ring's energy than this is not seen at all; escnn leaves such out, too.
VANISHING = 1e-2

#: Kernel sizes that are looked at.
SIZES = range(3, 12, 2)

#: Angles at which a continuous group of turns is tried.
ANGLES = 48


class LossSums(NamedTuple):
    """Of the kernels that one subgroup has beyond a larger one: how many there are, the sum of the squared sines of
    their angles to the larger one's, and the least sine."""

    kernels: int
    squared_sines: float
    sine: float

    @property
    def fraction(self) -> float:
        """Of their energy that the grid gives to the larger one; NaN where there are none."""
        return 1 - self.squared_sines / self.kernels if self.kernels else math.nan

    @classmethod
    def total(cls, parts: Iterable[tuple[LossSums, int]]) -> LossSums:
        """Over parts, each so many times."""
        terms = [(sums, times) for sums, times in parts if sums.kernels and times]
        sine = min((sums.sine for sums, _ in terms), default=1.0)
        return cls(sum(t * p.kernels for p, t in terms), float(sum(t * p.squared_sines for p, t in terms)), sine)


class GridLoss(NamedTuple):
    """What a layer's pixels lose of the difference between a subgroup and a larger one.

    Attributes:
        smaller, larger: the subgroups.
        fraction: of the energy of kernels that only the smaller one fixes, what the pixels give to the larger one, 0 to
            1.
        sine: of the smallest angle between such a kernel and those of the larger one, 1 to 0.
        turning: by how much turns of the larger one change the norm of a kernel on these pixels, at worst (relative).
        kernel_size: the smallest odd one that loses no more than a hundredth, under escnn's own band limit; ``None`` if
            none up to 11 does.
    """

    smaller: Subgroup
    larger: Subgroup
    fraction: float
    sine: float
    turning: float
    kernel_size: int | None = None

    def __str__(self) -> str:
        """In words."""
        if self.fraction <= NEGLIGIBLE:
            settled = ""
        elif self.kernel_size is None:
            settled = f"; no kernel up to {SIZES[-1]} pixels loses less than {NEGLIGIBLE:.0%}"
        else:
            settled = f"; kernel_size={self.kernel_size} would lose less than {NEGLIGIBLE:.0%}"
        return (
            f"these pixels lose {self.fraction:.2%} of what tells {self.smaller.name} from {self.larger.name} (least"
            f" sine {self.sine:.2f}, and moving a kernel changes its norm by up to {self.turning:.0%}){settled}"
        )


def grid_loss(
    band: Band, smaller: Subgroup, larger: Subgroup, irreps: Mapping[IrreducibleRepresentation, int]
) -> LossSums:
    """What the pixels of a layer lose of the difference between two subgroups.

    Args:
        band: how the layer samples its kernels.
        irreps: those of G that its kernels consist of, with how often, see :func:`irrep_multiplicities`.

    >>> from escnn import gspaces, nn
    >>> from escnn_relax.symmetry.groups.lattice import subgroup
    >>> space = gspaces.rot2dOnR2(6)
    >>> fields = nn.FieldType(space, [space.regular_repr])
    >>> band = Band.from_layer(nn.R2Conv(fields, fields, 3, initialize=False))
    >>> psi = irrep_multiplicities(space.regular_repr, space.regular_repr)
    >>> three, two, one = (subgroup(space, n) for n in (3, 2, 1))
    >>> [round(grid_loss(band, one, h, psi).fraction, 4) for h in (three, two)]
    [0.04, 0.0]
    """
    geometry = _Geometry.cached(band)
    return LossSums.total((geometry.loss(smaller, larger, psi), times) for psi, times in irreps.items())


def irrep_multiplicities(in_repr: Representation, out_repr: Representation) -> dict[IrreducibleRepresentation, int]:
    """The irreps of G that kernels between two representations consist of, with how often.

    >>> from escnn.group import cyclic_group
    >>> regular = cyclic_group(4).regular_representation
    >>> {psi.name: times for psi, times in irrep_multiplicities(regular, regular).items()}
    {'irrep_0': 4, 'irrep_1': 4, 'irrep_2': 4}
    """
    group = in_repr.group
    multiplicities: dict[Any, int] = {}
    for a in sorted(set(in_repr.irreps)):
        for b in sorted(set(out_repr.irreps)):
            times = in_repr.irreps.count(a) * out_repr.irreps.count(b)
            for id in _product(group.irrep(*a), group.irrep(*b)):
                multiplicities[id] = multiplicities.get(id, 0) + times
    return {group.irrep(*id): times for id, times in sorted(multiplicities.items())}


def turning_error(band: Band, subgroup: Subgroup) -> float:
    """By how much elements of a subgroup change the norm of a kernel on these pixels, at worst (relative).

    >>> from escnn import gspaces, nn
    >>> from escnn_relax.symmetry.groups.lattice import subgroup
    >>> space = gspaces.rot2dOnR2(8)
    >>> fields = nn.FieldType(space, [space.regular_repr])
    >>> band = Band.from_layer(nn.R2Conv(fields, fields, 3, initialize=False))
    >>> [turning_error(band, subgroup(space, n)) > 1e-6 for n in (8, 4)]
    [True, False]
    """
    return _Geometry.cached(band).turning_error(subgroup)


def sufficient_size(
    smaller: Subgroup, larger: Subgroup, irreps: Mapping[IrreducibleRepresentation, int], minimum: int = 1
) -> int | None:
    """The smallest odd kernel size above one that loses no more than :data:`NEGLIGIBLE`; ``None`` if none up to 11
    does."""
    for size in SIZES:
        if size > minimum:
            loss = grid_loss(default_band(smaller.gspace.dimensionality, size), smaller, larger, irreps)
            if loss.kernels and loss.fraction <= NEGLIGIBLE:
                return size
    return None


@lru_cache
def default_band(dimension: int, size: int) -> Band:
    """That of escnn's convolutions of this kernel size."""
    rings, sigma, highest, limit = _escnn.default_band(dimension, size)
    axis = np.arange(size) - size // 2
    points = np.stack(np.meshgrid(*[axis] * dimension, indexing="ij"), axis=-1).reshape(-1, dimension)
    return Band(rings, sigma, highest, limit, points.astype(np.float64))


_PRODUCTS: dict[Key, list[Any]] = {}


def _product(first: IrreducibleRepresentation, second: IrreducibleRepresentation) -> list[Any]:
    """Ids of the irreps in a tensor product."""
    key = type(first.group).__name__, first.group.name, first.id, second.id
    if key not in _PRODUCTS:
        if first.group.continuous:
            instantiate(first.group, highest_frequency([first]) + highest_frequency([second]))
        _PRODUCTS[key] = list(first.tensor(second).irreps)
    return _PRODUCTS[key]


class _Geometry:
    """Rings and pixels of a band, and what of its kernels subgroups fix there."""

    _geometries: dict[Key, _Geometry] = {}

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
    def cached(cls, band: Band) -> _Geometry:
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
    """By the angles between what two sets of sampled kernels span."""
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
    parts = [np.asarray(subgroup.gspace.basespace_action(h), dtype=np.float64) for h in generators]
    parts += [] if psi is None else [np.asarray(psi(h), dtype=np.float64) for h in generators]
    return tuple((p.round(8) + 0.0).tobytes() for p in parts)
