"""Curvature of a whole model over a data set: one pass, any graph, every layer that is known."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable, Iterable, Iterator, NamedTuple, Optional, Sequence, Union

import torch
from escnn.nn import GeometricTensor
from torch import Tensor, nn

from ..errors import ArgumentError, DataError, LikelihoodError
from .coverage import coverage, join
from .extraction import Extraction
from .factors import Factor
from .layer import LayerCurvature
from .layers import linear_map
from .likelihood import Likelihood, likelihood
from .recipe import recipe

__all__ = ["Curvature", "CurvatureEstimate", "batches", "check_weights", "detached"]

#: Largest relative difference of the loss between two passes over the same data in another order.
SAME_DATA = 1e-3


@dataclass(frozen=True)
class CurvatureEstimate:
    """Sums over one data set.

    Attributes:
        factors: for each parameter's name its curvature blocks, for one unit of the likelihood.
        loss: negative log-likelihood without normaliser (nats), for one unit of the likelihood.
        num_data: number of samples N.
        num_outputs: numbers that the network puts out for a sample.
    """

    factors: dict[str, tuple[Factor, ...]]
    loss: float
    num_data: int
    num_outputs: int

    def eigenvalues(self, name: str) -> Tensor:
        """All eigenvalues of a parameter's curvature, shape ``(its size,)``, float64."""
        return torch.cat([factor.spectrum for factor in self.factors[name]])


class Curvature:
    """Extracts the curvature of a model's layers with BackPACK, see :mod:`.conventions`.

    Args:
        model: any module; every relaxed layer, every convolution and linear layer of escnn and torch in it with a
            parameter that requires a gradient is covered, however they are connected.
        likelihood: ``"categorical"``, ``"bernoulli"``, ``"gaussian"`` or a :class:`~escnn_relax.curvature.likelihood.Likelihood`.
        approximation: ``"expand"``, ``"reduce"``, ``"eigenvalue-corrected"``, ``"exact"``, ``"diagonal"``, or ``"auto"``
            to choose by the size of each parameter.
        samples: Monte-Carlo columns a sample; ``None`` takes one column for each output, exactly.
        bias: ``"exact"``, or ``"kronecker"`` for laplace-torch's convention.
        normalisation: cover the scales and shifts of batch normalisation too.

    Attributes:
        covered: names of the parameters that get factors.
        uncovered: names of all others, with the reason.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(3, 2))
    >>> data = [(torch.randn(8, 3), torch.randint(2, (8,)))]
    >>> estimate = Curvature(model, "categorical")(data)
    >>> {name: estimate.eigenvalues(name).shape for name in estimate.factors}
    {'0.weight': torch.Size([6]), '0.bias': torch.Size([2])}
    """

    def __init__(
        self,
        model: nn.Module,
        likelihood: Union[str, Likelihood] = "categorical",
        approximation: str = "expand",
        samples: Optional[int] = None,
        bias: str = "exact",
        normalisation: bool = False,
    ) -> None:
        if bias not in ("exact", "kronecker"):
            raise ArgumentError("bias", expected="'exact' or 'kronecker'", got=repr(bias))
        if samples is not None and samples < 1:
            raise ArgumentError("samples", expected="a positive number, or None for all outputs", got=samples)
        self.model, self.likelihood = model, _likelihood(likelihood)
        self.approximation, self.samples, self.exact_bias = approximation, samples, bias == "exact"
        self.coverage = coverage(model, normalisation)
        self.covered, self.uncovered = tuple(self.coverage.parameters), self.coverage.uncovered
        self.recipe = recipe(approximation, self.coverage.parameters)
        self.extraction = Extraction(self.coverage.layers)

    def __call__(
        self, loader: Iterable, progress: Optional[Callable[[Iterable], Iterable]] = None
    ) -> CurvatureEstimate:
        """One pass over ``loader``, which yields ``(input, target)``; two for ``"eigenvalue-corrected"``.

        Raises:
            DataError: an empty loader, NaN or infinite inputs or outputs, labels out of range, a second pass that
                yields other data than the first.
            LikelihoodError: targets or outputs that do not fit the likelihood.
            CoverageError: a layer that the forward pass does not use.
        """
        check_weights(self.model)
        layers = {name: self._layer(name) for name in self.coverage.layers}
        with self.extraction.open(self.model):
            sums = self._pass(loader, layers, progress)
            if not sums.num_data:
                raise DataError("loader", "it yields no batch", remedy="pass a non-empty loader, not an exhausted iterator")
            unfinished = {name: layer for name, layer in layers.items() if layer.second_pass()}
            if unfinished:
                again = self._pass(loader, unfinished, progress)
                if again.num_data != sums.num_data or not math.isclose(again.loss, sums.loss, rel_tol=SAME_DATA):
                    raise DataError(
                        "loader",
                        f"the second pass saw {again.num_data} samples with loss {again.loss:.6g}, "
                        f"the first {sums.num_data} with {sums.loss:.6g}",
                        remedy="pass a loader without random augmentation, or another curvature",
                    )
        factors = {join(layer, name): of for layer, c in layers.items() for name, of in c.factors().items()}
        return CurvatureEstimate({name: factors[name] for name in self.covered}, *sums)

    def refuse_indifferentiable(self) -> None:
        """Raise ``ArgumentError`` where :meth:`differentiable` will."""
        if self.samples is not None or "eigenvalue-corrected" in self.recipe.values():
            raise ArgumentError(
                "hypergradient", "sampled or eigenvalue-corrected curvature cannot be differentiated", remedy="use 'expand'"
            )

    def differentiable(
        self, loader: Iterable, parameters: Sequence[nn.Parameter]
    ) -> Iterator[tuple[Tensor, dict[str, tuple[Factor, ...]], int]]:
        """Loss and factors of one minibatch after the other, with graphs to ``parameters``, and its number of samples.

        Raises:
            ArgumentError: Monte-Carlo columns or ``"eigenvalue-corrected"``, through which nothing can be differentiated.
        """
        self.refuse_indifferentiable()
        device = next(self.model.parameters()).device
        with self.extraction.open(self.model, tuple(parameters)):
            for input, target in batches(loader, device):
                output = self.likelihood.tensor(self.extraction.forward(self.model, detached(input)))
                self.likelihood.check(output, target)
                layers = {name: self._layer(name) for name in self.coverage.layers}
                columns = self.likelihood.columns(output)
                for index, uses in enumerate(self.extraction.differentiable(output, columns)):
                    _add(layers, uses, index == 0, len(output))
                factors = {join(layer, name): of for layer, c in layers.items() for name, of in c.factors().items()}
                yield self.likelihood.loss(output, target), factors, len(output)

    def _layer(self, name: str) -> LayerCurvature:
        wanted = {parameter: self.recipe[join(name, parameter)] for parameter in self.coverage.of(name)}
        return LayerCurvature(name, linear_map(self.coverage.layers[name], name), wanted, self.exact_bias)

    def _pass(self, loader: Iterable, layers: dict[str, LayerCurvature], progress: Optional[Callable]) -> _Sums:
        device = next(self.model.parameters()).device
        loss, num_data, num_outputs = 0.0, 0, 0
        for input, target in batches(loader, device, progress):
            output = self.likelihood.tensor(self.extraction.forward(self.model, detached(input)))
            if len(output) != len(target):
                raise LikelihoodError("targets", expected=f"{len(output)} of them", got=len(target))
            self.likelihood.check(output, target)
            with torch.no_grad():
                loss += float(self.likelihood.loss(output, target).double())
                columns = self.likelihood.columns(output, self.samples)
            for index, uses in enumerate(self.extraction.backward(output, columns)):
                _add(layers, uses, index == 0, len(output))
            num_data, num_outputs = num_data + len(output), output[0].numel()
        return _Sums(loss, num_data, num_outputs)


