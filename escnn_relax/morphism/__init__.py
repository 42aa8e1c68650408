"""Functions from models to models: each returns a new one and leaves the caller's alone."""

from .harden import HardenedLayer, harden
from .mix import merge, mix
from .optimiser import carry_optimiser
from .project import project
from .relax import relax
from .relax_translation import relax_translation
from .restrict import restrict

__all__ = ["HardenedLayer", "carry_optimiser", "harden", "merge", "mix", "project", "relax", "relax_translation", "restrict"]
