"""Gauss-Newton curvature of a network, one block for each pathway, extracted with BackPACK.

:mod:`.conventions` fixes the symbols and the scalings that all files here use.
"""

from .approximation import Approximation
from .curvature import Curvature
from .estimate import CurvatureEstimate
from .factors import DenseFactor, DiagonalFactor, Factor, KroneckerFactor

__all__ = [
    "Approximation",
    "Curvature",
    "CurvatureEstimate",
    "DenseFactor",
    "DiagonalFactor",
    "Factor",
    "KroneckerFactor",
]
