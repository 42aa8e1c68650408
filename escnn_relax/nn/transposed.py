"""Relaxed transposed convolutions of the plane and of space."""

from __future__ import annotations

from .geometry import PlanarTransposed, SpatialTransposed
from .relaxed_convolution import RelaxedConvolution

__all__ = ["RelaxedR2ConvTransposed", "RelaxedR3ConvTransposed"]


class RelaxedR2ConvTransposed(RelaxedConvolution, PlanarTransposed):
    __doc__ = (
        (RelaxedConvolution.__doc__ or "")
        + """
    Constructed like :class:`escnn.nn.R2ConvTransposed`, plus ``relaxation``, ``subgroups``, ``basis``,
    ``frequencies`` and ``irreps`` as for :class:`RelaxedR2Conv`, with the same errors.

    >>> from escnn import gspaces, nn
    >>> space = gspaces.rot2dOnR2(4)
    >>> gray, fields = nn.FieldType(space, [space.trivial_repr]), nn.FieldType(space, [space.regular_repr])
    >>> RelaxedR2ConvTransposed(fields, gray, kernel_size=3, stride=2).evaluate_output_shape((1, 4, 5, 5))
    (1, 1, 11, 11)
    """
    )


class RelaxedR3ConvTransposed(RelaxedConvolution, SpatialTransposed):
    __doc__ = (
        (RelaxedConvolution.__doc__ or "")
        + """
    Constructed like :class:`escnn.nn.R3ConvTransposed`, plus ``relaxation``, ``subgroups``, ``basis``,
    ``frequencies`` and ``irreps`` as for :class:`RelaxedR2Conv`, with the same errors.

    >>> from escnn import gspaces, nn
    >>> space = gspaces.invOnR3()
    >>> signs = nn.FieldType(space, [space.regular_repr])
    >>> RelaxedR3ConvTransposed(signs, signs, kernel_size=3).evaluate_output_shape((1, 2, 3, 3, 3))
    (1, 2, 5, 5, 5)
    """
    )
