"""What a refresh leaves of data and curvature: all that the evidence at fixed weights needs, for any precisions and
noises."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..curvature.distributed import broadcast_first
from ..curvature.estimate import CurvatureEstimate
from ..errors import CurvatureError
from .noise import Noise
from .terms import EvidenceTerms, complexity, doubt, effective_dimension

__all__ = ["Spectrum"]


@dataclass(frozen=True)
class Spectrum:
    """Sums over the whole data set, for one unit of the likelihood.

    Attributes:
        values: eigenvalues of each parameter's curvature, ``(size,)``; with a noise of each output, what each output
            contributes to them, ``(outputs, size)``. float64.
        losses: negative log-likelihood without normaliser (nats), ``()`` or ``(outputs,)``.
        num_data: number of samples N.
        num_outputs: numbers observed for a sample, on average.
        constants: the losses of the best output that is the same for every sample; NaN where they are not known.

    >>> from escnn_relax.curvature.likelihood import Gaussian
    >>> spectrum = Spectrum({"w": torch.tensor([1.0, 0.0])}, torch.tensor(2.0), 10, 1)
    >>> spectrum.terms(Noise(Gaussian(), "shared", 0.0, 1.0), {"w": 0.0}, {"w": 0.5}).prior
    0.25
    """

    values: dict[str, Tensor]
    losses: Tensor
    num_data: int
    num_outputs: float
    constants: Tensor = torch.tensor(math.nan, dtype=torch.float64)

    @classmethod
    def from_estimate(cls, estimate: CurvatureEstimate, sizes: Mapping[str, int], num_data: int) -> Spectrum:
        """Of a part of the data, scaled up to all ``num_data``; ``CurvatureError`` for parameters of other sizes."""
        share = num_data / estimate.num_data
        read = estimate.shares if estimate.outputs else estimate.eigenvalues
        values = {name: share * read(name) for name in sizes}
        for name, size in sizes.items():
            if values[name].shape[-1] != size:
                remedy = "refresh the evidence of this model anew"
                raise CurvatureError(name, expected=f"{size} eigenvalues", got=values[name].shape[-1], remedy=remedy)
        losses = torch.tensor([o.loss for o in estimate.outputs] or estimate.loss, dtype=torch.float64)
        constants = torch.tensor([o.constant for o in estimate.outputs] or estimate.constant, dtype=torch.float64)
        return cls(values, share * losses, num_data, estimate.num_outputs, share * constants)

    def agreed(self) -> Spectrum:
        """That of the first process, so that all decide alike."""
        return replace(
            self,
            values={n: broadcast_first(v) for n, v in self.values.items()},
            losses=broadcast_first(self.losses),
            constants=broadcast_first(self.constants),
        )

    @property
    def observations(self) -> float:
        """Numbers observed: samples times outputs."""
        return self.num_data * self.num_outputs

    @property
    def mean_loss(self) -> float:
        """Loss of one sample (nats), for one unit of the likelihood."""
        return float(self.losses.sum()) / self.num_data

    def eigenvalues(self, noise: Noise) -> dict[str, Tensor]:
        """Of each parameter's curvature, scaled by the likelihood."""
        return {name: noise.weighted(values) for name, values in self.values.items()}

    def gated(self, closed: Collection[str], opened: Mapping[str, int]) -> Spectrum:
        """Without the weights that are closed; those that are open now, so many each, have eigenvalues of zero."""
        like = next(iter(self.values.values()))
        values = {name: of_weight for name, of_weight in self.values.items() if name not in closed}
        for name, size in opened.items():
            if name not in values:
                values[name] = torch.zeros(*like.shape[:-1], size, dtype=like.dtype)
        return replace(self, values=values)

    def learned(self, noise: Noise, log_precision: Mapping[str, float]) -> bool:
        """Whether the data are likelier than under a constant output by more than the effective dimension and one
        for each output."""
        gain = self.gain_over_constant(noise)
        return not gain <= sum(self.effective_dimension(noise, log_precision).values()) + self.num_outputs

    def doubt(self, noise: Noise, log_precision: Mapping[str, float]) -> str:
        """What is said where it is not known to have learned, with what was compared."""
        dimension = sum(self.effective_dimension(noise, log_precision).values())
        return doubt(self.gain_over_constant(noise), dimension, self.num_outputs)

    def gain_over_constant(self, noise: Noise) -> float:
        """By how much the data are likelier under the network than under the best constant output (nats)."""
        return float(noise.weighted(self.constants - self.losses))

    def terms(self, noise: Noise, log_precision: Mapping[str, float], squares: Mapping[str, float]) -> EvidenceTerms:
        """The evidence, with :math:`|w|^2` of each parameter."""
        data_fit = -float(noise.weighted(self.losses)) - noise.normaliser(self.observations)
        occam = prior = 0.0
        for name, square in squares.items():
            occam += complexity(noise.weighted(self.values[name]), log_precision[name])
            prior += 0.5 * math.exp(log_precision[name]) * square
        return EvidenceTerms(data_fit, occam, prior, self.num_data)

    def effective_dimension(self, noise: Noise, log_precision: Mapping[str, float]) -> dict[str, float]:
        """:math:`\\gamma_p` of each parameter."""
        return {n: effective_dimension(noise.weighted(values), log_precision[n]) for n, values in self.values.items()}

    def effective_dimension_of_outputs(self, noise: Noise, log_precision: Mapping[str, float]) -> Tensor:
        """:math:`\\gamma_c` of each output, ``(outputs,)``; of all together, ``(1,)``, where they share a noise."""
        scales, gammas = noise.scales, torch.zeros(1, dtype=torch.float64)
        for name, values in self.values.items():
            remaining = noise.weighted(values) + math.exp(log_precision[name])
            gammas = gammas + scales * (values.view(len(scales), -1) / remaining).sum(1)
        return gammas

    def gradient(
        self, noise: Noise, log_precision: Mapping[str, float], squares: Mapping[str, float]
    ) -> dict[str, float]:
        r"""Derivative of the evidence in every log precision and log noise, see :meth:`Evidence.gradient
        <escnn_relax.Evidence.gradient>`."""
        gammas = self.effective_dimension(noise, log_precision)
        slopes = {n: 0.5 * (gammas[n] - math.exp(log_precision[n]) * squares[n]) for n in gammas}
        if noise.likelihood.noisy:
            for c, slope in enumerate(self.noise_slopes(noise, log_precision)):
                slopes[f"log_noise.{c}" if noise.each else "log_noise"] = float(slope)
        return slopes

    def noise_slopes(self, noise: Noise, log_precision: Mapping[str, float]) -> Tensor:
        """:math:`\\partial \\log Z / \\partial \\log \\sigma_c`, shape ``(outputs,)`` or ``(1,)``."""
        gammas = self.effective_dimension_of_outputs(noise, log_precision)
        return 2 * noise.scales * self.losses - self._observed + gammas

    def stationary_log_noise(self, noise: Noise, log_precision: Mapping[str, float]) -> Tensor:
        r""":math:`\tfrac12 \log \frac{2 L_c}{(N_c - \gamma_c) T}`, MacKay's estimate, shape of the losses."""
        free = self._observed - self.effective_dimension_of_outputs(noise, log_precision)
        variance = 2 * self.losses / (free.clamp(min=1.0).view_as(self.losses) * noise.temperature)
        return 0.5 * variance.clamp(min=1e-12).log()

    @property
    def _observed(self) -> float:
        return self.observations / self.losses.numel()
