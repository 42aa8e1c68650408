"""Relaxed linear maps between representations."""

from __future__ import annotations

from .geometry import SinglePoint
from .relaxed_convolution import RelaxedConvolution

__all__ = ["RelaxedLinear"]


class RelaxedLinear(RelaxedConvolution, SinglePoint):
    __doc__ = (
        (RelaxedConvolution.__doc__ or "")
        + """
    Constructed like :class:`escnn.nn.Linear`, plus ``relaxation``, ``subgroups``, ``basis``, ``frequencies`` and
    ``irreps`` as for :class:`RelaxedR2Conv`, with the same errors. A linear map is a convolution over a single point.

    >>> from escnn import gspaces, group, nn
    >>> space = gspaces.no_base_space(group.cyclic_group(4))
    >>> fields = nn.FieldType(space, [space.regular_repr])
    >>> RelaxedLinear(fields, fields).kernel.dimensions
    {'equivariant': 4, 'irrep_1': 8, 'irrep_2': 4}
    """
    )
