r"""How far a layer can be from equivariance, for every input of norm 1: a bound that no measurement exceeds.

A convolution's error under an element g that moves pixels to pixels is the convolution by :math:`g \cdot K - K`, whose
operator norm :mod:`escnn_relax.symmetry.equivariance.operator_norm` bounds. An element that does not is an isometry of
the fields in the continuum; with the breaking part R of the kernel, whatever isometries move input and output,

.. math:: \| \rho_{out}(g) R \rho_{in}(g)^{-1} - R \| \le 2 \| R \| .

What interpolation adds on a grid is the error of the equivariant part as well, and is no property of the learned
kernel: :func:`interpolation_apart` measures the two apart.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from escnn.group import GroupElement
from escnn.nn import FieldType, GeometricTensor, R2ConvTransposed, R3ConvTransposed
from torch import Tensor, nn

from ...errors import ArgumentError, UnsupportedModuleError
from ...symmetry.equivariance.error_record import relative
from ...symmetry.equivariance.operator_norm import WORK, Norm, affordable, operator_norm, padding_norm
from ...symmetry.grid.field_action import acts_on_grid, axes_matrix, fiber_matrix, move_points, transform_field
from ...symmetry.kernels.pathway import EQUIVARIANT
from ..affine import expanded
from ..merged import MergedConvolution
from ..relaxed_convolution import RelaxedConvolution
from ..transposed import RelaxedR2ConvTransposed, RelaxedR3ConvTransposed

__all__ = ["Apart", "Certificate", "certify", "certify_weights", "certify_without", "interpolation_apart", "norm_of"]

#: Layers whose kernel torch has as ``(in, out, *space)``.
TRANSPOSED = (
    RelaxedR2ConvTransposed,
    RelaxedR3ConvTransposed,
    R2ConvTransposed,
    R3ConvTransposed,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


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


def certify(layer: Any, where: str = "", work: float = WORK) -> Certificate:
    r"""Bound the equivariance error of a layer for all inputs, on every grid on which escnn's own layer is equivariant.

    Args:
        layer: a relaxed, mixed, merged or strict convolution or linear layer.
        where: its name in the model.
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
    >>> found = certify(layer)
    >>> 0.1 < found.reached <= found.bound < 1.1 * found.reached
    True
    """
    where = where or type(layer).__name__
    shape = _Shape.of(layer, where)
    breaking = _breaking(layer)
    kernel = shape.steerable(expanded(layer)[0].detach().to("cpu", torch.float64))
    return _certificate(where, shape, kernel, breaking, work)


def certify_without(
    layer: RelaxedConvolution, closed: Iterable[str], where: str = "", work: float = WORK
) -> Certificate:
    """That of a relaxed layer without some of its pathways."""
    return certify_weights(layer, {n: w for n, w in layer.weights.items() if n not in set(closed)}, where, work)


def certify_weights(
    layer: RelaxedConvolution, weights: Mapping[str, Tensor], where: str = "", work: float = WORK
) -> Certificate:
    """That of a relaxed layer with these weights, of the pathways that have any."""
    shape = _Shape.of(layer, where)
    broken = {n: weights[n] for n in (p.name for p in layer.pathways if p.breaks) if n in weights}
    return _certificate(where, shape, shape.steerable(_kernel(layer, weights)), _kernel(layer, broken), work)


def norm_of(layer: RelaxedConvolution, weights: Mapping[str, Tensor], where: str = "", work: float = WORK) -> Norm:
    """The norm of a relaxed layer with these weights, which may be the difference of two."""
    shape = _Shape.of(layer, where)
    return shape.norm(shape.steerable(_kernel(layer, weights)), work)


def _certificate(where: str, shape: _Shape, kernel: Tensor, breaking: Tensor | None, work: float) -> Certificate:
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
    part = Norm(math.nan, math.nan) if breaking is None else shape.norm(shape.steerable(breaking), work)
    return Certificate(where, tuple(elements), tuple(errors), part, shape.norm(kernel, work), whole)


def moved(kernel: Tensor, in_type: FieldType, out_type: FieldType, element: GroupElement) -> Tensor:
    r""":math:`\rho_{out}(g) K(g^{-1}x) \rho_{in}(g)^{-1}` of a kernel ``(out, in, *space)`` whose grid g maps onto
    itself."""
    left, right = fiber_matrix(out_type, element, kernel), fiber_matrix(in_type, ~element, kernel)
    turned = move_points(kernel, axes_matrix(in_type.gspace, element)) if kernel.dim() > 2 else kernel
    return torch.einsum("po,oi...,iq->pq...", left, turned, right)


@dataclass(frozen=True)
class _Shape:
    """What of a convolution's geometry its norm depends on.

    Attributes:
        in_type, out_type: between which the kernel maps, of one group of a grouped layer.
        transposed: the torch layer has its axes the other way round.
    """

    in_type: FieldType
    out_type: FieldType
    groups: int
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    padding: float

    @classmethod
    def of(cls, layer: Any, where: str) -> _Shape:
        if not hasattr(layer, "expand_parameters") or not isinstance(getattr(layer, "in_type", None), FieldType):
            problem = f"a {type(layer).__name__} has no kernel on the grid"
            raise UnsupportedModuleError(
                where, problem, remedy="certify the convolutions and linear layers of the model"
            )
        if hasattr(layer, "sites"):
            problem = "pathways that break translations have no kernel"
            raise UnsupportedModuleError(where, problem, remedy="certify its .convolution, and measure the rest")
        from_torch = layer.convolution if isinstance(layer, MergedConvolution) else layer
        space, groups = layer.in_type.gspace, getattr(from_torch, "groups", 1)
        d = space.dimensionality
        each = {
            n: _each(getattr(from_torch, n, 1 if n != "padding" else 0), d) for n in ("stride", "dilation", "padding")
        }
        transposed = isinstance(from_torch, TRANSPOSED)
        ins, outs = list(layer.in_type.representations), list(layer.out_type.representations)
        if transposed:
            outs = outs[: len(outs) // groups]
        else:
            ins = ins[: len(ins) // groups]
        mode, size = getattr(from_torch, "padding_mode", "zeros"), _each(getattr(from_torch, "kernel_size", 1), d)
        whole_turn = all(2 * p <= n * (k - 1) for p, n, k in zip(each["padding"], each["dilation"], size))
        padded = (
            1.0 if mode == "circular" and whole_turn else padding_norm(mode, each["padding"])
        )  # then a window of a torus
        return cls(
            FieldType(space, ins), FieldType(space, outs), groups, each["stride"], each["dilation"], transposed, padded
        )

    def steerable(self, kernel: Tensor) -> Tensor:
        """``(out, in, *space)`` from the shape that torch's layer has."""
        return kernel.transpose(0, 1) if self.transposed else kernel

    def affordable(self, kernel: Tensor, work: float) -> bool:
        """Whether a norm takes no more than this work."""
        parts = self._parts(kernel)
        return affordable(parts[0].shape, self.stride, work / len(parts))

    def norm(self, kernel: Tensor, work: float) -> Norm:
        """Of the layer with this kernel: the largest of its groups', padding included."""
        parts = self._parts(kernel)
        found = [operator_norm(p, self.stride, self.dilation, work / len(parts)) for p in parts]
        bound = math.nan if any(math.isnan(n.bound) for n in found) else max(n.bound for n in found)
        return Norm(max(n.reached for n in found), self.padding * bound)

    def _parts(self, kernel: Tensor) -> list[Tensor]:
        parts = kernel.chunk(self.groups, dim=1 if self.transposed else 0)
        return [
            p.transpose(0, 1) if self.transposed else p for p in parts
        ]  # the adjoint of a convolution with a stride


