"""What a long training needs later is tried before it begins."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

from ..curvature.checked_batches import answer, batches, check_weights
from ..curvature.enough_data import Enough
from ..evidence.evidence import Evidence
from ..evidence.random_state import random_state_kept

__all__ = ["rehearse"]


def rehearse(
    evidence: Evidence,
    loader: Iterable[Any],
    evidence_loader: Iterable[Any] | None = None,
    enough: Enough | None = None,
) -> None:
    """The loss of the first batch, and the curvature of the first batch of the evidence's data.

    Nothing is kept: weights, buffers and random states are as before. What a refresh cannot do is raised now, by the
    exceptions of :meth:`~escnn_relax.Evidence.refresh`, and not after the passes that come before the first one.

    >>> import torch
    >>> from torch import nn
    >>> from escnn_relax import RelaxError
    >>> evidence = Evidence(nn.Sequential(nn.Linear(3, 2)), relaxed_only=False)
    >>> try:
    ...     rehearse(evidence, [(torch.randn(4, 3), torch.tensor([0, 1, 1, 2]))])
    ... except RelaxError as error:
    ...     print(str(error)[:58])
    targets: expected labels in 0 ... 1, got labels in 0 ... 2
    """
    check_weights(evidence.model)
    device = next(evidence.model.parameters()).device
    training = [(module, module.training) for module in evidence.model.modules()]
    try:
        evidence.model.eval()
        with random_state_kept(device, loader, evidence_loader):
            for input, target in batches(islice(iter(loader), 1), device):
                evidence.loss(answer(evidence.model, input), target)
            first = islice(iter(loader if evidence_loader is None else evidence_loader), 1)
            evidence.new_curvature().rehearse(list(first), enough)
    finally:
        for module, mode in training:  # parents before children
            if module.training != mode:
                module.train(mode)
