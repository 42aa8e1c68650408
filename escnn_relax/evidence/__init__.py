"""The Laplace evidence of a network, and training by it."""

from .evidence import Evidence, EvidenceTerms
from .fit import fit
from .history import EpochRecord, History
from .survival import LayerSurvivor, Survivors, survivors

__all__ = ["EpochRecord", "Evidence", "EvidenceTerms", "History", "LayerSurvivor", "Survivors", "fit", "survivors"]