def _add(layers: dict[str, LayerCurvature], uses: dict, first: bool, samples: int) -> None:
    """Hand one column, and with the first of a minibatch the inputs, to all layers; never in a lower precision."""
    for name, layer in layers.items():
        device = uses[name][0].input.device.type
        with torch.autocast(device, enabled=False):
            if first:
                layer.read([use.input for use in uses[name]], samples)
            layer.add(uses[name])


class _Sums(NamedTuple):
    loss: float
    num_data: int
    num_outputs: int


def detached(input):
    """So that no gradient ends up in the user's data."""
    return GeometricTensor(input.tensor.detach(), input.type) if isinstance(input, GeometricTensor) else input.detach()


def _likelihood(given: Union[str, Likelihood]) -> Likelihood:
    return likelihood(given)


def check_weights(model: nn.Module) -> None:
    """Raise ``DataError`` that names the first parameter with NaN or infinite values."""
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise DataError(name, "NaN or infinite weights", remedy="go back to finite ones, and lower the learning rate")


def batches(loader: Iterable, device: torch.device, progress: Optional[Callable] = None) -> Iterator[tuple]:
    """Pairs of input and target on ``device``; raises ``DataError`` for batches that are no pair or not finite."""
    for index, batch in enumerate(progress(loader) if progress else loader):
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise DataError(f"batch {index}", expected="a pair (input, target)", got=type(batch).__name__)
        input, target = batch
        if not isinstance(input, (Tensor, GeometricTensor)) or not isinstance(target, Tensor):
            got = f"({type(input).__name__}, {type(target).__name__})"
            raise DataError(f"batch {index}", expected="tensors", got=got, remedy="convert them by torch.as_tensor")
        input, target = input.to(device), target.to(device)
        tensor = input.tensor if isinstance(input, GeometricTensor) else input
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise DataError(f"batch {index}", "NaN or infinite inputs", remedy="clean the data")
        yield input, target
