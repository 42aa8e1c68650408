"""What data and network say about a symmetry before anything is trained."""

from .result import PathwayTest, SymmetryTest
from .symmetry_test import symmetry_test

__all__ = ["PathwayTest", "SymmetryTest", "symmetry_test"]
