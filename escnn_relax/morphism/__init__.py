"""Functions from models to models: each returns a new one and leaves the caller's alone."""

from .equivariant_state import equivariant_state
from .harden.network import HardenedLayer, HardeningReport, harden
from .mix import merge, mix
from .optimizer import carry_optimiser
from .project import project
from .relax import relax
from .relax_translation import relax_translation
from .restrict.network import restrict

__all__ = [
    "HardenedLayer",
    "HardeningReport",
    "carry_optimiser",
    "equivariant_state",
    "harden",
    "merge",
    "mix",
    "project",
    "relax",
    "relax_translation",
    "restrict",
]
