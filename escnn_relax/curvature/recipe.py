"""Which approximation each parameter gets."""

from __future__ import annotations

from typing import Mapping

from ..errors import ArgumentError
from .conventions import APPROXIMATIONS

__all__ = ["recipe", "AUTOMATIC"]

#: ``auto``: exact for the parameters that have at most so many weights, ``eigenvalue-corrected`` for the others.
LARGEST_EXACT = 256

#: The name of the choice by size.
AUTOMATIC = "auto"


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
