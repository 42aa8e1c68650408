"""Training of weights and prior precisions together."""

from .callback import EvidenceCallback
from .fit import fit
from .history import EpochRecord, History
from .lightning_callback import lightning_callback

__all__ = ["EpochRecord", "EvidenceCallback", "History", "fit", "lightning_callback"]
