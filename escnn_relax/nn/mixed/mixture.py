"""Which groups a layer mixes, and how the mixture starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import ArgumentError

__all__ = ["Mixture", "check_positive"]

STARTS = ("strict", "independent")


@dataclass(frozen=True)
class Mixture:
    """What a mixed layer takes besides the arguments of the escnn class.

    Attributes:
        subgroups: ids of subgroups as ``gspace.restrict`` takes them. G itself is always in the mixture, named or not.
        leaning: how much the architecture weights lean to G at the start: 0 for all of G, ``-leaning`` for subgroups (0
            is uniform; Maile, Wilson and Forré use 2).
        temperature: of the softmax.
        start: ``"strict"``: each summand starts as the equivariant kernel itself, so that the mixture is G's own layer,
            whatever the architecture weights. ``"independent"``: each subgroup starts with random coefficients of the
            same kernel norm.
    """

    subgroups: Sequence[Any] = ()
    leaning: float = 0.0
    temperature: float = 1.0
    start: str = "strict"

    def check(self) -> None:
        """Raise ``ArgumentError`` for values that make no sense."""
        if self.start not in STARTS:
            remedy = "leave it out for the default"
            raise ArgumentError(expected=f"start to be one of {STARTS}", got=repr(self.start), remedy=remedy)
        check_positive(self.temperature, "temperature")
        if not math.isfinite(self.leaning):
            remedy = "leave it out for the default"
            raise ArgumentError(expected="leaning to be a finite number", got=self.leaning, remedy=remedy)


def check_positive(value: float, name: str) -> None:
    """Raise ``ArgumentError`` for anything but a positive number."""
    if not (math.isfinite(value) and value > 0):
        raise ArgumentError(
            expected=f"{name} to be a positive number", got=value, remedy="leave it out for the default"
        )
