"""Equivariant modules that may break their symmetry by a learned amount."""

from .convolution import RelaxedR2Conv
from .merged import MergedConvolution

__all__ = ["MergedConvolution", "RelaxedR2Conv"]
