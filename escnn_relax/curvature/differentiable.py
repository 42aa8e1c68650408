"""The curvature of single minibatches with graphs to parameters of the network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..deprecation import warn_former
from .checked_batches import batches, detach_input, drop_uncounted, halves
from .curvature import Curvature
from .factors import Factor

__all__ = ["BatchCurvature", "differentiable_curvature"]


class BatchCurvature(NamedTuple):
    """Loss and factors of one minibatch, and its number of samples."""

    loss: Tensor
    factors: dict[str, tuple[Factor, ...]]
    num_data: int


def differentiable_curvature(
    curvature: Curvature, loader: Iterable[Any], parameters: Sequence[nn.Parameter], weights: Tensor | None = None
) -> Iterator[BatchCurvature]:
    """One minibatch after the other, with graphs to ``parameters``.

    Args:
        weights: what each output counts, in loss and factors; 1 by default.

    Raises:
        ArgumentError: Monte-Carlo columns or an approximation through which nothing can be differentiated.
    """
    curvature.refuse_indifferentiable()
    model, likelihood, extraction = curvature.model, curvature.likelihood, curvature.extraction
    device = next(model.parameters()).device
    with extraction.open(model, tuple(parameters)):
        for whole, targets in halves(batches(loader, device)):
            input, target = drop_uncounted(whole, targets)
            output = likelihood.tensor(extraction.forward(model, detach_input(input)))
            likelihood.check(output, target)
            layers = {
                layer_weights: curvature.layer_curvature(layer_weights) for layer_weights in curvature.coverage.weights
            }
            columns = likelihood.columns(output, target=target)
            if weights is not None:
                columns = (column * weights.sqrt()[index % len(weights)] for index, column in enumerate(columns))
            counts = likelihood.counts(output, target)
            for index, uses in enumerate(extraction.differentiable(output, columns)):
                for layer_weights, layer in layers.items():
                    samples = len(output) if index == 0 else None
                    layer.add([use for user in layer_weights.users for use in uses[user]], samples, counts)
            factors = {
                layer_weights.parameters[name]: blocks
                for layer_weights, layer in layers.items()
                for name, blocks in layer.factors()[0].items()
            }
            loss = likelihood.loss(output, target)
            if weights is not None:
                losses = likelihood.losses(output, target)
                loss = (weights.to(losses) * losses).sum()
            yield BatchCurvature(loss, factors, len(targets))


def _differentiable(self: Curvature, *arguments: Any, **options: Any) -> Iterator[BatchCurvature]:
    warn_former("Curvature.differentiable", f"{__name__}.differentiable_curvature")
    return differentiable_curvature(self, *arguments, **options)


setattr(Curvature, "differentiable", _differentiable)
