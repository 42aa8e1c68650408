r"""Observation noise and temperature: what one unit of the likelihood counts.

.. math:: \log p(D|w) = -\sum_c \big[ h_c L_c + N_c (\log\sigma_c + \tfrac12 \log 2\pi) \big],
    \qquad h_c = \frac{1}{\sigma_c^2 T}

with :math:`L_c` the loss of output c and :math:`N_c` its number of observations. The curvature is
:math:`\sum_c h_c H_c`, so that with the effective dimension of an output
:math:`\gamma_c = h_c \operatorname{tr} (\sum_{c'} h_{c'} H_{c'} + \delta)^{-1} H_c`

.. math:: \frac{\partial \log Z}{\partial \log \sigma_c} = 2 h_c L_c - N_c + \gamma_c .

One noise for all outputs is the case that all terms are summed over c.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..curvature.estimate import CurvatureEstimate
from ..curvature.likelihood import Likelihood
from ..errors import ArgumentError, LikelihoodError

__all__ = ["Noise", "KINDS"]

#: One noise for all outputs, or one for each.
KINDS = ("shared", "output")

#: Log standard deviations stay between this and its negative.
LARGEST = 100.0


class Noise:
    """The noise of a likelihood's observations; of one that has none, the temperature alone.

    Args:
        likelihood: of any kind.
        kind: ``"shared"``, or ``"output"`` for a noise of each output (dimension 1 of the outputs).
        log: initial log standard deviation, one for each output or a number for all.
        temperature: divides the log-likelihood, but not its normaliser.

    Raises:
        ArgumentError: a likelihood without noise that should have one for each output, or logarithms out of range.

    >>> from escnn_relax.curvature.likelihood import Gaussian
    >>> noise = Noise(Gaussian(), "output", [0.0, math.log(2.0)], 1.0)
    >>> noise.scales
    tensor([1.0000, 0.2500], dtype=torch.float64)
    """

    def __init__(
        self, likelihood: Likelihood, kind: str, log: float | Sequence[float] | Tensor, temperature: float
    ) -> None:
        if kind not in KINDS:
            remedy = "leave it out for one noise of all outputs"
            raise ArgumentError("noise", expected=f"{KINDS[0]!r} or {KINDS[1]!r}", got=repr(kind), remedy=remedy)
        if kind == "output" and not likelihood.noisy:
            problem = f"the likelihood {likelihood.name!r} has no observation noise"
            raise ArgumentError("noise", problem, remedy="use likelihood='gaussian', or leave noise out")
        if not 0 < temperature < math.inf:
            raise ArgumentError(
                "temperature", expected="a positive number", got=temperature, remedy="leave it out for 1"
            )
        self.likelihood, self.kind, self.temperature = likelihood, kind, temperature
        self.log = log

    @property
    def log(self) -> float | Tensor:
        """Log standard deviation: a number, or ``(outputs,)``, float64, once the number of outputs is known."""
        return self._log

    @log.setter
    def log(self, value: float | Sequence[float] | Tensor) -> None:
        values = torch.as_tensor(value, dtype=torch.float64).detach().cpu().clone()
        if not (values.abs() <= LARGEST).all():
            remedy = "pass the logarithm of a standard deviation, 0 for one of 1"
            raise ArgumentError(
                "log_noise", expected=f"a logarithm between -{LARGEST:g} and {LARGEST:g}", got=value, remedy=remedy
            )
        if values.dim() > (1 if self.kind == "output" else 0):
            remedy = "pass noise='output' for a noise of each output"
            raise ArgumentError("log_noise", expected="a number", got=f"shape {tuple(values.shape)}", remedy=remedy)
        self._log = values if values.dim() else float(values)

    def at(self, log: float | Tensor) -> Noise:
        """The same noise with other log standard deviations."""
        return Noise(self.likelihood, self.kind, log, self.temperature)

    @property
    def each(self) -> bool:
        """Whether each output has a noise of its own."""
        return self.kind == "output"

    def widen(self, outputs: int) -> None:
        """Give each of so many outputs its own; ``LikelihoodError`` if there are as many as another number."""
        if self.each and not isinstance(self.log, Tensor):
            self.log = [self.log] * outputs
        if self.each and isinstance(self.log, Tensor) and len(self.log) != outputs:
            remedy = "pass a number for all outputs, or as many as there are"
            raise LikelihoodError(
                "log_noise", expected=f"one for each of the {outputs} outputs", got=len(self.log), remedy=remedy
            )

    @property
    def scale(self) -> float:
        r""":math:`h = 1/(\sigma^2 T)` of the geometric mean of all :math:`\sigma`."""
        return math.exp(-2 * self._mean) / self.temperature if self.likelihood.noisy else 1 / self.temperature

    @property
    def weights(self) -> Tensor:
        r"""What each output counts relative to that, :math:`h_c / h`, shape ``(outputs,)``."""
        return (2 * (self._mean - torch.as_tensor(self.log, dtype=torch.float64).view(-1))).exp()

    @property
    def scales(self) -> Tensor:
        """:math:`h_c`, shape ``(outputs,)``; one for all where they share it."""
        return self.scale * self.weights

    @property
    def _mean(self) -> float:
        return float(self.log.mean()) if isinstance(self.log, Tensor) else self.log

    def weighted(self, values: Tensor) -> Tensor:
        """Sums of single outputs ``(outputs, ...)``, or of all together ``(...)``, in nats."""
        return torch.tensordot(self.scales, values, 1) if self.each else self.scale * values

    def normaliser(self, observations: float) -> float:
        """The likelihood's normaliser (nats); no temperature divides it."""
        return observations * (self._mean + 0.5 * math.log(2 * math.pi)) if self.likelihood.noisy else 0.0

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Negative log-likelihood of a minibatch without normaliser (nats)."""
        if not self.each:
            return self.scale * self.likelihood.loss(output, target)
        self.widen(output.shape[1])
        losses = self.likelihood.losses(output, target)
        return (self.scales.to(losses) * losses).sum()

    def weigh(self, estimate: CurvatureEstimate) -> CurvatureEstimate:
        """The estimate whose outputs count as this noise has it, in units of :attr:`scale`."""
        return CurvatureEstimate.weighted_sum(estimate.outputs, self.weights) if self.each else estimate
