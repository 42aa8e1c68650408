"""Searching the symmetry of each layer: by gradient in a mixture, or by evolution along the lattice of subgroups."""

from .architecture import discretise
from .evolution.conditions import Conditions
from .evolution.evolve import evolve, random_search, static
from .evolution.results import Evolved, Individual
from .gradient.differentiate import Differentiated, differentiate
from .gradient.shares_history import SearchEpoch, SharesHistory

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
