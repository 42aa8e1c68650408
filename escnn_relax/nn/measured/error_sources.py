"""Where the error of a relaxed layer comes from: what it learned, or interpolation on the grid."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from escnn.group import GroupElement
from escnn.nn import GeometricTensor
from torch import Tensor

from ...errors import ArgumentError, UnsupportedModuleError
from ...symmetry.grid.field_action import transform_field
from ..relaxed_convolution import RelaxedConvolution

__all__ = ["ErrorSources", "error_sources"]


@dataclass(frozen=True)
class ErrorSources:
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


def error_sources(
    layer: RelaxedConvolution, input: GeometricTensor, elements: Sequence[GroupElement] | None = None
) -> tuple[ErrorSources, ...]:
    """Measure the error of equivariance on one input, and how much of it is interpolation.

    Args:
        layer: a relaxed layer; left alone.
        input: of its type; any norm, to which the errors are relative.
        elements: escnn's testing elements by default.

    Raises:
        UnsupportedModuleError: a layer whose breaking part is not known, such as a mixed or hardened one.
        ArgumentError: an input of norm 0 or that is not finite.

    >>> from escnn import gspaces
    >>> from escnn.nn import FieldType
    >>> from escnn_relax.nn import RelaxedR2Conv
    >>> space = gspaces.rot2dOnR2(8)
    >>> fields = FieldType(space, [space.regular_repr])
    >>> layer = RelaxedR2Conv(fields, fields, 5, padding=2)
    >>> _ = torch.nn.init.constant_(layer.weights["irrep_1"], 0.1)
    >>> quarter, eighth = (space.fibergroup.element(n) for n in (2, 1))
    >>> for source in error_sources(layer, fields(torch.randn(1, 8, 17, 17)), (quarter, eighth)):
    ...     print(source.interpolation < 1e-6, source.kernel > 0.1)
    True True
    False True
    """
    if not isinstance(layer, RelaxedConvolution):
        remedy = "pass a relaxed layer, before it is hardened or merged"
        raise UnsupportedModuleError(type(layer), "its breaking part is not known", remedy=remedy)
    norm = float(input.tensor.double().norm())
    if not 0 < norm < math.inf:
        raise ArgumentError(type(layer), "an input of norm 0, or not finite", got=norm, remedy="pass one to measure on")
    strict, broken = copy.deepcopy(layer), copy.deepcopy(layer)
    with torch.no_grad():
        for p in layer.pathways:
            (strict if p.breaks else broken).weights[p.name].zero_()
        if broken.bias is not None:
            broken.bias.zero_()
    chosen = list(layer.space.testing_elements) if elements is None else list(elements)
    sources = []
    for g in chosen:
        sizes = [float(_error(summand, input, g).double().norm()) / norm for summand in (layer, strict, broken)]
        sources.append(ErrorSources(g, *sizes))
    return tuple(sources)


@torch.no_grad()
def _error(layer: Any, input: GeometricTensor, g: GroupElement) -> Tensor:
    turned = transform_field(layer(input).tensor, layer.out_type, g)
    error: Tensor = layer(GeometricTensor(transform_field(input.tensor, input.type, g), input.type)).tensor - turned
    return error
