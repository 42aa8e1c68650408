"""How far predicted probabilities can be trusted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import DataError

__all__ = ["Calibration", "calibration"]


@dataclass(frozen=True)
class Calibration:
    """Scores of predicted class probabilities.

    Attributes:
        accuracy: share of samples whose most probable class is right (fraction).
        log_loss: mean negative log probability of the right class (nats).
        brier: mean squared distance between the probabilities and the right class's indicator.
        error: expected calibration error: mean distance between confidence and accuracy over bins of confidence, each
            weighted by its share of the samples (fraction). Guo et al., ICML 2017.
    """

    accuracy: float
    log_loss: float
    brier: float
    error: float


def calibration(probabilities: Tensor, targets: Tensor, bins: int = 15) -> Calibration:
    """Score probabilities ``(N, C)`` against labels ``(N,)``.

    Raises:
        DataError: nothing to score.

    >>> calibration(torch.tensor([[0.8, 0.2], [0.8, 0.2]]), torch.tensor([0, 1])).error  # confident 0.8, right 0.5
    0.3...
    """
    if not len(targets):
        raise DataError("calibration", "no samples", remedy="pass a non-empty loader")
    if not torch.isfinite(probabilities).all():
        remedy = "look for NaN or infinite weights or inputs"
        raise DataError("calibration", "the probabilities are not finite", remedy=remedy)
    confidence, chosen = probabilities.max(1)
    right = (chosen == targets).double()
    indicator = torch.nn.functional.one_hot(targets, probabilities.shape[1])
    picked = probabilities.gather(1, targets.unsqueeze(1)).clamp(min=1e-300)
    which = (confidence * bins).long().clamp(max=bins - 1)
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, which, confidence.double() - right)
    return Calibration(
        float(right.mean()),
        float(-picked.double().log().mean()),
        float((probabilities - indicator).square().sum(1).mean()),
        float(gaps.abs().sum() / len(targets)),
    )
