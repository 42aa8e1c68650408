"""A module that changes the field type and nothing else."""

from __future__ import annotations

import torch
from escnn.nn import EquivariantModule, FieldType, GeometricTensor

from ...errors import FieldTypeError

__all__ = ["Relabel"]


class Relabel(EquivariantModule):
    """The same tensor, read as fields of another group: the boundary where a network gives up symmetry.

    Unlike escnn's RestrictionModule it takes both types, so it works for every subgroup.

    Args:
        in_type: fields of G.
        out_type: fields of H with the same sizes.

    >>> from escnn import gspaces, nn
    >>> from escnn_relax.symmetry.groups.restriction import restriction
    >>> from escnn_relax.symmetry.groups.lattice import subgroup
    >>> space = gspaces.rot2dOnR2(8)
    >>> regular = nn.FieldType(space, [space.regular_repr])
    >>> to_c4 = Relabel(regular, restriction(subgroup(space, 4)).field_type(regular))
    >>> to_c4.out_type.gspace
    C4_on_R2[(None, 4)]
    """

    def __init__(self, in_type: FieldType, out_type: FieldType) -> None:
        super().__init__()
        if [r.size for r in in_type.representations] != [r.size for r in out_type.representations]:
            remedy = "a relabelling changes names only: let both types have the same fields"
            raise FieldTypeError(
                "Relabel", expected=f"fields of the sizes of {in_type}", got=str(out_type), remedy=remedy
            )
        self.in_type, self.out_type = in_type, out_type

    def forward(self, input: GeometricTensor) -> GeometricTensor:
        if input.type != self.in_type:
            remedy = "pass a tensor of the module's in_type"
            raise FieldTypeError("Relabel", expected=str(self.in_type), got=str(input.type), remedy=remedy)
        return GeometricTensor(input.tensor, self.out_type, input.coords)

    def evaluate_output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the input."""
        return tuple(input_shape)

    def export(self) -> torch.nn.Identity:
        """Nothing is left to do on plain tensors."""
        return torch.nn.Identity()

    def extra_repr(self) -> str:
        return f"{self.in_type} -> {self.out_type}"
