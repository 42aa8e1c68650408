"""Training of weights and prior precisions together."""

from .fit import fit
from .history import EpochRecord, History

__all__ = ["EpochRecord", "History", "fit"]
