"""Functions from models to models: each returns a new one and leaves the caller's alone."""

from ..deprecation import former_names
from .equivariant_state import equivariant_state
from .harden.network import HardenedLayer, HardeningReport, harden
from .mix import merge, mix
from .optimizer import carry_optimizer
from .prepare_export import prepare_export
from .project import project
from .relax import relax
from .relax_translation import relax_translation
from .restrict.network import restrict

__all__ = [
    "HardenedLayer",
    "HardeningReport",
    "carry_optimizer",
    "equivariant_state",
    "harden",
    "merge",
    "mix",
    "prepare_export",
    "project",
    "relax",
    "relax_translation",
    "restrict",
]

#: In torch's spelling now.
__getattr__ = former_names(__name__)
