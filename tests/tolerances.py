"""How far apart two ways to the same number may end in a number format, on any processor.

Processors add in different orders, in registers of different widths, some fuse a product with a sum, and some have the
operations of half precision in silicon. None of them may be off by more than the roundings on the way allow.
"""

from __future__ import annotations

import torch


def accumulated(dtype: torch.dtype, roundings: int) -> float:
    r"""Relative error after so many roundings in a row, at worst.

    :math:`\gamma_n = n u / (1 - n u)` with the unit roundoff u, half the distance of 1 to the next number (Higham,
    *Accuracy and stability of numerical algorithms*, 2002, section 3.1). A sum of n products has n of them, one in a
    row for each term, relative to the sum of the absolute values.
    """
    lost = roundings * torch.finfo(dtype).eps / 2
    assert lost < 0.5, f"nothing is left of {dtype} after {roundings} roundings"
    return lost / (1 - lost)


#: Under autocast an operation rounds what it reads, its weights and what it puts out.
ROUNDINGS = 3


def autocast(dtype: torch.dtype, operations: int) -> float:
    """Relative error of so many linear maps in a row, each of which sums in float32 and rounds to ``dtype``."""
    return accumulated(dtype, ROUNDINGS * operations)


def autocast_curvature(dtype: torch.dtype, operations: int) -> float:
    """Relative error of a Gauss-Newton matrix: activations take all operations forwards, gradients backwards, and the
    matrix is quadratic in their product."""
    return 2 * autocast(dtype, 2 * operations)


def central_difference(dtype: torch.dtype, step: float, condition: float = 1.0) -> float:
    """Error of a derivative of order 1 by central differences, of a function whose values are lost to ``condition``
    roundings."""
    return step**2 + condition * torch.finfo(dtype).eps / step
