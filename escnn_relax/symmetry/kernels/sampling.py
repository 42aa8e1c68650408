"""How a layer samples analytic kernels: its rings, its band limit and its pixel grid."""

from __future__ import annotations

import math
from collections.abc import Sized
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from escnn.group import Representation
from escnn.gspaces import GSpace
from escnn.nn import EquivariantModule, Linear
from numpy.typing import NDArray
from torch import Tensor

from ... import _escnn
from ...errors import ReflectionAxisError
from .band_limit import band_limit

__all__ = ["Band", "FiberBand", "Sampler", "layer_band", "check_axis"]


class Sampler(Protocol):
    """Whatever samples kernels: a :class:`Band`, or one in other coordinates than pixels."""

    @property
    def points(self) -> Sized:
        """As many as a kernel between scalars has numbers."""

    def sample(self, gspace: GSpace, in_repr: Representation, out_repr: Representation) -> Tensor:
        """Kernels equivariant from ``in_repr`` to ``out_repr``, shape ``(K, out size, in size, points)``, float64."""


@dataclass(frozen=True)
class Band:
    """The sampling rule of one convolution, shared by its equivariant kernels and all relaxed ones.

    Attributes:
        rings: radii of the rings on which the kernels live, in pixels.
        sigma: width of each ring, in pixels.
        maximum_frequency: largest angular frequency that is built at all.
        limit: ``(radius, largest angular frequency there)`` for each ring.
        points: pixel centres, shape ``(S, d)``.
    """

    rings: tuple[float, ...]
    sigma: tuple[float, ...]
    maximum_frequency: int
    limit: tuple[tuple[float, int], ...]
    points: NDArray[Any] = field(repr=False, compare=False)

    @property
    def key(self) -> tuple[Any, ...]:
        """Hashable: two bands with equal keys sample the same kernels."""
        return self.rings, self.sigma, self.maximum_frequency, self.limit, self.points.tobytes()

    def admits(self, element: dict[str, Any]) -> bool:
        """Whether a basis element, as escnn describes it, is inside the band."""
        return abs(element["irrep:frequency"]) <= self.cutoff(element["radius"])

    @classmethod
    def from_layer(cls, convolution: EquivariantModule, cutoff: Any = None) -> Band:
        """Read the rule off an escnn convolution.

        escnn keeps rings and widths but forgets the band limit, so that is recovered from the elements the layer
        kept and left out; ``cutoff`` is the ``frequencies_cutoff`` it was built with, where that is known. Raises
        :class:`~escnn_relax.errors.UnsupportedModuleError` when no limit on the frequency by radius explains them (a
        custom ``basis_filter``), and :class:`~escnn_relax.errors.ReflectionAxisError` as :func:`check_axis` does.
        """
        check_axis(convolution)
        return cls(
            rings=tuple(convolution._rings),
            sigma=tuple(convolution._sigma),
            maximum_frequency=int(convolution._maximum_frequency),
            limit=band_limit(convolution, cutoff),
            points=convolution.basisexpansion.points,
        )

    @property
    def highest(self) -> int:
        """The highest angular frequency on any ring."""
        return max((f for _, f in self.limit), default=0)

    def cutoff(self, radius: float) -> int:
        """Largest angular frequency at a radius, in the form that escnn's ``frequencies_cutoff`` takes."""
        return dict(self.limit)[round(radius, 6)]

    def sample(self, gspace: GSpace, in_repr: Representation, out_repr: Representation) -> Tensor:
        """Kernels equivariant from ``in_repr`` to ``out_repr``, shape ``(K, out size, in size, S)``, float64.

        ``K`` may be 0. Elements are scaled as escnn scales them, and those it drops as vanishing are dropped.
        """
        return _escnn.sample_kernels(
            gspace,
            in_repr,
            out_repr,
            rings=list(self.rings),
            sigma=list(self.sigma),
            maximum_frequency=self.maximum_frequency,
            admits=self.admits,
            points=self.points,
        ).to(torch.float64)


@dataclass(frozen=True)
class FiberBand:
    """The sampling rule of a linear layer: one point, no band limit."""

    points: NDArray[Any] = field(default_factory=lambda: np.zeros((1, 1)), repr=False, compare=False)
    key: tuple[Any, ...] = ("fiber",)
    highest: int = 0

    def sample(self, gspace: GSpace, in_repr: Representation, out_repr: Representation) -> Tensor:
        """Matrices equivariant from ``in_repr`` to ``out_repr``, shape ``(K, out size, in size, 1)``, float64."""
        return _escnn.sample_intertwiners(gspace, in_repr, out_repr).to(torch.float64)


def check_axis(layer: EquivariantModule) -> None:
    """Refuse a layer on O(2) to which escnn gave the kernels of another reflection axis.

    Raises:
        ReflectionAxisError: built before escnn_relax was imported, after a layer on another axis.
    """
    axes = _escnn.foreign_axis(layer)
    if axes is not None:
        expected, got = (f"{math.degrees(axis):.4g} degrees" for axis in axes)
        raise ReflectionAxisError(
            type(layer),
            "escnn gave this layer the kernels of an O(2) that was used before it, so that it is not equivariant",
            expected=f"reflections on the axis at {expected}, as in its G-space",
            got=f"those at {got}",
            remedy="build it again: once escnn_relax is imported escnn keeps the axes apart",
        )


def layer_band(layer: EquivariantModule, cutoff: Any = None) -> Band | FiberBand:
    """The sampling rule of an escnn convolution or linear layer."""
    return FiberBand() if isinstance(layer, Linear) else Band.from_layer(layer, cutoff)
