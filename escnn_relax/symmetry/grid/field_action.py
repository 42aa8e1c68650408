"""How a group element moves a sampled field: exactly where it maps the grid onto itself, by interpolation elsewhere.

One convention: a tensor's last axis is x, the ones before are -y and -z (escnn's). A field transforms as
:math:`(g f)(x) = \\rho(g)\\, f(g^{-1} x)`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from escnn.group import GroupElement
from escnn.gspaces import GSpace
from escnn.nn import FieldType
from numpy.typing import NDArray
from scipy.ndimage import affine_transform
from torch import Tensor

__all__ = ["acts_on_grid", "axes_matrix", "fiber_matrix", "move_points", "transform_field"]


def axes_matrix(gspace: GSpace, element: GroupElement) -> NDArray[Any]:
    """The base-space action in the order and orientation of a tensor's axes, shape ``(d, d)``, float64."""
    matrix = np.asarray(gspace.basespace_action(element), dtype=np.float64)[::-1, ::-1]
    signs = np.array([-1.0] * (gspace.dimensionality - 1) + [1.0])
    return signs[:, None] * matrix * signs[None, :]


def acts_on_grid(gspace: GSpace, element: GroupElement) -> bool:
    """Whether the element permutes the points of a square (cubic) grid, so that no interpolation is needed.

    >>> from escnn import gspaces
    >>> space = gspaces.rot2dOnR2(8)
    >>> [acts_on_grid(space, g) for g in space.fibergroup.elements[:3]]
    [True, False, True]
    """
    if gspace.dimensionality == 0:
        return True
    matrix = np.asarray(gspace.basespace_action(element))
    return bool(np.abs(matrix - np.round(matrix)).max() < 1e-6)


def fiber_matrix(type: FieldType, element: GroupElement, like: Tensor) -> Tensor:
    """The representation of the whole field type in the precision of ``like``, shape ``(channels, channels)``."""
    blocks = {r.name: torch.as_tensor(np.asarray(r(element))) for r in set(type.representations)}
    whole = torch.block_diag(*(blocks[r.name] for r in type.representations))
    return whole.to(dtype=like.dtype, device=like.device)


def move_points(field: Tensor, matrix: NDArray[Any]) -> Tensor:
    """``f(g^{-1} x)`` for a matrix of :func:`axes_matrix`; the last ``d`` axes of ``field`` are the space.

    Where the matrix permutes the axes this is exact and differentiable, otherwise a cubic spline in float64, zero
    outside the grid.
    """
    d = len(matrix)
    signed = np.round(matrix)
    lead = field.ndim - d
    if np.abs(matrix - signed).max() < 1e-6:
        # the image's axis a runs along the original's axis source[a], forwards or backwards
        source = np.abs(signed).argmax(1)
        flips = [lead + a for a in range(d) if signed[a, source[a]] < 0]
        return field.permute(*range(lead), *(lead + int(s) for s in source)).flip(flips)
    center = (np.array(field.shape[lead:]) - 1) / 2
    flat = field.detach().to("cpu", torch.float64).reshape(-1, *field.shape[lead:]).numpy()
    images = [affine_transform(f, matrix.T, offset=center - matrix.T @ center, order=3) for f in flat]
    return torch.as_tensor(np.stack(images)).to(field).view(field.shape)


def transform_field(field: Tensor, type: FieldType, element: GroupElement) -> Tensor:
    """The whole action on a tensor ``(batch, channels, *space)``, in its own precision.

    escnn's ``GeometricTensor.transform`` rounds the matrices to half precision and goes through numpy.
    """
    image = torch.einsum("oi,bi...->bo...", fiber_matrix(type, element, field), field)
    d = type.gspace.dimensionality
    return move_points(image, axes_matrix(type.gspace, element)) if d and field.ndim == 2 + d else image
