"""How far a module or a model is from being equivariant, by group element."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from escnn.group import GroupElement
from escnn.gspaces import GSpace
from escnn.nn import EquivariantModule, FieldType, GeometricTensor
from torch import Tensor

from ...deprecation import former_where
from ...errors import ArgumentError, FieldTypeError, NotEquivariantError
from ..grid.field_action import acts_on_grid, axes_matrix, fiber_matrix, move_points, transform_field
from ..grid.strides import watch_strides
from .error_record import EquivarianceError, default_elements, grid_elements, relative
from .kernel_error import kernel_equivariance_error

__all__ = [
    "EquivarianceError",
    "acts_on_grid",
    "assert_equivariant",
    "equivariance_error",
    "grid_elements",
    "kernel_equivariance_error",
]


@former_where
def equivariance_error(
    module: Callable[..., Any],
    input: GeometricTensor | Tensor | None = None,
    elements: Iterable[GroupElement] | None = None,
    *,
    in_type: FieldType | None = None,
    out_type: FieldType | None = None,
    size: int | None = None,
) -> EquivarianceError:
    r"""Relative error of equivariance on the sampling grid, for each group element.

    .. math:: e(g) = \frac{\|f(g x) - g f(x)\|}{\tfrac12 (\|f(g x)\| + \|g f(x)\|)}

    Where an output is not finite the error is NaN: nothing is known, and no tolerance is met.

    Elements that move pixels between pixels are interpolated by cubic splines; then input and comparison are cut to the
    inscribed disk, and the result holds the error of interpolation too.

    Args:
        module: an EquivariantModule, or any model that takes a GeometricTensor or (with ``in_type``) a tensor, and
            returns a GeometricTensor or a tensor. A plain tensor is taken as invariant features; if it has space axes,
            these transform. The module's mode (train, eval) is left as it is, except that running statistics that it
            changes are restored.
        input: what it is fed; random by default, of the type and precision of the module.
        elements: of the input's group; by default those that act exactly on the grid, if there are any besides the
            identity, else escnn's testing elements.
        in_type: type of the input of a model that takes a plain tensor.
        out_type: type of the output, where a plain tensor is more than invariant.
        size: side of the default input.

    Raises:
        FieldTypeError: the input's type is not known.
        ArgumentError: an element of another group, or one that the output's group lacks.

    >>> from escnn import gspaces, nn
    >>> space = gspaces.rot2dOnR2(4)
    >>> type = nn.FieldType(space, [space.regular_repr])
    >>> print(equivariance_error(nn.R2Conv(type, type, 3)).max < 1e-5)
    True
    """
    kind = type(module)
    plain = in_type is not None and not isinstance(module, EquivariantModule)
    declared = in_type or (input.type if isinstance(input, GeometricTensor) else getattr(module, "in_type", None))
    if not isinstance(declared, FieldType):
        raise FieldTypeError(
            kind, "the type of the input is not known", remedy="pass a GeometricTensor, or in_type= for a plain tensor"
        )
    coords = input.coords if isinstance(input, GeometricTensor) else None
    tensor = input.tensor if isinstance(input, GeometricTensor) else input
    if isinstance(input, GeometricTensor) and in_type is None:
        plain = False
    gspace = declared.gspace
    elements = default_elements(gspace) if elements is None else list(elements)
    if not elements:
        remedy = "leave elements out for those that act on the grid"
        raise ArgumentError(kind, expected="at least one element", got="none", remedy=remedy)
    for g in elements:
        if g.group != gspace.fibergroup:
            remedy = "take them from gspace.fibergroup of the input's type"
            raise ArgumentError(
                kind, expected=f"elements of {gspace.fibergroup.name}", got=f"one of {g.group.name}", remedy=remedy
            )
    exact = coords is not None or all(acts_on_grid(gspace, g) for g in elements)
    if tensor is None:
        tensor = _random(module, declared, size, smooth=not exact)
    if not exact:
        tensor = tensor * _disk(tensor, gspace.dimensionality)

    def call(x: Tensor, points: Tensor | None) -> Any:
        return module(x if plain else GeometricTensor(x, declared, points))

    state = _statistics(module)
    try:
        with torch.no_grad(), watch_strides(module) as uneven:
            errors = [_element_error(call, tensor, coords, declared, out_type, g, exact, kind, state) for g in elements]
    finally:
        _restore(state)
    return EquivarianceError(tuple(elements), tuple(errors), exact, gspace, tuple(uneven.items()))


def _element_error(
    call: Callable[[Tensor, Tensor | None], Any],
    tensor: Tensor,
    coords: Tensor | None,
    in_type: FieldType,
    out_type: FieldType | None,
    g: GroupElement,
    exact: bool,
    kind: type,
    state: list[tuple[Tensor, Tensor]],
) -> float:
    gspace = in_type.gspace
    points = None
    if coords is None:
        image = transform_field(tensor, in_type, g)
    else:
        image = torch.einsum("oi,bi...->bo...", fiber_matrix(in_type, g, tensor), tensor)
        points = coords @ torch.as_tensor(np.asarray(gspace.basespace_action(g)).T).to(coords)
    devices = [tensor.device] if tensor.is_cuda else []
    with torch.random.fork_rng(devices=devices):
        seed = torch.random.initial_seed()
        torch.manual_seed(seed)
        image_output = call(image, points)
        _restore(state)
        torch.manual_seed(seed)
        output = call(tensor, coords)
        _restore(state)
    type_ = out_type or (output.type if isinstance(output, GeometricTensor) else None)
    output, image_output = (y.tensor if isinstance(y, GeometricTensor) else y for y in (output, image_output))
    if type_ is None:
        d = gspace.dimensionality
        expected = move_points(output, axes_matrix(gspace, g)) if d and output.ndim == 2 + d else output
    else:
        h = g if type_.gspace.fibergroup == gspace.fibergroup else _counterpart(type_.gspace, gspace, g, kind)
        if coords is None:
            expected = transform_field(output, type_, h)
        else:
            expected = torch.einsum("oi,bi...->bo...", fiber_matrix(type_, h, output), output)
    if not exact and expected.ndim == 2 + gspace.dimensionality and min(expected.shape[2:]) > 1:
        mask = _disk(expected, gspace.dimensionality)
        expected, image_output = expected * mask, image_output * mask
    expected, image_output = expected.double(), image_output.double()  # squares of what float32 holds do not overflow
    return relative((expected - image_output).norm().item(), (expected.norm() + image_output.norm()).item() / 2)


def _counterpart(space: GSpace, original: GSpace, g: GroupElement, kind: type) -> GroupElement:
    """The element of the output's (smaller) group that moves points as ``g`` does."""
    if space.dimensionality == original.dimensionality and space.dimensionality > 0:
        matrix = np.asarray(original.basespace_action(g))
        group = space.fibergroup
        for h in group.elements if group.order() > 0 else group.testing_elements():
            if np.abs(np.asarray(space.basespace_action(h)) - matrix).max() < 1e-6:
                return h
    raise ArgumentError(
        kind,
        f"{g} acts on the input but is not known to the output's group {space.fibergroup.name}",
        remedy="pass elements= that lie in both groups",
    )


