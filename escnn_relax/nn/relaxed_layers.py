"""Relaxed convolutions of the plane and of space."""

from __future__ import annotations

import torch  # noqa: F401 - for the doctests

from .geometry import Planar, Spatial
from .relaxed_convolution import RelaxedConvolution

__all__ = ["RelaxedR2Conv", "RelaxedR3Conv"]


class RelaxedR2Conv(RelaxedConvolution, Planar):
    __doc__ = (
        (RelaxedConvolution.__doc__ or "")
        + """
    Constructed like :class:`escnn.nn.R2Conv`, plus:

    Args:
        relaxation: ``"graded"``: one residual pathway for each non-trivial irrep of the group.
        subgroups: ids of proper subgroups, as ``gspace.restrict`` takes them; instead of the grading, one residual
            pathway for each: the kernels equivariant under it, orthogonal to what larger subgroups already span. The
            trivial subgroup is the classical residual pathway.
        basis: ``"band-limited"`` as escnn's kernels are, or ``"pixel"``: complete on the pixel grid (escnn's basis
            for the trivial group spans 6 of 9 kernels at size 3, 11 of 25 at size 5, 18 of 49 at size 7).
        frequencies: only irreps up to this frequency (turns in a full circle; degree in three dimensions). By default
            all irreps of a finite group, and of a continuous one all that kernels between these types can contain: the
            highest frequencies of the input's and the output's irreps and of the kernel's band limit, added up.
        irreps: ids of the irreps that get a pathway, instead.

    Raises:
        FieldTypeError: types on different G-spaces, or not of the plane.
        SubgroupError: an id that is no proper subgroup.
        ArgumentError: arguments that escnn refuses, irreps that the group lacks, a negative cutoff.
        EmptyBasisError: nothing equivariant, or nothing that breaks the symmetry, between these types.

    Irreps without any kernel between these types are listed in ``empty_pathways``.

    >>> from escnn import gspaces, nn
    >>> space = gspaces.rot2dOnR2(4)
    >>> gray, fields = nn.FieldType(space, [space.trivial_repr]), nn.FieldType(space, 2 * [space.regular_repr])
    >>> layer = RelaxedR2Conv(gray, fields, kernel_size=5, padding=2)
    >>> layer.kernel.dimensions
    {'equivariant': 22, 'irrep_1': 44, 'irrep_2': 22}
    >>> layer(gray(torch.randn(1, 1, 9, 9))).shape, layer.breaking_energy
    (torch.Size([1, 8, 9, 9]), 0.0)
    >>> space = gspaces.rot2dOnR2(-1, maximum_frequency=1)
    >>> gray, vectors = nn.FieldType(space, [space.trivial_repr]), nn.FieldType(space, [space.irrep(1)])
    >>> RelaxedR2Conv(gray, vectors, 5, frequencies=2).kernel.dimensions
    {'equivariant': 4, 'irrep_1': 10, 'irrep_2': 4}
    """
    )


class RelaxedR3Conv(RelaxedConvolution, Spatial):
    __doc__ = (
        (RelaxedConvolution.__doc__ or "")
        + """
    Constructed like :class:`escnn.nn.R3Conv`, plus ``relaxation``, ``subgroups``, ``basis``, ``frequencies``
    and ``irreps`` as for :class:`RelaxedR2Conv`, with the same errors.

    >>> from escnn import gspaces, nn
    >>> space = gspaces.invOnR3()
    >>> gray, signs = nn.FieldType(space, [space.trivial_repr]), nn.FieldType(space, [space.regular_repr])
    >>> RelaxedR3Conv(gray, signs, kernel_size=3).kernel.dimensions
    {'equivariant': 10, 'irrep_1': 10}
    """
    )
