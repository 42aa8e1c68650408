r"""Circular and spherical harmonics at points, and how orthogonal matrices move them.

The harmonics of frequency f have a reproducing kernel, the zonal function :math:`Z_f(x \cdot y)`: the Chebyshev
polynomial :math:`T_f` in the plane, the Legendre polynomial :math:`P_f` in space. Zonal functions about enough
directions :math:`y_j` span them, their inner products are :math:`Z_f(y_i \cdot y_j)` again, and a matrix moves the
directions.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.polynomial import chebyshev, legendre
from numpy.typing import NDArray

__all__ = ["harmonics", "harmonic_action"]

Array = NDArray[np.float64]


def harmonics(points: Array, frequency: int) -> Array:
    r"""An orthogonal basis of the harmonics of one frequency at the directions of points ``(S, d)``: shape ``(n, S)``.

    Those of frequency 0 are one everywhere, the others zero at the origin.

    >>> right_up = np.array([[2.0, 0.0], [0.0, 1.0]])
    >>> harmonics(right_up, 1).round(6) + 0
    array([[1., 0.],
           [0., 1.]])
    """
    dimension = points.shape[1]
    size = np.linalg.norm(points, axis=1)
    origin = size < 1e-9
    unit = points / np.where(origin, 1.0, size)[:, None]
    directions, inverse = _frame(dimension, frequency)
    values = inverse @ _zonal(dimension, frequency, directions @ unit.T)
    return values if frequency == 0 else np.where(origin, 0.0, values)


def harmonic_action(matrix: Array, frequency: int) -> Array:
    r"""The orthogonal matrix, ``(n, n)``, that takes the coefficients of a function f to those of :math:`f(g^{-1} x)`.

    >>> quarter = np.array([[0.0, -1.0], [1.0, 0.0]])
    >>> harmonic_action(quarter, 2).round(6) + 0
    array([[-1.,  0.],
           [ 0., -1.]])
    """
    directions, inverse = _frame(len(matrix), frequency)
    return inverse @ _zonal(len(matrix), frequency, directions @ (directions @ matrix.T).T) @ inverse.T


def _zonal(dimension: int, frequency: int, cosines: Array) -> Array:
    series: Any = chebyshev.chebval if dimension == 2 else legendre.legval
    return np.asarray(series(cosines.clip(-1, 1), [0] * frequency + [1]), dtype=np.float64)


@lru_cache
def _frame(dimension: int, frequency: int) -> tuple[Array, Array]:
    """Directions ``(n, d)`` of zonal functions, and the matrix ``(n, n)`` that orthonormalises these."""
    if dimension == 2:
        angles = np.arange(1 if frequency == 0 else 2) * np.pi / 2 / max(frequency, 1)
        directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    else:
        # any in general position do: their zonal functions are independent
        directions = np.random.default_rng(frequency).normal(size=(2 * frequency + 1, dimension))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return directions, np.linalg.inv(np.linalg.cholesky(_zonal(dimension, frequency, directions @ directions.T)))
