"""The largest subgroup that survives in the kernels of relaxed layers."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ...errors import ArgumentError, UnsupportedModuleError
from ...symmetry.groups.lattice import Subgroup
from ...symmetry.groups.subgroup import group_size
from ...symmetry.kernels.pathway import SWITCHED_OFF
from ...symmetry.kernels.subgroup_search import SubgroupSearch
from .kernel_symmetry import KernelSymmetry

__all__ = ["Survivor", "Verdict", "stabiliser", "stabilisers", "subgroup_search", "verdict"]

#: Where the evidence does not know, what holds more than this many times the energy that counts as switched off is
#: alive; below, it may be noise that the precisions have not yet removed.
ALIVE = 10

#: A change of log evidence (nats) that says nothing: Kass and Raftery's "not worth more than a bare mention".
INDIFFERENT = 1.0

#: A loss of log evidence (nats) that refutes a subgroup. Each precision that the freedom of a smaller one is given at
#: its best value gains :math:`z^2/2` by chance, where z > 0 is standard normal; 5 nats, "very strong", in one case of a
#: thousand.
REFUTED = 5.0

Gain = Callable[[KernelSymmetry, Subgroup], float]


class Survivor(NamedTuple):
    """A subgroup, the share of the kernel's energy that it does not fix (fraction), and those that may survive as
    well."""

    subgroup: Subgroup
    remainder: float
    candidates: tuple[Subgroup, ...] = ()


class Verdict(enum.IntEnum):
    """Whether a subgroup survives."""

    NO = 0
    UNDECIDED = 1
    YES = 2


def subgroup_search(layers: Sequence[KernelSymmetry]) -> SubgroupSearch:
    """The subgroups that the kernels of these layers can tell apart, each in space where it leaves least of them."""
    known, key = layers[-1].searches, tuple(map(id, layers))
    if key not in known:
        turning = all(pair.irreps_only for s in layers for pair in s.pairs.values())
        kernels = [kernel for s in layers for kernel in s.turning()] if turning else []
        known[key] = (
            tuple(layers),
            SubgroupSearch(layers[0].layer.space, max(s.search().highest for s in layers), kernels),
        )
    return known[key][1]


def verdict(
    symmetry: KernelSymmetry, subgroup: Subgroup, energy: float, gains: Sequence[Gain], search: SubgroupSearch
) -> Verdict:
    """Whether a subgroup survives in a layer, see :func:`stabiliser`."""
    left = symmetry.remainder(subgroup)
    if left <= energy:
        return Verdict.YES
    if not gains:
        return Verdict.NO
    result = Verdict.YES
    for smaller in search.smaller(subgroup):
        nats = [gain(symmetry, subgroup) - gain(symmetry, smaller) for gain in gains]
        if max(nats) < -REFUTED:
            return Verdict.NO
        if min(nats) <= INDIFFERENT and left - symmetry.remainder(smaller) > ALIVE * energy:
            result = Verdict.UNDECIDED
    return result


def stabiliser(
    layers: Sequence[KernelSymmetry], energy: float = SWITCHED_OFF, gain: Gain | None = None, also: Gain | None = None
) -> Survivor:
    """The largest subgroup that survives in all these layers, with the largest share that it leaves in one of them.

    Each subgroup H is judged by its own kernels, as the pixel grid has them: what is left of the learned kernel without
    its nearest one is what H contradicts. Whole irreps decide nothing, since a grid mixes them: on 3x3 pixels the
    kernels of C3 are not made of those of C6's irreps 0 and 3.

    Args:
        energy: a subgroup survives in a layer if it leaves no more than this share of its energy (fraction).
        gain: of a layer and a subgroup, the change of the log evidence if it is demanded (nats). A subgroup also
            survives if the evidence prefers it to each smaller one (:data:`INDIFFERENT`), and it does not if the
            evidence prefers one of these beyond chance (:data:`REFUTED`). In between it survives if it leaves no more
            than ten times that share more than the smaller one, for that may be noise. Above that it is one of the
            ``candidates``: nobody can tell.
        also: the same, read in another way: what one of them refutes and the other does not, nobody can tell.

    Returns:
        with ``gain``, of several that survive and none of which contains another the one with the most evidence,
        otherwise the largest, of several the one with the least remainder.

    Raises:
        UnsupportedModuleError: layers of different groups.
        ArgumentError: no layer, or an ``energy`` that is no fraction.

    >>> import torch
    >>> from escnn import gspaces, nn
    >>> from escnn_relax.nn import RelaxedR2Conv
    >>> space = gspaces.rot2dOnR2(4)
    >>> fields = nn.FieldType(space, [space.regular_repr])
    >>> layer = RelaxedR2Conv(fields, fields, 3)
    >>> _ = torch.nn.init.normal_(layer.weights["irrep_2"])
    >>> stabiliser([KernelSymmetry(layer)]).subgroup.name
    'C2'
    """
    if not layers or not 0 <= energy < 1:
        remedy = "pass the KernelSymmetry of each layer; 1e-4 is the default energy"
        raise ArgumentError(
            "stabiliser",
            expected="at least one layer and an energy in [0, 1)",
            got=(len(layers), energy),
            remedy=remedy,
        )
    group = layers[0].layer.space.fibergroup
    for other in layers:
        if other.layer.space.fibergroup != group:
            raise UnsupportedModuleError(
                other.title,
                f"its group is {other.layer.space.fibergroup.name}, that of {layers[0].title} {group.name}",
                remedy="read the parts of the network on different groups by themselves",
            )
    search = subgroup_search(layers)
    undecided: list[Subgroup] = []
    gains = [g for g in (gain, also) if g is not None]

    def remainder(subgroup: Subgroup) -> float:
        return max(s.remainder(subgroup) for s in layers)

    def survives(subgroup: Subgroup) -> bool:
        worst = Verdict.YES
        for s in layers:
            worst = min(worst, verdict(s, subgroup, energy, gains, search))
            if worst == Verdict.NO:
                break
        if worst == Verdict.UNDECIDED:
            undecided.append(subgroup)
        return worst == Verdict.YES

    def evidence(subgroup: Subgroup) -> tuple[float, ...]:
        size, components = group_size(subgroup.group)
        nats = () if gain is None else (sum(gain(s, subgroup) for s in layers),)
        return (*nats, size, components, -remainder(subgroup))

    def cost(subgroup: Subgroup) -> float:
        return -sum(gain(s, subgroup) for s in layers) if gain is not None else 0.0

    chosen = max(search.maximal(remainder, survives, None if gain is None else cost), key=evidence)
    return Survivor(chosen, remainder(chosen), tuple(h for h in undecided if not h <= chosen))


def stabilisers(
    layers: Sequence[KernelSymmetry],
    energy: float = SWITCHED_OFF,
    gain: Gain | None = None,
) -> list[Survivor]:
    """By depth: for each layer the largest subgroup that survives in it and in all layers before it.

    What an early layer has broken, no later one can give back, so symmetry never grows with depth.
    """
    return [stabiliser(layers[: depth + 1], energy, gain) for depth in range(len(layers))]
