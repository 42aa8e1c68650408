"""Functions from models to models: each returns a new one and leaves the caller's alone."""

from .harden import HardenedLayer, harden
from .relax import relax

__all__ = ["HardenedLayer", "harden", "relax"]
