"""How far a kernel is from being equivariant, without any interpolation."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from escnn.group import GroupElement
from escnn.nn import FieldType
from torch import Tensor

from ...errors import ArgumentError
from ..grid.field_action import acts_on_grid, axes_matrix, fiber_matrix, move_points
from .error_record import EquivarianceError, default_elements, relative

__all__ = ["kernel_equivariance_error"]


def kernel_equivariance_error(
    kernel: Tensor | Callable[[Tensor], Tensor],
    in_type: FieldType,
    out_type: FieldType,
    points: Tensor | None = None,
    elements: Iterable[GroupElement] | None = None,
) -> EquivarianceError:
    r"""Relative distance of a kernel from its transforms, without any interpolation.

    .. math:: e(g) = \frac{\|\rho_{out}(g) K(g^{-1} x) \rho_{in}(g)^{-1} - K(x)\|}{\|K\|}

    NaN for a kernel that is not finite.

    Args:
        kernel: sampled on a centred grid, shape ``(out, in, *space)``: then elements must act on the grid. Or a
            function of points ``(S, d)`` with values ``(out, in, S)``, such as an expansion in an analytic basis: then
            any element will do, and the error is exact.
        in_type, out_type: field types over the group to test, which may be larger than the kernel's own.
        points: where a function is compared, shape ``(S, d)``; random in the unit ball by default.
        elements: as in :func:`equivariance_error`.

    Raises:
        ArgumentError: a sampled kernel and an element that leaves the grid, or a kernel of another shape.

    >>> import torch
    >>> from escnn import gspaces, nn
    >>> space = gspaces.flipRot2dOnR2(4)
    >>> scalar = nn.FieldType(space, [space.trivial_repr])
    >>> blob = torch.tensor([[0., 1., 0.], [1., 2., 1.], [0., 1., 0.]]).view(1, 1, 3, 3)
    >>> kernel_equivariance_error(blob, scalar, scalar).max
    0.0
    """
    gspace = in_type.gspace
    analytic = not isinstance(kernel, Tensor)
    d = gspace.dimensionality
    if elements is None:
        elements = list(gspace.testing_elements) if analytic else default_elements(gspace)
        if not analytic:
            elements = [g for g in elements if acts_on_grid(gspace, g)]
    elements = list(elements) or [gspace.fibergroup.identity]
    sizes = (out_type.size, in_type.size)
    if isinstance(kernel, Tensor) and (kernel.shape[:2] != sizes or kernel.ndim not in (2, 2 + d)):
        raise ArgumentError(
            "",
            expected=f"a kernel of shape ({out_type.size}, {in_type.size}, *{d} axes)",
            got=tuple(kernel.shape),
            remedy="pass the kernel as expand_parameters() returns it",
        )
    if points is None:
        points = torch.rand(64, d, generator=torch.Generator().manual_seed(0)) * 2 - 1
    errors = []
    with torch.no_grad():
        reference = kernel if isinstance(kernel, Tensor) else kernel(points)
        for g in elements:
            if not isinstance(kernel, Tensor):
                matrix = torch.as_tensor(np.asarray(gspace.basespace_action(g))).to(points)
                image = kernel(points @ matrix)  # rows: g^{-1} x
            elif not acts_on_grid(gspace, g):
                raise ArgumentError(
                    "", f"{g} does not map the grid onto itself", remedy="pass the kernel as a function of points"
                )
            else:
                image = move_points(kernel, axes_matrix(gspace, g)) if kernel.ndim > 2 else kernel
            out_matrix, in_matrix = fiber_matrix(out_type, g, reference), fiber_matrix(in_type, ~g, reference)
            difference = torch.einsum("po,oi...,iq->pq...", out_matrix, image, in_matrix) - reference
            errors.append(relative(difference.double().norm().item(), reference.double().norm().item()))
    exact = analytic or all(acts_on_grid(gspace, g) for g in elements)
    return EquivarianceError(tuple(elements), tuple(errors), exact, gspace)
