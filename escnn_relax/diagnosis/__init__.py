"""What data and network say about a symmetry before anything is trained."""

from .pathway_test import PathwayTest
from .result import SymmetryTest
from .symmetry_test import symmetry_test

__all__ = ["PathwayTest", "SymmetryTest", "symmetry_test"]
