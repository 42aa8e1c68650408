"""How well the kernels of layers tell a subgroup from its neighbours: not at all, or not fully."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ...symmetry.groups.lattice import Subgroup
from ...symmetry.kernels.distinguishing_frequency import telling_size
from ...symmetry.kernels.grid_loss import NEGLIGIBLE, GridLoss, sufficient_size, turning_error
from ...symmetry.kernels.ring_geometry import ROUNDING
from ...symmetry.kernels.sampling import Band
from ...symmetry.kernels.subgroup_search import SubgroupSearch
from .kernel_symmetry import KernelSymmetry

__all__ = ["Alike", "Resolution", "alike", "lost_on_the_grid", "resolution"]


class Alike(NamedTuple):
    """A smaller subgroup with the same kernels in some layers, so that no weights tell it from the larger one.

    Attributes:
        subgroup: it.
        frequency: the lowest angular frequency of kernels that would; ``None`` if none does.
        kernel_size: the smallest odd one that has this frequency under escnn's own band limit; ``None`` where no larger
            kernels are needed, but pathways that the layers were not given, or more than any would do.
    """

    subgroup: Subgroup
    frequency: int | None
    kernel_size: int | None

    def describe(self, group: Subgroup) -> str:
        """In words, beside the subgroup that survives."""
        text = f"cannot tell {group.name} from {self.subgroup.name}, whose kernels are the same here"
        if self.frequency is None:
            return text
        wider = f" (kernel_size={self.kernel_size})" if self.kernel_size else ", for which the layer has no pathways"
        return f"{text}; those of frequency {self.frequency} differ{wider}"


class Resolution(NamedTuple):
    """Of a surviving subgroup.

    Attributes:
        alike: smaller subgroups with the same kernels.
        grid: what the pixels lose of the difference to others, the most first.
    """

    alike: tuple[Alike, ...] = ()
    grid: tuple[GridLoss, ...] = ()

    def lost(self, group: Subgroup) -> float:
        """The most that is lost of the difference between a smaller subgroup and ``kept`` (fraction): 1 where nobody
        can tell."""
        smaller = [loss.fraction for loss in self.grid if loss.larger == group]
        return 1.0 if self.alike else max(smaller, default=0.0)

    def describe(self, group: Subgroup) -> tuple[str, ...]:
        """In words, the most of what is lost on the grid only."""
        return (*(item.describe(group) for item in self.alike), *(str(item) for item in self.grid[:1]))


def resolution(
    layers: Sequence[KernelSymmetry], group: Subgroup, search: SubgroupSearch, candidates: Sequence[Subgroup] = ()
) -> Resolution:
    """What the kernels of these layers cannot tell, or not fully, see :func:`alike` and :func:`lost_on_the_grid`."""
    return Resolution(alike(layers, group, search), lost_on_the_grid(layers, group, search, candidates))


def alike(layers: Sequence[KernelSymmetry], group: Subgroup, search: SubgroupSearch) -> tuple[Alike, ...]:
    """The largest smaller subgroups that fix the same kernels as ``kept`` in all these layers.

    They are symmetries of the kernels as well, so ``kept`` is no wrong answer; but data of theirs would have given it,
    too.
    """
    indistinct: list[Alike] = []
    smaller = search.smaller(group)
    for candidate in search.unresolved(group) + tuple(h for h in smaller if not any(h < other for other in smaller)):
        if not all(s.alike(candidate, group) for s in layers):
            continue
        known = [s.telling_frequency(candidate, group) for s in layers]
        frequency = min((f for f in known if f is not None), default=None)
        wide = frequency is not None and all(frequency > s.layer.band.highest for s in layers)
        d = group.gspace.dimensionality
        indistinct.append(
            Alike(candidate, frequency, telling_size(d, frequency) if wide and frequency is not None else None)
        )
    return tuple(indistinct)


def lost_on_the_grid(
    layers: Sequence[KernelSymmetry], group: Subgroup, search: SubgroupSearch, candidates: Sequence[Subgroup] = ()
) -> tuple[GridLoss, ...]:
    """What the pixels of the layers lose of the difference between ``kept`` and the largest smaller subgroups, whose
    kernels may have been taken for its own, and between candidates and ``kept``; that of the layer which loses least,
    none where nothing is lost.

    Where all is lost see :func:`alike`.
    """
    smaller = search.smaller(group)
    pairs = [(h, group) for h in smaller if not any(h < other for other in smaller)]
    pairs += [(group, h) for h in candidates if group < h]
    grid_losses: list[GridLoss] = []
    for small, large in pairs:
        losses = [(s.lost(small, large), s) for s in layers]
        known = [(loss, s) for loss, s in losses if loss.kernels]
        if not known:
            continue
        least, layer = min(known, key=lambda pair: pair[0].fraction)
        if ROUNDING < least.fraction < 1 - ROUNDING:
            turning = turning_error(layer.layer.band, large) if isinstance(layer.layer.band, Band) else 0.0
            size = (
                sufficient_size(small, large, layer.irreps, layer.layer.kernel_size)
                if least.fraction > NEGLIGIBLE
                else None
            )
            grid_losses.append(GridLoss(small, large, least.fraction, least.sine, turning, size))
    return tuple(sorted(grid_losses, key=lambda loss: -loss.fraction))
