r"""Steerable convolutions whose kernels are interpolated from scattered anchors, beside escnn's rings and harmonics."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from escnn.gspaces import GSpace
from escnn.nn import EquivariantModule, FieldType
from torch import Tensor, nn

from ...deprecation import former_attribute, former_keyword, former_where, warn_former
from ...errors import ArgumentError, naming, nearest
from ...symmetry.grid.sites import Sites, largest_grid_subgroup
from ...symmetry.groups.lattice import subgroup as find_subgroup
from ...symmetry.groups.lattice import subgroups
from ...symmetry.groups.subgroup import Subgroup
from ..expanded_convolution import ExpandedConvolution, PaddedConvolution
from ..field_types import check_types
from ..kernels.pathway_sum import PathwaySum
from .anchors import Anchors
from .orbit_kernels import fit_weights, invariant_biases, orbit_kernels

__all__ = ["SparseConvolution"]

#: The arguments beside those of escnn's convolution.
OPTIONS = ("fraction", "omega", "learn_omega", "subgroup", "seed")

PADDINGS = ("zeros", "reflect", "replicate", "circular")
#: One number for all axes, or one for each.
Sizes = int | Sequence[int]


class SparseConvolution(PaddedConvolution, ExpandedConvolution, EquivariantModule):
    r"""A steerable convolution with its kernel interpolated from anchors.

    .. math:: K(x) = \sum_z \Psi(x, z) u(z), \qquad u(g z_r) = \rho_{out}(g)\, u_r\, \rho_{in}(g)^{-1}

    with :math:`\Psi` the mean of a Gaussian process (:mod:`escnn_relax.symmetry.grid.interpolation`) and free matrices
    :math:`u_r` at one anchor of each orbit. Of the trivial group, with scalars, this is the sparse convolution of van
    der Ouderaa et al. (NeurIPS 2023): C C' P weights.

    Args:
        in_type, out_type: field types.
        kernel_size, padding, stride, dilation, padding_mode, groups, bias: as of escnn's convolution.
        fraction: anchors for each pixel of the kernel (fraction).
        omega, learn_omega: inverse length scale (1 / pixels), and whether it is a parameter ``log_omega``, which
            :func:`~escnn_relax.fit` moves up the evidence (:class:`~escnn_relax.nn.translation.anchors.Anchors`).
        subgroup: under which the layer is equivariant: ``"group"`` (the largest finite subgroup that permutes the
            pixels), ``"free"``, or the id of a finite subgroup.
        seed: of the anchors.
        former: ``kept``, which ``subgroup`` was called.

    Raises:
        FieldTypeError, SubgroupError, ArgumentError: types, subgroups or numbers that do not fit.

    Attributes:
        weights: shape ``(coefficients,)``.
    """

    d: int
    _gspace: type
    in_type: FieldType
    out_type: FieldType
    space: GSpace
    kernel_size: int
    padding: Sizes
    stride: Sizes
    dilation: Sizes
    padding_mode: str
    groups: int
    subgroup: Subgroup
    bias: nn.Parameter | None
    bias_expansion: Tensor

    @former_where
    def __init__(
        self,
        in_type: FieldType,
        out_type: FieldType,
        kernel_size: int,
        padding: Sizes = 0,
        stride: Sizes = 1,
        dilation: Sizes = 1,
        padding_mode: str = "zeros",
        groups: int = 1,
        bias: bool = True,
        *,
        fraction: float = 0.5,
        omega: float = 1.0,
        learn_omega: bool = False,
        subgroup: Any = "group",
        seed: int = 0,
        **former: Any,
    ) -> None:
        super().__init__()
        if "kept" in former:
            warn_former(f"{type(self).__name__}(kept=)", f"{type(self).__name__}(subgroup=)")
            subgroup = former.pop("kept")
        for name in former:
            raise ArgumentError(type(self), f"no argument {name!r}", remedy=nearest(name, OPTIONS))
        check_types(in_type, out_type, self._gspace, groups, type(self))
        sizes = {"kernel_size": kernel_size, "stride": stride, "dilation": dilation, "padding": padding}
        smallest = min(n - (k != "padding") for k, size in sizes.items() for n in self._each(size))
        if not isinstance(kernel_size, Integral) or smallest < 0:
            remedy = "pass positive sizes, and kernel_size as one number"
            raise ArgumentError(
                type(self), expected="positive sizes, and one size of kernel for all axes", got=sizes, remedy=remedy
            )
        if padding_mode not in PADDINGS:
            remedy = "leave it out for 'zeros'"
            raise ArgumentError(
                type(self), expected=f"padding_mode out of {list(PADDINGS)}", got=repr(padding_mode), remedy=remedy
            )
        self.in_type, self.out_type, self.space = in_type, out_type, in_type.gspace
        self.kernel_size, self.padding, self.stride, self.dilation = kernel_size, padding, stride, dilation
        self.padding_mode, self.groups = padding_mode, groups
        shape = (kernel_size,) * self.d
        with naming(type(self)):
            chosen = self._chosen_subgroup(subgroup, shape)
            self._construct(chosen, Anchors(shape, chosen, fraction, omega, learn_omega, seed, layer=type(self)), bias)
        self.reset_parameters()

    def _construct(self, subgroup: Subgroup, anchors: Anchors, bias: bool) -> None:
        """The parameters, and what expands them."""
        self.subgroup, self.anchors = subgroup, anchors
        in_reprs, out_reprs = (
            self.in_type.representations[: len(self.in_type) // self.groups],
            self.out_type.representations,
        )
        pairs = [(i, o) for i in dict.fromkeys(in_reprs) for o in dict.fromkeys(out_reprs)]
        dtype = anchors.pixels.dtype
        bases = {(i.name, o.name): orbit_kernels(anchors.sites, subgroup, i, o, dtype) for i, o in pairs}
        self.kernel = PathwaySum(in_reprs, out_reprs, {"equivariant": bases})
        self.weights = nn.Parameter(torch.zeros(self.kernel.dimensions["equivariant"], dtype=dtype))
        self.bias = None
        if bias:
            expansion = invariant_biases(self.out_type).to(dtype)
            self.bias = nn.Parameter(torch.zeros(expansion.shape[1], dtype=dtype)) if expansion.shape[1] else None
            self.register_buffer("bias_expansion", expansion)

    def _each(self, sizes: Sizes) -> tuple[int, ...]:
        """A number for each axis."""
        numbers = tuple(sizes) if isinstance(sizes, Sequence) else (sizes,) * self.d
        if len(numbers) != self.d or not all(isinstance(n, Integral) for n in numbers):
            remedy = "pass an int, or a tuple with one for each axis"
            raise ArgumentError(
                type(self), expected=f"a whole number, or {self.d} of them", got=repr(sizes), remedy=remedy
            )
        return numbers

    def _chosen_subgroup(self, id: Any, shape: Sequence[int]) -> Subgroup:
        if isinstance(id, str) and id in ("group", "free"):
            if id == "group":
                return largest_grid_subgroup(self.space, shape)
            return next(h for h in subgroups(self.space) if h.order == 1)
        chosen = find_subgroup(self.space, id)
        if chosen.order < 0:
            remedy = "pass a finite one, such as 4 for quarter turns"
            raise ArgumentError(type(self), expected="a finite subgroup", got=chosen.name, remedy=remedy)
        return chosen

    def reset_parameters(self, fitted: bool = False) -> None:
        r"""Random weights and no bias.

        Normal ones, scaled so that the kernel has the variance of He et al. (ICCV 2015); or, ``fitted``, as van der
        Ouderaa et al. start them,

        .. math:: \arg\min_w | \Psi u(w) - K |

        with the kernel K that a convolution of the same symmetry without anchors starts with: uniform within
        :math:`\pm\sqrt{6 / \text{fan in}}`, independent at one pixel of each orbit (of that, what the stabiliser of the
        pixel leaves alone). What anchors cannot reproduce of it is lost: such kernels are smaller.
        """
        with torch.no_grad():
            if fitted:
                self.weights.copy_(fit_weights(self))
            else:
                self.weights.normal_()
                kernel = self.expand_parameters()[0]
                deviation = math.sqrt(2 / kernel[0].numel())
                self.weights.mul_(deviation / kernel.square().mean().sqrt())
            if self.bias is not None:
                self.bias.zero_()

    @former_keyword("kept", "subgroup")
    def between(self, in_type: FieldType, out_type: FieldType, subgroup: Subgroup) -> SparseConvolution:
        """The same kernel and bias between fields of the same sizes, with the weights of a layer that keeps a smaller
        group.

        The anchors stay where they are, and a smaller group has more orbits of them, with weights of their own.

        Args:
            in_type, out_type: the field types as representations of a subgroup, channel by channel the same matrices.
            subgroup: of their G-space; its elements are among those that this layer keeps.
        """
        new = type(self).__new__(type(self))
        EquivariantModule.__init__(new)
        new.in_type, new.out_type, new.space = in_type, out_type, in_type.gspace
        for name in ("kernel_size", "padding", "stride", "dilation", "padding_mode", "groups"):
            setattr(new, name, getattr(self, name))
        points = self.anchors.anchors.cpu().numpy()
        order = Sites(points, subgroup).index.flatten()  # orbit by orbit, as where the layer is built anew
        anchors, state = copy.deepcopy(self.anchors), self.anchors.state_dict()
        anchors.sites = sites = Sites(points[order], subgroup).to(self.weights)
        anchors.load_state_dict({**state, "anchors": state["anchors"][order]})
        new._construct(subgroup, anchors, self.bias is not None)
        new.to(self.weights)
        with torch.no_grad():
            at_anchors = self.kernel({"equivariant": self.weights})[..., order]
            for block in new.kernel.blocks["equivariant"]:
                o, i = new.kernel.out_fields[block.out_name].channels, new.kernel.in_fields[block.in_name].channels
                read = at_anchors[o[:, None, :, None], i[None, :, None, :]][..., sites.index[:, 0]]
                new.weights[block.start : block.stop] = read.movedim(
                    -1, 2
                ).flatten()  # (o fields, i fields, orbit, o, i)
            if self.bias is not None and new.bias is not None:
                bias = self.bias_expansion.double() @ self.bias.double()
                new.bias.copy_(torch.linalg.pinv(new.bias_expansion.double()) @ bias)
                new.bias.requires_grad_(self.bias.requires_grad)
        new.weights.requires_grad_(self.weights.requires_grad)
        return new.train(self.training)

    def expand_parameters(self) -> tuple[Tensor, Tensor | None]:
        """The kernel as torch's convolution has it, and the bias ``(out channels,)``."""
        at_anchors = self.kernel({"equivariant": self.weights})
        kernel = at_anchors @ self.anchors.matrix().T.to(at_anchors.dtype)
        kernel = kernel.view(*kernel.shape[:2], *(self.kernel_size,) * self.d)
        return kernel, None if self.bias is None else self.bias_expansion @ self.bias

    def extra_repr(self) -> str:
        text = f"{self.in_type} -> {self.out_type}, kernel_size={self.kernel_size}, subgroup={self.subgroup.name}"
        return f"{text}, anchors={len(self.anchors.sites)}"


setattr(SparseConvolution, "kept", former_attribute("kept", "subgroup"))
