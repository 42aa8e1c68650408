"""Searching the symmetry of each layer: by gradient in a mixture, or by evolution along the lattice of subgroups."""

from .architecture import discretise
from .conditions import Conditions
from .differentiate import Differentiated, differentiate
from .evolve import evolve, random_search, static
from .family import Evolved, Individual
from .shares_history import SearchEpoch, SharesHistory

__all__ = [
    "Conditions",
    "Differentiated",
    "Evolved",
    "Individual",
    "SearchEpoch",
    "SharesHistory",
    "differentiate",
    "discretise",
    "evolve",
    "random_search",
    "static",
]
