"""How much of each group a mixture has: a softmax of architecture weights."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

from ...errors import naming
from ...symmetry.kernels.pathway import EQUIVARIANT, Pathway
from .mixture import check_positive

__all__ = ["ArchitectureWeights"]

Layer = TypeVar("Layer", bound="ArchitectureWeights")


class ArchitectureWeights:
    """A layer whose kernel is a mixture; a base class beside one with ``kernel``, ``pathways`` and ``space``."""

    kernel: Any
    pathways: tuple[Pathway, ...]
    space: Any

    @property
    def alpha(self) -> nn.Parameter:
        """Architecture weights, shape ``(summands,)``."""
        parameter: nn.Parameter = self.kernel.alpha
        return parameter

    @property
    def shares(self) -> dict[str, float]:
        r""":math:`\pi_H` of each summand, by its name (fractions that sum to 1)."""
        return {p.name: float(s) for p, s in zip(self.pathways, self.kernel.shares.detach())}

    @property
    def group_names(self) -> dict[str, str]:
        """The group of each summand, in readable form: G's own name instead of ``"equivariant"``."""
        return {p.name: self.space.fibergroup.name if p == EQUIVARIANT else p.name for p in self.pathways}

    @property
    def temperature(self) -> float:
        """Of the softmax; part of the state dict."""
        return float(self.kernel.temperature)

    @temperature.setter
    def temperature(self, value: float) -> None:
        with naming(type(self)):
            check_positive(value, "temperature")
        self.kernel.temperature.fill_(value)

    def freeze(self: Layer, frozen: bool = True) -> Layer:
        """Keep the architecture weights from being trained (or let them be trained again); returns the layer."""
        self.alpha.requires_grad_(not frozen)
        return self
