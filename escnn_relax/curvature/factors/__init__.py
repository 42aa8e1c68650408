"""Curvature blocks: what an approximation leaves of the Gauss-Newton matrix of one set of weights."""

from .dense import DenseFactor, DiagonalFactor, GramFactor
from .factor import Factor, eigenvalues, eigenvectors
from .kronecker import EigenFactor, KroneckerFactor
from .sketched import SketchedFactor

__all__ = [
    "DenseFactor",
    "DiagonalFactor",
    "EigenFactor",
    "Factor",
    "GramFactor",
    "KroneckerFactor",
    "SketchedFactor",
    "eigenvalues",
    "eigenvectors",
]
