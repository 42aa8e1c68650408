"""The Laplace evidence of a network, and the verdicts that it gives."""

from .evidence import Evidence, EvidenceTerms
from .verdicts.survivors import LayerSurvivor, Survivors, survivors

__all__ = ["Evidence", "EvidenceTerms", "LayerSurvivor", "Survivors", "survivors"]
