"""What the evidence says to a subgroup being demanded of a layer: the evidence of the kernels that it fixes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ...curvature.factors import Factor
from ...curvature.layers.coverage import join
from ...errors import CoverageError, CurvatureError, naming
from ...nn.measured.kernel_symmetry import KernelSymmetry
from ...symmetry.groups.lattice import Subgroup
from .family_blocks import OpenPathways, family_blocks, family_matrices, of_factor
from .fixed_coefficients import Pair, coupled_pathways, fixed_coefficients
from .joint_curvature import JointCurvature, Marginal, marginals
from .restricted_evidence import evidence_of_all, evidence_of_coupled, evidence_of_family

__all__ = ["Demands", "gain_of_demanding"]


class Demands:
    r"""What the evidence says to subgroups being demanded of one layer: of each the gain over the layer with all its
    freedom.

    The log evidence of the kernels that a subgroup H fixes minus that of all kernels (nats), by
    :mod:`escnn_relax.evidence.verdicts.restricted_evidence`: the curvature and the other weights stay. Closed pathways
    stay closed: they are zero without any freedom, so of what H contradicts only the part among the open ones costs
    anything, and of its kernels the open parts are meant.

    Args:
        symmetry: the layer.
        factors, log_precision: by parameter name in the model.
        scale: h, what one unit of the likelihood counts for these factors.
        bounds: of the log precisions: either side of the comparison takes those that suit it best. ``None``: both keep
            the present ones, of which H gets the prior that is conditioned on its kernels.
        joint: the curvature with the blocks between the pathways, bias and equivariant kernels included, where it fits
            into memory (:class:`~escnn_relax.evidence.verdicts.joint_curvature.JointCurvature`). Without it pathways
            are independent in the posterior: exact where the data hold all transforms of each sample, and wrong by nats
            where they are few.
        slopes: of the negative log posterior at the weights, by parameter name (nats); with a ``joint``, which knows
            them, anything but ``None``. Without them the weights are taken for its mode, which they are where the
            training has ended.

    Attributes:
        coupled: whether cross blocks are in the gains.

    Raises:
        CoverageError: a pathway that the evidence does not cover.
    """

    def __init__(
        self,
        symmetry: KernelSymmetry,
        factors: Mapping[str, Sequence[Factor]],
        log_precision: Mapping[str, float],
        scale: float,
        bounds: tuple[float, float] | None = None,
        joint: JointCurvature | None = None,
        slopes: Mapping[str, Tensor] | None = None,
    ) -> None:
        shut: frozenset[str] = getattr(symmetry.layer, "closed", frozenset())
        names = {p.name: join(symmetry.name, f"weights.{p.name}") for p in symmetry.residual if p.name not in shut}
        missing = [n for n in names.values() if n not in factors or n not in log_precision]
        if missing:
            problem, remedy = f"no curvature of {missing[0]}", "only covered weights have a margin"
            raise CoverageError(symmetry.title, problem, remedy=remedy)
        self.symmetry, self.scale, self.bounds = symmetry, scale, bounds
        opened = tuple(p for p in symmetry.residual if p.name in names)
        slopes_known = {} if slopes is None else slopes
        self.layer = OpenPathways(
            symmetry,
            opened,
            {p.name: factors[names[p.name]] for p in opened},
            {p.name: symmetry.layer.weights[p.name].detach().to("cpu", torch.float64) for p in opened},
            {p.name: log_precision[names[p.name]] for p in opened},
            {p.name: slopes_known[n].to("cpu", torch.float64) for p in opened if (n := names[p.name]) in slopes_known},
        )
        self._gains: dict[Any, float] = {}
        self._whole: dict[str, float] = {}  # evidence of all weights, by pathway
        self._marginal = marginals(joint, {p.name: names[p.name] for p in opened}, settled=slopes is None)

    @property
    def coupled(self) -> bool:
        """Whether the curvature with its cross blocks is in the gains."""
        return self._marginal is not None

    def gain(self, demanded: Subgroup) -> float:
        """The change of the log evidence (nats) if the layer's kernel had to be equivariant under a subgroup.

        Raises:
            ArgumentError: more coupled coefficients than can be decomposed.
            CurvatureError: an evidence that is not finite.
        """
        if demanded.id not in self._gains:
            with naming(self.symmetry.title):
                gain = self._gain(demanded)
            if not math.isfinite(gain):  # would be neither refuted nor preferred
                problem = f"the evidence of {demanded.name} is not finite"
                remedy = "look for NaN or huge weights, inputs or precisions"
                raise CurvatureError(self.symmetry.title, problem, got=gain, remedy=remedy)
            self._gains[demanded.id] = gain
        return self._gains[demanded.id]

    def _gain(self, demanded: Subgroup) -> float:
        symmetry, opened = self.symmetry, self.layer.pathways
        bases = {pair: symmetry.fixed(pair, demanded) for pair in symmetry.pairs}
        if self._marginal is not None:
            fixed = {p: fixed_coefficients(symmetry, p, symmetry.residual, opened, basis) for p, basis in bases.items()}
            if _everything(fixed):
                return 0.0
            return self._coupled(fixed, self._marginal) - self._coupled_whole
        total = 0.0
        for group in coupled_pathways(symmetry, bases):
            members = [p for p in group if p in opened]
            fixed = {pair: fixed_coefficients(symmetry, pair, group, members, basis) for pair, basis in bases.items()}
            if not members or _everything(fixed):
                continue  # H leaves all of it
            if any(len(rows) for rows in fixed.values()):
                blocks = family_blocks(self.layer, members, fixed)
                total += evidence_of_family(blocks, self.scale, self.bounds)
            total -= sum(self._all_of(p.name) for p in members)
        return total

    def _coupled(self, fixed: Mapping[Pair, Tensor], marginal: Marginal) -> float:
        """The log evidence of what a subgroup fixes, with the blocks between pathways."""
        sizes = {name: len(values) for name, values in self.layer.weights.items()}
        matrices = family_matrices(self.symmetry, self.layer.pathways, fixed, sizes)
        return self._evidence(marginal, matrices)

    @cached_property
    def _coupled_whole(self) -> float:
        """That of all weights."""
        marginal: Any = self._marginal  # there is one where this is asked for
        whole = torch.eye(len(marginal.linear), dtype=torch.float64)
        matrices = whole.split(list(marginal.sizes), dim=1)
        return self._evidence(marginal, {p.name: matrix for p, matrix in zip(self.layer.pathways, matrices)})

    def _evidence(self, marginal: Marginal, matrices: Mapping[str, Tensor]) -> float:
        return evidence_of_coupled(marginal.curvature, marginal.linear, matrices, self.layer.log_precision, self.bounds)

    def _all_of(self, name: str) -> float:
        """The log evidence of all weights of a pathway, relative to their being zero."""
        if name not in self._whole:
            weights, log_precision = self.layer.weights[name], self.layer.log_precision[name]
            factors, slope = self.layer.factors[name], self.layer.slopes.get(name)
            blocks = [(f, of_factor(weights, f), log_precision) for f in factors]
            slopes = None if slope is None else [of_factor(slope, f) for f in factors]
            self._whole[name] = evidence_of_all(blocks, self.scale, self.bounds, slopes)
        return self._whole[name]


def gain_of_demanding(
    demanded: Subgroup,
    symmetry: KernelSymmetry,
    factors: Mapping[str, Sequence[Factor]],
    log_precision: Mapping[str, float],
    scale: float,
    bounds: tuple[float, float] | None = None,
    joint: JointCurvature | None = None,
) -> float:
    """:meth:`Demands.gain` of one subgroup."""
    return Demands(symmetry, factors, log_precision, scale, bounds, joint).gain(demanded)


def _everything(fixed: Mapping[Pair, Tensor]) -> bool:
    """Whether a subgroup fixes all coefficients."""
    return all(len(rows) == rows.shape[1] for rows in fixed.values())