def _breaking(layer: Any) -> Tensor | None:
    """The part of the kernel that breaks the symmetry, float64 in the shape of torch's layer; ``None`` if not known."""
    if isinstance(layer, RelaxedConvolution):
        if not hasattr(layer, "relaxation"):
            return None  # a mixture's summands overlap
        return _kernel(layer, {p.name: layer.weights[p.name] for p in layer.pathways if p.breaks})
    return (
        None if isinstance(layer, MergedConvolution) else torch.zeros_like(expanded(layer)[0]).to("cpu", torch.float64)
    )


@torch.no_grad()
def _kernel(layer: RelaxedConvolution, weights: Mapping[str, Tensor]) -> Tensor:
    """Of some pathways, float64 in the shape of torch's layer."""
    like = layer.weights[EQUIVARIANT.name]
    return layer._as_filter(layer.kernel({n: w.to(like) for n, w in weights.items()})).to("cpu", torch.float64)


def _each(value: Any, d: int) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (int(value),) * d


def _largest(*values: float) -> float:
    return math.nan if any(math.isnan(v) for v in values) else max(values)


@dataclass(frozen=True)
class Apart:
    """Where the error of a relaxed layer comes from, for one element and one input of norm 1.

    Attributes:
        element: the element.
        total: norm of the error.
        interpolation: that of the layer without what breaks the symmetry: what the grid does to escnn's own layer, too.
        kernel: that of the breaking part of the kernel alone; total is at most the sum of the two.
    """

    element: GroupElement
    total: float
    interpolation: float
    kernel: float


