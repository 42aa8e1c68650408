"""Relaxed convolutions: escnn's own equivariant kernels, and orthonormal ones beside them that break the symmetry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from escnn.group import Representation
from escnn.nn import EquivariantModule
from torch import nn

from .. import _escnn
from ..errors import EmptyBasisError, NothingToRelaxError, layer_name
from ..symmetry.kernels import kernel_cache
from ..symmetry.kernels.irrep_pairs import Kernels
from ..symmetry.kernels.pathway import EQUIVARIANT
from ..symmetry.kernels.pathway_kernels import Relaxation
from ..symmetry.kernels.plan import Freedom, plan
from ..symmetry.kernels.sampling import Band, FiberBand
from .kernels.pathway_sum import PathwaySum
from .pathway_weights import PathwayWeights
from .steerable import SteerableConvolution

__all__ = ["RelaxedConvolution"]


class RelaxedConvolution(SteerableConvolution):
    r"""A steerable convolution whose kernel may leave the equivariant ones, by a learned amount and in named ways.

    .. math:: W = \Phi_0 w_0 + \sum_p \Phi_p w_p

    with :math:`\Phi_0` escnn's own equivariant basis and :math:`\Phi_p` orthonormal kernels orthogonal to it, one set
    for each pathway. All :math:`w_p`, p > 0, start at zero: a new layer is exactly the equivariant one. The bias stays
    equivariant.

    Attributes:
        in_type, out_type: field types of the full group; the layers around keep working.
        pathways: the equivariant pathway, then the residual ones that have kernels here.
        empty_pathways: residual pathways without any kernel between these field types.
        weights: coefficients of each pathway, by its name, each of shape ``(dimension,)``; where a tensor is meant,
            those of the equivariant one (:class:`~escnn_relax.nn.pathway_weights.PathwayWeights`).
        bias: coefficients of the bias in the trivial irreps of ``out_type``, or ``None``.
        log_precision, effective_dimension: see :class:`~escnn_relax.nn.evidence_record.Recorded`.
    """

    kernel: PathwaySum
    relaxation: Relaxation

    _freedom = Freedom

    def _build(self, strict: EquivariantModule, freedom: Any) -> None:
        reach = self._reach()
        if reach is not None:
            reach = max(reach, 1)  # not even an irrep to ask for would be an error of another kind
        rule = plan(self.space, reach=reach, **vars(freedom))
        self.relaxation = rule
        in_reprs, out_reprs = self._kernel_fields()
        with kernel_cache.announce(f"the kernels of {layer_name(type(self))}, {self.in_type} to {self.out_type}"):
            bases = _bases(rule, self.band, in_reprs, out_reprs, strict.basisexpansion)
        dimensions = {p.name: sum(len(b) for b in bases[p.name].values()) for p in rule.pathways}
        self.pathways = tuple(p for p in rule.pathways if dimensions[p.name])
        self.empty_pathways = tuple(p for p in rule.pathways if not dimensions[p.name])
        self._refuse_empty()
        self.kernel = PathwaySum(in_reprs, out_reprs, {p.name: bases[p.name] for p in self.pathways})
        self.weights = PathwayWeights()
        for p in self.pathways:  # one by one, since a dictionary would be sorted
            self.weights[p.name] = nn.Parameter(torch.zeros(self.kernel.dimensions[p.name]))
        self.weights[EQUIVARIANT.name] = _copy(strict.weights)
        self.bias = None
        if strict.bias is not None:
            self.bias = _copy(strict.bias)
            self.register_buffer("bias_expansion", strict.bias_expansion.detach().clone())
        self._begin_record(len(self.pathways))

    def _refuse_empty(self) -> None:
        nothing = not any(p.breaks for p in self.pathways)
        named = [p for p in self.empty_pathways if p.kind == "subgroup"]
        if named:
            raise (NothingToRelaxError if nothing else EmptyBasisError)(
                type(self),
                f"the pathway of subgroup {named[0].subgroup!r} has no kernel that larger pathways do not already have",
                remedy="leave it out, choose a smaller subgroup, or use a larger kernel or basis='pixel'",
            )
        if nothing and not self.relaxation.unbreakable:
            size = f" of size {self.kernel_size}" if self.d else ""
            raise NothingToRelaxError(
                type(self),
                f"no kernel{size} from {self.in_type} to {self.out_type} breaks the symmetry",
                remedy="leave this layer as it is",
            )

    @property
    def breaking_energy(self) -> float:
        r""":math:`|residual|^2 / |W|^2`, the share of the kernel's energy that breaks the symmetry (fraction)."""
        energies = self.energies()
        return sum(energies[p.name] for p in self.pathways if p.breaks)


def _copy(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)


def _bases(
    rule: Relaxation,
    band: Band | FiberBand,
    in_reprs: Sequence[Representation],
    out_reprs: Sequence[Representation],
    expansion: Any,
) -> dict[str, dict[tuple[str, str], Kernels]]:
    """For each pathway and pair of representation names the sampled kernels."""
    equivariant = {(i, o): kernels for i, o, kernels, _ in _escnn.blocks(expansion)}
    bases: dict[str, dict[tuple[str, str], Kernels]] = {p.name: {} for p in rule.pathways}
    for i in dict.fromkeys(in_reprs):
        for o in dict.fromkeys(out_reprs):
            strict = equivariant.get((i.name, o.name))
            if strict is None:
                strict = torch.zeros(0, o.size, i.size, len(band.points))
            for name, kernels in rule.bases(band, i, o, strict).items():
                bases[name][i.name, o.name] = kernels
    return bases
