r"""Steerable convolutions whose kernels are interpolated from scattered anchors, beside escnn's rings and harmonics."""

from __future__ import annotations

import math
from typing import Any, Optional, Sequence

import numpy as np
import torch
from escnn.group import Representation
from escnn.gspaces import GSpace2D, GSpace3D
from escnn.nn import EquivariantModule, FieldType, GeometricTensor
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ArgumentError
from ..symmetry.sites import largest_permuting
from ..symmetry.subgroup import Subgroup
from ..symmetry.subgroups import subgroup, subgroups
from .kernel import PathwayKernel
from .site_fields import Anchors
from .types import check_input, check_types

__all__ = ["SparseR2Conv", "SparseR3Conv"]


class _SparseConvolution(EquivariantModule):
    r"""A steerable convolution with its kernel interpolated from anchors.

    .. math:: K(x) = \sum_z \Psi(x, z) u(z), \qquad u(g z_r) = \rho_{out}(g)\, u_r\, \rho_{in}(g)^{-1}

    with :math:`\Psi` the mean of a Gaussian process (:mod:`escnn_relax.symmetry.interpolation`) and free matrices
    :math:`u_r` at one anchor of each orbit. Of the trivial group, with scalars, this is the sparse convolution of van der
    Ouderaa et al. (NeurIPS 2023): C C' P weights.

    Args:
        in_type, out_type: field types.
        kernel_size, padding, stride, dilation, padding_mode, groups, bias: as of escnn's convolution.
        fraction: anchors for each pixel of the kernel (fraction).
        omega, learn_omega: inverse length scale (1 / pixels), and whether it is a parameter ``log_omega``, for the evidence
            (:meth:`~escnn_relax.Evidence.hypergradient`).
        kept: the group under which the layer is equivariant: ``"group"`` (the largest finite subgroup that permutes the
            pixels), ``"free"``, or the id of a finite subgroup.
        seed: of the anchors.

    Raises:
        FieldTypeError, SubgroupError, ArgumentError: types, subgroups or numbers that do not fit.

    Attributes:
        weights: shape ``(coefficients,)``.
    """

    d: int
    _gspace: type

    def __init__(
        self,
        in_type: FieldType,
        out_type: FieldType,
        kernel_size: int,
        padding: int = 0,
        stride: int = 1,
        dilation: int = 1,
        padding_mode: str = "zeros",
        groups: int = 1,
        bias: bool = True,
        *,
        fraction: float = 0.5,
        omega: float = 1.0,
        learn_omega: bool = False,
        kept: Any = "group",
        seed: int = 0,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_types(in_type, out_type, self._gspace, groups, name)
        if kernel_size < 1 or stride < 1 or dilation < 1 or padding < 0:
            got = {"kernel_size": kernel_size, "stride": stride, "dilation": dilation, "padding": padding}
            raise ArgumentError(name, expected="positive sizes", got=got)
        self.in_type, self.out_type, self.space = in_type, out_type, in_type.gspace
        self.kernel_size, self.padding, self.stride, self.dilation = kernel_size, padding, stride, dilation
        self.padding_mode, self.groups = padding_mode, groups
        shape = (kernel_size,) * self.d
        self.kept = self._subgroup(kept, shape)
        self.anchors = Anchors(shape, self.kept, fraction, omega, learn_omega, seed, name)
        in_reprs = in_type.representations[: len(in_type) // groups]
        bases = {
            (i.name, o.name): _anchor_kernels(self.anchors, self.kept, i, o)
            for i in dict.fromkeys(in_reprs)
            for o in dict.fromkeys(out_type.representations)
        }
        self.kernel = PathwayKernel(in_reprs, out_type.representations, {"equivariant": bases})
        self.weights = nn.Parameter(torch.empty(self.kernel.dimensions["equivariant"]))
        self.bias = None
        if bias:
            expansion = _invariant_biases(out_type)
            self.bias = nn.Parameter(torch.zeros(expansion.shape[1])) if expansion.shape[1] else None
            self.register_buffer("bias_expansion", expansion)
        self.reset_parameters()

    def _subgroup(self, kept: Any, shape: Sequence[int]) -> Subgroup:
        if isinstance(kept, str) and kept in ("group", "free"):
            if kept == "group":
                return largest_permuting(self.space, shape, type(self).__name__)
            return next(h for h in subgroups(self.space) if h.order == 1)
        found = subgroup(self.space, kept, type(self).__name__)
        if found.order < 0:
            raise ArgumentError(type(self).__name__, expected="kept to be a finite subgroup", got=found.name)
        return found

    def reset_parameters(self) -> None:
        """Random weights, scaled so that the kernel has the variance of He et al. (ICCV 2015); no bias."""
        with torch.no_grad():
            self.weights.normal_()
            kernel = self.expand_parameters()[0]
            wanted = math.sqrt(2 / kernel[0].numel())
            self.weights.mul_(wanted / kernel.square().mean().sqrt())
            if self.bias is not None:
                self.bias.zero_()

    def expand_parameters(self) -> tuple[Tensor, Optional[Tensor]]:
        """The kernel as torch's convolution has it, and the bias ``(out channels,)``."""
        at_anchors = self.kernel({"equivariant": self.weights})
        kernel = at_anchors @ self.anchors.matrix().T.to(at_anchors.dtype)
        kernel = kernel.view(*kernel.shape[:2], *(self.kernel_size,) * self.d)
        return kernel, None if self.bias is None else self.bias_expansion @ self.bias

    def forward(self, input: GeometricTensor) -> GeometricTensor:
        """Convolve; raises ``FieldTypeError`` for an input of another type."""
        check_input(input, self.in_type, type(self).__name__)
        kernel, bias = self.expand_parameters()
        return GeometricTensor(self._convolve(input.tensor, kernel, bias), self.out_type, coords=None)

    def _convolve(self, input: Tensor, kernel: Tensor, bias: Optional[Tensor]) -> Tensor:
        convolve, padding = (F.conv2d if self.d == 2 else F.conv3d), self.padding
        if self.padding_mode != "zeros":
            input, padding = F.pad(input, 2 * self.d * (padding,), self.padding_mode), 0
        return convolve(input, kernel, bias, self.stride, padding, self.dilation, self.groups)

    def evaluate_output_shape(self, input_shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the output for an input ``(batch, channels, *space)``."""
        with torch.no_grad():
            kernel = self.expand_parameters()[0].to("meta")
        return tuple(self._convolve(torch.empty(tuple(input_shape), device="meta", dtype=kernel.dtype), kernel, None).shape)

    def export(self) -> nn.Module:
        """A plain convolution of torch in eval mode that computes the same."""
        with torch.no_grad():
            kernel, bias = self.expand_parameters()
            names = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
            geometry = {name: getattr(self, name) for name in names}
            kind = nn.Conv2d if self.d == 2 else nn.Conv3d
            layer = kind(self.in_type.size, self.out_type.size, bias=bias is not None, **geometry).to(kernel)
            layer.weight.copy_(kernel)
            if bias is not None and layer.bias is not None:
                layer.bias.copy_(bias)
        return layer.eval()

    def extra_repr(self) -> str:
        text = f"{self.in_type} -> {self.out_type}, kernel_size={self.kernel_size}, kept={self.kept.name}"
        return f"{text}, anchors={len(self.anchors.sites)}"


class SparseR2Conv(_SparseConvolution):
    __doc__ = (_SparseConvolution.__doc__ or "") + """
    >>> from escnn import gspaces, nn
    >>> space = gspaces.rot2dOnR2(4)
    >>> gray, fields = nn.FieldType(space, [space.trivial_repr]), nn.FieldType(space, [space.regular_repr])
    >>> layer = SparseR2Conv(gray, fields, 5, padding=2)
    >>> layer.weights.shape, layer(gray(torch.randn(2, 1, 9, 9))).shape
    (torch.Size([12]), torch.Size([2, 4, 9, 9]))
    """

    d, _gspace = 2, GSpace2D


class SparseR3Conv(_SparseConvolution):
    __doc__ = (_SparseConvolution.__doc__ or "") + """
    >>> from escnn import gspaces, nn
    >>> space = gspaces.invOnR3()
    >>> gray, signs = nn.FieldType(space, [space.trivial_repr]), nn.FieldType(space, [space.regular_repr])
    >>> SparseR3Conv(gray, signs, 3).weights.shape
    torch.Size([14])
    """

    d, _gspace = 3, GSpace3D


def _anchor_kernels(anchors: Anchors, kept: Subgroup, i: Representation, o: Representation) -> Tensor:
    """One kernel for each orbit and each entry of the matrix there, ``(orbits * o * i, o size, i size, anchors)``."""
    dtype = anchors.anchors.dtype
    left = torch.as_tensor(np.stack([np.asarray(o(g)) for g in kept.elements]), dtype=dtype)  # (order, o, o)
    right = torch.as_tensor(np.stack([np.asarray(i(g)) for g in kept.elements]), dtype=dtype)
    turned = torch.einsum("gpa,gqb->abpqg", left, right)  # rho_out E_ab rho_in^T
    sites = anchors.sites
    kernels = turned.new_zeros(sites.orbits, *turned.shape[:4], len(sites))
    for r, points in enumerate(sites.index):
        kernels[r].index_add_(4, points, turned * sites.share[r])
    return kernels.flatten(0, 2)


def _invariant_biases(out_type: FieldType) -> Tensor:
    """The constant fields that the group leaves alone, in columns, shape ``(channels, trivial irreps)``."""
    blocks = []
    for r in out_type.representations:
        sizes = [r.group.irrep(*id).size for id in r.irreps]
        starts = np.cumsum([0, *sizes])
        trivial = [start for start, id in zip(starts, r.irreps) if r.group.irrep(*id).is_trivial()]
        blocks.append(torch.as_tensor(np.asarray(r.change_of_basis)[:, trivial], dtype=torch.get_default_dtype()))
    return torch.block_diag(*blocks)
