"""Sparse convolutions of the plane and of space."""

from __future__ import annotations

import torch  # noqa: F401 - for the doctests
from escnn.gspaces import GSpace2D, GSpace3D

from .sparse_convolution import SparseConvolution

__all__ = ["SparseR2Conv", "SparseR3Conv"]


class SparseR2Conv(SparseConvolution):
    __doc__ = (
        (SparseConvolution.__doc__ or "")
        + """
    >>> from escnn import gspaces, nn
    >>> space = gspaces.rot2dOnR2(4)
    >>> gray, fields = nn.FieldType(space, [space.trivial_repr]), nn.FieldType(space, [space.regular_repr])
    >>> layer = SparseR2Conv(gray, fields, 5, padding=2)
    >>> layer.weights.shape, layer(gray(torch.randn(2, 1, 9, 9))).shape
    (torch.Size([12]), torch.Size([2, 4, 9, 9]))
    """
    )

    d, _gspace = 2, GSpace2D


class SparseR3Conv(SparseConvolution):
    __doc__ = (
        (SparseConvolution.__doc__ or "")
        + """
    >>> from escnn import gspaces, nn
    >>> space = gspaces.invOnR3()
    >>> gray, signs = nn.FieldType(space, [space.trivial_repr]), nn.FieldType(space, [space.regular_repr])
    >>> SparseR3Conv(gray, signs, 3).weights.shape
    torch.Size([14])
    """
    )

    d, _gspace = 3, GSpace3D
