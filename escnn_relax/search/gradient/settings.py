"""The settings of a differentiable search."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ...errors import ArgumentError

__all__ = ["Settings"]

SOURCES = ("held-out", "evidence")


@dataclass(frozen=True)
class Settings:
    """The arguments of :func:`~escnn_relax.search.gradient.differentiate` that decide about its result."""

    epochs: int
    by: str
    lr: float
    architecture_lr: float
    entropy: float
    monotone: float
    normalise: bool
    burn_in: int
    refresh_every: int
    hypersteps: int
    discretise: Any
    retrain: int
    record_every: int
    seed: int

    def check(self) -> None:
        """Raise ``ArgumentError`` for values that make no sense."""
        if self.by not in SOURCES:
            remedy = "leave it out for the default"
            raise ArgumentError(
                "differentiate", expected=f"by to be one of {SOURCES}", got=repr(self.by), remedy=remedy
            )
        counts = {name: getattr(self, name) for name in ("epochs", "retrain", "burn_in", "hypersteps")}
        periods = {name: getattr(self, name) for name in ("refresh_every", "record_every")}
        if min(counts.values()) < 0 or min(periods.values()) < 1:
            expected = f"{', '.join(counts)} >= 0 and {', '.join(periods)} >= 1"
            remedy = "leave out what should have its default"
            raise ArgumentError("differentiate", expected=expected, got={**counts, **periods}, remedy=remedy)
        rates = {name: getattr(self, name) for name in ("lr", "architecture_lr", "entropy", "monotone")}
        if not all(0 <= rate < math.inf for rate in rates.values()):
            remedy = "leave out what should have its default"
            raise ArgumentError("differentiate", expected=f"finite {', '.join(rates)} >= 0", got=rates, remedy=remedy)
        if self.by == "evidence" and self.normalise:
            problem = "the evidence judges each filter's norm, which normalisation would fix"
            raise ArgumentError("differentiate", problem, remedy="leave normalise out")
        if self.discretise is not None and self.discretise != "argmax":
            if isinstance(self.discretise, str) or not 0 < self.discretise <= 1:
                expected = "discretise to be 'argmax', a threshold in (0, 1] or None"
                remedy = "leave it out for 'argmax'"
                raise ArgumentError("differentiate", expected=expected, got=repr(self.discretise), remedy=remedy)
            if self.monotone:
                raise ArgumentError(
                    "differentiate", "a monotone choice is one group for each layer", remedy="use 'argmax'"
                )
