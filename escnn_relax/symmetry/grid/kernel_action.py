"""The action of a group on sampled kernels, where it maps the pixel grid onto itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from escnn.group import GroupElement, IrreducibleRepresentation, Representation
from escnn.gspaces import GSpace
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["grid_permutation", "transform_kernels", "isotypic_projection"]


def grid_permutation(gspace: GSpace, element: GroupElement, points: NDArray[Any]) -> NDArray[Any] | None:
    r"""Index ``q`` with ``points[q[s]] = g^{-1} points[s]``, or ``None`` where ``g`` leaves the grid.

    Args:
        points: pixel centres, shape ``(S, d)``.

    >>> import numpy as np
    >>> from escnn import gspaces
    >>> space, line = gspaces.rot2dOnR2(8), np.array([[-1., 0.], [0., 0.], [1., 0.]])
    >>> grid_permutation(space, space.fibergroup.element(4), line).tolist()
    [2, 1, 0]
    >>> grid_permutation(space, space.fibergroup.element(1), line) is None
    True
    """
    if gspace.dimensionality == 0:
        return np.arange(len(points))
    matrix = gspace.basespace_action(element)
    images = points @ matrix  # row-wise g^{-1} x, since the action is orthogonal
    distance = np.linalg.norm(images[:, None] - points[None], axis=-1)
    nearest = distance.argmin(axis=1)
    if (distance[np.arange(len(points)), nearest] > 1e-6).any():
        return None
    return nearest


def transform_kernels(
    kernels: Tensor, element: GroupElement, in_repr: Representation, out_repr: Representation, permutation: NDArray[Any]
) -> Tensor:
    r""":math:`(g \cdot K)(x) = \rho_{out}(g)\, K(g^{-1}x)\, \rho_{in}(g)^{-1}`.

    Args:
        kernels: shape ``(K, out size, in size, S)``.
        permutation: :func:`grid_permutation` of ``element``.
    """
    out_matrix = torch.as_tensor(out_repr(element), dtype=kernels.dtype, device=kernels.device)
    in_matrix = torch.as_tensor(in_repr(~element), dtype=kernels.dtype, device=kernels.device)
    permuted = kernels[..., torch.as_tensor(permutation, device=kernels.device)]
    return torch.einsum("po,kois,iq->kpqs", out_matrix, permuted, in_matrix)


def isotypic_projection(
    kernels: Tensor,
    in_repr: Representation,
    out_repr: Representation,
    permutations: Mapping[GroupElement, NDArray[Any]],
    irrep: IrreducibleRepresentation | None = None,
) -> Tensor:
    r"""Project kernels on the isotypic part of one irrep of a finite group (on its fixed kernels by default).

    .. math:: P_\psi = \frac{\dim\psi}{c_\psi |G|} \sum_{g} \chi_\psi(g)\, g

    with :math:`c_\psi` the number of complex irreps that the real irrep holds (1, 2 or 4): Serre, *Linear
    representations of finite groups*, section 2.6.

    Args:
        kernels: shape ``(K, out size, in size, S)``.
        permutations: for each element of the group its :func:`grid_permutation`.
        irrep: an irreducible representation of the group; ``None`` for the trivial one (average over the elements).
    """
    result = torch.zeros_like(kernels)
    for element, permutation in permutations.items():
        character = 1.0 if irrep is None else float(irrep.character(element))
        if abs(character) > 1e-12:
            result += character * transform_kernels(kernels, element, in_repr, out_repr, permutation)
    size = 1.0 if irrep is None else irrep.size / irrep.sum_of_squares_constituents
    return result * (size / len(permutations))
