r"""Gradients of the evidence through the curvature, in two passes over the data.

.. math::
    \frac{d \log Z}{d\eta} = -h \frac{dL}{d\eta} - \sum_b \Big[ \Big\langle G_A, \frac{dA_b}{d\eta} \Big\rangle
    + \Big\langle G_B, \frac{dB_b}{d\eta} \Big\rangle \Big] - \delta_\eta \eta,
    \qquad G = \frac{\partial}{\partial \cdot} \tfrac12 \log|h H + \delta|

The first pass sums the factors without a graph and yields G; the second builds the graph of one minibatch's share of
them at a time. So the memory is that of one minibatch, and the result the same as from one graph of everything.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..curvature.curvature import SAME_DATA, Curvature
from ..curvature.differentiable import differentiable_curvature
from ..curvature.factors import Factor
from ..errors import ArgumentError, DataError
from .laplace_approximation import LaplaceApproximation

__all__ = ["check_differentiable", "hypergradient"]


def check_differentiable(model: nn.Module, curvature: Curvature, parameters: Sequence[nn.Parameter]) -> None:
    """Raise ``ArgumentError`` for parameters that are none of the model's, or frozen, and for a curvature without a
    graph."""
    known = {id(p): name for name, p in model.named_parameters()}
    if not parameters or not all(id(p) in known for p in parameters):
        raise ArgumentError(
            "hypergradient", "parameters that are not the model's", remedy="pick from model.parameters()"
        )
    for p in parameters:
        if not p.requires_grad:
            remedy = "call requires_grad_() on it, or leave it out"
            raise ArgumentError("hypergradient", f"{known[id(p)]} is frozen", remedy=remedy)
    curvature.refuse_indifferentiable()


def hypergradient(
    approximation: LaplaceApproximation, curvature: Curvature, loader: Iterable[Any], parameters: Sequence[nn.Parameter]
) -> list[Tensor]:
    """Derivative of the log evidence (nats) in parameters of the network, precisions fixed.

    Args:
        approximation: from this loader, at the present weights.
        curvature: what took it, neither sampled nor ``"eigenvalue-corrected"``.
        loader: the data, the same at each pass.
        parameters: leaves of the model: weights, mixing weights, length scales.

    Returns:
        one tensor for each, of its shape; no ``.grad`` is touched.

    Raises:
        DataError: a loader that yields other data in the second pass.
    """
    estimate, noise, log_precision = approximation.estimate, approximation.noise, approximation.log_precision
    share = approximation.share
    sensitivities = {
        name: [_sensitivity(f, noise.scale * share, log_precision[name]) for f in factors]
        for name, factors in estimate.factors.items()
    }
    weights = noise.weights if noise.each else None
    totals = [torch.zeros_like(p) for p in parameters]
    seen, total_loss = 0, 0.0
    for loss, factors, count in differentiable_curvature(curvature, loader, parameters, weights):
        total_loss += float(loss.detach())
        value = noise.scale * share * loss
        for name, blocks in factors.items():
            for factor, total, sensitivity in zip(blocks, estimate.factors[name], sensitivities[name]):
                value = value + _inner(factor, total, sensitivity)
        gradients = torch.autograd.grad(value, parameters, allow_unused=True)
        totals = [t if g is None else t - g for t, g in zip(totals, gradients)]
        seen += count
    if seen != estimate.num_data or not math.isclose(total_loss, estimate.loss, rel_tol=SAME_DATA, abs_tol=1e-12):
        raise DataError(
            "loader",
            f"the second pass saw {seen} samples with loss {total_loss:.6g}, "
            f"the first {estimate.num_data} with {estimate.loss:.6g}",
            remedy="pass a loader without random augmentation, not an exhausted iterator",
        )
    names = {id(p): name for name, p in curvature.model.named_parameters()}
    with torch.no_grad():
        for slope, p in zip(totals, parameters):
            if names[id(p)] in log_precision:
                slope -= math.exp(log_precision[names[id(p)]]) * p
    return totals


def _sensitivity(factor: Factor, scale: float, log_precision: float) -> tuple[Tensor, ...]:
    """Derivative of half the log determinant in the tensors that the factor consists of."""
    delta = math.exp(log_precision)
    tensors = [t.detach().clone().requires_grad_() for t in factor.tensors("hypergradient")]
    with torch.enable_grad():
        half = 0.5 * torch.log1p(factor.smooth_spectrum(tensors) * (scale / delta)).sum()
        return torch.autograd.grad(half, tensors)


def _inner(factor: Factor, total: Factor, sensitivity: tuple[Tensor, ...]) -> Tensor:
    """A minibatch's share of a factor against the sensitivity to the whole."""
    first, *others = ((tensor * s).sum() for tensor, s in zip(factor.portion(total), sensitivity))
    return sum(others, first)
