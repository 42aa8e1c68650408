"""The names of the ways in which one layer may move: its equivariant kernels and each way of leaving them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Pathway", "EQUIVARIANT", "OFF_BAND", "BREAKING_OFF_BAND", "SWITCHED_OFF"]


@dataclass(frozen=True)
class Pathway:
    """One summand of a layer's kernel, with coefficients and a prior precision of its own.

    Attributes:
        name: used for parameters and in reports; no dots.
        kind: ``"equivariant"``, ``"irrep"``, ``"subgroup"`` or ``"off-band"`` (outside escnn's band limit).
        breaks: whether coefficients in it break the symmetry of the group.
        irrep: id of the irrep of the group, for the kind ``"irrep"``.
        subgroup: id of the subgroup under which the pathway's kernels are still equivariant, for ``"subgroup"``.
    """

    name: str
    kind: str
    breaks: bool
    irrep: tuple[Any, ...] | None = None
    subgroup: object = None


#: The kernels equivariant under the whole group: escnn's own basis, element for element.
EQUIVARIANT = Pathway("equivariant", "equivariant", breaks=False)

#: With ``basis="pixel"``, for a group that maps the pixel grid to itself: equivariant kernels beyond the band limit.
OFF_BAND = Pathway("off_band", "off-band", breaks=False)

#: With ``basis="pixel"``, for other groups: all that the band leaves out, which no irrep of the group can claim.
BREAKING_OFF_BAND = Pathway("off_band", "off-band", breaks=True)

#: A pathway with no more than this share of the kernel's energy counts as switched off (fraction): 1 % in amplitude.
#: Residual pathways that a network lives by have been seen at 0.1 %; those that the evidence switched off end below
#: 1e-5.
SWITCHED_OFF = 1e-4
