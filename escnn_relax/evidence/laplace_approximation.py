"""The Laplace approximation of a posterior at one moment, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..curvature.estimate import CurvatureEstimate
from .noise import Noise

__all__ = ["LaplaceApproximation"]


@dataclass(frozen=True)
class LaplaceApproximation:
    r"""What makes a Gaussian of the weights' posterior, with the precision :math:`hH + \delta` for each parameter.

    Attributes:
        estimate: the curvature of the samples that were seen, for one unit of the likelihood.
        log_precision: of the prior, by parameter name.
        noise: of the observations.
        num_data: number of training samples.

    >>> from escnn_relax.curvature.likelihood import Gaussian
    >>> LaplaceApproximation(CurvatureEstimate({}, 0.0, 50, 1), {}, Noise(Gaussian(), "shared", 0.0, 2.0), 100).scale
    1.0
    """

    estimate: CurvatureEstimate
    log_precision: Mapping[str, float]
    noise: Noise
    num_data: int

    @property
    def share(self) -> float:
        """Training samples for each one that was seen."""
        return self.num_data / self.estimate.num_data

    @property
    def scale(self) -> float:
        """:math:`h` by which the estimate is multiplied: the likelihood's, scaled up to all training samples."""
        return self.noise.scale * self.num_data / self.estimate.num_data
