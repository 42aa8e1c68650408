"""Curvature of a whole model over a data set: one pass, any graph, every layer that is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Iterable, Iterator, Optional, Union

import torch
from escnn.nn import GeometricTensor
from torch import Tensor, nn

from ..errors import ArgumentError, CoverageError, DataError, LikelihoodError, UnsupportedModuleError
from .accumulation import accumulator
from .conventions import APPROXIMATIONS
from .extraction import Extraction
from .factors import Factor
from .likelihood import Likelihood, likelihood
from .linear_map import is_covered, linear_map

__all__ = ["Curvature", "CurvatureEstimate", "batches"]


@dataclass(frozen=True)
class CurvatureEstimate:
    """Sums over one data set.

    Attributes:
        factors: for each parameter's name its curvature blocks, for one unit of the likelihood.
        loss: negative log-likelihood without normaliser (nats), for one unit of the likelihood.
        num_data: number of samples N.
        num_outputs: outputs of the network C.
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
        model: any module; every relaxed layer, escnn ``R2Conv``, ``nn.Conv1d/2d/3d`` and ``nn.Linear`` in it with a
            parameter that requires a gradient is covered, however they are connected.
        likelihood: ``"categorical"``, ``"gaussian"`` or a :class:`~escnn_relax.curvature.likelihood.Likelihood`.
        approximation: ``"expand"``, ``"reduce"``, ``"exact"`` or ``"diagonal"``.
        samples: Monte-Carlo columns a sample; ``None`` takes one column for each output, exactly.
        bias: ``"exact"``, or ``"kronecker"`` for laplace-torch's convention.

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
    ) -> None:
        if approximation not in APPROXIMATIONS:
            raise ArgumentError("curvature", expected=f"one of {APPROXIMATIONS}", got=repr(approximation))
        if bias not in ("exact", "kronecker"):
            raise ArgumentError("bias", expected="'exact' or 'kronecker'", got=repr(bias))
        if samples is not None and samples < 1:
            raise ArgumentError("samples", expected="a positive number, or None for all outputs", got=samples)
        self.model, self.likelihood = model, _likelihood(likelihood)
        self.approximation, self.samples, self.exact_bias = approximation, samples, bias == "exact"
        layers = {
            name: module
            for name, module in model.named_modules()
            if is_covered(module) and any(p.requires_grad for p in module.parameters())
        }
        self.covered = tuple(
            _join(layer, name)
            for layer, module in layers.items()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        )
        self.uncovered = {
            name: "frozen" if not parameter.requires_grad else f"no curvature is known for {_owner(model, name)}"
            for name, parameter in model.named_parameters()
            if name not in self.covered
        }
        if not self.covered:
            raise CoverageError("model", "no layer whose curvature is known", remedy="relax its convolutions first")
        self._extraction = Extraction(layers)

    def __call__(
        self, loader: Iterable, progress: Optional[Callable[[Iterable], Iterable]] = None
    ) -> CurvatureEstimate:
        """One pass over ``loader``, which yields ``(input, target)``.

        Raises:
            DataError: an empty loader, NaN or infinite inputs or outputs, labels out of range.
            LikelihoodError: targets or outputs that do not fit the likelihood.
            CoverageError: a layer that the forward pass does not use.
        """
        device = next(self.model.parameters()).device
        accumulators = {
            name: accumulator(self.approximation, name, linear_map(module, name), self.exact_bias)
            for name, module in self._extraction.layers.items()
        }
        loss, num_data, num_outputs = 0.0, 0, 0
        with self._extraction.open(self.model):
            for input, target in batches(loader, device, progress):
                output = self.likelihood.tensor(self._extraction.forward(self.model, input))
                if len(output) != len(target):
                    raise LikelihoodError("targets", expected=f"{len(output)} of them", got=len(target))
                self.likelihood.check(output, target)
                with torch.no_grad():
                    loss += float(self.likelihood.loss(output, target).double())
                self._accumulate(accumulators, output)
                num_data, num_outputs = num_data + len(output), output.shape[1]
        if not num_data:
            raise DataError("loader", "it yields no batch", remedy="pass a non-empty loader, not an exhausted iterator")
        factors = {
            _join(layer, name): of
            for layer, a in accumulators.items()
            for name, of in a.factors().items()
            if _join(layer, name) in self.covered
        }
        return CurvatureEstimate(factors, loss, num_data, num_outputs)

    def _accumulate(self, accumulators: dict, output: Tensor) -> None:
        columns = self.likelihood.columns(output, self.samples)
        for index, uses in enumerate(self._extraction.backward(output, columns)):
            for name, a in accumulators.items():
                if index == 0:
                    for use in uses[name]:
                        if len(use.input) != len(output):
                            raise UnsupportedModuleError(
                                name,
                                f"the layer sees {len(use.input)} samples where the network has {len(output)}",
                                remedy="keep the batch dimension first and to itself",
                            )
                    a.batch([use.input for use in uses[name]])
                a.column(uses[name])


def _likelihood(given: Union[str, Likelihood]) -> Likelihood:
    return likelihood(given)


def _join(layer: str, name: str) -> str:
    return f"{layer}.{name}" if layer else name


def _owner(model: nn.Module, name: str) -> str:
    path = name.rpartition(".")[0]
    return type(model.get_submodule(path)).__name__


def batches(loader: Iterable, device: torch.device, progress: Optional[Callable] = None) -> Iterator[tuple]:
    """Pairs of input and target on ``device``; raises ``DataError`` for batches that are no pair or not finite."""
    for index, batch in enumerate(progress(loader) if progress else loader):
        try:
            input, target = batch
        except (TypeError, ValueError) as error:
            raise DataError(f"batch {index}", expected="a pair (input, target)", got=type(batch).__name__) from error
        input, target = input.to(device), target.to(device)
        tensor = input.tensor if isinstance(input, GeometricTensor) else input
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise DataError(f"batch {index}", "NaN or infinite inputs", remedy="clean the data")
        yield input, target
