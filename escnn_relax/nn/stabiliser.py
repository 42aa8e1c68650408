"""The symmetry that a relaxed layer's kernel has kept: what of it each subgroup leaves fixed."""

from __future__ import annotations

import math
from typing import Callable, NamedTuple, Optional, Sequence

import torch
from torch import Tensor

from ..errors import ArgumentError, DataError, UnsupportedModuleError
from ..symmetry.pathway import EQUIVARIANT, SWITCHED_OFF, Pathway
from ..symmetry.stabiliser import FixedKernels, SubgroupSearch
from ..symmetry.subgroups import Subgroup, subgroup
from .relaxed import RelaxedConvolution

__all__ = ["KernelSymmetry", "Survivor", "stabiliser", "stabilisers"]

Pair = tuple[str, str]

#: Share of the kernel's energy from which on an irrep is alive beyond doubt, whatever the curvature says; below it, and
#: above :data:`~escnn_relax.symmetry.pathway.SWITCHED_OFF`, it may be noise that the precisions have not yet removed.
ALIVE = 10 * SWITCHED_OFF

#: A loss of log evidence (nats) that says nothing: Kass and Raftery's "not worth more than a bare mention".
INDIFFERENT = 1.0


class Survivor(NamedTuple):
    """A subgroup, and the share of the kernel's energy that it does not fix (fraction)."""

    subgroup: Subgroup
    remainder: float


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

    def search(self) -> SubgroupSearch:
        """The subgroups that these kernels can tell apart."""
        rule, group = self.layer.relaxation, self.layer.space.fibergroup
        highest = SubgroupSearch.highest_of(group, self.residual, rule.frequencies) if group.continuous else 0
        return SubgroupSearch(self.layer.space, highest)

    def fixed(self, pair: Pair, kept: Subgroup) -> Tensor:
        """See :meth:`~escnn_relax.symmetry.stabiliser.FixedKernels.fixed`."""
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

    def touches(self, kept: Subgroup, energy: float = ALIVE) -> bool:
        """Whether H fixes some kernels of every pathway with more than this share of the energy (fraction).

        A pathway that is clearly alive and of which H fixes nothing is broken as a whole.
        """
        for pathway in self.residual:
            alive, fixed = 0.0, 0.0
            for pair, weights in self._weights.items():
                known = self.pairs[pair]
                section = known.sections[known.pathways.index(pathway)]
                alive += float(weights[:, section].square().sum())
                fixed += float(self.fixed(pair, kept)[:, section].square().sum())
            if alive > energy * self.energy and fixed < 0.5:
                return False
        return True

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


def stabiliser(
    layers: Sequence[KernelSymmetry],
    energy: float = SWITCHED_OFF,
    gain: Optional[Callable[[KernelSymmetry, Subgroup], float]] = None,
) -> Survivor:
    """The largest subgroup that survives in all these layers, with the largest share that it leaves in one of them.

    Args:
        energy: a subgroup survives in a layer if it leaves no more than this share of its energy (fraction).
        gain: or if it fixes a part of every irrep with ten times that share, and the evidence does not lose by demanding
            it (nats; less than one counts as none). An irrep of more than one dimension has one precision; where a
            reflection keeps half of it, the other half stays alive at the level of the noise, which the energy alone
            cannot tell from a broken reflection. Irreps of which it fixes nothing are for their own precisions to decide:
            those look at the whole training, the gain only at the curvature where it ended.

    Raises:
        UnsupportedModuleError: layers of different groups.
        ArgumentError: no layer, or an ``energy`` that is no fraction.
    """
    if not layers or not 0 <= energy < 1:
        raise ArgumentError("stabiliser", expected="at least one layer and an energy in [0, 1)", got=(len(layers), energy))
    group = layers[0].layer.space.fibergroup
    for other in layers:
        if other.layer.space.fibergroup != group:
            raise UnsupportedModuleError(
                other.where,
                f"its group is {other.layer.space.fibergroup.name}, that of {layers[0].where} {group.name}",
                remedy="read the parts of the network on different groups by themselves",
            )

    def gains(s: KernelSymmetry, kept: Subgroup) -> bool:
        return gain is not None and s.touches(kept, 10 * energy) and gain(s, kept) > -INDIFFERENT

    def survives(kept: Subgroup) -> bool:
        return all(s.remainder(kept) <= energy or gains(s, kept) for s in layers)

    found = SubgroupSearch(layers[0].layer.space, max(s.search().highest for s in layers))
    return Survivor(*found.largest(lambda kept: max(s.remainder(kept) for s in layers), survives))


def stabilisers(
    layers: Sequence[KernelSymmetry],
    energy: float = SWITCHED_OFF,
    gain: Optional[Callable[[KernelSymmetry, Subgroup], float]] = None,
) -> list[Survivor]:
    """By depth: for each layer the largest subgroup that survives in it and in all layers before it.

    What an early layer has broken, no later one can give back, so symmetry never grows with depth.
    """
    return [stabiliser(layers[: depth + 1], energy, gain) for depth in range(len(layers))]
