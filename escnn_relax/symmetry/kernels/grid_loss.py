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
from .harmonics import harmonics, moved_harmonics
from .sampling import Band

__all__ = ["GridLoss", "LossOf", "contained_irreps", "grid_loss", "settling_size", "turning_error"]

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


class LossOf(NamedTuple):
    """Of the kernels that one subgroup has beyond a larger one: how many there are, the sum of the squared sines of
    their angles to the larger one's, and the least sine."""

    kernels: int
    told: float
    sine: float

    @property
    def fraction(self) -> float:
        """Of their energy that the grid gives to the larger one; NaN where there are none."""
        return 1 - self.told / self.kernels if self.kernels else math.nan

    @classmethod
    def total(cls, parts: Iterable[tuple[LossOf, int]]) -> LossOf:
        """Over parts, each so many times."""
        found = [(part, times) for part, times in parts if part.kernels and times]
        sine = min((part.sine for part, _ in found), default=1.0)
        return cls(sum(t * p.kernels for p, t in found), float(sum(t * p.told for p, t in found)), sine)


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
) -> LossOf:
    """What the pixels of a layer lose of the difference between two subgroups.

    Args:
        band: how the layer samples its kernels.
        irreps: those of G that its kernels consist of, with how often, see :func:`contained_irreps`.

    >>> from escnn import gspaces, nn
    >>> from escnn_relax.symmetry.groups.lattice import subgroup
    >>> space = gspaces.rot2dOnR2(6)
    >>> fields = nn.FieldType(space, [space.regular_repr])
    >>> band = Band.of(nn.R2Conv(fields, fields, 3, initialize=False))
    >>> psi = contained_irreps(space.regular_repr, space.regular_repr)
    >>> three, two, one = (subgroup(space, n) for n in (3, 2, 1))
    >>> [round(grid_loss(band, one, h, psi).fraction, 4) for h in (three, two)]
    [0.04, 0.0]
    """
    known = _Geometry.of(band)
    return LossOf.total((known.loss(smaller, larger, psi), times) for psi, times in irreps.items())


def contained_irreps(in_repr: Representation, out_repr: Representation) -> dict[IrreducibleRepresentation, int]:
    """The irreps of G that kernels between two representations consist of, with how often.

    >>> from escnn.group import cyclic_group
    >>> regular = cyclic_group(4).regular_representation
    >>> {psi.name: times for psi, times in contained_irreps(regular, regular).items()}
    {'irrep_0': 4, 'irrep_1': 4, 'irrep_2': 4}
    """
    group = in_repr.group
    found: dict[Any, int] = {}
    for a in sorted(set(in_repr.irreps)):
        for b in sorted(set(out_repr.irreps)):
            times = in_repr.irreps.count(a) * out_repr.irreps.count(b)
            for id in _product(group.irrep(*a), group.irrep(*b)):
                found[id] = found.get(id, 0) + times
    return {group.irrep(*id): times for id, times in sorted(found.items())}


def turning_error(band: Band, kept: Subgroup) -> float:
    """By how much elements of a subgroup change the norm of a kernel on these pixels, at worst (relative).

    >>> from escnn import gspaces, nn
    >>> from escnn_relax.symmetry.groups.lattice import subgroup
    >>> space = gspaces.rot2dOnR2(8)
    >>> fields = nn.FieldType(space, [space.regular_repr])
    >>> band = Band.of(nn.R2Conv(fields, fields, 3, initialize=False))
    >>> [turning_error(band, subgroup(space, n)) > 1e-6 for n in (8, 4)]
    [True, False]
    """
    return _Geometry.of(band).turning(kept)


def settling_size(
    smaller: Subgroup, larger: Subgroup, irreps: Mapping[IrreducibleRepresentation, int], beyond: int = 1
) -> int | None:
    """The smallest odd kernel size above one that loses no more than :data:`NEGLIGIBLE`; ``None`` if none up to 11
    does."""
    for size in SIZES:
        if size > beyond:
            lost = grid_loss(default_band(smaller.gspace.dimensionality, size), smaller, larger, irreps)
            if lost.kernels and lost.fraction <= NEGLIGIBLE:
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


def _product(one: IrreducibleRepresentation, other: IrreducibleRepresentation) -> list[Any]:
    """Ids of the irreps in a tensor product."""
    key = type(one.group).__name__, one.group.name, one.id, other.id
    if key not in _PRODUCTS:
        if one.group.continuous:
            instantiate(one.group, highest_frequency([one]) + highest_frequency([other]))
        _PRODUCTS[key] = list(one.tensor(other).irreps)
    return _PRODUCTS[key]


