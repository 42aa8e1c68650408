"""The fields of a layer on its sites, as regular fields side by side and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from escnn.nn import FieldType
from torch import Tensor, nn

from ...symmetry.grid.sites import Sites, TurnedFields, grid_points
from ...symmetry.groups.subgroup import Subgroup
from ..buffer_dict import BufferDict
from .anchors import Anchors

__all__ = ["SiteFields"]


class SiteFields(nn.Module):
    """Tensors ``(N, channels, *shape)`` as regular fields, sorted by the representations of the channels.

    Args:
        type: field type; ``None`` for ``channels`` scalars.
        channels: number of channels.
        shape: of the grid.
        subgroup: the group under which the fields are regular.
        anchors: sites between the pixels, ``None`` for the pixels themselves.

    Attributes:
        counts: fields of each representation.
        widths: regular fields that each of them makes: orbits times size.
    """

    widths: tuple[int, ...]
    turned: Any  # a ModuleList of TurnedFields

    def __init__(
        self, type: FieldType | None, channels: int, shape: Sequence[int], subgroup: Subgroup, anchors: Anchors | None
    ) -> None:
        super().__init__()
        self.shape, self.channels, self.anchors = tuple(shape), channels, anchors
        self.sites = Sites(grid_points(shape), subgroup) if anchors is None else anchors.sites
        fields: dict[str, list[range]] = {}
        kinds = {}
        position = 0
        for representation in [None] * channels if type is None else type.representations:
            name = "" if representation is None else representation.name
            size = 1 if representation is None else representation.size
            kinds[name] = representation
            fields.setdefault(name, []).append(range(position, position + size))
            position += size
        self.turned = nn.ModuleList([TurnedFields(self.sites, r, subgroup) for r in kinds.values()])
        self.counts = tuple(len(ranges) for ranges in fields.values())
        self.widths = tuple(self.sites.orbits * t.size for t in self.turned)
        occupied = (torch.tensor([list(r) for r in ranges]) for ranges in fields.values())
        self.occupied = BufferDict({str(n): places for n, places in enumerate(occupied)}, persistent=False)

    @property
    def pixels(self) -> int:
        """Number of pixels."""
        return math.prod(self.shape)

    def read(self, tensor: Tensor) -> list[Tensor]:
        """``(N, channels, *shape)`` to ``(N, fields, width, order)`` for each representation."""
        flat = tensor.flatten(2)
        if self.anchors is not None:
            flat = flat @ self.anchors.matrix().to(flat.dtype)
        return [turned(flat[:, self.occupied[str(n)]]) for n, turned in enumerate(self.turned)]

    def write(self, fields: Sequence[Tensor]) -> Tensor:
        """The transpose: ``(N, fields, width, order)`` for each representation to ``(N, channels, *shape)``."""
        signals = [self.spread(n, field) for n, field in enumerate(fields)]
        if len(signals) == 1:
            whole = signals[0].flatten(1, 2)
        else:
            whole = signals[0].new_zeros(len(signals[0]), self.channels, signals[0].shape[-1])
            for n, signal in enumerate(signals):
                whole = whole.index_copy(1, self.occupied[str(n)].flatten(), signal.flatten(1, 2))
        return whole.unflatten(2, self.shape)

    def spread(self, kind: int, field: Tensor) -> Tensor:
        """Regular fields of one representation to the pixels, ``(N, fields, size, S)``."""
        signal = self.turned[kind].back(field)
        return signal if self.anchors is None else signal @ self.anchors.matrix().T.to(signal.dtype)

    def fit(self, kind: int, signal: Tensor) -> Tensor:
        """Regular fields whose :meth:`spread` comes nearest to a signal on the pixels ``(N, fields, size, S)``, by
        least squares, shape ``(N, fields, width, order)``."""
        if self.anchors is not None:
            matrix = self.anchors.matrix().double()
            signal = (signal.double() @ torch.linalg.pinv(matrix, rtol=1e-10).T).to(signal.dtype)
        regular: Tensor = self.turned[kind](signal)
        return regular
