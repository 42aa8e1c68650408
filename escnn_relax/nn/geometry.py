"""How steerable convolutions convolve: of the plane and of space, transposed, and over a single point."""

from __future__ import annotations

from collections.abc import Sequence

from escnn.group import Representation
from escnn.gspaces import GSpace0D, GSpace2D, GSpace3D
from escnn.nn import Linear, R2Conv, R2ConvTransposed, R3Conv, R3ConvTransposed
from torch import Tensor, nn
from torch.nn import functional as F

from .expanded_convolution import PaddedConvolution
from .field_types import PlainLayer
from .steerable import SteerableConvolution

__all__ = ["SinglePoint", "Planar", "PlanarTransposed", "Spatial", "SpatialTransposed"]


class _Convolution(PaddedConvolution, SteerableConvolution):
    """Convolutions with padding modes, in two or three dimensions."""


class Planar(_Convolution):
    """As :class:`escnn.nn.R2Conv`."""

    _strict, _gspace = R2Conv, GSpace2D


class Spatial(_Convolution):
    """As :class:`escnn.nn.R3Conv`."""

    _strict, _gspace = R3Conv, GSpace3D


class _Transposed(SteerableConvolution):
    """Transposed convolutions; torch keeps their kernel as ``(in channels, out channels / groups, *size)``."""

    _geometry = (*SteerableConvolution._geometry, "output_padding")

    def _kernel_fields(self) -> tuple[Sequence[Representation], Sequence[Representation]]:
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


class PlanarTransposed(_Transposed):
    """As :class:`escnn.nn.R2ConvTransposed`."""

    _strict, _gspace = R2ConvTransposed, GSpace2D


class SpatialTransposed(_Transposed):
    """As :class:`escnn.nn.R3ConvTransposed`."""

    _strict, _gspace = R3ConvTransposed, GSpace3D


class SinglePoint(SteerableConvolution):
    """As :class:`escnn.nn.Linear`: a convolution over a single point."""

    _strict, _gspace, _geometry = Linear, GSpace0D, ()
    groups = 1

    def _as_filter(self, kernel: Tensor) -> Tensor:
        return kernel.squeeze(-1)

    def _convolve(self, input: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(input, kernel, bias)

    def _plain(self, bias: bool) -> PlainLayer:
        return nn.Linear(self.in_type.size, self.out_type.size, bias=bias)
