"""A convolution and the sparse kernels beside it as one plain convolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from escnn.nn import EquivariantModule, R2Conv, R3Conv

from ...nn.affine import expanded
from ...nn.merged import MergedConvolution
from ...nn.translation.kernel_pathway import KernelPathway
from ...nn.translation.sparse_convolution import SparseConvolution

__all__ = ["can_merge", "merge_kernels"]


def can_merge(convolution: EquivariantModule) -> bool:
    """Whether a convolution is one kernel, and not a sum that something else is still to look at."""
    return isinstance(convolution, (R2Conv, R3Conv, SparseConvolution, MergedConvolution))


def merge_kernels(convolution: Any, pathways: Sequence[KernelPathway]) -> MergedConvolution:
    """One convolution with the sum of the kernels, of the same geometry; exact, since all are convolutions.

    >>> from escnn import gspaces, nn as enn
    >>> from escnn_relax.nn import SparseR2Conv
    >>> space = gspaces.rot2dOnR2(4)
    >>> one = enn.FieldType(space, [space.trivial_repr])
    >>> strict, x = enn.R2Conv(one, one, 3), one(torch.randn(2, 1, 6, 6))
    >>> pathway = KernelPathway(SparseR2Conv(one, one, 3, bias=False, subgroup="free"), (6, 6))
    >>> pathway.reset_parameters(silent=False)
    >>> merged = merge_kernels(strict, [pathway])
    >>> torch.allclose(merged(x).tensor, strict(x).tensor + pathway(x.tensor), atol=1e-6)
    True
    """
    with torch.no_grad():
        kernel, bias = expanded(convolution)
        kernel = kernel + sum(pathway.convolution.expand_parameters()[0] for pathway in pathways)
        plain = pathways[0].convolution.plain(kernel, bias)
    return MergedConvolution(convolution.in_type, convolution.out_type, plain).train(convolution.training)
