"""Equivariant modules that may break their symmetry by a learned amount."""

from .convolution import RelaxedR2Conv, RelaxedR3Conv
from .linear import RelaxedLinear
from .merged import MergedConvolution
from .mixed_layers import MixedLinear, MixedR2Conv, MixedR3Conv
from .transposed import RelaxedR2ConvTransposed, RelaxedR3ConvTransposed

__all__ = [
    "MergedConvolution",
    "MixedLinear",
    "MixedR2Conv",
    "MixedR3Conv",
    "RelaxedLinear",
    "RelaxedR2Conv",
    "RelaxedR2ConvTransposed",
    "RelaxedR3Conv",
    "RelaxedR3ConvTransposed",
]
