"""Which approximation each parameter gets: by name, by the class of a user's own, or by the parameter's size."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..errors import ArgumentError
from .approximation import Approximation
from .conventions import DECOMPOSED
from .layers.coverage import Coverage
from .layers.linear_map import width
from .sums.accumulation import Expand, Reduce
from .sums.eigenvalue_corrected import EigenvalueCorrected
from .sums.exact import Diagonal, Exact
from .sums.sketched import Sketched

__all__ = ["APPROXIMATIONS", "AUTOMATIC", "known_approximations", "patch_sizes", "recipe"]

#: The approximations that have a name, in the order in which those of one layer are summed.
APPROXIMATIONS: dict[str, Approximation] = {
    approximation.name: approximation
    for approximation in (Expand(), Reduce(), EigenvalueCorrected(), Exact(), Diagonal(), Sketched())
}

#: The name of the choice by size.
AUTOMATIC = "auto"

#: ``auto`` is exact for parameters of at most so many weights, and ``expand`` for the others: in
#: ``tests/benchmarks/curvature.md`` that decides as exact blocks do in more than 99 % of the cases, at 1.7 times the
#: cost of ``expand`` (98 %), while the cost of exact blocks grows with the square of the number of weights.
LARGEST_EXACT = 256

#: Bytes that exact blocks take for each of their entries, what decomposing the largest takes beside, and the part of
#: the memory that is left to both.
BYTES, ENDING, EXACT_PART = 16, DECOMPOSED, 1 / 4

#: ``auto`` sketches A in layers whose kernels see more than so many numbers (input channels of a group x sites). There
#: the cost of forming and decomposing it, which grows with the cube, overtakes that of the sketch, which does not.
LARGEST_PATCH = 1024


def known_approximations(approximation: str | Approximation) -> dict[str, Approximation]:
    """Those that a :func:`recipe` may name: :data:`APPROXIMATIONS`, and the one that a user passes."""
    return APPROXIMATIONS if isinstance(approximation, str) else {**APPROXIMATIONS, approximation.name: approximation}


def patch_sizes(coverage: Coverage) -> dict[str, int]:
    """How many numbers the kernel that a parameter belongs to sees at a place, by the parameter's name in the model."""
    sizes = {}
    with torch.no_grad():
        for layer_weights in coverage.weights:
            layer = coverage.linear_map(layer_weights.layer)
            widths = {block.parameter: sum(width(piece) for piece in block.pieces) for block in layer.blocks}
            sizes.update(
                {name: widths[inside] for inside, name in layer_weights.parameters.items() if inside in widths}
            )
    return sizes


def recipe(
    approximation: str | Approximation,
    sizes: Mapping[str, int],
    memory: float | None = None,
    patches: Mapping[str, int] | None = None,
) -> dict[str, str]:
    """The name of the approximation of each parameter.

    Args:
        approximation: a name out of :data:`APPROXIMATIONS`, one of a user's own, or ``"auto"``.
        sizes: number of weights of each parameter.
        patches: for ``auto``, how many numbers the kernel of its layer sees at a place; ``expand`` where nothing is
            said.
        memory: MiB that a refresh may take, of which ``auto`` gives a quarter to exact blocks (16 P² bytes for P
            weights, and 40 P² for decomposing the largest): the smallest parameters become exact, as many as fit.
            Without it, those of at most :data:`LARGEST_EXACT` weights.

    Raises:
        ArgumentError: an unknown name, a class instead of one of it, or no memory.

    >>> sizes = {"small": 100, "middle": 500, "large": 10000}
    >>> recipe("auto", sizes)
    {'small': 'exact', 'middle': 'expand', 'large': 'expand'}
    >>> recipe("auto", sizes, memory=64)
    {'small': 'exact', 'middle': 'exact', 'large': 'expand'}
    >>> recipe("auto", sizes, patches={"large": 4800})
    {'small': 'exact', 'middle': 'expand', 'large': 'sketched'}
    """
    if memory is not None and not memory > 0:
        remedy = "leave it out for blocks of at most 256 weights"
        raise ArgumentError("memory", expected="MiB, more than 0", got=memory, remedy=remedy)
    if approximation == AUTOMATIC:
        exact, left = set(), 0.0 if memory is None else memory * 2**20 * EXACT_PART
        for name in sorted(sizes, key=sizes.__getitem__):
            left -= BYTES * sizes[name] ** 2
            if (patches or {}).get(name, 0) > LARGEST_PATCH:  # forms the kernel's gradient of every sample, too
                continue
            if left >= ENDING * sizes[name] ** 2 if memory is not None else sizes[name] <= LARGEST_EXACT:
                exact.add(name)
        wide = {name for name, size in (patches or {}).items() if size > LARGEST_PATCH}
        return {name: "exact" if name in exact else "sketched" if name in wide else "expand" for name in sizes}
    if isinstance(approximation, Approximation):
        return dict.fromkeys(sizes, approximation.name)
    if approximation not in APPROXIMATIONS:
        expected = f"one of {(*APPROXIMATIONS, AUTOMATIC)}"
        remedy = "take 'expand', or 'auto' for wide networks"
        if isinstance(approximation, type) and issubclass(approximation, Approximation):
            remedy = f"pass {approximation.__name__}(), not the class"
        raise ArgumentError("curvature", expected=expected, got=repr(approximation), remedy=remedy)
    return dict.fromkeys(sizes, approximation)
