"""What a pathway beside a convolution has to be: a linear map from whole signals to whole signals."""

from __future__ import annotations

from abc import abstractmethod

from escnn.nn import FieldType
from torch import Tensor, nn

from ...deprecation import former_attribute
from ...symmetry.groups.subgroup import Subgroup

__all__ = ["SignalPathway"]


class SignalPathway(nn.Module):
    """A map from ``(N, channels, *in_shape)`` to ``(N, channels, *out_shape)``.

    Attributes:
        in_type, out_type: field types before and after.
        in_shape, out_shape: spatial shapes before and after.
        subgroup: the group under which the map is equivariant about the centre of the grid.
        stationary: whether it commutes with translations, but for borders and strides.
    """

    in_type: FieldType
    out_type: FieldType
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    subgroup: Subgroup
    stationary: bool = False

    @property
    def keeps_group(self) -> bool:
        """Whether the map is equivariant under all of G."""
        return self.subgroup.index == 1

    @property
    def breaks(self) -> bool:
        """Whether the map breaks translations or the group."""
        return not (self.stationary and self.keeps_group)

    @abstractmethod
    def reset_parameters(self, silent: bool = True, fitted: bool = False) -> None:
        """Random weights; ``silent`` ones put out zeros.

        Args:
            fitted: values at anchors start as the least-squares fit to those of a map without anchors; without them it
                changes nothing.
        """

    @abstractmethod
    def check(self, input: Tensor) -> None:
        """Raise ``ArgumentError`` or ``FieldTypeError`` for an input that the map does not take."""

    @abstractmethod
    def energy(self) -> float:
        """Squared Frobenius norm of the whole linear map, biases aside."""


setattr(SignalPathway, "kept", former_attribute("kept", "subgroup"))