def interpolation_apart(
    layer: RelaxedConvolution, input: GeometricTensor, elements: Sequence[GroupElement] | None = None, where: str = ""
) -> tuple[Apart, ...]:
    """Measure the error of equivariance on one input, and how much of it is interpolation.

    Args:
        layer: a relaxed layer; left alone.
        input: of its type; any norm, to which the errors are relative.
        elements: escnn's testing elements by default.

    Raises:
        UnsupportedModuleError: a layer whose breaking part is not known, such as a mixed or hardened one.
        ArgumentError: an input of norm 0 or that is not finite.

    >>> from escnn import gspaces
    >>> from escnn_relax.nn import RelaxedR2Conv
    >>> space = gspaces.rot2dOnR2(8)
    >>> fields = FieldType(space, [space.regular_repr])
    >>> layer = RelaxedR2Conv(fields, fields, 5, padding=2)
    >>> _ = torch.nn.init.constant_(layer.weights["irrep_1"], 0.1)
    >>> quarter, eighth = (space.fibergroup.element(n) for n in (2, 1))
    >>> for found in interpolation_apart(layer, fields(torch.randn(1, 8, 17, 17)), (quarter, eighth)):
    ...     print(found.interpolation < 1e-6, found.kernel > 0.1)
    True True
    False True
    """
    where = where or type(layer).__name__
    if not isinstance(layer, RelaxedConvolution) or not hasattr(layer, "relaxation"):
        remedy = "pass a relaxed layer, before it is hardened or merged"
        raise UnsupportedModuleError(where, "its breaking part is not known", remedy=remedy)
    norm = float(input.tensor.double().norm())
    if not 0 < norm < math.inf:
        raise ArgumentError(where, "an input of norm 0, or not finite", got=norm, remedy="pass one to measure on")
    strict, broken = copy.deepcopy(layer), copy.deepcopy(layer)
    with torch.no_grad():
        for p in layer.pathways:
            (strict if p.breaks else broken).weights[p.name].zero_()
        if broken.bias is not None:
            broken.bias.zero_()
    chosen = list(layer.space.testing_elements) if elements is None else list(elements)
    found = []
    for g in chosen:
        sizes = [float(_error(part, input, g).double().norm()) / norm for part in (layer, strict, broken)]
        found.append(Apart(g, *sizes))
    return tuple(found)


@torch.no_grad()
def _error(layer: Any, input: GeometricTensor, g: GroupElement) -> Tensor:
    turned = transform_field(layer(input).tensor, layer.out_type, g)
    error: Tensor = layer(GeometricTensor(transform_field(input.tensor, input.type, g), input.type)).tensor - turned
    return error
