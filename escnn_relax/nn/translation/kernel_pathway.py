"""A convolution with another kind of kernel as one of the pathways beside a convolution: it commutes with
translations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .signal_pathway import SignalPathway
from .sparse_convolution import SparseConvolution

__all__ = ["KernelPathway"]


class KernelPathway(SignalPathway):
    r"""A sparse convolution as a pathway of :class:`~escnn_relax.nn.RelaxedTranslation`.

    .. math:: y = x \star \Psi u

    It relaxes how the kernel is made and, as far as ``subgroup`` is smaller than G, the group; translations it keeps,
    so that it takes signals of any spatial size. It has no bias: that of the convolution beside it would be the same.

    Args:
        convolution: the sparse convolution, without bias.
        in_shape: spatial shape of the inputs of the layer.

    Attributes:
        subgroup: the group under which the kernel is equivariant.
        in_shape, out_shape: spatial shapes before and after.

    New pathways put out zeros, so that adding one changes nothing.

    >>> from escnn import gspaces, nn as enn
    >>> from escnn_relax.nn import SparseR2Conv
    >>> space = gspaces.rot2dOnR2(4)
    >>> one = enn.FieldType(space, [space.trivial_repr])
    >>> pathway = KernelPathway(SparseR2Conv(one, one, 3, padding=1, bias=False), (6, 6))
    >>> pathway.energy(), pathway(torch.randn(2, 1, 6, 6)).abs().max().item()
    (0.0, 0.0)
    """

    stationary = True

    def __init__(self, convolution: SparseConvolution, in_shape: Sequence[int]) -> None:
        super().__init__()
        self.convolution, self.subgroup = convolution, convolution.subgroup
        self.in_type, self.out_type, self.in_shape = convolution.in_type, convolution.out_type, tuple(in_shape)
        size = (1, self.in_type.size, *self.in_shape)
        self.out_shape = tuple(convolution.evaluate_output_shape(size)[2:])
        self.reset_parameters()

    def reset_parameters(self, silent: bool = True, fitted: bool = False) -> None:
        """Zeros, or, not ``silent``, random weights as of :meth:`SparseConvolution.reset_parameters`."""
        if silent:
            nn.init.zeros_(self.convolution.weights)
        else:
            self.convolution.reset_parameters(fitted)

    def forward(self, input: Tensor) -> Tensor:
        """``(N, channels, *in_shape)`` to ``(N, channels, *out_shape)``."""
        output: Tensor = self.convolution(self.in_type(input)).tensor
        return output

    def check(self, input: Tensor) -> None:
        """Nothing to refuse: a convolution takes signals of any spatial size."""

    def energy(self) -> float:
        """Squared Frobenius norm of the whole linear map, counted as if no place lay at the border."""
        with torch.no_grad():
            kernel = self.convolution.expand_parameters()[0]
        return torch.Size(self.out_shape).numel() * float(kernel.double().square().sum())
