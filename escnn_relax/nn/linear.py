"""Relaxed linear maps between representations."""

from __future__ import annotations

from escnn.gspaces import GSpace0D
from escnn.nn import Linear
from torch import Tensor, nn
from torch.nn import functional as F

from .field_types import PlainLayer
from .relaxed_convolution import RelaxedConvolution

__all__ = ["RelaxedLinear"]


class RelaxedLinear(RelaxedConvolution):
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

    _strict, _gspace, _geometry = Linear, GSpace0D, ()
    groups = 1

    def _as_filter(self, kernel: Tensor) -> Tensor:
        return kernel.squeeze(-1)

    def _convolve(self, input: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(input, kernel, bias)

    def _plain(self, bias: bool) -> PlainLayer:
        return nn.Linear(self.in_type.size, self.out_type.size, bias=bias)
