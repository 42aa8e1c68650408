"""A plain torch module in the place of an escnn one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from escnn.nn import EquivariantModule, FieldType, GeometricTensor
from torch import nn

from .field_types import check_input

__all__ = ["TorchLayer"]


class TorchLayer(EquivariantModule):
    """Takes and returns geometric tensors as the escnn module did, and computes with plain torch alone.

    Args:
        inner: on tensors, what the module computed.
        in_type, out_type: of its fields.

    >>> from escnn import gspaces
    >>> space = gspaces.rot2dOnR2(4)
    >>> fields = FieldType(space, [space.regular_repr])
    >>> TorchLayer(nn.ReLU(), fields, fields)(fields(-torch.ones(1, 4, 1, 1))).tensor.flatten()
    tensor([0., 0., 0., 0.])
    """

    def __init__(self, inner: nn.Module, in_type: FieldType, out_type: FieldType) -> None:
        super().__init__()
        self.inner, self.in_type, self.out_type = inner, in_type, out_type

    def forward(self, input: GeometricTensor) -> GeometricTensor:
        """Compute; raises :class:`~escnn_relax.errors.FieldTypeError` for an input of another type."""
        check_input(input, self.in_type, type(self))
        return GeometricTensor(self.inner(input.tensor), self.out_type)

    def evaluate_output_shape(self, input_shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the output for an input of this shape."""
        known: Any = next(iter(self.inner.parameters()), torch.zeros(()))
        with torch.no_grad():
            return tuple(self.inner(known.new_zeros(tuple(input_shape))).shape)

    def export(self) -> nn.Module:
        """A copy of the plain torch module, in eval mode."""
        return copy.deepcopy(self.inner).eval()
