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
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from escnn.group import IrreducibleRepresentation, Representation

from ... import _escnn
from ..groups.irreps import highest_frequency, instantiate
from ..groups.subgroup import Subgroup
from .ring_geometry import LossSums, RingGeometry
from .sampling import Band

__all__ = ["GridLoss", "default_band", "grid_loss", "irrep_multiplicities", "sufficient_size", "turning_error"]

#: A loss (fraction) that a larger kernel would have to come below.
NEGLIGIBLE = 0.01

#: Kernel sizes that are looked at.
SIZES = range(3, 12, 2)


class GridLoss(NamedTuple):
    """What a layer's pixels lose of the difference between a subgroup and a larger one.

    Attributes:
        smaller, larger: the subgroups.
        fraction: share of the energy of the smaller one's own kernels that the pixels attribute to the larger one, 0 to
            1.
        sine: that of the smallest angle between such a kernel and the kernels of the larger one, 1 to 0.
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
    >>> C3, C2, trivial = (subgroup(space, n) for n in (3, 2, 1))
    >>> [round(grid_loss(band, trivial, h, psi).fraction, 4) for h in (C3, C2)]
    [0.04, 0.0]
    """
    geometry = RingGeometry.cached(band)
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
    return RingGeometry.cached(band).turning_error(subgroup)


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


_PRODUCTS: dict[tuple[Any, ...], list[Any]] = {}


def _product(first: IrreducibleRepresentation, second: IrreducibleRepresentation) -> list[Any]:
    """Ids of the irreps in a tensor product."""
    key = type(first.group).__name__, first.group.name, first.id, second.id
    if key not in _PRODUCTS:
        if first.group.continuous:
            instantiate(first.group, highest_frequency([first]) + highest_frequency([second]))
        _PRODUCTS[key] = list(first.tensor(second).irreps)
    return _PRODUCTS[key]
