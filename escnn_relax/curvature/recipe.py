"""Which approximation each parameter gets."""

from __future__ import annotations

from typing import Mapping, Optional

from ..errors import ArgumentError
from .conventions import APPROXIMATIONS

__all__ = ["recipe", "AUTOMATIC"]

#: The name of the choice by size.
AUTOMATIC = "auto"

#: ``auto`` is exact for parameters of at most so many weights, and ``expand`` for the others: in
#: ``tests/benchmarks/curvature.md`` that decides as exact blocks do in more than 99 % of the cases, at 1.7 times the cost
#: of ``expand`` (98 %), while the cost of exact blocks grows with the square of the number of weights.
LARGEST_EXACT = 256


#: Bytes of a number in an exact block.
BYTES = 8


def recipe(approximation: str, sizes: Mapping[str, int], memory: Optional[float] = None) -> dict[str, str]:
    """The approximation of each parameter.

    Args:
        sizes: number of weights of each parameter.
        memory: for ``auto``, what all exact blocks together may take (MiB; a block of P weights takes 8 P² bytes): the
            smallest parameters become exact, as many as fit. Without it, those of at most :data:`LARGEST_EXACT` weights.

    >>> sizes = {"small": 100, "middle": 500, "large": 10000}
    >>> recipe("auto", sizes)
    {'small': 'exact', 'middle': 'expand', 'large': 'expand'}
    >>> recipe("auto", sizes, memory=4)
    {'small': 'exact', 'middle': 'exact', 'large': 'expand'}
    """
    if memory is not None and approximation != AUTOMATIC:
        raise ArgumentError("memory", f"only {AUTOMATIC!r} has a choice", got=repr(approximation), remedy="leave memory out")
    if memory is not None and not memory >= 0:
        raise ArgumentError("memory", expected="MiB for the exact blocks, 0 or more", got=memory)
    if approximation == AUTOMATIC:
        exact, left = set(), 0.0 if memory is None else memory * 2**20
        for name in sorted(sizes, key=sizes.__getitem__):
            left -= BYTES * sizes[name] ** 2
            if left >= 0 if memory is not None else sizes[name] <= LARGEST_EXACT:
                exact.add(name)
        return {name: "exact" if name in exact else "expand" for name in sizes}
    if approximation not in APPROXIMATIONS:
        raise ArgumentError("curvature", expected=f"one of {(*APPROXIMATIONS, AUTOMATIC)}", got=repr(approximation))
    return dict.fromkeys(sizes, approximation)
