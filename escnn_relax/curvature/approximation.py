"""Which approximation each parameter gets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..errors import ArgumentError
from .conventions import APPROXIMATIONS

__all__ = ["draws", "recipe", "AUTOMATIC"]

#: The name of the choice by size.
AUTOMATIC = "auto"

#: ``auto`` is exact for parameters of at most so many weights, and ``expand`` for the others: in
#: ``tests/benchmarks/curvature.md`` that decides as exact blocks do in more than 99 % of the cases, at 1.7 times the
#: cost of ``expand`` (98 %), while the cost of exact blocks grows with the square of the number of weights.
LARGEST_EXACT = 256


#: Bytes that exact blocks take for each of their entries, and the part of the memory that is left to them.
BYTES, EXACT_PART = 16, 1 / 4

#: ``auto`` sketches A in layers whose kernels see more than so many numbers (input channels of a group x sites). There
#: the cost of forming and decomposing it, which grows with the cube, overtakes that of the sketch, which does not.
LARGEST_PATCH = 1024

#: Up to so many columns a sample (outputs x places) are taken one by one; of more, one is drawn.
LARGEST_COLUMNS = 256


def draws(samples: None | int | str, columns: int, approximations: Iterable[str]) -> int | None:
    """How many columns are drawn for each sample; ``None`` for all of them, exactly.

    With ``samples="auto"`` one is drawn where a layer is sketched, since a backward pass for each output would then be
    most of the cost, and where there are more than :data:`LARGEST_COLUMNS` of them.

    >>> draws("auto", 10, ["expand"]), draws("auto", 800, ["expand"]), draws(None, 800, ["expand"])
    (None, 1, None)
    """
    if samples != AUTOMATIC:
        return samples  # type: ignore[return-value]  # no other string comes here
    return 1 if columns > LARGEST_COLUMNS or "sketched" in approximations else None


def recipe(
    approximation: str,
    sizes: Mapping[str, int],
    memory: float | None = None,
    patches: Mapping[str, int] | None = None,
) -> dict[str, str]:
    """The approximation of each parameter.

    Args:
        sizes: number of weights of each parameter.
        patches: for ``auto``, how many numbers the kernel of its layer sees at a place; ``expand`` where nothing is
            said.
        memory: MiB that a refresh may take, of which ``auto`` gives a quarter to exact blocks (16 P² bytes for P
            weights): the smallest parameters become exact, as many as fit. Without it, those of at most
            :data:`LARGEST_EXACT` weights.

    >>> sizes = {"small": 100, "middle": 500, "large": 10000}
    >>> recipe("auto", sizes)
    {'small': 'exact', 'middle': 'expand', 'large': 'expand'}
    >>> recipe("auto", sizes, memory=16)
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
            if left >= 0 if memory is not None else sizes[name] <= LARGEST_EXACT:
                exact.add(name)
        wide = {name for name, size in (patches or {}).items() if size > LARGEST_PATCH}
        return {name: "exact" if name in exact else "sketched" if name in wide else "expand" for name in sizes}
    if approximation not in APPROXIMATIONS:
        remedy = "take 'expand', or 'auto' for wide networks"
        raise ArgumentError(
            "curvature", expected=f"one of {(*APPROXIMATIONS, AUTOMATIC)}", got=repr(approximation), remedy=remedy
        )
    return dict.fromkeys(sizes, approximation)
