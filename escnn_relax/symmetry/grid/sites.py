r"""Points that a finite group permutes, a pixel grid or scattered anchors, and fields on them as copies of the regular
representation.

The signal of a field around an orbit is read in turned frames,

.. math:: \phi_r(g) = |K_r|^{-1/2}\, \rho(g)^{-1} f(g x_r)

with :math:`x_r` a point of the orbit r and :math:`K_r` its stabiliser. Under the group :math:`\phi_r` moves as
:math:`\phi_r(h^{-1} g)`, so each component of it is one regular field, whatever :math:`\rho` is; and the map is an
isometry, so that its transpose leads back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from escnn.group import GroupElement, Representation
from escnn.gspaces import GSpace
from numpy.typing import NDArray
from torch import Tensor, nn

from ...errors import ArgumentError, SubgroupError
from ..groups.lattice import subgroups
from ..groups.subgroup import Subgroup
from .field_action import axes_matrix

__all__ = ["Sites", "TurnedFields", "grid_points", "largest_grid_subgroup", "orbit_points", "permutes"]

#: Distance below which two points are one (pixels).
COINCIDENT = 1e-6


class Sites(nn.Module):
    """Points with the orbits of a finite group; of the trivial group each point is an orbit.

    Args:
        points: in the order of a tensor's axes, about the centre, shape ``(P, d)`` (pixels).
        subgroup: the group that permutes them.

    Attributes:
        index: the point :math:`g x_r`, shape ``(orbits, order)``.
        share: :math:`|K_r|^{-1/2}`, shape ``(orbits,)``.
        table: the position of :math:`g^{-1} g'` in the group, shape ``(order, order)``.

    Raises:
        SubgroupError: an element moves a point to where there is none.

    >>> from escnn import gspaces
    >>> from escnn_relax.symmetry.groups.lattice import subgroup
    >>> sites = Sites(grid_points((3, 3)), subgroup(gspaces.rot2dOnR2(8), 4))
    >>> sites.orbits, sites.order, len(sites)
    (3, 4, 9)
    """

    index: Tensor
    share: Tensor
    table: Tensor

    def __init__(self, points: NDArray[Any], subgroup: Subgroup) -> None:
        super().__init__()
        moves = np.stack(
            [_permutation(subgroup, g, points) for g in subgroup.elements]
        )  # (order, P): where g moves each point
        unseen, rows = np.ones(len(points), dtype=bool), []
        for point in range(len(points)):
            if unseen[point]:
                rows.append(moves[:, point])
                unseen[moves[:, point]] = False
        index = np.stack(rows)
        stabiliser = (index == index[:, :1]).sum(1) if len(subgroup.elements) > 1 else np.ones(len(index))
        elements = list(subgroup.elements)
        table = [[_position(elements, ~a @ b) for b in elements] for a in elements]
        self.register_buffer("index", torch.as_tensor(index), persistent=False)
        self.register_buffer(
            "share", torch.as_tensor(stabiliser, dtype=torch.get_default_dtype()).rsqrt(), persistent=False
        )
        self.register_buffer("table", torch.as_tensor(table), persistent=False)
        self.points = points

    def __len__(self) -> int:
        return len(self.points)

    @property
    def orbits(self) -> int:
        """Number of orbits."""
        return len(self.index)

    @property
    def order(self) -> int:
        """Order of the group."""
        return len(self.table)


class TurnedFields(nn.Module):
    """Fields of one representation on :class:`Sites`, as regular fields and back.

    Args:
        sites: the points.
        representation: of the fields, ``None`` for scalars.
        subgroup: the group.
    """

    turns: Tensor

    def __init__(self, sites: Sites, representation: Representation | None, subgroup: Subgroup) -> None:
        super().__init__()
        self.sites = sites
        matrices = [np.eye(1) if representation is None else np.asarray(representation(g)) for g in subgroup.elements]
        turns = torch.as_tensor(np.stack(matrices), dtype=torch.get_default_dtype())
        self.register_buffer("turns", turns, persistent=False)  # (order, size, size)
        self.size = turns.shape[1]

    def forward(self, signal: Tensor) -> Tensor:
        """``(N, fields, size, P)`` to regular fields ``(N, fields, orbits * size, order)``."""
        if self.sites.order == 1 and self.size == 1:  # the sites are the orbits
            return signal.transpose(2, 3)
        around = signal[..., self.sites.index] * self.sites.share[:, None]  # (N, fields, size, orbits, order)
        return torch.einsum("gkj,nfkrg->nfrjg", self.turns, around).flatten(2, 3)

    def back(self, regular: Tensor) -> Tensor:
        """Its transpose, ``(N, fields, orbits * size, order)`` to ``(N, fields, size, P)``."""
        if self.sites.order == 1 and self.size == 1:
            return regular.transpose(2, 3)
        values = regular.unflatten(2, (self.sites.orbits, self.size)) * self.sites.share[:, None, None]
        values = torch.einsum("gkj,nfrjg->nfkrg", self.turns, values).flatten(3)
        signal = values.new_zeros(*values.shape[:3], len(self.sites))
        return signal.index_add(3, self.sites.index.flatten(), values)


def grid_points(shape: Sequence[int]) -> NDArray[Any]:
    """Centres of the pixels of a grid, about its centre, shape ``(P, d)``, in the order of a flattened tensor."""
    axes = [np.arange(n) - (n - 1) / 2 for n in shape]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))


def orbit_points(subgroup: Subgroup, shape: Sequence[int], count: int, generator: np.random.Generator) -> NDArray[Any]:
    """About ``count`` random points over a grid, whole orbits of the group only, shape ``(P, d)``.

    As many orbits are drawn as whole ones fit, at least one. Points are drawn from the box, or, where the group turns
    the box out of itself, from the ball around it.
    """
    half = np.array([n / 2 for n in shape])
    matrices = [axes_matrix(subgroup.gspace, g) for g in subgroup.elements]
    inside = all(np.allclose(np.abs(m) @ half, half) for m in matrices)
    orbits: list[NDArray[Any]] = []
    while len(orbits) < max(1, count // len(matrices)):
        point = generator.uniform(-half, half)
        if not inside:
            direction = generator.normal(size=len(half))
            point = (
                direction / np.linalg.norm(direction) * np.linalg.norm(half) * generator.uniform() ** (1 / len(half))
            )
        orbit = np.stack([m @ point for m in matrices])
        if len(matrices) == 1 or np.linalg.norm(orbit[1:] - point, axis=1).min() > 0.1:  # no point near an axis
            orbits.append(orbit)
    return np.concatenate(orbits)


def largest_grid_subgroup(gspace: GSpace, shape: Sequence[int]) -> Subgroup:
    """The largest finite subgroup, as escnn counts them, that permutes the pixels of a grid.

    >>> from escnn import gspaces
    >>> [largest_grid_subgroup(gspaces.rot2dOnR2(8), (5, width)).name for width in (5, 4)]
    ['C4', 'C2']
    """
    candidates = [h for h in subgroups(gspace) if permutes(h, shape)]
    if not candidates:
        remedy = "take a square grid, or cubic in space"
        raise ArgumentError("", f"no subgroup of {gspace.name} permutes a grid of {tuple(shape)}", remedy=remedy)
    return max(candidates, key=lambda h: h.order)


def permutes(subgroup: Subgroup, shape: Sequence[int]) -> bool:
    """Whether a group is finite and permutes the pixels of a grid."""
    if subgroup.order < 0:
        return False
    points = grid_points([min(n, 4 + n % 2) for n in shape]) if len(set(shape)) == 1 else grid_points(shape)
    try:
        for g in subgroup.elements:
            _permutation(subgroup, g, points)
    except SubgroupError:
        return False
    return True


def _permutation(subgroup: Subgroup, element: GroupElement, points: NDArray[Any]) -> NDArray[Any]:
    """Where an element moves each point, shape ``(P,)``."""
    images = points @ axes_matrix(subgroup.gspace, element).T
    order, target = (np.lexsort(np.round(p / COINCIDENT / 10).T) for p in (points, images))
    result = np.empty(len(points), dtype=np.int64)
    result[target] = order
    if np.abs(points[result] - images).max(initial=0.0) > 20 * COINCIDENT:
        raise SubgroupError(
            subgroup.name,
            "the group does not permute the sites",
            expected="a finite subgroup that maps the pixel grid onto itself",
            got=f"{subgroup.name} of {subgroup.gspace.name}",
            remedy="choose a smaller subgroup, or scattered anchors (a sparse pathway)",
        )
    return result


def _position(elements: list[GroupElement], element: GroupElement) -> int:
    return next(i for i, e in enumerate(elements) if e == element)
