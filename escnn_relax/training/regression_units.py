r"""Regression in the units that the targets come in: where a network of unit scale begins, and by what steps.

A network whose weights are drawn for outputs of about one learns nothing of targets like :math:`290 \pm 5`: Adam's
steps have the size of its learning rate, whatever the gradient. Its last layer, :math:`z \mapsto W z + b`, is moved to
the targets' mean m and standard deviation s, :math:`W \to s W`, :math:`b \to s b + m`, the noise is taken relative to
s, and the steps of W and b are s times as long: with this, training is the same as with targets :math:`(y - m) / s`,
and the outputs are in the users' units. Of several outputs m and s are those of each, but the steps are as long as the
geometric mean of all s says: where these differ by more than about 100, targets are better standardised before. An
optimizer of the users' own keeps its own steps.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..curvature.checked_batches import answer, batches
from ..curvature.distributed import sum_processes
from ..curvature.layers.coverage import join
from ..curvature.likelihood import Gaussian
from ..curvature.likelihood.weights import broadcast_weight, split_weight
from ..evidence.evidence import Evidence
from ..evidence.random_state import random_state_kept
from .last_layer import last_layer

__all__ = ["Units", "foreign", "settle_units", "settled_units"]

#: Targets of a standard deviation within this factor of one are in the network's own units.
NATURAL = 10.0
#: A network whose mean squared error is below this share of the targets' variance has their units.
EXPLAINED = 0.9


@dataclass(frozen=True)
class Units:
    """What a regression was moved to.

    Attributes:
        layer: name of the last layer, that was moved to the targets' units; empty where none was found.
        step: by what its steps are longer, the geometric mean of the outputs' standard deviations.
        size: mean square of its bias.

    >>> groups = Units("1", 5.0, 9.0).groups(nn.Sequential(nn.ReLU(), nn.Linear(3, 1)), 0.01)
    >>> [[p.shape for p in group["params"]] for group in groups]
    [[], [torch.Size([1, 3]), torch.Size([1])]]
    """

    layer: str
    step: float
    size: float

    def widen(self, evidence: Evidence) -> None:
        """Let log precisions go where weights of these units need them."""
        low, high = evidence.prior.bounds
        moves = [0.0, -2 * math.log(self.step), -math.log(self.size)]
        evidence.prior = replace(evidence.prior, bounds=(low + min(moves), high + max(moves)))

    def groups(self, model: nn.Module, lr: float, parameters: Sequence[Any] | None = None) -> list[dict[str, Any]]:
        """The parameters in two groups for an optimizer; the last layer's with steps in the units of the targets."""
        of_layer = {id(p) for p in model.get_submodule(self.layer).parameters()} if self.layer else set()
        everything = list(model.parameters()) if parameters is None else list(parameters)
        return [
            {"params": [p for p in everything if id(p) not in of_layer], "lr": lr},
            {"params": [p for p in everything if id(p) in of_layer], "lr": lr * self.step},
        ]


def foreign(mean: Tensor, deviation: Tensor) -> bool:
    """Whether targets of this mean and standard deviation, by output, are out of reach of outputs of about one."""
    return (
        float((mean.abs() / deviation).max()) > NATURAL
        or not 1 / NATURAL <= float(deviation.min()) <= float(deviation.max()) <= NATURAL
    )


