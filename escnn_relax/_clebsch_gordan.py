r"""Clebsch-Gordan coefficients of SO(3) in closed form: the one thing that escnn takes from py3nj, which needs Fortran.

.. math:: \langle j_1 m_1 j_2 m_2 | j_3 m_3 \rangle = \sqrt{q} \sum_k (-1)^k
    \binom{a}{k} \binom{b}{j_1 - m_1 - k} \binom{c}{j_2 + m_2 - k}

with :math:`a = j_1 + j_2 - j_3`, :math:`b = j_1 - j_2 + j_3`, :math:`c = -j_1 + j_2 + j_3` and a rational q (Racah's
formula; e.g. Edmonds, *Angular momentum in quantum mechanics*, section 3.6). Sum and q are exact, only the root is
rounded. Without it escnn looks for the coefficients numerically, in the null space of a matrix of :math:`3 n \times n`
numbers, :math:`n = (2 j_1 + 1)(2 j_2 + 1)(2 j_3 + 1)`: minutes and gigabytes from degree 6 on.
"""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from math import comb, factorial, prod
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["clebsch_gordan"]


def clebsch_gordan(two_j1: Any, two_j2: Any, two_j3: Any, two_m1: Any, two_m2: Any, two_m3: Any) -> NDArray[np.float64]:
    r"""The coefficients :math:`\langle j_1 m_1 j_2 m_2 | j_3 m_3 \rangle`, real, with the Condon-Shortley phase.

    Args:
        two_j1, two_j2, two_j3: twice one degree each, arrays of a single number.
        two_m1, two_m2, two_m3: twice the orders, arrays that are broadcast together.

    Raises:
        NotImplementedError: half-integer degrees, which no representation of SO(3) has.

    >>> float(clebsch_gordan(2, 2, 4, [2, 0], [-2, 0], 0)[1].round(6))  # <10 10|20>, the root of 2/3
    0.816497
    """
    degrees = [int(np.asarray(d).item()) for d in (two_j1, two_j2, two_j3)]
    orders = np.broadcast_arrays(*(np.asarray(m) for m in (two_m1, two_m2, two_m3)))
    if any(d % 2 for d in degrees) or any((m % 2).any() for m in orders):
        raise NotImplementedError(
            f"Clebsch-Gordan coefficients of whole degrees only, not {degrees} / 2: install py3nj for others"
        )
    j1, j2, j3 = (d // 2 for d in degrees)
    table = _table(j1, j2, j3)
    m1, m2, m3 = (m // 2 for m in orders)
    inside = (abs(m1) <= j1) & (abs(m2) <= j2) & (m3 == m1 + m2)
    return np.where(inside, table[np.clip(m1 + j1, 0, 2 * j1), np.clip(m2 + j2, 0, 2 * j2)], 0.0)


@cache
def _table(j1: int, j2: int, j3: int) -> NDArray[np.float64]:
    """All coefficients with ``m3 = m1 + m2``, by ``(j1 + m1, j2 + m2)``; zero where the degrees make no triangle."""
    table = np.zeros((2 * j1 + 1, 2 * j2 + 1))
    a, b, c = j1 + j2 - j3, j1 - j2 + j3, -j1 + j2 + j3
    if min(a, b, c) < 0:
        return table
    denominator = prod(map(factorial, (a, b, c, j1 + j2 + j3 + 1)))
    for m1 in range(-j1, j1 + 1):
        for m2 in range(max(-j2, -j3 - m1), min(j2, j3 - m1) + 1):
            numerator = prod(map(factorial, (j1 + m1, j1 - m1, j2 + m2, j2 - m2, j3 + m1 + m2, j3 - m1 - m2)))
            terms = range(max(0, j1 - m1 - b, j2 + m2 - c), min(a, j1 - m1, j2 + m2) + 1)
            total = sum((-1) ** k * comb(a, k) * comb(b, j1 - m1 - k) * comb(c, j2 + m2 - k) for k in terms)
            square = Fraction((2 * j3 + 1) * numerator * total**2, denominator)
            table[j1 + m1, j2 + m2] = float(square) ** 0.5 * (-1 if total < 0 else 1)
    return table
