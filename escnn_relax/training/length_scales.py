r"""Moving length scales up the evidence, one step at each refresh.

The scale of an interpolation has no prior, and nothing charges the loss for making it finer. So
:func:`~escnn_relax.fit` keeps it out of its descent and follows
:func:`~escnn_relax.evidence.hypergradient.hypergradient`, which sees the curvature change with it: one step of Adam in
:math:`\log \omega` (Kingma and Ba, ICLR 2015) for each refresh, within :data:`BOUNDS`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..errors import ArgumentError, CurvatureError
from ..evidence.evidence import Evidence
from ..nn.translation.anchors import length_scales

__all__ = ["BOUNDS", "LengthScales"]

#: Least and largest inverse length scale (1 / pixels).
BOUNDS = (1e-3, 1e2)
#: A slope much smaller than this (nats for each unit of log omega) moves nothing.
SLIGHT = 1e-2


class LengthScales:
    """The length scales that a model learns, and Adam's memory of their slopes.

    Args:
        evidence: of the model; its curvature must be differentiable if there are any scales.
        rate: largest step in log omega, about.

    Raises:
        ArgumentError: a rate that is not positive, or a sampled or eigenvalue-corrected curvature.

    >>> LengthScales(Evidence(nn.Linear(3, 2), relaxed_only=False)).values()
    {}
    """

    def __init__(self, evidence: Evidence, rate: float = 0.1) -> None:
        if not 0 < rate < math.inf:
            remedy = "leave it out for the default"
            raise ArgumentError("omega_rate", expected="a positive step in log omega", got=rate, remedy=remedy)
        self.evidence, self.rate = evidence, rate
        self.parameters = length_scales(evidence.model)
        self.optimizer = None
        if self.parameters:
            _refuse_indifferentiable(evidence, list(self.parameters))
            moved = list(self.parameters.values())
            self.optimizer = torch.optim.Adam(moved, lr=rate, betas=(0.9, 0.99), eps=SLIGHT, maximize=True)

    def __bool__(self) -> bool:
        return bool(self.parameters)

    def values(self) -> dict[str, float]:
        """Inverse length scales by the name of their parameter (1 / pixels)."""
        return {name: math.exp(float(p.detach())) for name, p in self.parameters.items()}

    def others(self, parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
        """Those parameters that are no scales."""
        ids = {id(p) for p in self.parameters.values()}
        return [p for p in parameters if id(p) not in ids]

    def refuse_in(self, optimizer: Optimizer) -> None:
        """Raise ``ArgumentError`` if an optimizer of the loss holds a scale."""
        moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, p in self.parameters.items():
            if id(p) in moved:
                raise ArgumentError(
                    "optimizer",
                    f"it would move the length scale {name} down the loss; the evidence moves it",
                    remedy="build it without parameters named 'log_omega', or pass a function from parameters to one",
                )

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """No gradient of the loss reaches them meanwhile, and interpolations are not solved anew."""
        try:
            for p in self.parameters.values():
                p.requires_grad_(False)
            yield
        finally:
            for p in self.parameters.values():
                p.requires_grad_()

    def step(self, loader: Iterable[Any], keep: float = 0.0) -> None:
        """One step up the evidence of ``loader``, at the present weights and precisions.

        Args:
            loader: what the evidence was last refreshed with; it must yield the same again.
            keep: as of that refresh: what it averaged is not lost.

        Raises:
            CurvatureError: a slope that is not finite; nothing is moved then.
            DataError: a loader that yields other data than before.
        """
        if self.optimizer is None:
            return
        moved = list(self.parameters.values())
        if keep:
            with self.evidence.refresh_undone():
                slopes = self.evidence.hypergradient(loader, moved)
        else:
            slopes = self.evidence.hypergradient(loader, moved, refreshed=True)
        for name, slope in zip(self.parameters, slopes):
            if not torch.isfinite(slope):
                remedy = "lower omega_rate, or freeze it by requires_grad_(False)"
                raise CurvatureError(name, "the slope of the evidence is not finite", got=float(slope), remedy=remedy)
        for p, slope in zip(moved, slopes):
            p.grad = slope
        self.optimizer.step()
        with torch.no_grad():
            for p in moved:
                p.grad = None
                p.clamp_(*map(math.log, BOUNDS))

    def state_dict(self) -> dict[str, Any]:
        """Adam's memory; the scales themselves are part of the model."""
        return {} if self.optimizer is None else self.optimizer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The way back."""
        if self.optimizer is not None:
            self.optimizer.load_state_dict(dict(state))


def _refuse_indifferentiable(evidence: Evidence, names: list[str]) -> None:
    try:
        evidence.curvature.refuse_indifferentiable()
    except ArgumentError as error:
        raise ArgumentError(
            "fit",
            f"the evidence moves {len(names)} length scales ({names[0]}, ...), but {error.problem}",
            remedy="leave samples out and use 'expand', or freeze the scales by requires_grad_(False)",
        ) from error
