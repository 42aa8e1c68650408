"""What is read of an evidence by those that it calls itself, so that neither needs the other's file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor, nn

from ..curvature.curvature import Curvature
from ..curvature.estimate import CurvatureEstimate
from ..curvature.likelihood import Likelihood
from ..nn.evidence_record import Recorded
from .laplace_approximation import LaplaceApproximation
from .noise import Noise
from .prior import Prior

__all__ = ["EvidenceView", "SlopesView"]


class SlopesView(Protocol):
    """How steep the posterior was where a training ended, see :class:`~escnn_relax.evidence.slopes.Slopes`."""

    def read(self) -> dict[str, Tensor] | None: ...
    def left(self) -> float: ...


class EvidenceView(Protocol):
    """The attributes of an :class:`~escnn_relax.Evidence`, which is one."""

    log_precision: dict[str, float]

    @property
    def model(self) -> nn.Module: ...
    @property
    def layers(self) -> Mapping[str, Recorded]: ...
    @property
    def parameters(self) -> Mapping[str, nn.Parameter]: ...
    @property
    def penalised(self) -> frozenset[str]: ...
    @property
    def closed(self) -> tuple[str, ...]: ...
    @property
    def likelihood(self) -> Likelihood: ...
    @property
    def curvature(self) -> Curvature: ...
    @property
    def estimate(self) -> CurvatureEstimate | None: ...
    @property
    def noise(self) -> Noise: ...
    @property
    def scale(self) -> float: ...
    @property
    def prior(self) -> Prior: ...
    @property
    def num_data(self) -> int | None: ...
    @property
    def learned(self) -> bool: ...
    @property
    def doubt(self) -> str: ...
    @property
    def slopes(self) -> SlopesView | None: ...

    def approximation(self, *, complete: bool = True) -> LaplaceApproximation: ...
    def effective_dimension(self) -> dict[str, float]: ...
