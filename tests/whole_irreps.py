"""The decision that this package once took, for comparison: by whole irreps, at the precisions that all the kernels
have, among the subgroups that escnn has ids for, each in escnn's position."""

from __future__ import annotations

import math
from typing import Any

from escnn_relax.evidence import Evidence
from escnn_relax.evidence.verdicts.subgroup_cost import Demands
from escnn_relax.nn.measured.kernel_symmetry import KernelSymmetry
from escnn_relax.symmetry.kernels.pathway import SWITCHED_OFF
from escnn_relax.symmetry.groups.subgroup import Subgroup

#: Nats that counted as none.
INDIFFERENT = 1.0


def touches(symmetry: KernelSymmetry, kept: Subgroup) -> bool:
    """Whether a subgroup fixes some kernel of every irrep that is alive: no subgroup survived that does not."""
    for pathway in symmetry.residual:
        alive = fixed = 0.0
        for pair, weights in symmetry._weights.items():
            known = symmetry.pairs[pair]
            section = known.sections[known.pathways.index(pathway)]
            alive += float(weights[:, section].square().sum())
            fixed += float(symmetry.fixed(pair, kept)[:, section].square().sum())
        if alive > 10 * SWITCHED_OFF * symmetry.energy and fixed < 0.5:
            return False
    return True


def listed(kept: Subgroup) -> bool:
    """Whether the subgroup was listed: it is none that needs an id of this package's own."""
    id: Any = kept.id
    first = id[0] if isinstance(id, tuple) else id
    return not (first in ("edges", "twisted") or (first == "tetra" and kept.gspace.fibergroup.order() > 0))


def by_whole_irreps(symmetry: KernelSymmetry, evidence: Evidence | None = None) -> tuple[Subgroup, float]:
    """The subgroup that it found, and the margin to the next larger ones (nats); without an evidence by energy
    alone, and NaN."""
    demands = None
    if evidence is not None:
        estimate = evidence.estimate
        demands = Demands(symmetry, estimate.factors, evidence.log_precision, evidence.scale)

    def survives(kept: Subgroup) -> bool:
        if not listed(kept):
            return False
        gained = demands is not None and touches(symmetry, kept) and demands.gain(kept) > -INDIFFERENT
        return symmetry.remainder(kept) <= SWITCHED_OFF or gained

    search = symmetry.search()
    found = max(search.maximal(symmetry.remainder, survives), key=lambda h: (h.order, -symmetry.remainder(h)))
    if demands is None:
        return found, math.nan
    larger = search.larger(found, symmetry.remainder)
    return found, min((demands.gain(found) - demands.gain(h) for h in larger), default=math.inf)
