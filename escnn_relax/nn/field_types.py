"""Checks of field types, in our words instead of escnn's bare assertions."""

from __future__ import annotations

from escnn.nn import FieldType, GeometricTensor
from torch import nn

from ..errors import ArgumentError, FieldTypeError

__all__ = ["PlainLayer", "check_input", "check_types"]

#: The layers of torch that compute what a relaxed layer computes.
PlainLayer = nn.Linear | nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d


def check_input(input: object, in_type: FieldType, layer: str | type) -> None:
    """Raise ``FieldTypeError`` unless ``input`` is a geometric tensor of the type that the layer, by name or class,
    takes."""
    if not isinstance(input, GeometricTensor) or input.type != in_type:
        raise FieldTypeError(
            layer,
            expected=f"a GeometricTensor of type {in_type}",
            got=getattr(input, "type", type(input).__name__),
            remedy="wrap the tensor by in_type(tensor)",
        )


def check_types(in_type: FieldType, out_type: FieldType, base: type, groups: int, layer: type) -> None:
    """Refuse what escnn would refuse by a bare assertion, for a layer of this class."""
    for name, field_type in (("in_type", in_type), ("out_type", out_type)):
        if not isinstance(field_type, FieldType):
            remedy = "make one: escnn.nn.FieldType(gspace, [gspace.regular_repr])"
            raise FieldTypeError(
                layer, expected=f"{name} to be a FieldType", got=type(field_type).__name__, remedy=remedy
            )
        if not isinstance(field_type.gspace, base):
            remedy = "make the field type on a G-space of that dimension"
            raise FieldTypeError(
                layer, expected=f"{name} on a {base.__name__}", got=field_type.gspace.name, remedy=remedy
            )
    if in_type.gspace != out_type.gspace:
        raise FieldTypeError(
            layer,
            "in_type and out_type live on different G-spaces",
            expected=in_type.gspace.name,
            got=out_type.gspace.name,
            remedy="build both field types on one gspace",
        )
    if groups < 1:
        raise ArgumentError(layer, expected="groups to be 1 or more", got=groups, remedy="leave it out for 1")
    for name, field_type in (("in_type", in_type), ("out_type", out_type)):
        size = len(field_type) // groups
        if len(field_type) % groups or field_type.representations != field_type.representations[:size] * groups:
            raise FieldTypeError(
                layer,
                f"{name} cannot be cut into groups={groups} equal parts",
                got=str(field_type),
                remedy="repeat the same fields in the same order in every group",
            )