def _random(module: Callable[..., Any], in_type: FieldType, size: int | None, smooth: bool) -> Tensor:
    d = in_type.gspace.dimensionality
    parameters = module.parameters() if isinstance(module, torch.nn.Module) else ()
    like = next(iter(parameters), torch.empty(0))
    side = size or {2: 33 if smooth else 17, 3: 17 if smooth else 9}.get(d, 1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, in_type.size, *(side,) * d, generator=generator, dtype=torch.float64)
    if smooth:  # a spline follows what varies slowly
        pool = torch.nn.functional.avg_pool2d if d == 2 else torch.nn.functional.avg_pool3d
        for _ in range(3):
            x = pool(x, 5, stride=1, padding=2)
        x = x / x.std()
    return x.to(dtype=like.dtype, device=like.device)


def _disk(tensor: Tensor, d: int) -> Tensor:
    axes = [torch.linspace(-1, 1, n, dtype=tensor.dtype, device=tensor.device) for n in tensor.shape[-d:]]
    squares = sum((a**2 for a in torch.meshgrid(*axes, indexing="ij")), torch.zeros(()))
    return (squares <= 0.9).to(tensor.dtype)


def _statistics(module: Any) -> list[tuple[Tensor, Tensor]]:
    buffers = list(module.buffers()) if isinstance(module, torch.nn.Module) else []
    return [(b, b.detach().clone()) for b in buffers if b.requires_grad is False and b.numel() < 10**6]


def _restore(state: list[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for buffer, value in state:
            if not torch.equal(buffer, value):
                buffer.copy_(value)


@former_where
def assert_equivariant(module: Callable[..., Any], tolerance: float = 1e-4, **arguments: Any) -> EquivarianceError:
    """:func:`equivariance_error`, raising :class:`~escnn_relax.errors.NotEquivariantError`, which is an
    ``AssertionError`` too, when it exceeds ``tolerance`` or is not finite.

    >>> import torch
    >>> from escnn import gspaces, nn
    >>> from escnn_relax.nn import RelaxedR2Conv
    >>> space = gspaces.rot2dOnR2(4)
    >>> type = nn.FieldType(space, [space.regular_repr])
    >>> layer = RelaxedR2Conv(type, type, 3)
    >>> len(assert_equivariant(layer))  # elements tried, all but the identity
    3
    >>> _ = torch.nn.init.normal_(layer.weights["irrep_1"])
    >>> assert_equivariant(layer)
    Traceback (most recent call last):
    escnn_relax.errors.NotEquivariantError: RelaxedR2Conv: not equivariant: relative error ... tolerance 1e-04; ...

    Raises:
        ArgumentError: a tolerance that is no number of 0 or more.
    """
    kind = type(module)
    if not isinstance(tolerance, (int, float)):
        remedy = "pass the input by its name, input="
        raise ArgumentError(kind, expected="a tolerance, a number", got=type(tolerance).__name__, remedy=remedy)
    if not tolerance >= 0:
        raise ArgumentError(kind, expected="a tolerance of 0 or more", got=tolerance, remedy="1e-4 is the default")
    error = equivariance_error(module, **arguments)
    if not error.max <= tolerance:
        if not math.isfinite(error.max):
            problem, remedy = "the outputs are not finite", "look for NaN or infinite weights, statistics or inputs"
        else:
            problem = f"relative error {error.max:.2e} under {error.worst}, tolerance {tolerance:.0e}"
            remedy = "print(report(model)) shows which layer breaks the symmetry"
        raise NotEquivariantError(kind, f"not equivariant: {problem}", remedy=remedy)
    return error
