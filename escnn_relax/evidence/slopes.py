r"""How steep the negative log posterior is where a training ended, for a training may end before its mode.

Laplace's approximation takes the weights for the mode. What is left of the way there would count as data: with a fourth
of the steps that a layer needed, the evidence called twelve symmetric samples broken by 37 nats. The slope is the mean
of the gradients of the last epoch, in which the learning rate is small, so it costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..curvature.distributed import sum_processes
from ..nn.last_decision import fingerprint
from ..nn.steerable import SteerableConvolution
from .evidence_view import EvidenceView

__all__ = ["Slopes"]


class Slopes:
    """Of the covered weights of a model.

    Args:
        evidence: of the model; its noise and precisions are those of the epoch.
    """

    def __init__(self, evidence: EvidenceView) -> None:
        self._evidence = evidence
        self._layers = {n: layer for n, layer in evidence.layers.items() if isinstance(layer, SteerableConvolution)}
        self._parameters = dict(evidence.parameters)
        self._sums: dict[str, Tensor] = {}
        self._count, self._scale = 0, evidence.scale
        self._prints: dict[str, str] = {}

    def add(self, count: int) -> None:
        """The gradients of :meth:`Evidence.loss` that so many samples have left in the parameters."""
        self.add_samples(count)
        for name, p in self._parameters.items():
            if p.grad is not None:
                self.add_gradient(name, p.grad.detach(), count)

    def add_gradient(self, name: str, gradient: Tensor, count: int) -> None:
        """One parameter's gradient of :meth:`Evidence.loss`, averaged over so many samples, which :meth:`add_samples`
        has counted."""
        delta, p = self._evidence.log_precision[name], self._parameters[name]
        if delta == math.inf:
            return
        felt = math.exp(delta) if name in self._evidence.penalised else 0.0
        slope = count * (gradient - felt / (self._evidence.num_data or 1) * p.detach()).double()
        self._sums[name] = self._sums[name] + slope if name in self._sums else slope

    def add_samples(self, count: int) -> None:
        """So many samples whose gradients are added one by one."""
        self._count += count

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The weights whose slopes are taken, by name."""
        return self._parameters

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors, before :meth:`end`."""
        return {"sums": dict(self._sums), "count": self._count, "scale": self._scale}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The way back."""
        self._sums = {name: total.to(self._parameters[name].device) for name, total in state["sums"].items()}
        self._count, self._scale = state["count"], state["scale"]

    def end(self) -> None:
        """The training has ended, in all processes: these are the weights."""
        self._count = int(sum_processes(torch.tensor(self._count)))
        self._sums = {n: sum_processes(total).cpu() for n, total in sorted(self._sums.items())}
        self._prints = {n: fingerprint(layer) for n, layer in self._layers.items()}

    def read(self) -> dict[str, Tensor] | None:
        """Slopes by parameter name (nats) of what is descended, at the present noise and precisions; weights that feel
        no prior have none in theirs. ``None`` where a relaxed layer has moved since."""
        if not self._count or any(fingerprint(self._layers[n]) != old for n, old in self._prints.items()):
            return None
        evidence = self._evidence
        share = (evidence.num_data or 1) / self._count * evidence.scale / self._scale
        slopes = {}
        for name, total in self._sums.items():
            delta = evidence.log_precision.get(name, math.inf)
            if delta < math.inf:
                felt = math.exp(delta) if name in evidence.penalised else 0.0
                slopes[name] = share * total + felt * self._parameters[name].detach().to("cpu", torch.float64)
        return slopes

    def left(self) -> float:
        r"""What the log posterior would gain by one Newton step, :math:`\tfrac12 r^\top (hH + \Lambda)^{-1} r`
        (nats); 0 if not known. A weight decay of the user's on weights that feel no prior counts as a way that is
        left."""
        evidence, slopes = self._evidence, self.read() or {}
        if evidence.estimate is None:
            return 0.0
        scale = evidence.scale * (evidence.num_data or 1) / evidence.estimate.num_data
        gained = 0.0
        for name, slope in slopes.items():
            delta = math.exp(evidence.log_precision[name])
            for factor in evidence.estimate.factors.get(name, ()):
                displaced = (
                    slope.flatten() if factor.positions is None else slope.flatten()[factor.positions.flatten().cpu()]
                )
                gained += 0.5 * float(factor.whiten(displaced, scale, delta).square().sum())
        return gained