class _Geometry:
    """Rings and pixels of a band, and what of its kernels subgroups fix there."""

    _known: dict[Key, _Geometry] = {}

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
        self._losses: dict[Key, LossOf] = {}
        self._turning: dict[Key, float] = {}

    @classmethod
    def of(cls, band: Band) -> _Geometry:
        if band.key not in cls._known:
            if len(cls._known) > 64:
                cls._known.pop(next(iter(cls._known)))
            cls._known[band.key] = cls(band)
        return cls._known[band.key]

    def loss(self, smaller: Subgroup, larger: Subgroup, psi: IrreducibleRepresentation) -> LossOf:
        key = _key(smaller, psi), _key(larger, psi)
        if key not in self._losses:
            both = [(self._fixed(psi, larger, f), self._fixed(psi, smaller, f)) for f in self.rings]
            whole, only = [], []
            for frequency, (of_larger, of_smaller) in zip(self.rings, both):
                rest = of_smaller - of_smaller @ of_larger.T @ of_larger
                _, sizes, right = np.linalg.svd(rest, full_matrices=False)
                whole.append(self._sampled(of_larger, frequency, psi.size))
                only.append(self._sampled(right[sizes > 0.5], frequency, psi.size))
            self._losses[key] = _compared(np.concatenate(only), np.concatenate(whole))
        return self._losses[key]

    def turning(self, kept: Subgroup) -> float:
        key = _key(kept)
        if key not in self._turning:
            rows = np.concatenate([self._sampled(np.eye(len(a)), f, 1) for f, a in self.angular.items()])
            left, sizes, right = np.linalg.svd(rows, full_matrices=False)
            seen = sizes > 1e-6 * sizes[0]
            left, sizes = left[:, seen], sizes[seen]
            worst = 0.0
            for element in _elements(kept):
                matrix = np.asarray(kept.gspace.basespace_action(element), dtype=np.float64)
                moves = [np.kron(moved_harmonics(matrix, f), np.eye(len(r))) for f, r in self.rings.items()]
                turned = left.T @ _direct_sum(moves) @ left
                norms = np.linalg.svd(turned * sizes / sizes[:, None], compute_uv=False)
                worst = max(worst, float(np.abs(norms - 1).max()))
            self._turning[key] = worst
        return self._turning[key]

    def _fixed(self, psi: IrreducibleRepresentation, kept: Subgroup, frequency: int) -> Array:
        """Orthonormal rows ``(n, dim psi * harmonics)`` that a subgroup fixes, on each ring."""
        size = psi.size * len(self.angular[frequency])
        moves = []
        for h in map(kept.embed, generating_elements(kept.group)):
            matrix = np.asarray(kept.gspace.basespace_action(h), dtype=np.float64)
            moves.append(np.kron(np.asarray(psi(h)), moved_harmonics(matrix, frequency)) - np.eye(size))
        _, values, vectors = np.linalg.svd(np.concatenate(moves))
        return np.asarray(vectors[values < FIXED_TOLERANCE])

    def _sampled(self, vectors: Array, frequency: int, size: int) -> Array:
        """On every ring that has this frequency, at the pixels: ``(n * rings, size * S)``."""
        angular, rings = self.angular[frequency], self.rings[frequency]
        shaped = vectors.reshape(len(vectors), size, len(angular))
        return np.einsum("nsa,ap,rp->nrsp", shaped, angular, rings).reshape(
            len(vectors) * len(rings), size * rings.shape[1]
        )


def _compared(only: Array, whole: Array) -> LossOf:
    """By the angles between what two sets of sampled kernels span."""
    if not len(only):
        return LossOf(0, 0.0, 1.0)
    one, other = _orthonormal(only), _orthonormal(whole)
    cosines = np.zeros(len(one))
    if len(one) and len(other):
        found = np.linalg.svd(one @ other.T, compute_uv=False).clip(0, 1)
        cosines[: len(found)] = found
    sines = np.concatenate([1 - cosines**2, np.zeros(len(only) - len(one))])
    sines[sines < ROUNDING] = 0.0
    return LossOf(len(only), float(sines.sum()), math.sqrt(float(sines.min())))


def _orthonormal(rows: Array) -> Array:
    rows = rows[np.square(rows).sum(1) > VANISHING]
    if not len(rows):
        return rows
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    _, values, vectors = np.linalg.svd(rows, full_matrices=False)
    return np.asarray(vectors[values > 1e-4 * values[0]])


def _direct_sum(blocks: list[Array]) -> Array:
    found, start = np.zeros([sum(map(len, blocks))] * 2), 0
    for block in blocks:
        found[start : start + len(block), start : start + len(block)] = block
        start += len(block)
    return found


def _elements(kept: Subgroup) -> Iterable[Any]:
    """All elements, or many of a continuous group."""
    own = kept.group
    if kept.order > 0:
        return kept.elements
    if type(own).__name__ in ("SO2", "O2"):
        angles = 2 * math.pi * np.arange(ANGLES) / ANGLES
        turns = (own.element((0, a)) if type(own).__name__ == "O2" else own.element(a) for a in angles)
        return [kept.embed(h) for h in turns]
    return kept.testing_elements


def _key(kept: Subgroup, psi: IrreducibleRepresentation | None = None) -> Key:
    """By value: the matrices of generators, since names would not tell one axis from another."""
    generators = [kept.embed(h) for h in generating_elements(kept.group)]
    parts = [np.asarray(kept.gspace.basespace_action(h), dtype=np.float64) for h in generators]
    parts += [] if psi is None else [np.asarray(psi(h), dtype=np.float64) for h in generators]
    return tuple((p.round(8) + 0.0).tobytes() for p in parts)