def settle_units(evidence: Evidence, loader: Iterable[Any]) -> Units | None:
    """Begin a regression at its targets' mean and scale; ``None`` where there is nothing to do.

    That is for another likelihood, for targets of about unit scale, and for a network that explains a part of their
    variance already. Else the weights of the last layer are changed in place; its prior precisions and the evidence's
    noise follow.

    Where the network ends in something else than an affine layer, only the noise moves, and a warning says what to do.

    >>> net = nn.Sequential(nn.Linear(3, 1))
    >>> data = [(torch.randn(50, 3), 290 + 5 * torch.randn(50, 1))]
    >>> settle_units(Evidence(net, "gaussian", relaxed_only=False), data).layer, round(float(net[0].bias.detach()), -1)
    ('0', 290.0)
    """
    if not isinstance(evidence.likelihood, Gaussian):
        return None
    moments = _moments(evidence, loader)
    if moments is None:
        return None
    first, error, mean, deviation = moments
    if error < EXPLAINED * float(deviation.square().sum()) or not foreign(mean, deviation):
        return None
    size = float((mean.square() + deviation.square()).mean())
    units = Units(last_layer(evidence.model, first) or "", float(deviation.log().mean().exp()), size)
    units.widen(evidence)
    evidence.log_noise = evidence.log_noise + (deviation.log() if evidence.noise.each else math.log(units.step))
    if units.layer:
        _move(evidence, units, mean, deviation)
    else:
        warnings.warn(
            f"targets of mean {float(mean.mean()):.4g} and standard deviation {units.step:.3g}, and a network that does"
            " not end in a Linear or convolution with a bias of its own, to be trained: train it on (target - mean) /"
            " standard deviation",
            stacklevel=5,
        )
    return units


def settled_units(evidence: Evidence, loader: Iterable[Any], stored: Mapping[str, Any]) -> Units | None:
    """:func:`settle_units`; in a run that goes on, what it began with.

    Args:
        stored: the settings in the run's checkpoint.
    """
    if stored.get("units") is None:
        return settle_units(evidence, loader)
    units = Units(*stored["units"])
    units.widen(evidence)
    return units


def _moments(evidence: Evidence, loader: Iterable[Any]) -> tuple[Any, float, Tensor, Tensor] | None:
    """The first input, the network's mean squared error, and mean and standard deviation of the targets by output."""
    model, likelihood = evidence.model, evidence.likelihood
    modes = [(module, module.training) for module in model.modules()]
    first, error = None, 0.0
    total = square = counted = torch.zeros(1, dtype=torch.float64)
    model.eval()
    try:
        with torch.no_grad(), random_state_kept(next(model.parameters()).device, loader):
            for input, target in batches(loader, next(model.parameters()).device):
                first = input if first is None else first
                output = likelihood.tensor(answer(model, input))
                likelihood.check(output, target)
                error += 2 * float(likelihood.loss(output, target))
                observed, weight = split_weight(target)
                counts = torch.ones_like(observed)
                if weight is not None:
                    counts = broadcast_weight(weight, observed).expand_as(observed)
                sums = [
                    t.double().movedim(1, -1).flatten(0, -2).sum(0).cpu()
                    for t in (counts * observed, counts * observed**2, counts)
                ]
                total, square, counted = total + sums[0], square + sums[1], counted + sums[2]
    finally:
        for module, mode in modes:  # parents before children
            if module.training != mode:
                module.train(mode)
    total, square, counted = (sum_processes(t) for t in (total, square, counted))
    error = float(sum_processes(torch.tensor(error, dtype=torch.float64)))
    if first is None or not bool((counted > 1).all()):
        return None
    mean = total / counted
    variance = square / counted - mean.square()
    if not math.isfinite(error) or not bool((variance > 1e-12 * mean.square()).all()):
        return None  # constant targets are for others to refuse
    return first, error / float(counted.mean()), mean, variance.sqrt()


def _move(evidence: Evidence, units: Units, mean: Tensor, deviation: Tensor) -> None:
    layer: Any = evidence.model.get_submodule(units.layer)
    of_output = deviation.to(layer.weight)
    with torch.no_grad():
        layer.weight.mul_(of_output.view(-1, *[1] * (layer.weight.dim() - 1)))
        layer.bias.mul_(of_output).add_(mean.to(layer.bias))
    # a bias of the size of the mean must not be unlikely under its prior, which is centred at zero
    for parameter, size in (("weight", units.step**2), ("bias", units.size)):
        key = join(units.layer, parameter)
        if key in evidence.log_precision:
            evidence.log_precision[key] = evidence.prior.clip(evidence.log_precision[key] - math.log(size))
