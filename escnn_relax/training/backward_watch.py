"""The gradients of a loss as they come by, whoever calls ``backward``: for the slopes of a training's last epoch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..evidence.slopes import Slopes

__all__ = ["BackwardWatch"]


class BackwardWatch:
    """Adds what each backward pass brings to slopes, until it is closed.

    Losses may be scaled on the way, by accumulated batches or a gradient scaler: the gradient that reaches the loss
    says by how much. Of losses whose passes are not told apart (two in one pass) the first pass says it of all.

    Args:
        slopes: of the covered weights.

    >>> import torch
    >>> from torch import nn
    >>> from escnn_relax import Evidence
    >>> net = nn.Sequential(nn.Linear(1, 1, bias=False))
    >>> slopes = Slopes(Evidence(net, "gaussian", relaxed_only=False, num_data=4))
    >>> watch = BackwardWatch(slopes)
    >>> (watch.follow(net(torch.ones(2, 1)).mean(), 2) / 8).backward()  # a slope of 1 for each of N = 4 samples
    >>> watch.close()
    >>> round(float(slopes.read()["0.weight"]), 4)
    4.0
    """

    def __init__(self, slopes: Slopes) -> None:
        self.slopes = slopes
        self._multiplier, self._samples = 1.0, 0
        self._hooks: list[Any] = [p.register_hook(self._adder(n)) for n, p in slopes.parameters.items()]

    def follow(self, loss: Tensor, samples: int) -> Tensor:
        """The same loss, averaged over so many samples, whose backward pass will be seen."""
        if loss.requires_grad:
            loss.register_hook(lambda gradient: self._begin(gradient, samples))
        return loss

    def close(self) -> None:
        """Nothing is added any more."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _begin(self, gradient: Tensor, samples: int) -> None:
        self._multiplier, self._samples = float(gradient), samples
        if self._hooks and self._multiplier:
            self.slopes.add_samples(samples)

    def _adder(self, name: str) -> Any:
        def add(gradient: Tensor) -> None:
            if self._multiplier and bool(torch.isfinite(gradient).all()):  # a gradient scaler may try too large a scale
                self.slopes.add_gradient(name, gradient.detach() / self._multiplier, self._samples)

        return add
