"""What the symmetry test found of one way to break the symmetry in one layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

__all__ = ["EFFECT_ONLY", "PathwayTest"]

#: Why the symmetries that a pixel grid lacks have no p-value.
EFFECT_ONLY = "no element that is exact on the grid moves it: an effect only"
#: Why there is no p-value once pathways that are open have left too small a group.
LEFT_BEHIND = "open pathways keep only elements that do not move it"


@dataclass(frozen=True)
class PathwayTest:
    r"""One way to break the symmetry in one layer.

    Attributes:
        layer: as in ``model.named_modules()``.
        pathway: the name of the pathway in the relaxed layer.
        irrep: id of its irrep, ``None`` for a pathway of a subgroup.
        subgroup: id of its subgroup, ``None`` for one of an irrep.
        dimension: number of its weights.
        statistic: :math:`T = |\sum_b \Gamma_b|^2`, the part that exact elements move ((nats / unit of weight) squared).
        ratio: T over its mean under the hypothesis.
        largest_null: the largest of the draws over the same mean.
        effect: the squared mean of one sample's gradient over its mean square (fraction), free of bias, so that it may
            be negative; of the part that exact elements move, and of all of it where they move nothing.
        p_value: exact, by draws from the group that acts exactly; NaN where nothing can be tested.
        adjusted_p_value: for all tests of the call: the largest over all subgroups that move the pathway of the
            p-values adjusted by the largest statistic. So it holds whichever of them is the symmetry of the data.
        gain: estimate of the evidence gained by letting the pathway in (nats), see :func:`.symmetry_test`; NaN if not
            asked.
        log_precision: log prior precision to start it with; infinite where nothing speaks for it.
        over_dispersion: mean square of one sample's gradient over its curvature: how far the likelihood is from well
            specified; 1 where the curvature is not known.
        testable: whether a p-value could be had.
        reason: why not; or what to bear in mind.
        exact: whether elements that act exactly on the grid move all of the pathway.
        broken: testable, and the adjusted p-value at most the level.
        input_p_value: the same test of a function that knows no targets: small where the inputs alone lack the
            symmetry; NaN if not asked.
        cause: of what is broken, if asked: "question" where the inputs alone are not contradicted, else "inputs or
            question".
        inexact_effect: effect in the part that no exact element moves, over the mean square of all (fraction); NaN if
            ``exact``.
        explained_effect: the same after each sample has been turned by a random element of the whole group, with
            interpolation: what the network's own discretisation explains, since data like these have the symmetry; NaN
            where not measured.

    >>> p_values = [name for name in PathwayTest.__dataclass_fields__ if name.endswith("p_value")]
    >>> p_values
    ['p_value', 'adjusted_p_value', 'input_p_value']
    """

    layer: str
    pathway: str
    irrep: Any
    subgroup: Any
    dimension: int
    statistic: float
    ratio: float
    largest_null: float
    effect: float
    p_value: float
    adjusted_p_value: float
    gain: float
    log_precision: float
    over_dispersion: float
    testable: bool
    reason: str
    exact: bool
    broken: bool
    input_p_value: float = math.nan
    cause: str = ""
    inexact_effect: float = math.nan
    explained_effect: float = math.nan

    @property
    def untold(self) -> bool:
        """Whether nothing but an effect can be known of it, because no element that is exact on the grid moves it."""
        return self.reason == EFFECT_ONLY

    @property
    def left_behind(self) -> bool:
        """Whether it could be tested before other pathways were opened, and cannot any more; what its gradient says of
        the evidence is all that is left."""
        return self.reason == LEFT_BEHIND
