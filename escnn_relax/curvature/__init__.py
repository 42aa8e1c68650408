"""Gauss-Newton curvature of a network, one block for each pathway, extracted with BackPACK.

:mod:`.conventions` fixes the symbols and the scalings that all files here use.
"""

from .curvature import Curvature, CurvatureEstimate
from .factors import DenseFactor, DiagonalFactor, Factor, KroneckerFactor

__all__ = ["Curvature", "CurvatureEstimate", "DenseFactor", "DiagonalFactor", "Factor", "KroneckerFactor"]
