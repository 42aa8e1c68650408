r"""Larger subgroups that the evidence refutes by no more than what the pixels may have lost.

A kernel that comes from a process in the plane, not from a layer, may have a symmetry whose elements move no pixels to
pixels; what its samples then lack of it, the evidence sees, once there are data enough (32 nats, for a medium with
fibres at 30 degrees seen through 7 x 7 pixels, where the next larger group costs 11 000). A grid that gives the share
:math:`\ell` of the kernels that a subgroup F has beyond H to H (:mod:`escnn_relax.symmetry.kernels.grid_loss`) gives as
much back: so of what tells H from a larger S, which costs :math:`\Delta_S` nats more, about :math:`\ell \Delta_S` may
stand against H that is the pixels' alone.

.. math:: \Delta_H \le \ell_{FH} \min_{S > H} \Delta_S \implies \text{H may survive as well.}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ...nn.measured.kernel_symmetry import KernelSymmetry
from ...symmetry.groups.lattice import Subgroup
from ...symmetry.kernels.ring_geometry import ROUNDING
from ...symmetry.kernels.subgroup_search import SubgroupSearch

__all__ = ["blurred", "budget"]


def budget(fractions: Sequence[float], costs: Sequence[float]) -> float:
    """Nats that may stand against a subgroup for the pixels alone.

    Args:
        fractions: that the pixels of each layer lose of the difference between H and the smaller subgroup.
        costs: of the next larger subgroups (nats); none above G, which pixels cannot make smaller.

    >>> round(budget([0.05, 0.02], [400.0, 900.0]), 2), budget([0.0], [400.0]), budget([0.05], [])
    (8.0, 0.0, 0.0)
    """
    least = min(fractions, default=0.0)  # the layer that sees best decides
    if not costs or not ROUNDING < least < 1 - ROUNDING:
        return 0.0
    return least * min(costs)


def blurred(
    layers: Sequence[KernelSymmetry],
    survived: Subgroup,
    costs: Mapping[str, float],
    larger: Sequence[Subgroup],
    search: SubgroupSearch,
    cost: Callable[[Subgroup], float],
) -> tuple[Subgroup, ...]:
    """Those of the next larger subgroups that the pixels alone may have refuted.

    Args:
        costs: of each, by name (nats).
        cost: of any subgroup instead of ``survived`` (nats).
    """
    possible = []
    for h in larger:
        fractions = [loss.fraction for loss in (s.lost(survived, h) for s in layers) if loss.kernels]
        if not budget(fractions, [1.0]):
            continue  # moves pixels to pixels, or nothing tells the two apart
        above = search.larger(h, lambda other: max(s.remainder(other) for s in layers))
        if costs[h.name] <= budget(fractions, [cost(other) for other in above]):
            possible.append(h)
    return tuple(possible)
