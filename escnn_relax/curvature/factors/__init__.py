"""Curvature blocks: what an approximation leaves of the Gauss-Newton matrix of one set of weights."""

from ...deprecation import former_attribute, former_keyword
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

for _kind in (DenseFactor, DiagonalFactor, EigenFactor, GramFactor, KroneckerFactor, SketchedFactor):
    setattr(_kind, "__init__", former_keyword("where", "name")(_kind.__init__))
setattr(Factor, "where", former_attribute("where", "name"))
