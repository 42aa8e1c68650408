"""The Laplace evidence of a network, and the verdicts that it gives."""

from ..deprecation import former_names
from .evidence import Evidence, EvidenceTerms
from .scalars import evidence_scalars
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
    "evidence_scalars",
    "survivors",
]

#: What has a room of its own now.
__getattr__ = former_names(__name__)
