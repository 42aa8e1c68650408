"""[G]-mixed convolutions of the plane and of space, transposed ones, and linear maps."""

from __future__ import annotations

from escnn.nn import FieldType  # noqa: F401 - for the doctests

from ..geometry import Planar, PlanarTransposed, SinglePoint, Spatial, SpatialTransposed
from .convolution import MixedConvolution

__all__ = ["MixedR2Conv", "MixedR3Conv", "MixedR2ConvTransposed", "MixedR3ConvTransposed", "MixedLinear"]


class MixedR2Conv(MixedConvolution, Planar):
    __doc__ = (
        (MixedConvolution.__doc__ or "")
        + """
    Constructed like :class:`escnn.nn.R2Conv`, plus the arguments of :class:`~escnn_relax.nn.mixed.mixture.Mixture`.

    Raises:
        FieldTypeError: types on different G-spaces, or not of the plane.
        SubgroupError: an id that names no subgroup of G, one named twice, or none but G.
        ArgumentError: arguments that escnn refuses, an unknown ``start``, a temperature that is not positive.
        NothingToRelaxError: between these types all groups of the mixture have the same kernels.

    >>> from escnn import gspaces
    >>> space = gspaces.flipRot2dOnR2(4)
    >>> fields = FieldType(space, [space.regular_repr])
    >>> layer = MixedR2Conv(fields, fields, 3, padding=1, subgroups=[(None, 4), (None, 1)], leaning=2.0)
    >>> {name: round(share, 2) for name, share in layer.shares.items()}
    {'equivariant': 0.79, 'C4': 0.11, 'trivial': 0.11}
    >>> layer.kernel.dimensions
    {'equivariant': 48, 'C4': 96, 'trivial': 384}
    """
    )


class MixedR3Conv(MixedConvolution, Spatial):
    __doc__ = (
        (MixedConvolution.__doc__ or "")
        + """
    Constructed like :class:`escnn.nn.R3Conv`, plus the arguments of
    :class:`~escnn_relax.nn.mixed.mixture.Mixture`, with the errors of :class:`MixedR2Conv`.

    >>> from escnn import gspaces
    >>> space = gspaces.invOnR3()
    >>> gray, signs = FieldType(space, [space.trivial_repr]), FieldType(space, [space.regular_repr])
    >>> MixedR3Conv(gray, signs, 3, subgroups=[1]).kernel.dimensions
    {'equivariant': 10, 'trivial': 20}
    """
    )


class MixedR2ConvTransposed(MixedConvolution, PlanarTransposed):
    __doc__ = (
        (MixedConvolution.__doc__ or "")
        + """
    Constructed like :class:`escnn.nn.R2ConvTransposed`, plus the arguments of
    :class:`~escnn_relax.nn.mixed.mixture.Mixture`, with the errors of :class:`MixedR2Conv`.

    >>> from escnn import gspaces
    >>> space = gspaces.rot2dOnR2(4)
    >>> gray, fields = FieldType(space, [space.trivial_repr]), FieldType(space, [space.regular_repr])
    >>> MixedR2ConvTransposed(fields, gray, 3, stride=2, subgroups=[2, 1]).kernel.dimensions
    {'equivariant': 6, 'C2': 12, 'trivial': 24}
    """
    )


class MixedR3ConvTransposed(MixedConvolution, SpatialTransposed):
    __doc__ = (
        (MixedConvolution.__doc__ or "")
        + """
    Constructed like :class:`escnn.nn.R3ConvTransposed`, plus the arguments of
    :class:`~escnn_relax.nn.mixed.mixture.Mixture`, with the errors of :class:`MixedR2Conv`.

    >>> from escnn import gspaces
    >>> space = gspaces.invOnR3()
    >>> gray, signs = FieldType(space, [space.trivial_repr]), FieldType(space, [space.regular_repr])
    >>> MixedR3ConvTransposed(gray, signs, 3, subgroups=[1]).kernel.dimensions
    {'equivariant': 10, 'trivial': 20}
    """
    )


class MixedLinear(MixedConvolution, SinglePoint):
    __doc__ = (
        (MixedConvolution.__doc__ or "")
        + """
    Constructed like :class:`escnn.nn.Linear`, plus the arguments of
    :class:`~escnn_relax.nn.mixed.mixture.Mixture`, with the errors of :class:`MixedR2Conv`.

    >>> from escnn import gspaces, group
    >>> space = gspaces.no_base_space(group.cyclic_group(4))
    >>> fields = FieldType(space, [space.regular_repr])
    >>> MixedLinear(fields, fields, subgroups=[2, 1]).kernel.dimensions
    {'equivariant': 4, 'C2': 8, 'trivial': 16}
    """
    )
