"""Gradients of every output of every sample in the covered parameters."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..errors import LikelihoodError
from .approximation import Batch
from .batch_format import map_tensors
from .checked_batches import detach_input
from .curvature import Curvature
from .layers.coverage import LayerWeights
from .layers.linear_map import LinearMap
from .sums.contraction import pull_back

__all__ = ["jacobian", "rows"]


def jacobian(curvature: Curvature, input: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Outputs ``(N, C)`` of a model and its derivatives, ``(N, C, size)`` for each covered parameter.

    One backward pass for each output; memory grows with N C times the number of weights.
    """
    outputs: list[Tensor] = []

    def unit(output: Tensor) -> Iterable[Tensor]:
        if output.dim() != 2:
            raise LikelihoodError(
                "posterior", expected="outputs (N, C)", got=tuple(output.shape), remedy="flatten them"
            )
        outputs.append(output.detach())
        return torch.eye(output.shape[1]).to(output).unsqueeze(1).expand(-1, len(output), -1)

    derivatives = rows(curvature, input, unit)
    return outputs[0], derivatives


def rows(
    curvature: Curvature,
    input: Any,
    columns: Callable[[Tensor], Iterable[Tensor]],
    names: Collection[str] | None = None,
) -> dict[str, Tensor]:
    """Derivatives of inner products of a model's outputs with columns of their shape, sample by sample: ``(N, columns,
    size)`` for each covered parameter, or each of those named.

    Args:
        columns: from the outputs to the columns, each of the shape of the outputs.
    """
    layers = {
        layer_weights: curvature.coverage.linear_map(layer_weights.layer)
        for layer_weights in curvature.coverage.weights
    }
    device = next(curvature.model.parameters()).device
    derivatives: dict[str, list[Tensor]] = {n: [] for n in curvature.covered if names is None or n in names}
    with curvature.extraction.open(curvature.model):
        output = curvature.likelihood.tensor(
            curvature.extraction.forward(
                curvature.model, map_tensors(detach_input(input), lambda part: part.to(device))
            )
        )
        batches: dict[LayerWeights, Batch] = {}
        for uses in curvature.extraction.backward(output, columns(output)):
            for layer_weights, layer in layers.items():
                layer_uses = [use for user in layer_weights.users for use in uses[user]]
                if layer_weights not in batches:
                    batches[layer_weights] = Batch(layer, [use.input for use in layer_uses])
                for parameter, gradient in _gradients(
                    layer, batches[layer_weights], batches[layer_weights].gradients(layer_uses)
                ):
                    name = layer_weights.parameters.get(parameter)
                    if name in derivatives:
                        derivatives[name].append(gradient)
    return {name: torch.stack(columns, dim=1) for name, columns in derivatives.items()}


def _gradients(layer: LinearMap, batch: Batch, gradients: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Per-sample gradients of each parameter, ``(N, size)``."""
    kernels = gradients @ batch.patches.transpose(-1, -2)
    for parameter, size in layer.parameters.items():
        row = kernels.new_zeros(len(kernels), size)
        for block in layer.blocks:
            if block.parameter == parameter:
                row[:, block.positions.flatten().to(row.device)] = pull_back(kernels, block).flatten(1)
        yield parameter, row
    if layer.bias is not None:
        yield "bias", gradients.flatten(1, 2).sum(-1) @ layer.bias.to(gradients)
