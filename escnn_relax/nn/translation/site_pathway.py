"""Linear maps between whole signals that need not be stationary: between fields on the sites of grids."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

from escnn.gspaces import GSpace
from escnn.nn import FieldType
from torch import Tensor

from ...deprecation import former_keyword, former_where
from ...errors import ArgumentError, FieldTypeError, SubgroupError, naming
from ...symmetry.groups.subgroup import Subgroup
from ...symmetry.groups.subgroup import subgroup as find_subgroup
from ..field_types import check_types
from .anchors import Anchors
from .signal_pathway import SignalPathway
from .site_fields import SiteFields

__all__ = ["SitePathway"]


class SitePathway(SignalPathway):
    """A map from ``(N, channels, *in_shape)`` to ``(N, channels, *out_shape)`` that need not commute with translations.

    Args:
        in_type, out_type: field types.
        in_shape, out_shape: of the grids.
        subgroup: under which the pathway is equivariant about the centres of the grids; the trivial one makes all
            channels scalars.
        bias: whether there are biases.
        fraction: anchors for each pixel (fraction); ``None`` for no anchors.
        omega, learn_omega: inverse length scale of the interpolation (1 / pixels), and whether it is a parameter, see
            :class:`~escnn_relax.nn.translation.anchors.Anchors`.
        seed: of the anchors.
        noise: of the interpolation, see :class:`~escnn_relax.nn.translation.anchors.Anchors`.

    New pathways put out zeros, so that adding one changes nothing. Without anchors a pathway works in half precision as
    any linear layer does; with anchors it needs float32, float64 or autocast.

    Raises:
        ArgumentError: shapes that are none of the G-space's grids, anchors that do not fit, an input of another spatial
            size, a layer with anchors in half precision.
        FieldTypeError: field types of different G-spaces, an input with another number of channels.
        SubgroupError: a continuous subgroup, one of another G-space, or one that does not permute the pixels.
    """

    @former_where
    @former_keyword("kept", "subgroup")
    def __init__(
        self,
        in_type: FieldType,
        out_type: FieldType,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        subgroup: Any,
        *,
        bias: bool = True,
        fraction: float | None = None,
        omega: float = 1.0,
        learn_omega: bool = False,
        seed: int = 0,
        noise: float = 0.01,
    ) -> None:
        super().__init__()
        check_types(in_type, out_type, GSpace, 1, type(self))
        with naming(type(self)):
            self.in_type, self.out_type = in_type, out_type
            self.subgroup = _finite(subgroup, in_type.gspace)
            self.in_shape, self.out_shape = (_shape(s, in_type.gspace) for s in (in_shape, out_shape))
            sides = []
            for offset, (fields, shape) in enumerate(((in_type, self.in_shape), (out_type, self.out_shape))):
                anchors = None
                if fraction is not None:
                    anchors = Anchors(
                        shape, self.subgroup, fraction, omega, learn_omega, 2 * seed + offset, noise, type(self)
                    )
                kind = None if self.subgroup.order == 1 else fields
                sides.append(SiteFields(kind, fields.size, shape, self.subgroup, anchors))
        self.source, self.target = sides
        self._build(bias)
        self.reset_parameters()

    @abstractmethod
    def _build(self, bias: bool) -> None:
        """Make the linear maps."""

    def check(self, input: Tensor) -> None:
        """Raise ``ArgumentError`` for another spatial size than ``in_shape``, ``FieldTypeError`` for what is no tensor
        or has another number of channels."""
        if not isinstance(input, Tensor):
            expected = f"a tensor of shape (N, {self.in_type.size}, {', '.join(map(str, self.in_shape))})"
            remedy = "pass the .tensor of a GeometricTensor"
            raise FieldTypeError(type(self), expected=expected, got=type(input).__name__, remedy=remedy)
        if tuple(input.shape[2:]) != self.in_shape:
            raise ArgumentError(
                type(self),
                "inputs of another spatial size than the pathway was built for",
                expected=self.in_shape,
                got=tuple(input.shape[2:]),
                remedy="resize the inputs, or build the pathway with an example of this size",
            )
        if input.shape[1] != self.in_type.size:
            remedy = "pass a tensor of its in_type"
            raise FieldTypeError(
                type(self),
                expected=f"{self.in_type.size} channels of {self.in_type}",
                got=input.shape[1],
                remedy=remedy,
            )


def _shape(shape: Sequence[int], space: GSpace) -> tuple[int, ...]:
    """A shape as whole numbers, one for each axis of the G-space's grids."""
    sizes = tuple(shape) if isinstance(shape, Iterable) else (shape,)
    if len(sizes) != space.dimensionality or not all(isinstance(n, Integral) and n > 0 for n in sizes):
        remedy = "pass the height and width in pixels, for volumes the depth first"
        raise ArgumentError(
            expected=f"a shape of {space.dimensionality} positive whole numbers", got=shape, remedy=remedy
        )
    return tuple(map(int, sizes))


def _finite(id: Any, space: GSpace) -> Subgroup:
    subgroup = find_subgroup(space, id)
    if subgroup.order < 0:
        raise SubgroupError(expected="a finite subgroup", got=subgroup.name, remedy="only finite groups permute pixels")
    return subgroup
