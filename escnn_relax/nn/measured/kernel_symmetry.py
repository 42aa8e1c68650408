"""A learned kernel as subgroups see it: what of it each of them leaves fixed."""

from __future__ import annotations

import math
from collections import Counter
from functools import cached_property
from typing import Any

import torch
from escnn.group import IrreducibleRepresentation
from torch import Tensor

from ...errors import DataError, UnsupportedModuleError, naming
from ...symmetry.groups.lattice import Subgroup, subgroup
from ...symmetry.kernels.distinguishing_frequency import telling_frequency
from ...symmetry.kernels.fixed_kernels import FixedKernels
from ...symmetry.kernels.grid_loss import grid_loss, irrep_multiplicities
from ...symmetry.kernels.pathway import EQUIVARIANT, Pathway
from ...symmetry.kernels.position_search import TurningKernels
from ...symmetry.kernels.ring_geometry import LossSums
from ...symmetry.kernels.sampling import Band
from ...symmetry.kernels.subgroup_search import SubgroupSearch
from ..relaxed_convolution import RelaxedConvolution

__all__ = ["KernelSymmetry"]

Pair = tuple[str, str]


class KernelSymmetry:
    r"""The kernel of one relaxed layer at its present weights, as subgroups see it.

    The kernels of the layer that are equivariant under H form a subspace; :math:`P_H K` is the nearest of them on the
    pixel grid. For H that moves pixels to pixels it is the average of K over H.

    Args:
        layer: a relaxed layer.
        name: its name in the model.

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
    >>> round(symmetry.remainder(subgroup(space, 2)), 6), symmetry.remainder(subgroup(space, 4)) > 0.1
    (0.0, True)
    """

    def __init__(self, layer: RelaxedConvolution, name: str = "") -> None:
        self.name, self.title = name, name or type(layer).__name__
        if not isinstance(layer, RelaxedConvolution):
            raise UnsupportedModuleError(
                self.title, f"the summands of a {type(layer).__name__} overlap", remedy="merge it first, or use relax"
            )
        self.layer = layer
        self.residual: tuple[Pathway, ...] = tuple(p for p in layer.pathways if p != EQUIVARIANT)
        kernel, rule = layer.kernel, layer.relaxation
        self._blocks = {(b.in_name, b.out_name, name): b for name in kernel.pathways for b in kernel.blocks[name]}
        ins, outs = ({r.name: r for r in fields} for fields in layer._kernel_fields())
        self.pairs: dict[Pair, FixedKernels] = {}
        for pair in kernel.pairs:
            shape = (0, outs[pair[1]].size, ins[pair[0]].size, kernel.sites)
            blocks = {p.name: self._blocks.get((*pair, p.name)) for p in layer.pathways}
            rows = {n: torch.zeros(shape) if b is None else kernel.basis(b).detach() for n, b in blocks.items()}
            equivariant = rows.pop(EQUIVARIANT.name)
            self.pairs[pair] = FixedKernels(
                rule, layer.band, ins[pair[0]], outs[pair[1]], equivariant, [(p, rows[p.name]) for p in self.residual]
            )
        self._weights = {pair: self._pair_weights(pair) for pair in self.pairs}
        energies = sum(float(w.square().sum()) for w in self._weights.values())
        with torch.no_grad():
            self.energy = energies + float(layer.pathway_kernel(EQUIVARIANT.name).double().square().sum())
        if not math.isfinite(self.energy):
            raise DataError(self.title, "NaN or infinite weights", remedy="go back to a checkpoint with finite weights")
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

    def fixed(self, pair: Pair, group: Subgroup) -> Tensor:
        """See :meth:`~escnn_relax.symmetry.kernels.fixed_kernels.FixedKernels.fixed`."""
        key = pair, group.id
        if key not in self._fixed:
            if (
                group.gspace != self.layer.space
            ):  # the same group may act on another base space elsewhere in the network
                with naming(self.title):
                    group = subgroup(self.layer.space, group.id)
            self._fixed[key] = self.pairs[pair].fixed(group)
            if len(self._fixed) > 64 * len(self.pairs):  # a search for an axis asks for many
                self._fixed.pop(next(iter(self._fixed)))
        return self._fixed[key]

    def remainder(self, group: Subgroup) -> float:
        r""":math:`|K - P_H K|^2 / |K|^2`, the share of the kernel's energy that H does not fix (fraction)."""
        lost = 0.0
        for pair, weights in self._weights.items():
            basis = self.fixed(pair, group)
            lost += float((weights - weights @ basis.T @ basis).square().sum())
        return lost / self.energy if self.energy > 0 else 0.0

    def alike(self, first: Subgroup, second: Subgroup) -> bool:
        """Whether two subgroups, of which one contains the other, fix the same kernels of this layer."""
        return all(len(self.fixed(pair, first)) == len(self.fixed(pair, second)) for pair in self.pairs)

    def telling_frequency(self, first: Subgroup, second: Subgroup) -> int | None:
        """See :func:`~escnn_relax.symmetry.kernels.distinguishing_frequency.telling_frequency`."""
        ins, outs = ({r.name: r for r in fields} for fields in self.layer._kernel_fields())
        return telling_frequency(first, second, [(a, b) for a in ins.values() for b in outs.values()])

    def lost(self, smaller: Subgroup, larger: Subgroup) -> LossSums:
        """See :func:`~escnn_relax.symmetry.kernels.grid_loss.grid_loss`."""
        if not isinstance(self.layer.band, Band):
            return LossSums(0, 0.0, 1.0)
        with naming(self.title):
            smaller, larger = (subgroup(self.layer.space, h) for h in (smaller, larger))
        return grid_loss(self.layer.band, smaller, larger, self.irreps)

    @cached_property
    def irreps(self) -> dict[IrreducibleRepresentation, int]:
        """Those of G that the layer's kernels consist of, with how often."""
        counts: dict[Any, int] = {}
        ins, outs = (Counter(r for r in fields) for fields in self.layer._kernel_fields())
        for a, few in ins.items():
            for b, some in outs.items():
                for psi, times in irrep_multiplicities(a, b).items():
                    counts[psi] = counts.get(psi, 0) + few * some * times
        return counts

    def projected_weights(self, subgroup: Subgroup) -> dict[str, Tensor]:
        """Coefficients of :math:`P_H K` in each pathway, float64, shaped as the layer's own."""
        coefficients = {n: w.detach().to("cpu", torch.float64, copy=True) for n, w in self.layer.weights.items()}
        for pair, fixed in self.pairs.items():
            basis = self.fixed(pair, subgroup)
            weights = self._weights[pair] @ basis.T @ basis
            for pathway, section in zip(fixed.pathways, fixed.sections):
                block = self._blocks.get((*pair, pathway.name))
                if block is not None:
                    coefficients[pathway.name][block.start : block.stop] = weights[:, section].flatten()
        return coefficients

    def _pair_weights(self, pair: Pair) -> Tensor:
        """Residual coefficients of one pair, ``(fields, number of residual kernels)``."""
        columns = []
        for pathway in self.residual:
            block = self._blocks.get((*pair, pathway.name))
            if block is not None:
                vector = self.layer.weights[pathway.name].detach().to("cpu", torch.float64)
                columns.append(vector[block.start : block.stop].view(block.outputs * block.inputs, -1))
        return torch.cat(columns, dim=1) if columns else torch.zeros(0, 0, dtype=torch.float64)
