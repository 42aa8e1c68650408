"""The loss before there is an evidence: of the likelihood alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..curvature.likelihood import likelihood
from ..evidence.noise import Noise
from ..evidence.settings import NoiseSettings

__all__ = ["plain_loss"]


def plain_loss(options: Mapping[str, Any], output: Any, target: Any) -> Tensor:
    """Negative log likelihood of a minibatch without its normaliser, averaged over its samples (nats).

    Args:
        options: as of :func:`~escnn_relax.fit`: ``likelihood``, ``noise`` or the ``evidence``.
        output: of the model.
        target: what the likelihood compares it with.

    Raises:
        LikelihoodError: a target that does not go with the output.

    >>> import torch
    >>> round(float(plain_loss({"likelihood": "categorical"}, torch.zeros(3, 2), torch.zeros(3).long())), 4)
    0.6931
    """
    noise = _noise(options)
    output = noise.likelihood.tensor(output)
    noise.likelihood.check(output, target)
    return noise.loss(output, target) / len(output)


def _noise(options: Mapping[str, Any]) -> Noise:
    """That of the evidence, or the one that it would be made with."""
    if options.get("evidence") is not None:
        known: Noise = options["evidence"].noise
        return known
    chosen = options.get("noise", "shared")
    start = chosen if isinstance(chosen, NoiseSettings) else NoiseSettings(chosen)
    return Noise(likelihood(options.get("likelihood", "categorical")), start.kind, start.log_noise, start.temperature)
