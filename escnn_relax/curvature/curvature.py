"""Curvature of a whole model over a data set: one pass, any graph, every layer that is known."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ArgumentError, DataError
from .approximation import Approximation
from .approximation_choice import AUTOMATIC, LARGEST_PATCH, known_approximations, patch_sizes, recipe
from .checked_batches import check_weights
from .data_pass import DataPass, Totals
from .distributed import check_alike
from .enough_data import Enough
from .estimate import CurvatureEstimate
from .factors import Factor
from .layer_curvature import LayerCurvature
from .layers.coverage import LayerWeights, coverage
from .layers.extraction import Extraction
from .layers.linear_map import LinearMap
from .layers.probe import check_samples
from .layers.wrappers import unwrap
from .likelihood import Likelihood
from .likelihood import likelihood as likelihood_named
from .memory_budget import Budget

__all__ = ["Curvature"]

_log = logging.getLogger(__name__)

#: Largest relative difference of the loss between two passes over the same data in another order.
SAME_DATA = 1e-3

#: Up to so many columns a sample (outputs x places) are taken one by one; of more, one is drawn.
LARGEST_COLUMNS = 256


class Curvature:
    """Extracts the curvature of a model's layers with BackPACK, see :mod:`.conventions`.

    Args:
        model: any module; every relaxed layer, every convolution and linear layer of escnn and torch in it with a
            parameter that requires a gradient is covered, however they are connected.
        likelihood: ``"categorical"``, ``"bernoulli"``, ``"gaussian"`` or a
            :class:`~escnn_relax.curvature.likelihood.Likelihood`.
        approximation: ``"expand"``, ``"reduce"``, ``"eigenvalue-corrected"``, ``"exact"``, ``"diagonal"``,
            ``"sketched"``, or ``"auto"`` to choose by the size of each parameter (for the rule see
            :func:`~.approximation_choice.recipe`); or an :class:`~.approximation.Approximation` of your own.
        samples: Monte-Carlo columns a sample; ``None`` takes one column for each output, exactly; ``"auto"`` does so
            too unless there are more than 256 or a layer is sketched, and says so in the log.
        bias: ``"exact"``, or ``"kronecker"`` for laplace-torch's convention.
        normalisation: cover the scales and shifts of batch normalisation too.
        apart: take each output by itself (dimension 1 of the outputs; Gaussian likelihood).
        memory: what a refresh may take beside what is there already (MiB); see
            :mod:`~escnn_relax.curvature.memory_budget` for what is counted. Minibatches are cut so that it holds. With
            ``"auto"`` the smallest parameters become exact, as many as fit into a part of it; see
            :func:`~.approximation_choice.recipe`.
        announced: which choices the log has been told of; shared by all curvatures of one model, so that it is told
            once.

    Attributes:
        covered: names of the parameters that get factors.
        uncovered: names of all others, with the reason.
        recipe: the name of each parameter's approximation.

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
        likelihood: str | Likelihood | Callable[..., Any] = "categorical",
        approximation: str | Approximation = "expand",
        samples: None | int | str = AUTOMATIC,
        bias: str = "exact",
        normalisation: bool = False,
        apart: bool = False,
        memory: float | None = None,
        announced: set[str] | None = None,
    ) -> None:
        if bias not in ("exact", "kronecker"):
            raise ArgumentError(
                "bias", expected="'exact' or 'kronecker'", got=repr(bias), remedy="leave it out for 'exact'"
            )
        if not (samples in (None, AUTOMATIC) or (isinstance(samples, int) and samples >= 1)):
            expected = "a positive number, None for all outputs, or 'auto'"
            raise ArgumentError("samples", expected=expected, got=repr(samples), remedy="leave it out for 'auto'")
        model = unwrap(model)
        self.model, self.likelihood = model, likelihood_named(likelihood)
        self._approximation = approximation
        self.approximation = approximation.name if isinstance(approximation, Approximation) else approximation
        self.samples, self.exact_bias, self.apart, self.memory = samples, bias == "exact", apart, memory
        self.coverage = coverage(model, normalisation)
        self.covered, self.uncovered = tuple(self.coverage.parameters), self.coverage.uncovered
        patches = patch_sizes(self.coverage) if approximation == AUTOMATIC else None
        self.recipe = recipe(approximation, self.coverage.parameters, memory, patches)
        self._known = known_approximations(approximation)
        self._announced: set[str] = set() if announced is None else announced
        sketched = sorted({name.rpartition(".weight")[0] for name, kind in self.recipe.items() if kind == "sketched"})
        if sketched and approximation == AUTOMATIC:
            self._announce(
                "sketched",
                f"curvature='auto': the kernels of {', '.join(sketched)} see more than {LARGEST_PATCH} numbers, so"
                " their input factors are sketched and one column is drawn for each sample",
            )
        if apart and not self.likelihood.noisy:
            problem = "only a 'gaussian' likelihood has a noise for each output"
            raise ArgumentError("noise", problem, got=repr(self.likelihood.name), remedy="use noise='shared'")
        for kind in self._approximations():
            if apart and not kind.separable:
                problem = f"outputs cannot be taken apart under {kind.name!r}, whose basis changes with their noise"
                raise ArgumentError("curvature", problem, remedy="use 'expand'")
        self.extraction = Extraction(self.coverage.layers)
        self._pass = DataPass(self.model, self.likelihood, self.coverage, self.extraction, self._draws, apart)

    def __call__(
        self,
        loader: Iterable[Any],
        progress: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
        enough: Enough | None = None,
    ) -> CurvatureEstimate:
        """One pass over ``loader``, which yields ``(input, target)``; two for ``"eigenvalue-corrected"``.

        Args:
            enough: ends the pass before the loader does, and says how many columns ``samples="auto"`` draws.

        Raises:
            DataError: an empty loader, NaN or infinite inputs or outputs, labels out of range, a second pass that
                yields other data than the first.
            LikelihoodError: targets or outputs that do not fit the likelihood.
            CoverageError: a layer that the forward pass does not use.
            UnsupportedModuleError: a layer or a network that mixes samples, a layer that reads several tensors, a
                weight that is used beside its layer.
            MemoryLimitError: less ``memory`` than a single sample takes.

        The model is in evaluation mode meanwhile: batch normalisation takes its running statistics, which do not move,
        and dropout passes all. What a model draws even then (functional dropout without ``training=``) makes the
        curvature that of one draw.
        """
        layers, budget = self._begin()
        with budget or nullcontext(), self.extraction.open(self.model):
            totals = self._pass.run(loader, layers, progress, budget, enough)
            _refuse_empty(totals)
            unfinished = {name: layer for name, layer in layers.items() if layer.second_pass()}
            if unfinished:
                again = self._pass.run(loader, unfinished, progress, budget, enough, "again")
                first, second = float(totals.losses.sum()), float(again.losses.sum())
                if again.num_data != totals.num_data or not math.isclose(second, first, rel_tol=SAME_DATA):
                    raise DataError(
                        "loader",
                        f"the second pass saw {again.num_data} samples with loss {second:.6g}, "
                        f"the first {totals.num_data} with {first:.6g}",
                        remedy="pass a loader without random augmentation, or another curvature",
                    )
            return self._estimate(layers, totals)

    def rehearse(self, loader: Iterable[Any], enough: Enough | None = None) -> None:
        """Whether a call works with such data, by its exceptions. What only ends in factors of ours is left out: they
        depend on no data, and for one minibatch they would be most of the cost."""
        if self.passes > 1 or isinstance(self._approximation, Approximation):
            self(loader, enough=enough)
            return
        layers, budget = self._begin()
        with budget or nullcontext(), self.extraction.open(self.model):
            _refuse_empty(self._pass.run(loader, layers, None, budget, enough))

    def _begin(self) -> tuple[dict[LayerWeights, LayerCurvature], Budget | None]:
        """Empty sums, and what they may take; raises for weights of which no curvature can be taken."""
        check_weights(self.model)
        check_alike(self.model)
        check_samples(self.model)
        with torch.no_grad():  # a basis may depend on a parameter
            layers = {layer_weights: self.layer_curvature(layer_weights) for layer_weights in self.coverage.weights}
        return layers, None if self.memory is None else Budget(self.memory)

    def _estimate(self, layers: dict[LayerWeights, LayerCurvature], totals: Totals) -> CurvatureEstimate:
        """What the sums end in."""
        factors: list[dict[str, tuple[Factor, ...]]] = [{} for _ in totals.losses]
        for layer_weights, layer in layers.items():
            for output, by_name in zip(factors, layer.factors(), strict=True):
                output.update({layer_weights.parameters[name]: blocks for name, blocks in by_name.items()})
        each = totals.num_data * len(factors)
        numbers = totals.observations / each if totals.observations % each else int(totals.observations) // each
        outputs = [
            CurvatureEstimate(
                {name: blocks[name] for name in self.covered},
                float(loss),
                totals.num_data,
                numbers,
                constant=float(constant),
            )
            for blocks, loss, constant in zip(factors, totals.losses, totals.constants)
        ]
        return CurvatureEstimate.weighted_sum(outputs) if self.apart else outputs[0]

    def refuse_indifferentiable(self) -> None:
        """Raise ``ArgumentError`` for curvature through which nothing can be differentiated."""
        if self.samples not in (None, AUTOMATIC) or not all(kind.differentiable for kind in self._approximations()):
            problem = "sampled, sketched or eigenvalue-corrected curvature cannot be differentiated"
            raise ArgumentError("hypergradient", problem, remedy="use 'expand'")

    @property
    def passes(self) -> int:
        """How many passes over the data a call takes."""
        return max(kind.passes for kind in self._approximations())

    def _approximations(self) -> list[Approximation]:
        """Those in use, each once."""
        return [self._known[name] for name in dict.fromkeys(self.recipe.values())]

    def _announce(self, choice: str, message: str) -> None:
        if choice not in self._announced:
            self._announced.add(choice)
            _log.warning(message)

    def _draws(self, output: Tensor, enough: Enough | None) -> int | None:
        """How many columns are drawn for each sample of such outputs; ``None`` for all of them, exactly.

        With ``samples="auto"`` one is drawn where a layer is sketched, since a backward pass for each output would then
        be most of the cost, and where there are more than :data:`LARGEST_COLUMNS` of them.
        """
        columns = output[0].numel()
        if not (self.samples is None or isinstance(self.samples, str)):
            return self.samples
        if self.samples is None:
            return None
        if columns > LARGEST_COLUMNS:
            self._announce(
                "columns",
                f"samples='auto': one column is drawn for each sample, since there are {columns} outputs; samples=None"
                " takes all of them, with a backward pass each",
            )
            return 1
        if any(kind.few_columns for kind in self._approximations()):
            return 1
        few = None if enough is None else enough.columns
        return few if few is not None and few < columns - 1 else None

    def layer_curvature(self, layer_weights: LayerWeights, layer: LinearMap | None = None) -> LayerCurvature:
        """Empty sums for a part of what is covered."""
        layer = self.coverage.linear_map(layer_weights.layer) if layer is None else layer
        order = [*self._known]
        names = sorted(
            layer_weights.parameters, key=lambda name: order.index(self.recipe[layer_weights.parameters[name]])
        )
        chosen = {name: self._known[self.recipe[layer_weights.parameters[name]]] for name in names}
        return LayerCurvature(layer_weights.layer, layer, chosen, self.exact_bias)


def _refuse_empty(totals: Totals) -> None:
    if not totals.num_data:
        raise DataError("loader", "it yields no batch", remedy="pass a non-empty loader, not an exhausted iterator")
