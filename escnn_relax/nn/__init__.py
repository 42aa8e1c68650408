"""Equivariant modules that may break their symmetry by a learned amount."""

from .linear import RelaxedLinear
from .merged import MergedConvolution
from .mixed.layers import MixedLinear, MixedR2Conv, MixedR2ConvTransposed, MixedR3Conv, MixedR3ConvTransposed
from .relaxed_layers import RelaxedR2Conv, RelaxedR3Conv
from .translation.dense_pathway import DensePathway
from .translation.factored_pathway import FactoredPathway
from .translation.kernel_pathway import KernelPathway
from .translation.relaxed_translation import RelaxedTranslation
from .translation.sparse_layers import SparseR2Conv, SparseR3Conv
from .transposed import RelaxedR2ConvTransposed, RelaxedR3ConvTransposed

__all__ = [
    "DensePathway",
    "FactoredPathway",
    "KernelPathway",
    "MergedConvolution",
    "MixedLinear",
    "MixedR2Conv",
    "MixedR2ConvTransposed",
    "MixedR3Conv",
    "MixedR3ConvTransposed",
    "RelaxedLinear",
    "RelaxedR2Conv",
    "RelaxedR2ConvTransposed",
    "RelaxedR3Conv",
    "RelaxedR3ConvTransposed",
    "RelaxedTranslation",
    "SparseR2Conv",
    "SparseR3Conv",
]
