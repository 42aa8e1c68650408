"""What every convolution by an expanded kernel has, whatever its kernel is made of: one convolution, export, shapes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from escnn.nn import FieldType, GeometricTensor
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ArgumentError
from .field_types import PlainLayer, check_input

__all__ = ["ExpandedConvolution", "PaddedConvolution"]


class ExpandedConvolution:
    """A layer that expands its kernel and bias, and convolves once; a base class beside ``EquivariantModule``.

    Its kernel is a sum of pathways (:class:`~escnn_relax.nn.steerable.SteerableConvolution`), or interpolated from
    anchors (:class:`~escnn_relax.nn.translation.sparse_convolution.SparseConvolution`).
    """

    d: int
    in_type: FieldType
    out_type: FieldType
    bias: nn.Parameter | None

    @abstractmethod
    def expand_parameters(self) -> tuple[Tensor, Tensor | None]:
        """The kernel, in the shape that torch's own layer of this kind has it, and the bias ``(out channels,)``."""

    @abstractmethod
    def _convolve(self, input: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        """One convolution, with padding."""

    @abstractmethod
    def _plain(self, bias: bool) -> PlainLayer:
        """The torch layer of the same shape."""

    def _expanded(self) -> tuple[Tensor, Tensor | None]:
        """The expanded parameters that a forward pass takes."""
        return self.expand_parameters()

    def forward(self, input: GeometricTensor) -> GeometricTensor:
        """Convolve; raises :class:`~escnn_relax.errors.FieldTypeError` for an input of another type."""
        check_input(input, self.in_type, type(self))
        kernel, bias = self._expanded()
        return GeometricTensor(self._convolve(input.tensor, kernel, bias), self.out_type, coords=None)

    def evaluate_output_shape(self, input_shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the output for an input ``(batch, channels, *space)``, as the convolution itself finds it."""
        if len(input_shape) != 2 + self.d or input_shape[1] != self.in_type.size:
            raise ArgumentError(
                type(self),
                expected=f"a shape (batch, {self.in_type.size}, *{self.d} dimensions)",
                got=input_shape,
                remedy="pass the shape of a batch of inputs",
            )
        with torch.no_grad():
            kernel = self.expand_parameters()[0].to("meta")
        input = torch.empty(tuple(input_shape), device="meta", dtype=kernel.dtype)
        return tuple(self._convolve(input, kernel, None).shape)

    def export(self) -> PlainLayer:
        """A plain torch layer in eval mode that computes the same, padding mode included."""
        with torch.no_grad():
            return self.plain(*self.expand_parameters()).eval()

    def plain(self, kernel: Tensor, bias: Tensor | None) -> PlainLayer:
        """A torch layer of this geometry, with copies of a kernel and a bias ``(out channels,)``."""
        layer = self._plain(bias is not None).to(kernel)
        with torch.no_grad():
            layer.weight.copy_(kernel)
            if bias is not None and layer.bias is not None:
                layer.bias.copy_(bias)
        return layer


class PaddedConvolution:
    """How a convolution of the plane or of space convolves, with torch's modes of padding."""

    d: int
    in_type: FieldType
    out_type: FieldType
    stride: int | Sequence[int]
    padding: int | Sequence[int]
    dilation: int | Sequence[int]
    padding_mode: str
    groups: int

    _geometry: tuple[str, ...] = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")

    def _convolve(self, input: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        convolve = F.conv2d if self.d == 2 else F.conv3d
        padding = self.padding
        if self.padding_mode != "zeros":
            sizes = padding if isinstance(padding, Sequence) else (padding,) * self.d
            input, padding = F.pad(input, [p for p in reversed(sizes) for _ in range(2)], self.padding_mode), 0
        return convolve(input, kernel, bias, self.stride, padding, self.dilation, self.groups)

    def _plain(self, bias: bool) -> PlainLayer:
        kind = nn.Conv2d if self.d == 2 else nn.Conv3d
        geometry = {name: getattr(self, name) for name in self._geometry}
        return kind(self.in_type.size, self.out_type.size, bias=bias, **geometry)
