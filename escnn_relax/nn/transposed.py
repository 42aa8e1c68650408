"""Relaxed transposed convolutions of the plane and of space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from escnn.gspaces import GSpace2D, GSpace3D
from escnn.nn import R2ConvTransposed, R3ConvTransposed
from torch import Tensor, nn
from torch.nn import functional as F

from .field_types import PlainLayer
from .relaxed_convolution import RelaxedConvolution

__all__ = ["RelaxedR2ConvTransposed", "RelaxedR3ConvTransposed"]


class _Transposed(RelaxedConvolution):
    """Transposed convolutions; torch keeps their kernel as ``(in channels, out channels / groups, *size)``."""

    _geometry = (*RelaxedConvolution._geometry, "output_padding")

    def _kernel_fields(self) -> tuple[Sequence[Any], Sequence[Any]]:
        return self.in_type.representations, self.out_type.representations[: len(self.out_type) // self.groups]

    def _as_filter(self, kernel: Tensor) -> Tensor:
        return super()._as_filter(kernel).transpose(0, 1).contiguous()

    def _convolve(self, input: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        convolve = F.conv_transpose2d if self.d == 2 else F.conv_transpose3d
        rest = (self.stride, self.padding, self.output_padding, self.groups, self.dilation)
        return convolve(input, kernel, bias, *rest)

    def _plain(self, bias: bool) -> PlainLayer:
        kind = nn.ConvTranspose2d if self.d == 2 else nn.ConvTranspose3d
        geometry = {name: getattr(self, name) for name in self._geometry}
        return kind(self.in_type.size, self.out_type.size, bias=bias, **geometry)


class RelaxedR2ConvTransposed(_Transposed):
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

    _strict, _gspace = R2ConvTransposed, GSpace2D


class RelaxedR3ConvTransposed(_Transposed):
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

    _strict, _gspace = R3ConvTransposed, GSpace3D
