"""Searching the symmetry of each layer: by gradient in a mixture, or by evolution along the lattice of subgroups."""

from ..deprecation import former_names
from .architecture import discretise
from .evolution.conditions import Conditions
from .evolution.evolve import evolve, random_search, static
from .evolution.individual import Individual
from .evolution.results import EvolutionResult
from .gradient.differentiate import differentiate
from .gradient.result import GradientSearchResult
from .gradient.shares_history import SearchEpoch, SharesHistory

__all__ = [
    "Conditions",
    "EvolutionResult",
    "GradientSearchResult",
    "Individual",
    "SearchEpoch",
    "SharesHistory",
    "differentiate",
    "discretise",
    "evolve",
    "random_search",
    "static",
]

#: What the results of the searches were called.
__getattr__ = former_names(__name__)
