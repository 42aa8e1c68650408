"""While a network has learned nothing, its evidence is no guide: what would follow it waits."""

from __future__ import annotations

from ..evidence.evidence import Evidence

__all__ = ["LEARNED", "has_learned", "must_wait"]

#: While the loss is above this share of what the best constant output has, the network has learned nothing that the
#: evidence could judge; stepping the precisions then would switch everything off for good.
LEARNED = 0.9


def has_learned(loss: float, constant: float) -> bool:
    """Whether a loss is clearly below that of the best constant output (both nats a sample).

    >>> has_learned(1.2, 2.3), has_learned(2.2, 2.3)
    (True, False)
    """
    return loss <= LEARNED * constant


def must_wait(evidence: Evidence, constant: float, epoch: int, epochs: int) -> bool:
    """Whether precisions, and architectures, stay as they are after the last refresh: in the first half of a training,
    while the network is not clearly better than a constant output.

    Args:
        evidence: refreshed at the present weights.
        constant: loss of the best constant output (nats a sample).
        epoch: counted from 0.
        epochs: of the whole training.
    """
    return epoch < epochs // 2 and not has_learned(evidence.mean_loss, constant)
