"""A convolution with one free kernel between steerable field types: what a layer is once its symmetry is broken."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from escnn.nn import EquivariantModule, FieldType, GeometricTensor
from torch import Tensor, nn  # noqa: F401 - nn for the doctest

from ..deprecation import former_method
from .field_types import PlainLayer, check_input
from .steerable import SteerableConvolution

__all__ = ["MergedConvolution"]


class MergedConvolution(EquivariantModule):
    """A plain torch convolution that takes and returns geometric tensors, so that the layers around it keep working.

    It does not keep the symmetry of its field types, which only say which channels belong together. Made by
    :func:`~escnn_relax.harden`.

    Attributes:
        convolution: the torch layer, :class:`torch.nn.Conv2d` for a layer of the plane.

    >>> from escnn import gspaces
    >>> space = gspaces.rot2dOnR2(4)
    >>> gray, fields = FieldType(space, [space.trivial_repr]), FieldType(space, [space.regular_repr])
    >>> free = MergedConvolution(gray, fields, nn.Conv2d(1, 4, 3))
    >>> free(gray(torch.randn(1, 1, 5, 5))).shape
    torch.Size([1, 4, 3, 3])
    """

    def __init__(self, in_type: FieldType, out_type: FieldType, convolution: PlainLayer) -> None:
        super().__init__()
        self.in_type, self.out_type, self.convolution = in_type, out_type, convolution

    @classmethod
    def from_layer(cls, layer: SteerableConvolution, kernel: Tensor, bias: Tensor | None) -> MergedConvolution:
        """From a layer with pathways, with the kernel ``(out channels, in channels / groups, *size)`` it shall have."""
        convolution = layer.export().train(layer.training)
        with torch.no_grad():
            convolution.weight.copy_(kernel)
            if bias is not None and convolution.bias is not None:
                convolution.bias.copy_(bias)
        return cls(layer.in_type, layer.out_type, convolution)

    def forward(self, input: GeometricTensor) -> GeometricTensor:
        """Convolve; raises :class:`~escnn_relax.errors.FieldTypeError` for an input of another type."""
        check_input(input, self.in_type, type(self))
        return GeometricTensor(self.convolution(input.tensor), self.out_type)

    def expand_parameters(self) -> tuple[Tensor, Tensor | None]:
        """The kernel and the bias, as the torch layer has them."""
        return self.convolution.weight, self.convolution.bias

    def evaluate_output_shape(self, input_shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the output for an input of this shape."""
        device, dtype = self.convolution.weight.device, self.convolution.weight.dtype
        with torch.no_grad():
            return tuple(self.convolution(torch.zeros(tuple(input_shape), device=device, dtype=dtype)).shape)

    def export(self) -> PlainLayer:
        """A copy of the plain torch convolution, in eval mode."""
        return copy.deepcopy(self.convolution).eval()


setattr(MergedConvolution, "of", classmethod(former_method("of", "from_layer")))
