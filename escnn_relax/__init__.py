"""Equivariant networks built with escnn that learn, layer by layer, how much of their symmetry to keep."""

from importlib import metadata

from . import _escnn, _escnn_repairs
from .former_modules import find_former_modules

# Before anything else of ours, or the caller's, builds on escnn: see there for what is checked and mended, and why.
_escnn_repairs.provide_wigner_matrices()
_escnn_repairs.require()
_escnn_repairs.prefer_scipy_svd()
_escnn_repairs.separate_reflection_axes()
_escnn_repairs.keep_clebsch_gordan()
_escnn_repairs.provide_clebsch_gordan()
_escnn_repairs.silence_irreps()

try:
    __version__ = metadata.version("escnn-relax")
except metadata.PackageNotFoundError:  # sources that are not installed
    __version__ = "0.1.0.dev0"

_escnn.make_picklable()
find_former_modules()

from .curvature.batch_format import Batches  # noqa: E402
from .deprecation import former_names  # noqa: E402
from .errors import RelaxError  # noqa: E402
from .diagnosis import PathwayTest, SymmetryTest, symmetry_test  # noqa: E402
from .evidence import CurvatureSettings, Evidence, EvidenceTerms, NoiseSettings, PriorSettings  # noqa: E402
from .training import EvidenceCallback  # noqa: E402
from .training import History  # noqa: E402
from .training import fit, lightning_callback  # noqa: E402
from .evidence import survivors  # noqa: E402
from .morphism import carry_optimizer, equivariant_state, harden, merge, mix, project  # noqa: E402
from .morphism import prepare_export, relax, relax_translation, restrict  # noqa: E402
from .report import report  # noqa: E402
from .symmetry.equivariance.model_error import assert_equivariant, equivariance_error  # noqa: E402
from .symmetry.groups.lattice import Subgroup, subgroup, subgroups  # noqa: E402

__all__ = [
    "Batches",
    "CurvatureSettings",
    "Evidence",
    "EvidenceCallback",
    "EvidenceTerms",
    "History",
    "NoiseSettings",
    "RelaxError",
    "Subgroup",
    "PathwayTest",
    "PriorSettings",
    "SymmetryTest",
    "assert_equivariant",
    "carry_optimizer",
    "equivariance_error",
    "equivariant_state",
    "fit",
    "harden",
    "lightning_callback",
    "merge",
    "mix",
    "prepare_export",
    "project",
    "relax",
    "relax_translation",
    "report",
    "restrict",
    "subgroup",
    "subgroups",
    "survivors",
    "symmetry_test",
]

#: In torch's spelling now.
__getattr__ = former_names(__name__)
