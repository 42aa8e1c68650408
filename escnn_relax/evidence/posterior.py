r"""Predictions averaged over the Laplace posterior of the weights, from the curvature that the evidence has anyway.

The network is linearised in its weights (Immer, Korzepa, Bauer: *Improving predictions of Bayesian neural nets via
local linearization*, AISTATS 2021): outputs at x are Gaussian with mean f(x) and covariance :math:`J(x) (hH +
\delta)^{-1} J(x)^\top`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..curvature.checked_batches import batches
from ..curvature.curvature import Curvature
from ..curvature.jacobian import jacobian
from ..errors import ArgumentError, DataError, LikelihoodError
from .calibration import Calibration, calibration
from .laplace_approximation import LaplaceApproximation

__all__ = ["Posterior", "Prediction"]


class Prediction(NamedTuple):
    """A Gaussian over a real-valued target: mean and variance, both ``(N, outputs)``; the noise is in the variance."""

    mean: Tensor
    variance: Tensor


class Posterior:
    """The Laplace posterior of a model's covered weights; the other weights stay as they are.

    Args:
        approximation: at the trained weights.
        curvature: what took its curvature, of the model and its likelihood.

    >>> from torch import nn
    >>> from escnn_relax import Evidence
    >>> evidence = Evidence(nn.Sequential(nn.Linear(3, 2)), relaxed_only=False)
    >>> _ = evidence.refresh([(torch.randn(20, 3), torch.randint(2, (20,)))])
    >>> bool(torch.allclose(evidence.posterior().predict(torch.randn(4, 3)).sum(1), torch.ones(4, dtype=torch.float64)))
    True
    """

    def __init__(self, approximation: LaplaceApproximation, curvature: Curvature) -> None:
        self.approximation, self.curvature = approximation, curvature
        self.model, self.likelihood = curvature.model, curvature.likelihood

    def outputs(self, input: Any) -> tuple[Tensor, Tensor]:
        """Mean ``(N, C)`` and covariance ``(N, C, C)`` of the network's outputs, float64 on the CPU."""
        estimate, scale = self.approximation.estimate, self.approximation.scale
        output, rows = jacobian(self.curvature, input)
        covariance = torch.zeros(*output.shape, output.shape[1], dtype=torch.float64)
        for name, J in rows.items():
            J, delta = J.to("cpu", torch.float64), math.exp(self.approximation.log_precision[name])
            for factor in estimate.factors[name]:
                columns = J if factor.positions is None else J[..., factor.positions.flatten()]
                white = factor.whiten(columns, scale, delta)
                covariance += white @ white.transpose(1, 2)
        return output.to("cpu", torch.float64), covariance

    def predict(self, input: Any, link: str = "probit", samples: int = 1000) -> Tensor | Prediction:
        """Class probabilities ``(N, C)``, or a :class:`Prediction` for a Gaussian likelihood.

        Args:
            link: ``"probit"`` scales each output by :math:`(1 + \\pi v / 8)^{-1/2}` before the softmax; ``"sample"``
                averages the softmax over draws of the outputs.
            samples: number of draws.
        """
        if link not in ("probit", "sample"):
            raise ArgumentError(
                "link", expected="'probit' or 'sample'", got=repr(link), remedy="leave it out for 'probit'"
            )
        mean, covariance = self.outputs(input)
        variance = covariance.diagonal(dim1=1, dim2=2)
        if self.likelihood.noisy:
            noise = torch.as_tensor(self.approximation.noise.log, dtype=torch.float64).mul(2).exp()
            return Prediction(mean, variance + noise)
        if link == "probit":
            return self._probabilities(mean / (1 + math.pi / 8 * variance).sqrt())
        jitter = 1e-10 * (1 + variance.mean()) * torch.eye(mean.shape[1], dtype=torch.float64)
        draws = torch.randn(samples, *mean.shape, 1, dtype=torch.float64)
        return self._probabilities(mean + (torch.linalg.cholesky(covariance + jitter) @ draws).squeeze(-1)).mean(0)

    def calibration(
        self, loader: Iterable[Any], link: str = "probit", bins: int = 15
    ) -> tuple[Calibration, Calibration]:
        """Calibration on held-out data: of the posterior's predictions, and of the plain network's.

        Each output of a Bernoulli likelihood counts as a choice of its own between no and yes.

        Raises:
            DataError: an empty loader, or Bernoulli targets other than 0 and 1.
            LikelihoodError: for a Gaussian likelihood, which predicts no probabilities.
        """
        if self.likelihood.noisy:
            remedy = "compare the mean and variance of predict with the targets"
            raise LikelihoodError(
                "calibration", expected="a likelihood with class probabilities", got="a Gaussian one", remedy=remedy
            )
        averaged, plain, targets = [], [], []
        likelihood = self.likelihood
        for input, target in batches(loader, next(self.model.parameters()).device):
            output = self._plain_output(input)
            likelihood.check(output, target)
            probabilities: Any = self.predict(input, link)  # since the likelihood is not Gaussian
            averaged.append(likelihood.classes(probabilities))
            plain.append(likelihood.classes(self._probabilities(output)))
            targets.append(likelihood.labels(target.cpu()))
        if not targets:
            raise DataError("calibration", "no samples", remedy="pass a non-empty loader")
        labels = torch.cat(targets)
        return calibration(torch.cat(averaged), labels, bins), calibration(torch.cat(plain), labels, bins)

    def _probabilities(self, outputs: Tensor) -> Tensor:
        return self.likelihood.probabilities(outputs)

    def _plain_output(self, input: Any) -> Tensor:
        """The network's outputs in evaluation mode, without the posterior, float64 on the CPU."""
        extraction = self.curvature.extraction
        with torch.no_grad(), extraction.open(self.model):
            return self.likelihood.tensor(extraction.forward(self.model, input)).detach().to("cpu", torch.float64)
