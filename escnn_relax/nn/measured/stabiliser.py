"""The symmetry that a relaxed layer's kernel has kept: what of it each subgroup leaves fixed."""

from __future__ import annotations

import enum
import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from escnn.group import IrreducibleRepresentation
from torch import Tensor

from ...errors import ArgumentError, DataError, UnsupportedModuleError
from ...symmetry.groups.lattice import Subgroup, subgroup
from ...symmetry.groups.subgroup import group_size
from ...symmetry.kernels.fixed_kernels import FixedKernels, SubgroupSearch
from ...symmetry.kernels.grid_loss import LossSums, grid_loss, irrep_multiplicities
from ...symmetry.kernels.pathway import EQUIVARIANT, SWITCHED_OFF, Pathway
from ...symmetry.kernels.positions import TurningKernels
from ...symmetry.kernels.sampling import Band
from ...symmetry.kernels.telling_frequency import telling_frequency
from ..relaxed_convolution import RelaxedConvolution

__all__ = [
    *("KernelSymmetry", "Survivor", "Verdict"),
    *("stabiliser", "stabilisers", "subgroup_search", "verdict"),
]

Pair = tuple[str, str]

#: Where the evidence does not know, what holds more than this many times the energy that counts as switched off is
#: alive; below, it may be noise that the precisions have not yet removed.
ALIVE = 10

#: A change of log evidence (nats) that says nothing: Kass and Raftery's "not worth more than a bare mention".
INDIFFERENT = 1.0

#: A loss of log evidence (nats) that refutes a subgroup. Each precision that the freedom of a smaller one is given at
#: its best value gains :math:`z^2/2` by chance, where z > 0 is standard normal; 5 nats, "very strong", in one case of a
#: thousand.
REFUTED = 5.0

Gain = Callable[["KernelSymmetry", Subgroup], float]


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


