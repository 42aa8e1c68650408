"""Which approximation each parameter gets."""

from __future__ import annotations

from typing import Mapping

from ..errors import ArgumentError
from .conventions import APPROXIMATIONS

__all__ = ["recipe", "AUTOMATIC"]

#: The name of the choice by size.
AUTOMATIC = "auto"

#: ``auto`` is exact for parameters of at most so many weights, and ``expand`` for the others: in
#: ``tests/benchmarks/curvature.md`` that decides as exact blocks do in more than 99 % of the cases, at 1.7 times the cost
#: of ``expand`` (98 %), while the cost of exact blocks grows with the square of the number of weights.
LARGEST_EXACT = 256


def recipe(approximation: str, sizes: Mapping[str, int]) -> dict[str, str]:
    """The approximation of each parameter.

    >>> recipe("auto", {"small": 100, "large": 10000})
    {'small': 'exact', 'large': 'expand'}
    """
    if approximation == AUTOMATIC:
        return {name: "exact" if size <= LARGEST_EXACT else "expand" for name, size in sizes.items()}
    if approximation not in APPROXIMATIONS:
        raise ArgumentError("curvature", expected=f"one of {(*APPROXIMATIONS, AUTOMATIC)}", got=repr(approximation))
    return dict.fromkeys(sizes, approximation)
