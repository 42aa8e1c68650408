"""Relaxed convolutions of the plane."""

from __future__ import annotations

from typing import Callable, Optional, Sequence, Union

import torch
from escnn.gspaces import GSpace2D
from escnn.nn import FieldType, R2Conv
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import EmptyBasisError
from .relaxed import RelaxedConvolution, check_types

__all__ = ["RelaxedR2Conv"]


class RelaxedR2Conv(RelaxedConvolution):
    __doc__ = RelaxedConvolution.__doc__ + """
    Constructed like :class:`escnn.nn.R2Conv`, plus:

    Args:
        relaxation: ``"graded"``: one residual pathway for each non-trivial irrep of the group.
        subgroups: ids of proper subgroups, as ``gspace.restrict`` takes them; instead of the grading, one residual
            pathway for each: the kernels equivariant under it, orthogonal to what larger subgroups already span. The
            trivial subgroup is the classical residual pathway.
        basis: ``"band-limited"`` as escnn's kernels are, or ``"pixel"``: complete on the pixel grid (escnn's basis
            for the trivial group spans 6 of 9 kernels at size 3, 11 of 25 at size 5, 18 of 49 at size 7).

    Raises:
        FieldTypeError: types on different G-spaces, or not of the plane.
        SubgroupError: an id that is no proper subgroup.
        EmptyBasisError: nothing equivariant, or nothing that breaks the symmetry, between these types.

    >>> from escnn import gspaces, nn
    >>> space = gspaces.rot2dOnR2(4)
    >>> gray, fields = nn.FieldType(space, [space.trivial_repr]), nn.FieldType(space, 2 * [space.regular_repr])
    >>> layer = RelaxedR2Conv(gray, fields, kernel_size=5, padding=2)
    >>> layer.kernel.dimensions
    {'equivariant': 22, 'irrep_1': 44, 'irrep_2': 22}
    >>> layer(gray(torch.randn(1, 1, 9, 9))).shape, layer.breaking_energy
    (torch.Size([1, 8, 9, 9]), 0.0)
    """

    _strict = R2Conv

    def __init__(
        self,
        in_type: FieldType,
        out_type: FieldType,
        kernel_size: int,
        padding: Union[int, tuple[int, int]] = 0,
        stride: int = 1,
        dilation: int = 1,
        padding_mode: str = "zeros",
        groups: int = 1,
        bias: bool = True,
        sigma: Union[None, float, Sequence[float]] = None,
        frequencies_cutoff: Union[None, float, Callable[[float], float]] = None,
        rings: Optional[Sequence[float]] = None,
        maximum_offset: Optional[int] = None,
        recompute: bool = False,
        basis_filter: Optional[Callable[[dict], bool]] = None,
        initialize: bool = True,
        *,
        relaxation: str = "graded",
        subgroups: Optional[Sequence] = None,
        basis: str = "band-limited",
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_types(in_type, out_type, GSpace2D, groups, name)
        rest = (padding, stride, dilation, padding_mode, groups, bias, sigma, frequencies_cutoff, rings)
        try:
            strict = R2Conv(
                in_type, out_type, kernel_size, *rest, maximum_offset, recompute, basis_filter, initialize
            )
        except ValueError as error:
            if "basis for the steerable filter is empty" not in str(error):
                raise
            raise EmptyBasisError(
                name,
                f"no equivariant kernel of size {kernel_size} from {in_type} to {out_type}",
                remedy="allow higher frequencies, a larger kernel or other fields",
            ) from error
        self._adopt(strict, relaxation, subgroups, basis, name)

    def _convolve(self, input: Tensor, kernel: Tensor, bias: Optional[Tensor]) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            input, padding = F.pad(input, self._reversed_padding, self.padding_mode), 0
        return F.conv2d(input, kernel, bias, self.stride, padding, self.dilation, self.groups)

    def export(self) -> nn.Conv2d:
        """A plain :class:`torch.nn.Conv2d` in eval mode that computes the same, padding mode included."""
        with torch.no_grad():
            kernel, bias = self.expand_parameters()
        convolution = nn.Conv2d(
            self.in_type.size,
            self.out_type.size,
            self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            bias=bias is not None,
            padding_mode=self.padding_mode,
        ).to(kernel)
        with torch.no_grad():
            convolution.weight.copy_(kernel)
            if bias is not None:
                convolution.bias.copy_(bias)
        return convolution.eval()
