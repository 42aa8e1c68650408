"""The Laplace evidence of a network, and the verdicts that it gives."""

from .evidence import Evidence, EvidenceTerms
from .settings import CurvatureSettings, NoiseSettings, PriorSettings
from .verdicts.survivors import LayerSurvivor, Survivors, survivors

__all__ = [
    "CurvatureSettings",
    "Evidence",
    "EvidenceTerms",
    "LayerSurvivor",
    "NoiseSettings",
    "PriorSettings",
    "Survivors",
    "survivors",
]
