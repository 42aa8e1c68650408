"""While a network has learned nothing, its evidence is no guide: what would follow it waits."""

from __future__ import annotations

import math

from ..evidence.evidence import Evidence

__all__ = ["LEARNED", "has_learned", "must_wait", "was_learned"]

#: While the loss is above this share of what the best constant output has, the network has learned nothing that the
#: evidence could judge; stepping the precisions then would switch everything off for good.
LEARNED = 0.9


def has_learned(loss: float, constant: float, observed: float | None = None) -> bool:
    r"""Whether a loss is clearly below that of the best constant output (both nats a sample).

    Args:
        observed: of a density with a width of its own, how many numbers are observed for a sample. Its loss moves with
            the units of the targets, as the constant's does, so that their ratio means nothing. A Gaussian whose
            variance is :data:`LEARNED` of the constant's has :math:`\tfrac12 \log` of that less for each number, in any
            units.

    >>> has_learned(1.2, 2.3), has_learned(2.2, 2.3)
    (True, False)
    >>> has_learned(-1.0, -1.05, 1), has_learned(-1.2, -1.05, 1), has_learned(5.7, 5.85, 1)
    (False, True, True)
    """
    if observed is None:
        return loss <= LEARNED * constant
    return loss <= constant + 0.5 * math.log(LEARNED) * observed


def was_learned(evidence: Evidence, constant: float) -> bool:
    """:func:`has_learned` of the last refresh."""
    likelihood = evidence.likelihood
    observed = evidence.spectrum.num_outputs / likelihood.outputs_each if likelihood.density else None
    return has_learned(evidence.mean_loss, constant, observed)


def must_wait(evidence: Evidence, constant: float, epoch: int, epochs: int) -> bool:
    """Whether precisions, and architectures, stay as they are after the last refresh: in the first half of a training,
    while the network is not clearly better than a constant output.

    Args:
        evidence: refreshed at the present weights.
        constant: loss of the best constant output (nats a sample).
        epoch: counted from 0.
        epochs: of the whole training.
    """
    return epoch < epochs // 2 and not was_learned(evidence, constant)