class KernelSymmetry:
    r"""The kernel of one relaxed layer at its present weights, as subgroups see it.

    The kernels of the layer that are equivariant under H form a subspace; :math:`P_H K` is the nearest of them on the
    pixel grid. For H that moves pixels to pixels it is the average of K over H.

    Args:
        layer: a relaxed layer.
        where: its name in the model.

    Raises:
        UnsupportedModuleError: a layer whose pathways are not orthogonal to each other, such as a mixed one.
        DataError: NaN or infinite weights.

    >>> from escnn import gspaces, nn
    >>> from escnn_relax.nn import RelaxedR2Conv
    >>> space = gspaces.rot2dOnR2(4)
    >>> fields = nn.FieldType(space, [space.regular_repr])
    >>> layer = RelaxedR2Conv(fields, fields, 3)
    >>> _ = torch.nn.init.normal_(layer.weights["irrep_2"])
    >>> symmetry = KernelSymmetry(layer)
    >>> round(symmetry.remainder(subgroup(space, 2)), 6), stabiliser([symmetry]).subgroup.name
    (0.0, 'C2')
    """

    def __init__(self, layer: RelaxedConvolution, where: str = "") -> None:
        self.name, where = where, where or type(layer).__name__
        if not hasattr(layer, "relaxation"):
            raise UnsupportedModuleError(
                where, f"the summands of a {type(layer).__name__} overlap", remedy="merge it first, or use relax"
            )
        self.layer, self.where = layer, where
        self.residual: tuple[Pathway, ...] = tuple(p for p in layer.pathways if p != EQUIVARIANT)
        kernel, rule = layer.kernel, layer.relaxation
        self._blocks = {(b.in_name, b.out_name, name): b for name in kernel.pathways for b in kernel.blocks[name]}
        ins, outs = ({r.name: r for r in of} for of in layer._kernel_fields())
        self.pairs: dict[Pair, FixedKernels] = {}
        for pair in kernel.pairs:
            shape = (0, outs[pair[1]].size, ins[pair[0]].size, kernel.sites)
            of = {p.name: self._blocks.get((*pair, p.name)) for p in layer.pathways}
            rows = {n: torch.zeros(shape) if b is None else kernel.basis(b).detach() for n, b in of.items()}
            own = rows.pop(EQUIVARIANT.name)
            self.pairs[pair] = FixedKernels(
                rule, layer.band, ins[pair[0]], outs[pair[1]], own, [(p, rows[p.name]) for p in self.residual]
            )
        self._weights = {pair: self._of_pair(pair) for pair in self.pairs}
        energies = sum(float(w.square().sum()) for w in self._weights.values())
        with torch.no_grad():
            self.energy = energies + float(layer.pathway_kernel(EQUIVARIANT.name).double().square().sum())
        if not math.isfinite(self.energy):
            raise DataError(where, "NaN or infinite weights", remedy="go back to a checkpoint with finite weights")
        self._fixed: dict[tuple[Pair, object], Tensor] = {}
        #: searches that end with this layer, by the layers that they are for
        self.searches: dict[tuple[int, ...], tuple[tuple[KernelSymmetry, ...], SubgroupSearch]] = {}

    def turning(self) -> list[TurningKernels]:
        """The kernels as shares of their energy, with the irreps by which they turn."""
        size = math.sqrt(self.energy) or 1.0
        return [known.turning_kernels(self._weights[pair] / size) for pair, known in self.pairs.items()]

    def search(self) -> SubgroupSearch:
        """The subgroups that these kernels can tell apart."""
        rule, group = self.layer.relaxation, self.layer.space.fibergroup
        highest = SubgroupSearch.top_frequency(group, self.residual, rule.frequencies) if group.continuous else 0
        return SubgroupSearch(self.layer.space, highest)

    def fixed(self, pair: Pair, kept: Subgroup) -> Tensor:
        """See :meth:`~escnn_relax.symmetry.kernels.fixed_kernels.FixedKernels.fixed`."""
        key = pair, kept.id
        if key not in self._fixed:
            if kept.gspace != self.layer.space:  # the same group may act on another base space elsewhere in the network
                kept = subgroup(self.layer.space, kept.id, self.where)
            self._fixed[key] = self.pairs[pair].fixed(kept)
            if len(self._fixed) > 64 * len(self.pairs):  # a search for an axis asks for many
                self._fixed.pop(next(iter(self._fixed)))
        return self._fixed[key]

    def remainder(self, kept: Subgroup) -> float:
        r""":math:`|K - P_H K|^2 / |K|^2`, the share of the kernel's energy that H does not fix (fraction)."""
        lost = 0.0
        for pair, weights in self._weights.items():
            basis = self.fixed(pair, kept)
            lost += float((weights - weights @ basis.T @ basis).square().sum())
        return lost / self.energy if self.energy > 0 else 0.0

    def alike(self, one: Subgroup, other: Subgroup) -> bool:
        """Whether two subgroups, of which one contains the other, fix the same kernels of this layer."""
        return all(len(self.fixed(pair, one)) == len(self.fixed(pair, other)) for pair in self.pairs)

    def telling_frequency(self, one: Subgroup, other: Subgroup) -> int | None:
        """See :func:`~escnn_relax.symmetry.kernels.telling_frequency.telling_frequency`."""
        ins, outs = ({r.name: r for r in of} for of in self.layer._kernel_fields())
        return telling_frequency(one, other, [(a, b) for a in ins.values() for b in outs.values()])

    def lost(self, smaller: Subgroup, larger: Subgroup) -> LossSums:
        """See :func:`~escnn_relax.symmetry.kernels.grid_loss.grid_loss`."""
        if not isinstance(self.layer.band, Band):
            return LossSums(0, 0.0, 1.0)
        smaller, larger = (subgroup(self.layer.space, h, self.where) for h in (smaller, larger))
        return grid_loss(self.layer.band, smaller, larger, self.irreps)

    @cached_property
    def irreps(self) -> dict[IrreducibleRepresentation, int]:
        """Those of G that the layer's kernels consist of, with how often."""
        found: dict[Any, int] = {}
        ins, outs = (Counter(r for r in of) for of in self.layer._kernel_fields())
        for a, few in ins.items():
            for b, some in outs.items():
                for psi, times in irrep_multiplicities(a, b).items():
                    found[psi] = found.get(psi, 0) + few * some * times
        return found

    def kept(self, subgroup: Subgroup) -> dict[str, Tensor]:
        """Coefficients of :math:`P_H K` in each pathway, float64, shaped as the layer's own."""
        found = {n: w.detach().to("cpu", torch.float64, copy=True) for n, w in self.layer.weights.items()}
        for pair, fixed in self.pairs.items():
            basis = self.fixed(pair, subgroup)
            weights = self._weights[pair] @ basis.T @ basis
            for pathway, section in zip(fixed.pathways, fixed.sections):
                block = self._blocks.get((*pair, pathway.name))
                if block is not None:
                    found[pathway.name][block.start : block.stop] = weights[:, section].flatten()
        return found

    def _of_pair(self, pair: Pair) -> Tensor:
        """Residual coefficients of one pair, ``(fields, number of residual kernels)``."""
        parts = []
        for pathway in self.residual:
            block = self._blocks.get((*pair, pathway.name))
            if block is not None:
                vector = self.layer.weights[pathway.name].detach().to("cpu", torch.float64)
                parts.append(vector[block.start : block.stop].view(block.outputs * block.inputs, -1))
        return torch.cat(parts, dim=1) if parts else torch.zeros(0, 0, dtype=torch.float64)


