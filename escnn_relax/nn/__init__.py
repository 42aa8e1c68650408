"""Equivariant modules that may break their symmetry by a learned amount."""

from .convolution import RelaxedR2Conv, RelaxedR3Conv
from .kernel_pathway import KernelPathway
from .linear import RelaxedLinear
from .merged import MergedConvolution
from .mixed_layers import MixedLinear, MixedR2Conv, MixedR2ConvTransposed, MixedR3Conv, MixedR3ConvTransposed
from .relaxed_translation import RelaxedTranslation
from .site_pathways import DensePathway, FactoredPathway
from .sparse_convolution import SparseR2Conv, SparseR3Conv
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
