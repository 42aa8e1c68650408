"""Training of weights and prior precisions together."""

from .callback import EvidenceCallback
from .fit import fit
from .history import EpochRecord, History

__all__ = ["EpochRecord", "EvidenceCallback", "History", "fit"]
