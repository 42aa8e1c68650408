r"""How far a layer can be from equivariance, for every input of norm 1: a bound that no measurement exceeds.

A convolution's error under an element g that moves pixels to pixels is the convolution by :math:`g \cdot K - K`, whose
operator norm :mod:`escnn_relax.symmetry.equivariance.operator_norm` bounds. An element that does not is an isometry of
the fields in the continuum; with the breaking part R of the kernel, whatever isometries move input and output,

.. math:: \| \rho_{out}(g) R \rho_{in}(g)^{-1} - R \| \le 2 \| R \| .

What interpolation adds on a grid is the error of the equivariant part as well, and is no property of the learned
kernel: :mod:`escnn_relax.nn.measured.error_sources` measures the two apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from escnn.group import GroupElement
from escnn.nn import FieldType
from torch import Tensor

from ...symmetry.equivariance.error_record import relative
from ...symmetry.equivariance.operator_norm import WORK, Norm
from ...symmetry.grid.field_action import acts_on_grid, axes_matrix, fiber_matrix, move_points
from ...symmetry.kernels.pathway import EQUIVARIANT
from ..affine import expanded
from ..merged import MergedConvolution
from ..relaxed_convolution import RelaxedConvolution
from ..steerable import SteerableConvolution
from .convolution_norm import ConvolutionNorm

__all__ = ["Certificate", "certify", "certify_weights", "certify_without", "moved", "weights_norm"]


@dataclass(frozen=True)
class Certificate:
    r"""Bounds on one layer's linear part, the bias being equivariant.

    Attributes:
        name: the layer's.
        elements: those that move pixels to pixels, without the identity.
        errors: for each of them the norm of :math:`\rho_{out}(g) L \rho_{in}(g)^{-1} - L`, from below and above.
        breaking: norm of the part of the kernel that breaks the symmetry; NaN where it is not known.
        norm: norm of the whole map: no input of norm 1 becomes longer.
        complete: whether these elements are all of the group.
    """

    name: str
    elements: tuple[GroupElement, ...]
    errors: tuple[Norm, ...]
    breaking: Norm
    norm: Norm
    complete: bool

    @property
    def bound(self) -> float:
        r"""No input of norm 1 has a larger error under any element of the group: the largest of :attr:`errors`, and
        :math:`2 \|R\|` where other elements are left. Interpolation is not in it."""
        known = _largest(0.0, *(e.bound for e in self.errors))
        return known if self.complete else _largest(known, 2 * self.breaking.bound)

    @property
    def reached(self) -> float:
        """An error that some input of norm 1 on a large grid has, under an element that moves pixels to pixels; 0 where
        the work did not allow to look."""
        return _largest(0.0, *(e.reached for e in self.errors))

    @property
    def relative(self) -> float:
        """The bound over the norm of the map (fraction)."""
        return relative(self.bound, self.norm.reached)

    def __str__(self) -> str:
        return (
            f"{self.name}: error of inputs of norm 1 up to {self.bound:.2e} ({self.relative:.1%} of the layer's norm)"
        )


def certify(layer: Any, name: str = "", work: float = WORK) -> Certificate:
    r"""Bound the equivariance error of a layer for all inputs, on every grid on which escnn's own layer is equivariant.

    Args:
        layer: a relaxed, mixed, merged or strict convolution or linear layer.
        name: the layer's in the model.
        work: multiplications that it may take (up to a second by default); more make bounds of wide layers tighter, see
            :func:`~escnn_relax.symmetry.equivariance.operator_norm.operator_norm`.

    Raises:
        UnsupportedModuleError: a layer without a kernel on the grid, or pathways that break translations.

    >>> from escnn import gspaces
    >>> from escnn_relax.nn import RelaxedR2Conv
    >>> space = gspaces.rot2dOnR2(4)
    >>> fields = FieldType(space, [space.regular_repr])
    >>> layer = RelaxedR2Conv(fields, fields, 3)
    >>> certify(layer).relative < 1e-6
    True
    >>> _ = torch.nn.init.constant_(layer.weights["irrep_2"], 0.1)
    >>> broken = certify(layer)
    >>> 0.1 < broken.reached <= broken.bound < 1.1 * broken.reached
    True
    """
    shape = ConvolutionNorm.from_layer(layer)
    breaking = _breaking(layer)
    kernel = shape.steerable(expanded(layer)[0].detach().to("cpu", torch.float64))
    return _certificate(name or type(layer).__name__, shape, kernel, breaking, work)


def certify_without(
    layer: RelaxedConvolution, closed: Iterable[str], name: str = "", work: float = WORK
) -> Certificate:
    """That of a relaxed layer without some of its pathways."""
    return certify_weights(layer, {n: w for n, w in layer.weights.items() if n not in set(closed)}, name, work)


def certify_weights(
    layer: RelaxedConvolution, weights: Mapping[str, Tensor], name: str = "", work: float = WORK
) -> Certificate:
    """That of a relaxed layer with these weights, of the pathways that have any."""
    shape = ConvolutionNorm.from_layer(layer)
    broken = {n: weights[n] for n in (p.name for p in layer.pathways if p.breaks) if n in weights}
    return _certificate(name, shape, shape.steerable(_kernel(layer, weights)), _kernel(layer, broken), work)


def weights_norm(layer: RelaxedConvolution, weights: Mapping[str, Tensor], work: float = WORK) -> Norm:
    """The norm of a relaxed layer with these weights, which may be the difference of two."""
    shape = ConvolutionNorm.from_layer(layer)
    return shape.norm(shape.steerable(_kernel(layer, weights)), work)


def _certificate(
    name: str, shape: ConvolutionNorm, kernel: Tensor, breaking: Tensor | None, work: float
) -> Certificate:
    space = shape.in_type.gspace
    group = space.fibergroup
    every = list(group.elements) if group.order() > 0 else list(group.testing_elements())
    elements = [g for g in every if acts_on_grid(space, g) and g != group.identity]
    whole = group.order() == len(elements) + 1
    each = work / max(1, len(elements))
    turned = (moved(kernel, shape.in_type, shape.out_type, g) for g in elements)
    if shape.affordable(kernel, each):
        errors = [shape.norm(t - kernel, each) for t in turned]
    else:  # the average is invariant, so the errors are those of what it lacks
        total = sum(turned, kernel)
        once = shape.norm(kernel - total / (len(elements) + 1), work)
        errors = [Norm(0.0, 2 * once.bound)] * len(elements)
    breaking_norm = Norm(math.nan, math.nan) if breaking is None else shape.norm(shape.steerable(breaking), work)
    return Certificate(name, tuple(elements), tuple(errors), breaking_norm, shape.norm(kernel, work), whole)


def moved(kernel: Tensor, in_type: FieldType, out_type: FieldType, element: GroupElement) -> Tensor:
    r""":math:`\rho_{out}(g) K(g^{-1}x) \rho_{in}(g)^{-1}` of a kernel ``(out, in, *space)`` whose grid g maps onto
    itself."""
    left, right = fiber_matrix(out_type, element, kernel), fiber_matrix(in_type, ~element, kernel)
    turned = move_points(kernel, axes_matrix(in_type.gspace, element)) if kernel.dim() > 2 else kernel
    return torch.einsum("po,oi...,iq->pq...", left, turned, right)


def _breaking(layer: Any) -> Tensor | None:
    """The part of the kernel that breaks the symmetry, float64 in the shape of torch's layer; ``None`` if not known."""
    if isinstance(layer, RelaxedConvolution):
        return _kernel(layer, {p.name: layer.weights[p.name] for p in layer.pathways if p.breaks})
    if isinstance(layer, (SteerableConvolution, MergedConvolution)):  # a mixture's summands overlap
        return None
    return torch.zeros_like(expanded(layer)[0]).to("cpu", torch.float64)


@torch.no_grad()
def _kernel(layer: RelaxedConvolution, weights: Mapping[str, Tensor]) -> Tensor:
    """Of some pathways, float64 in the shape of torch's layer."""
    like = layer.weights[EQUIVARIANT.name]
    return layer._as_filter(layer.kernel({n: w.to(like) for n, w in weights.items()})).to("cpu", torch.float64)


def _largest(*values: float) -> float:
    return math.nan if any(math.isnan(v) for v in values) else max(values)