def subgroup_search(layers: Sequence[KernelSymmetry]) -> SubgroupSearch:
    """The subgroups that the kernels of these layers can tell apart, each in space where it leaves least of them."""
    known, key = layers[-1].searches, tuple(map(id, layers))
    if key not in known:
        turning = all(pair.irreps_only for s in layers for pair in s.pairs.values())
        kernels = [one for s in layers for one in s.turning()] if turning else []
        known[key] = (
            tuple(layers),
            SubgroupSearch(layers[0].layer.space, max(s.search().highest for s in layers), kernels),
        )
    return known[key][1]


def verdict(
    symmetry: KernelSymmetry, kept: Subgroup, energy: float, gains: Sequence[Gain], search: SubgroupSearch
) -> Verdict:
    """Whether a subgroup survives in a layer, see :func:`stabiliser`."""
    left = symmetry.remainder(kept)
    if left <= energy:
        return Verdict.YES
    if not gains:
        return Verdict.NO
    found = Verdict.YES
    for smaller in search.smaller(kept):
        nats = [gain(symmetry, kept) - gain(symmetry, smaller) for gain in gains]
        if max(nats) < -REFUTED:
            return Verdict.NO
        if min(nats) <= INDIFFERENT and left - symmetry.remainder(smaller) > ALIVE * energy:
            found = Verdict.UNDECIDED
    return found


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
                other.where,
                f"its group is {other.layer.space.fibergroup.name}, that of {layers[0].where} {group.name}",
                remedy="read the parts of the network on different groups by themselves",
            )
    search = subgroup_search(layers)
    undecided: list[Subgroup] = []
    gains = [g for g in (gain, also) if g is not None]

    def remainder(kept: Subgroup) -> float:
        return max(s.remainder(kept) for s in layers)

    def survives(kept: Subgroup) -> bool:
        worst = Verdict.YES
        for s in layers:
            worst = min(worst, verdict(s, kept, energy, gains, search))
            if worst == Verdict.NO:
                break
        if worst == Verdict.UNDECIDED:
            undecided.append(kept)
        return worst == Verdict.YES

    def evidence(kept: Subgroup) -> tuple[float, ...]:
        size, parts = group_size(kept.group)
        nats = () if gain is None else (sum(gain(s, kept) for s in layers),)
        return (*nats, size, parts, -remainder(kept))

    def cost(kept: Subgroup) -> float:
        return -sum(gain(s, kept) for s in layers) if gain is not None else 0.0

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
