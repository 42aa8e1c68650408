"""The fields of a layer on its sites, as regular fields side by side and back."""

from __future__ import annotations

import math
from typing import Any, Optional, Sequence

import numpy as np
import torch
from escnn.nn import FieldType
from torch import Tensor, nn

from ..errors import ArgumentError
from ..symmetry.interpolation import interpolation
from ..symmetry.sites import Sites, TurnedFields, grid_points, orbit_points
from ..symmetry.subgroup import Subgroup

__all__ = ["Anchors", "SiteFields"]


class Anchors(nn.Module):
    """Anchors over a grid, and the interpolation from them to its pixels.

    Args:
        shape: of the grid.
        kept: the group that permutes the anchors.
        fraction: number of anchors / number of pixels (fraction); at least one anchor, and whole orbits only.
        omega: inverse length scale (1 / pixels).
        learn: make the scale a parameter ``log_omega``, to be moved by the evidence
            (:meth:`~escnn_relax.Evidence.hypergradient`) and not by the loss; nothing else stops it from growing.
        seed: of the positions, which are drawn once.
    """

    anchors: Tensor
    pixels: Tensor
    log_omega: Tensor
    _fixed: Tensor

    def __init__(
        self, shape: Sequence[int], kept: Subgroup, fraction: float, omega: float, learn: bool, seed: int, where: str = ""
    ) -> None:
        super().__init__()
        if not 0 < fraction <= 1:
            expected = "a fraction above 0 and at most 1: no more anchors than sites"
            raise ArgumentError(where, expected=expected, got=fraction)
        count = max(1, round(fraction * math.prod(shape)))
        points = orbit_points(kept, shape, count, np.random.default_rng(seed))
        dtype = torch.get_default_dtype()
        self.sites = Sites(points, kept)
        self.register_buffer("anchors", torch.as_tensor(points, dtype=dtype))
        self.register_buffer("pixels", torch.as_tensor(grid_points(shape), dtype=dtype), persistent=False)
        log_omega = torch.tensor(math.log(omega), dtype=dtype)
        if learn:
            self.log_omega = nn.Parameter(log_omega)
        else:
            self.register_buffer("log_omega", log_omega)
            self.register_buffer("_fixed", interpolation(self.anchors, self.pixels, log_omega.exp()), persistent=False)

    def matrix(self) -> Tensor:
        """From values at the anchors to values at the pixels, shape ``(S, P)``."""
        if isinstance(self.log_omega, nn.Parameter):
            return interpolation(self.anchors, self.pixels, self.log_omega.exp())
        return self._fixed

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *arguments: Any) -> None:
        super()._load_from_state_dict(state, prefix, *arguments)
        if not isinstance(self.log_omega, nn.Parameter):
            with torch.no_grad():
                self._fixed.copy_(interpolation(self.anchors, self.pixels, self.log_omega.exp()))


class SiteFields(nn.Module):
    """Tensors ``(N, channels, *shape)`` as regular fields, sorted by the representations of the channels.

    Args:
        type: field type; ``None`` for ``channels`` scalars.
        channels: number of channels.
        shape: of the grid.
        kept: the group under which the fields are regular.
        anchors: sites between the pixels, ``None`` for the pixels themselves.

    Attributes:
        counts: fields of each representation.
        widths: regular fields that each of them makes: orbits times size.
    """

    widths: tuple[int, ...]
    turned: Any  # a ModuleList of TurnedFields

    def __init__(
        self, type: Optional[FieldType], channels: int, shape: Sequence[int], kept: Subgroup, anchors: Optional[Anchors]
    ) -> None:
        super().__init__()
        self.shape, self.channels, self.anchors = tuple(shape), channels, anchors
        self.sites = Sites(grid_points(shape), kept) if anchors is None else anchors.sites
        fields: dict[str, list[range]] = {}
        kinds = {}
        position = 0
        for representation in [None] * channels if type is None else type.representations:
            name = "" if representation is None else representation.name
            size = 1 if representation is None else representation.size
            kinds[name] = representation
            fields.setdefault(name, []).append(range(position, position + size))
            position += size
        self.turned = nn.ModuleList([TurnedFields(self.sites, r, kept) for r in kinds.values()])
        self.counts = tuple(len(of) for of in fields.values())
        self.widths = tuple(self.sites.orbits * t.size for t in self.turned)
        for n, of in enumerate(fields.values()):
            self.register_buffer(f"channels_{n}", torch.tensor([list(c) for c in of]), persistent=False)

    def read(self, tensor: Tensor) -> list[Tensor]:
        """``(N, channels, *shape)`` to ``(N, fields, width, order)`` for each representation."""
        flat = tensor.flatten(2)
        if self.anchors is not None:
            flat = flat @ self.anchors.matrix().to(flat.dtype)
        return [turned(flat[:, getattr(self, f"channels_{n}")]) for n, turned in enumerate(self.turned)]

    def write(self, parts: Sequence[Tensor]) -> Tensor:
        """The transpose: ``(N, fields, width, order)`` for each representation to ``(N, channels, *shape)``."""
        signals = [self.spread(n, part) for n, part in enumerate(parts)]
        if len(signals) == 1:
            whole = signals[0].flatten(1, 2)
        else:
            whole = signals[0].new_zeros(len(signals[0]), self.channels, signals[0].shape[-1])
            for n, signal in enumerate(signals):
                whole = whole.index_copy(1, getattr(self, f"channels_{n}").flatten(), signal.flatten(1, 2))
        return whole.unflatten(2, self.shape)

    def spread(self, kind: int, part: Tensor) -> Tensor:
        """Regular fields of one representation to the pixels, ``(N, fields, size, S)``."""
        signal = self.turned[kind].back(part)
        return signal if self.anchors is None else signal @ self.anchors.matrix().T.to(signal.dtype)
