"""Gradients of a network's loss in whole kernels, at fixed weights, from a copy that is ours."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import _escnn
from ..curvature.batch_format import Weighted
from ..curvature.checked_batches import answer
from ..curvature.likelihood import Likelihood
from ..deprecation import former_names
from ..errors import ArgumentError, DataError, UnsupportedModuleError
from ..morphism.module_tree import copy_module
from ..morphism.relax import relax
from ..nn.mixed.convolution import MixedConvolution
from ..nn.relaxed_convolution import RelaxedConvolution
from ..symmetry.kernels.pathway import EQUIVARIANT
from .samples import raw

__all__ = ["Gradients", "Probe", "copy_relaxed", "settle", "reinitialise"]

Objective = Likelihood | Callable[[Any, Tensor], Tensor]


def copy_relaxed(model: nn.Module, **options: Any) -> nn.Module:
    """A copy in eval mode whose layers have pathways: relaxed if none is so far.

    Raises:
        UnsupportedModuleError: a mixture of groups, which has no strict pathway beside breaking ones.
    """
    for name, module in model.named_modules():
        if isinstance(module, MixedConvolution):
            problem = "it mixes several groups, so that no strict network is in it"
            raise UnsupportedModuleError(
                name, problem, remedy="test the network that it was mixed from, or relax that one"
            )
    if any(isinstance(m, RelaxedConvolution) for m in model.modules()):
        return copy_module(model).eval()
    return relax(model, **options, example=False).eval()  # the data come next


def reinitialise(model: nn.Module) -> None:
    """Random strict weights, in place: kernels of the size that they have, everything else as torch begins it."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, RelaxedConvolution):
                for pathway in module.pathways:
                    weight = module.weights[pathway.name]
                    for block in module.kernel.blocks[pathway.name]:
                        section = weight[block.start : block.stop]
                        deviation = section.square().mean().sqrt() if pathway == EQUIVARIANT else 0.0
                        section.copy_(torch.randn_like(section) * deviation)
            elif hasattr(module, "basisexpansion") and hasattr(module, "weights"):
                _escnn.initialise(module)
            elif callable(reset := getattr(module, "reset_parameters", None)) and not any(
                True for _ in module.children()
            ):
                reset()


def settle(model: nn.Module, batches: Iterator[Any]) -> None:
    """Running statistics of normalisations that have seen nothing yet, from some batches; in place.

    They are means over fields and samples, so that no statistic knows which member of an orbit was drawn.
    """
    fresh = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    fresh = [m for m in fresh if m.num_batches_tracked is not None and not int(m.num_batches_tracked)]
    if not fresh:
        return
    momenta = [m.momentum for m in fresh]
    for m in fresh:
        m.train()
        m.momentum = None
    with torch.no_grad():
        for input, _ in batches:
            answer(model, input)
    for m, momentum in zip(fresh, momenta):
        m.eval()
        m.momentum = momentum


class Gradients(dict[str, Tensor]):
    """Gradients in kernels, by layer.

    Attributes:
        squares: sums of their squares, in float64.
    """

    def __init__(self, gradients: dict[str, Tensor]) -> None:
        super().__init__(gradients)
        norms = {name: torch.linalg.vector_norm(gradient, dtype=torch.float64) for name, gradient in gradients.items()}
        self.squares = {name: float(norm) ** 2 for name, norm in norms.items()}


class Probe:
    """A network whose relaxed layers read constant kernels that alone require a gradient.

    Args:
        model: a copy that nobody else uses.
    """

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        self.model, self.objective = model.eval(), objective
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        self.layers = {n: m for n, m in model.named_modules() if isinstance(m, RelaxedConvolution)}
        self.kernels = {name: self._fix_kernel(layer) for name, layer in self.layers.items()}

    @staticmethod
    def _fix_kernel(layer: RelaxedConvolution) -> Tensor:
        with torch.no_grad():
            _, bias = layer.expand_parameters()
            kernel = layer.kernel(layer.weights)
        kernel.requires_grad_()
        module: Any = layer
        module._expanded = lambda: (layer._as_filter(kernel), bias)
        return kernel

    def forward(self, input: Any) -> Any:
        """What the network says, with a graph to its kernels."""
        with torch.enable_grad():
            return answer(self.model, input)

    def tensor(self, output: Any) -> Tensor:
        """What the network says, as a tensor."""
        if isinstance(self.objective, Likelihood):
            return self.objective.tensor(output)
        return raw(output)

    def loss(self, output: Any, target: Any) -> Tensor:
        """Summed over the samples if a likelihood says what it is; a number of the user's else."""
        if not isinstance(self.objective, Likelihood):
            if isinstance(target, Weighted):
                problem = "the batches hold weights, of which a loss of your own is not told"
                raise ArgumentError("loss", problem, remedy="pass likelihood= instead, or weigh within the loss")
            loss = self.objective(output, target)
            return loss.sum()
        tensor = self.objective.tensor(output)
        self.objective.check(tensor, target)
        return self.objective.loss(tensor, target)

    def gradients(self, scalar: Tensor, retain_graph: bool = False) -> Gradients:
        """The gradient of a scalar in each kernel; zeros where no path leads to the scalar.

        Raises:
            DataError: a gradient that is not finite.
        """
        gradients: tuple[Tensor | None, ...] = (None,) * len(self.kernels)
        if scalar.requires_grad:
            gradients = torch.autograd.grad(
                scalar, list(self.kernels.values()), allow_unused=True, retain_graph=retain_graph
            )
        pairs = zip(self.kernels.items(), gradients)
        result = Gradients(
            {name: torch.zeros_like(kernel) if gradient is None else gradient for (name, kernel), gradient in pairs}
        )
        for name, square in result.squares.items():
            if not math.isfinite(square):
                raise DataError(name, "the gradient of the loss is not finite", remedy="look for NaN in data or loss")
        return result

    def columns(self, output: Any, target: Any) -> Tensor | None:
        """A scalar whose gradient's mean square is the trace of the loss's Hessian; ``None`` for a user's own loss."""
        if not isinstance(self.objective, Likelihood):
            return None
        tensor = self.objective.tensor(output)
        with torch.no_grad():
            column = next(iter(self.objective.columns(tensor, 1, target)))
        return (column * tensor).sum()


__getattr__ = former_names(__name__)
