r"""From which angular frequency on kernels tell two subgroups apart.

The kernels from :math:`\rho_{in}` to :math:`\rho_{out}` of angular frequency f that a subgroup H fixes are as many as

.. math:: \frac1{|H|} \sum_{h \in H} \chi_{out}(h)\, \chi_{in}(h)\, \chi_f(h)

on each ring, with :math:`\chi_f` the character of the harmonics of frequency f (real representations of orthogonal type
throughout). Where the numbers of two subgroups, one within the other, agree for all frequencies that a layer's kernels
have, no weights of the layer show which of them it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from escnn.group import GroupElement, Representation
from numpy.typing import NDArray

from ... import _escnn
from ..groups.subgroup import Subgroup

__all__ = ["kernel_count", "telling_frequency", "telling_size"]

#: Frequencies and kernel sizes that are looked at.
FREQUENCIES, SIZES = 32, range(3, 32, 2)


def kernel_count(subgroup: Subgroup, in_repr: Representation, out_repr: Representation, frequency: int) -> int:
    """How many kernels of one angular frequency a subgroup of the plane or of space fixes on each ring.

    >>> from escnn import gspaces
    >>> from escnn_relax.symmetry.groups.lattice import subgroup
    >>> space = gspaces.rot2dOnR2(6)
    >>> scalar = space.trivial_repr
    >>> [[kernel_count(subgroup(space, m), scalar, scalar, f) for f in range(7)] for m in (3, 6)]
    [[1, 0, 0, 2, 0, 0, 2], [1, 0, 0, 0, 0, 0, 2]]
    """
    elements = _elements(subgroup, frequency, in_repr, out_repr)
    total = 0.0
    for h in elements:
        characters = float(np.trace(np.asarray(in_repr(h)))) * float(np.trace(np.asarray(out_repr(h))))
        total += characters * _harmonic(np.asarray(subgroup.gspace.basespace_action(h), dtype=np.float64), frequency)
    return round(total / len(elements))


def telling_frequency(
    first: Subgroup, second: Subgroup, pairs: Iterable[tuple[Representation, Representation]]
) -> int | None:
    """The lowest angular frequency at which some kernels are fixed by one of two subgroups and not by the other.

    ``None`` if there is none up to :data:`FREQUENCIES`, as in layers without space, or for subgroups of more than one
    dimension.
    """
    if not first.gspace.dimensionality or any(type(h.group).__name__ in ("SO3", "O3") for h in (first, second)):
        return None
    if first.gspace.dimensionality == 3 and (first.order < 0 or second.order < 0):
        return None
    pairs = list(pairs)
    for frequency in range(FREQUENCIES + 1):
        for pair in pairs:
            if kernel_count(first, *pair, frequency) != kernel_count(second, *pair, frequency):
                return frequency
    return None


@lru_cache
def telling_size(dimension: int, frequency: int) -> int | None:
    """The smallest odd kernel size whose kernels have this frequency under escnn's own band limit.

    >>> [telling_size(2, f) for f in (2, 3, 4)]
    [3, 7, 9]
    """
    return next((size for size in SIZES if _escnn.default_highest(dimension, size) >= frequency), None)


def _elements(subgroup: Subgroup, frequency: int, *representations: Representation) -> list[GroupElement]:
    """All elements, or of a continuous subgroup of the plane as many as average its characters exactly."""
    if subgroup.order > 0:
        return list(subgroup.elements)
    group = subgroup.group
    highest = frequency + sum(max(id[-1] for id in r.irreps) for r in representations)
    angles = 2 * math.pi * np.arange(highest + 1) / (highest + 1)
    flips = (0, 1) if type(group).__name__ == "O2" else ()
    elements = [group.element((flip, angle)) for flip in flips for angle in angles] or [
        group.element(a) for a in angles
    ]
    return [subgroup.embed(h) for h in elements]


def _harmonic(matrix: NDArray[np.float64], frequency: int) -> float:
    """The character of circular or spherical harmonics under an orthogonal matrix."""
    if frequency == 0:
        return 1.0
    sign = float(np.sign(np.linalg.det(matrix)))
    if len(matrix) == 2:
        return 2 * math.cos(frequency * math.atan2(matrix[1, 0], matrix[0, 0])) if sign > 0 else 0.0
    angle = math.acos(min(max((sign * float(np.trace(matrix)) - 1) / 2, -1.0), 1.0))
    turns = sum(2 * math.cos(m * angle) for m in range(1, frequency + 1)) + 1
    return sign**frequency * turns
