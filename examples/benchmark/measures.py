"""What is measured of a trained model: error, likelihood, calibration, and what becomes of them when inputs turn."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from benchmark.question import Data, Question
from benchmark.turns import Element

Predict = Callable[[Tensor], Tensor]
BINS = 10


def error(output: Tensor, target: Tensor) -> float:
    """Share of wrong labels (fraction); of fields the root of the squared error over that of the target (fraction)."""
    if target.is_floating_point():
        return float((output - target).norm() / target.norm())
    return float((output.argmax(1) != target).float().mean())


def negative_log_likelihood(output: Tensor, target: Tensor, variance: float) -> float:
    """Nats a label, or a number of a field, under a Gaussian of the variance given."""
    if target.is_floating_point():
        return 0.5 * (math.log(2 * math.pi * variance) + float(F.mse_loss(output, target)) / variance)
    return float(F.cross_entropy(output, target))


def calibration_error(output: Tensor, target: Tensor) -> float:
    """Expected calibration error (fraction): how far confidence is from accuracy, in bins of equal width, weighted by
    what is in them (Guo et al., *On calibration of modern neural networks*, 2017).

    >>> import torch
    >>> logits = torch.tensor([[50.0, 0.0], [50.0, 0.0]])
    >>> round(calibration_error(logits, torch.tensor([0, 1])), 6)
    0.5
    """
    confidence, label = output.softmax(1).max(1)
    right = (label == target).float()
    place = (confidence * BINS).long().clamp(max=BINS - 1)
    total = 0.0
    for k in range(BINS):
        chosen = place == k
        if chosen.any():
            total += float((confidence[chosen] - right[chosen]).mean().abs() * chosen.float().mean())
    return total


def measured(predict: Predict, question: Question, data: Data) -> dict[str, float]:
    """All measures of one prediction.

    ``error_turned`` is the error on test inputs moved by elements of the whole group other than the identity, with
    targets moved along: what a user meets whose data turn after training. ``equivariance_error`` is the largest of
    these elements of |f(gx) - g f(x)| / |f(x)|, over all test inputs together.
    """
    x, y = data.test
    output = predict(x)
    variance = 0.0
    if question.classes is None:
        variance = max(float(F.mse_loss(predict(data.train.x), data.train.y)), 1e-12)
    result = {"error": error(output, y), "nll": negative_log_likelihood(output, y, variance)}
    if question.classes is not None:
        result["ece"] = calibration_error(output, y)
    turned, departures = [], []
    for element in question.elements[question.group]:
        if element != Element():
            moved = predict(question.moves.input(x, element))
            turned.append(error(moved, question.moves.target(y, element)))
            departures.append(float((moved - question.moves.target(output, element)).norm() / output.norm()))
    result["error_turned"] = sum(turned) / len(turned)
    result["equivariance_error"] = max(departures)
    return result
