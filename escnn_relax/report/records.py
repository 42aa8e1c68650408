"""What is reported of one layer and of one pathway."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..symmetry.equal_records import equal_records

__all__ = ["LayerReport", "PathwayReport"]


@dataclass(frozen=True)
class PathwayReport:
    """One pathway of one layer.

    Attributes:
        name: ``"equivariant"``, or the irrep or subgroup of the pathway.
        breaks: whether it breaks the symmetry.
        dimension: number of its weights, biases aside.
        log_precision: log prior precision, NaN where no evidence set it, infinite where closed; of a convolution beside
            other pathways the smallest of its weights'.
        effective_dimension: how many of its weights the data determine, NaN where no evidence measured it.
        fraction: ``effective_dimension / dimension``.
        share: the fraction relative to the sum of the fractions of the layer's pathways.
        energy: share of the kernel's energy; beside pathways that break translations see
            :meth:`escnn_relax.nn.RelaxedTranslation.energies`.
        closed: kept at zero, for nothing in the data asked for it (:class:`~escnn_relax.nn.gates.Gated`).

    In a pathway that breaks translations and keeps a group, fields at sites that some elements leave in place have
    weights that depend on each other (a dense scalar C4 pathway from 2 x 2 pixels to one has four, of rank 1; one of D4
    between other fields from 4 x 4 to 3 x 3, 384 of rank 216). The data can determine no more than the rank, while
    ``dimension`` counts them all: ``fraction`` and ``share`` of such a pathway come out smaller than of a free one,
    whose weights are independent.
    """

    name: str
    breaks: bool
    dimension: int
    log_precision: float
    effective_dimension: float
    fraction: float
    share: float
    energy: float
    closed: bool = False
    __eq__ = equal_records


@dataclass(frozen=True)
class LayerReport:
    """One relaxed layer.

    Attributes:
        name: as in ``model.named_modules()``.
        group: name of the layer's symmetry group; ``"translations"`` for a convolution beside pathways that break them.
        pathways: one record each.
        breaking_energy: share of the kernel's energy that breaks the symmetry (fraction).
        equivariance_error: largest relative change of the kernel under the elements of the group that map the pixel
            grid to itself; NaN if there is none but the identity.
        error_bound: no input of norm 1 has a larger error under any element of the group, interpolation aside, see
            :class:`~escnn_relax.nn.measured.certificate.Certificate`; NaN where it is not known.
        error_reached: one that some input of norm 1 has, under an element that maps the grid to itself.
        norm: of the layer's linear part: some input of norm 1 becomes as long.
        survivor: name of the largest subgroup that survives in the layer, see :func:`escnn_relax.evidence.survivors`;
            empty if it was not asked for, or of a mixed layer. Living pathways beside the layer are counted in.
        margin: by how much the evidence prefers it to the best larger subgroup (nats); infinite for the whole group,
            NaN without a refreshed evidence.
        by_depth: name of the largest subgroup that survives in the layer and all before it.
        margin_by_depth: the same for that one.
        lost: what the layer's pixels lose at most of the difference between that subgroup and a smaller one (fraction),
            see :class:`~escnn_relax.symmetry.decision.Decision`; NaN without a survivor.
        empty: names of the pathways that have no kernel between the layer's field types, so that it cannot break the
            symmetry in these ways.
    """

    name: str
    group: str
    pathways: tuple[PathwayReport, ...]
    breaking_energy: float
    equivariance_error: float
    survivor: str = ""
    margin: float = math.nan
    by_depth: str = ""
    margin_by_depth: float = math.nan
    lost: float = math.nan
    empty: tuple[str, ...] = ()
    error_bound: float = math.nan
    error_reached: float = math.nan
    norm: float = math.nan
    __eq__ = equal_records
