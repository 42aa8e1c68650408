"""Errors of equivariance by group element, and the elements worth asking about."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from escnn.group import GroupElement
from escnn.gspaces import GSpace

from ..grid.field_action import acts_on_grid
from ..html_table import html_table

__all__ = ["EquivarianceError", "default_elements", "grid_elements", "relative"]


def relative(difference: float, reference: float) -> float:
    """``difference / reference``; 0 where there is nothing at all, NaN where either is not finite.

    >>> relative(0.0, 0.0), relative(math.nan, math.nan)
    (0.0, nan)
    """
    if not (math.isfinite(difference) and math.isfinite(reference)):
        return math.nan
    return difference / reference if reference > 0 else 0.0


@dataclass(frozen=True)
class EquivarianceError(Mapping[Any, Any]):
    """Relative errors by group element: a mapping element -> fraction.

    Attributes:
        elements: elements of the group of the input.
        errors: relative L2 error for each.
        exact: whether all elements act exactly on the grid; else the errors contain those of interpolation.
        gspace: where the elements act.
        uneven: name of each module whose stride leaves pixels over on one side of the images that it got, and how many.
    """

    elements: tuple[GroupElement, ...]
    errors: tuple[float, ...]
    exact: bool
    gspace: GSpace
    uneven: tuple[tuple[str, str], ...] = ()

    def __getitem__(self, element: GroupElement) -> float:
        for e, error in zip(self.elements, self.errors):
            if e == element:
                return error
        raise KeyError(element)

    def __iter__(self) -> Iterator[GroupElement]:
        return iter(self.elements)

    def __len__(self) -> int:
        return len(self.elements)

    @property
    def max(self) -> float:
        """The largest error; NaN if any is."""
        return self[self.worst]

    @property
    def worst(self) -> Any:
        """The element with the largest error, or the first whose error is NaN."""
        nan = [g for g, error in zip(self.elements, self.errors) if math.isnan(error)]
        return nan[0] if nan else self.elements[max(range(len(self)), key=self.errors.__getitem__)]

    @property
    def mean(self) -> float:
        """The mean error over the elements."""
        return sum(self.errors) / len(self.errors)

    def by_angle(self) -> list[tuple[float, bool, float]]:
        """For plots: (angle in degrees, whether orientation is reversed, error), sorted.

        In the plane the angle is that of the rotation, or of the reflection's axis; in space that of the rotation.
        """
        rows = [(*_angle(self.gspace, e), error) for e, error in zip(self.elements, self.errors)]
        return sorted(rows, key=lambda row: (row[1], row[0]))

    def __str__(self) -> str:
        kind = "exact on the grid" if self.exact else "with interpolation"
        summary = f"equivariance error of {len(self)} elements ({kind}): mean {self.mean:.2e}, largest {self.max:.2e}"
        return "\n".join([summary, *(f"{name or 'it'}: {message}" for name, message in self.uneven)])

    def _repr_html_(self) -> str:
        rows = [[str(element), f"{error:.2e}"] for element, error in zip(self.elements, self.errors)]
        return html_table(["element", "error"], rows, str(self).splitlines(), words=1)


def _angle(gspace: GSpace, element: GroupElement) -> tuple[float, bool]:
    if gspace.dimensionality == 0:
        return float("nan"), False
    matrix = np.asarray(gspace.basespace_action(element))
    reverses = bool(np.linalg.det(matrix) < 0)
    if gspace.dimensionality == 2:
        angle = math.degrees(math.atan2(matrix[1, 0], matrix[0, 0])) % 360
        return (round(angle / 2, 6) % 180 if reverses else round(angle, 6) % 360), reverses
    cosine = (np.trace(-matrix if reverses else matrix) - 1) / 2
    return round(math.degrees(math.acos(min(1.0, max(-1.0, cosine)))), 6), reverses


def grid_elements(gspace: GSpace) -> list[GroupElement]:
    """The elements of a finite group, or of escnn's testing elements, that act exactly on the pixel grid.

    >>> from escnn import gspaces
    >>> len(grid_elements(gspaces.flipRot2dOnR2(8)))
    8
    """
    group = gspace.fibergroup
    elements = list(group.elements) if group.order() > 0 else list(group.testing_elements())
    return [g for g in elements if acts_on_grid(gspace, g)]


def default_elements(gspace: GSpace) -> list[GroupElement]:
    exact = [g for g in grid_elements(gspace) if g != gspace.fibergroup.identity]
    if exact or gspace.fibergroup.order() == 1:
        return exact or [gspace.fibergroup.identity]
    return list(gspace.testing_elements)
