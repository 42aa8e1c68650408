"""Curvature of a whole model over a data set: one pass, any graph, every layer that is known."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import ArgumentError, DataError, LikelihoodError
from .approximation import AUTOMATIC, LARGEST_COLUMNS, LARGEST_PATCH, draws, recipe
from .batches import batches, check_weights, counting, detached, first, halves
from .budget import Budget
from .conventions import DECOMPOSED, FACTOR_BYTES
from .enough import Enough
from .estimate import CurvatureEstimate
from .factors import Factor
from .layer_curvature import LayerCurvature
from .layers.coverage import Part, check_samples, coverage, join
from .layers.extraction import Extraction, Use
from .layers.known_layers import linear_map
from .layers.linear_map import LinearMap, width
from .layers.probe import probe
from .layers.wrappers import unwrapped
from .likelihood import Likelihood, apart, spread
from .likelihood import likelihood as likelihood_named
from .outputwise import Outputwise
from .processes import check_alike, check_batches, several, summed, unpadded
from .reader import Weighted

__all__ = ["Curvature", "CurvatureEstimate", "batches", "check_weights", "detached"]

_log = logging.getLogger(__name__)

#: Largest relative difference of the loss between two passes over the same data in another order.
SAME_DATA = 1e-3
#: Samples that show what the uses of layers do not, and which rows are whose.
PROBED = 16


#: Bytes of a weight's eigenvalue: in its factor, in the spectrum of all, and on the way.
SPECTRA = 3 * FACTOR_BYTES


class Curvature:
    """Extracts the curvature of a model's layers with BackPACK, see :mod:`.conventions`.

    Args:
        model: any module; every relaxed layer, every convolution and linear layer of escnn and torch in it with a
            parameter that requires a gradient is covered, however they are connected.
        likelihood: ``"categorical"``, ``"bernoulli"``, ``"gaussian"`` or a
            :class:`~escnn_relax.curvature.likelihood.Likelihood`.
        approximation: ``"expand"``, ``"reduce"``, ``"eigenvalue-corrected"``, ``"exact"``, ``"diagonal"``,
            ``"sketched"``, or ``"auto"`` to choose by the size of each parameter; see :func:`~.recipe.recipe` for the
            rule, and ``recipe`` for what it chose.
        samples: Monte-Carlo columns a sample; ``None`` takes one column for each output, exactly; ``"auto"`` does so
            too unless there are many or a layer is sketched, see :func:`~.recipe.draws`, and says so in the log.
        bias: ``"exact"``, or ``"kronecker"`` for laplace-torch's convention.
        normalisation: cover the scales and shifts of batch normalisation too.
        apart: take each output by itself (dimension 1 of the outputs; Gaussian likelihood).
        memory: what a refresh may take beside what is there already (MiB); see :mod:`.budget` for what is counted.
            Minibatches are cut so that it holds. With ``"auto"`` the smallest parameters become exact, as many as fit
            into a part of it; see :func:`~.recipe.recipe`.

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
        likelihood: str | Likelihood | Callable[..., Any] = "categorical",
        approximation: str = "expand",
        samples: None | int | str = AUTOMATIC,
        bias: str = "exact",
        normalisation: bool = False,
        apart: bool = False,
        memory: float | None = None,
    ) -> None:
        if bias not in ("exact", "kronecker"):
            raise ArgumentError(
                "bias", expected="'exact' or 'kronecker'", got=repr(bias), remedy="leave it out for 'exact'"
            )
        if not (samples in (None, AUTOMATIC) or (isinstance(samples, int) and samples >= 1)):
            expected = "a positive number, None for all outputs, or 'auto'"
            raise ArgumentError("samples", expected=expected, got=repr(samples), remedy="leave it out for 'auto'")
        model = unwrapped(model)
        self.model, self.likelihood = model, likelihood_named(likelihood)
        self.approximation, self.samples, self.exact_bias = approximation, samples, bias == "exact"
        self.coverage = coverage(model, normalisation)
        self.covered, self.uncovered = tuple(self.coverage.parameters), self.coverage.uncovered
        patches = self._patches() if approximation == AUTOMATIC else None
        self.recipe, self.apart = recipe(approximation, self.coverage.parameters, memory, patches), apart
        self._announced: set[str] = set()
        if "sketched" in self.recipe.values() and approximation == AUTOMATIC:
            sketched = sorted({name.rpartition(".weight")[0] for name, of in self.recipe.items() if of == "sketched"})
            self._announce(
                f"curvature='auto': the kernels of {', '.join(sketched)} see more than {LARGEST_PATCH} numbers, so"
                " their input factors are sketched and one column is drawn for each sample"
            )
        if apart and not self.likelihood.noisy:
            problem = "only a 'gaussian' likelihood has a noise for each output"
            raise ArgumentError("noise", problem, got=repr(self.likelihood.name), remedy="use noise='shared'")
        if apart and "eigenvalue-corrected" in self.recipe.values():
            problem = "outputs cannot be taken apart under 'eigenvalue-corrected', whose basis changes with their noise"
            raise ArgumentError("curvature", problem, remedy="use 'expand'")
        self.extraction = Extraction(self.coverage.layers)
        self.memory = memory
        self._enough: Enough | None = None
        self._probed = False
        self._ending: int | None = None  # bytes that factors and their spectra take at the end, beside the sums

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
        check_weights(self.model)
        check_alike(self.model)
        check_samples(self.model)
        layers = {part: self._outputwise(part) for part in self.coverage.parts}
        budget = None if self.memory is None else Budget(self.memory)
        self._enough = enough
        with budget or nullcontext(), self.extraction.open(self.model):
            sums = self._pass(loader, layers, progress, budget)
            if not sums.num_data:
                raise DataError(
                    "loader", "it yields no batch", remedy="pass a non-empty loader, not an exhausted iterator"
                )
            unfinished = {name: layer for name, layer in layers.items() if layer.second_pass()}
            if unfinished:
                again = self._pass(loader, unfinished, progress, budget)
                one, two = float(sums.losses.sum()), float(again.losses.sum())
                if again.num_data != sums.num_data or not math.isclose(two, one, rel_tol=SAME_DATA):
                    raise DataError(
                        "loader",
                        f"the second pass saw {again.num_data} samples with loss {two:.6g}, "
                        f"the first {sums.num_data} with {one:.6g}",
                        remedy="pass a loader without random augmentation, or another curvature",
                    )
            factors: list[dict[str, tuple[Factor, ...]]] = [{} for _ in sums.losses]
            for part, c in layers.items():
                for found, of_part in zip(factors, c.factors(), strict=True):
                    found.update({join(part.layer, name): of for name, of in of_part.items()})
        each = sums.num_data * len(factors)
        numbers = sums.observations / each if sums.observations % each else int(sums.observations) // each
        outputs = [
            CurvatureEstimate(
                {name: found[name] for name in self.covered},
                float(loss),
                sums.num_data,
                numbers,
                constant=float(constant),
            )
            for found, loss, constant in zip(factors, sums.losses, sums.constants)
        ]
        return CurvatureEstimate.weighted_sum(outputs) if self.apart else outputs[0]

    def refuse_indifferentiable(self) -> None:
        """Raise ``ArgumentError`` where :meth:`differentiable` will."""
        if self.samples not in (None, AUTOMATIC) or {"eigenvalue-corrected", "sketched"} & set(self.recipe.values()):
            problem = "sampled, sketched or eigenvalue-corrected curvature cannot be differentiated"
            raise ArgumentError("hypergradient", problem, remedy="use 'expand'")

    def _patches(self) -> dict[str, int]:
        """How many numbers the kernel that a parameter belongs to sees at a place."""
        found = {}
        with torch.no_grad():
            for part in self.coverage.parts:
                layer = linear_map(self.coverage.layers[part.layer], part.layer)
                widths = {b.parameter: sum(width(piece) for piece in b.pieces) for b in layer.blocks}
                found.update({join(part.layer, n): widths[n] for n in part.parameters if n in widths})
        return found

    def _announce(self, message: str) -> None:
        if message not in self._announced:
            self._announced.add(message)
            _log.warning(message)

    def _draws(self, output: Tensor) -> int | None:
        """How many columns are drawn for each sample of such outputs."""
        columns = output[0].numel()
        found = draws(self.samples, columns, self.recipe.values())
        if self._enough is not None and self.samples == AUTOMATIC and found is None:
            few = self._enough.columns
            return few if few is not None and few < columns - 1 else None
        if found is not None and self.samples == AUTOMATIC and columns > LARGEST_COLUMNS:
            self._announce(
                f"samples='auto': one column is drawn for each sample, since there are {columns} outputs; samples=None"
                " takes all of them, with a backward pass each"
            )
        return found

    def differentiable(
        self, loader: Iterable[Any], parameters: Sequence[nn.Parameter], weights: Tensor | None = None
    ) -> Iterator[tuple[Tensor, dict[str, tuple[Factor, ...]], int]]:
        """Loss and factors of one minibatch after the other, with graphs to ``parameters``, and its number of samples.

        Args:
            weights: what each output counts, in loss and factors; 1 by default.

        Raises:
            ArgumentError: Monte-Carlo columns or ``"eigenvalue-corrected"``, through which nothing can be
                differentiated.
        """
        self.refuse_indifferentiable()
        device = next(self.model.parameters()).device
        with self.extraction.open(self.model, tuple(parameters)):
            for whole, targets in halves(batches(loader, device)):
                input, target = counting(whole, targets)
                output = self.likelihood.tensor(self.extraction.forward(self.model, detached(input)))
                self.likelihood.check(output, target)
                layers = {part: self._layer(part) for part in self.coverage.parts}
                columns = self.likelihood.columns(output, target=target)
                if weights is not None:
                    columns = (column * weights.sqrt()[index % len(weights)] for index, column in enumerate(columns))
                counts = self.likelihood.counts(output, target)
                for index, uses in enumerate(self.extraction.differentiable(output, columns)):
                    _add(layers, uses, counts, index == 0, len(output))
                factors = {join(part.layer, n): of for part, c in layers.items() for n, of in c.factors().items()}
                loss = self.likelihood.loss(output, target)
                if weights is not None:
                    losses = self.likelihood.losses(output, target)
                    loss = (weights.to(losses) * losses).sum()
                yield loss, factors, len(targets)

    def _layer(self, part: Part, layer: LinearMap | None = None) -> LayerCurvature:
        layer = linear_map(self.coverage.layers[part.layer], part.layer) if layer is None else layer
        wanted = {parameter: self.recipe[join(part.layer, parameter)] for parameter in part.parameters}
        return LayerCurvature(part.layer, layer, wanted, self.exact_bias)

    def _outputwise(self, part: Part) -> Outputwise:
        with torch.no_grad():  # a basis may depend on a parameter
            layer = linear_map(self.coverage.layers[part.layer], part.layer)
        return Outputwise(lambda: self._layer(part, layer))

    def _probe(self, input: Any, samples: int) -> None:
        """Refuse what the uses of layers do not show, see :func:`~.probe.probe`; once for many passes over parts of
        the data."""
        covered = {name: self.model.get_parameter(name) for name in self.covered}
        few = first(input, samples, PROBED)
        if self._probed and self._enough is not None:
            return
        self._probed = True
        probe(
            self.coverage.layers, covered, lambda x: self.likelihood.tensor(self.extraction.forward(self.model, x)), few
        )
        with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
            self.extraction.find(self.likelihood.tensor(self.extraction.forward(self.model, detached(few))))
        self.extraction.forget()

    def _pass(
        self,
        loader: Iterable[Any],
        layers: dict[Part, Outputwise],
        progress: Callable[[Iterable[Any]], Iterable[Any]] | None,
        budget: Budget | None = None,
    ) -> _Sums:
        device = next(self.model.parameters()).device
        losses, num_data, observations = torch.zeros(1, dtype=torch.float64), 0, 0.0
        pairs = batches(loader, device, progress)
        pairs = unpadded(loader, pairs) if several() else pairs
        if budget is None:
            parts = halves(pairs)
        else:
            kind = "again" if any(layer.corrects for layer in layers.values()) else "first"
            parts = budget.chunks(pairs, kind, lambda: _growth(layers))
        probed, targets = False, []
        for input, target in parts:
            targets.append(target)
            if not num_data or (
                budget is not None and not probed
            ):  # which samples know of each other two of them can show
                self._probe(input, len(target))
                probed = len(target) > 1
            loss, observed = self._part(input, target, layers)
            losses, observations, num_data = losses + loss, observations + observed, num_data + len(target)
            if self._enough is not None and self._enough.reached(layers.values()):
                break
            if budget is not None and self._ending is None:
                self._ending = self._rehearse(layers, budget)
            if budget is not None:
                budget.check(_growth(layers) + (self._ending or 0), "the sums, their factors and their spectra")
        check_batches(num_data)
        constants = self._constants(targets) if num_data else torch.zeros(1, dtype=torch.float64)
        if several() and num_data:
            for layer in layers.values():
                layer.gather()
            total = summed(torch.tensor([float(num_data), observations], dtype=torch.float64))
            num_data, observations, losses, constants = (
                int(total[0]),
                float(total[1]),
                summed(losses),
                summed(constants),
            )
        return _Sums(losses, num_data, observations, constants)

    def _part(self, input: Any, target: Any, layers: dict[Part, Outputwise]) -> tuple[Tensor, float]:
        """Loss of each output, or of all together, and numbers observed, of samples that are handed to the layers."""
        input, target = counting(input, target)
        output = self.likelihood.tensor(self.extraction.forward(self.model, detached(input)))
        if len(output) != len(target):
            remedy = "pass one target for each sample of a batch"
            raise LikelihoodError("targets", expected=f"{len(output)} of them", got=len(target), remedy=remedy)
        self.likelihood.check(output, target)
        with torch.no_grad():
            if self.apart:
                losses = self.likelihood.losses(output, target).to("cpu", torch.float64)
                columns = self.likelihood.columns_apart(output, self._draws(output), target)
            else:
                losses = self.likelihood.loss(output, target).to("cpu", torch.float64)
                columns = self.likelihood.columns(output, self._draws(output), target)
        counts = self.likelihood.counts(output, target)
        columns = columns if self._enough is None else self._enough.watch(columns)
        for index, uses in enumerate(self.extraction.backward(output, columns)):
            _add(layers, uses, counts, index == 0, len(output), *([index % len(losses)] if self.apart else []))
        self.extraction.forget()
        for layer in layers.values():
            layer.forget()
        return losses, self.likelihood.observations(output, target)

    def _constants(self, targets: Sequence[Any]) -> Tensor:
        """Loss of the best constant of each output, or of all together."""
        whole, number = self.likelihood.constant_loss_of(targets), sum(map(len, targets))
        if not self.apart:
            return torch.tensor([whole * number], dtype=torch.float64)
        outputs = range(apart(targets[0])[0].shape[1])
        each = [self.likelihood.constant_loss_of([_output_of(t, c) for t in targets]) for c in outputs]
        return torch.tensor(each, dtype=torch.float64) * number

    def _rehearse(self, layers: dict[Part, Outputwise], budget: Budget) -> int:
        """Bytes that the end takes beside the sums: all factors, then the decomposition of one after the other."""
        found, taken = budget.taken(lambda: [factor for layer in layers.values() for factor in layer.rehearsed()])
        side = max((max(factor.sides) for factor in found), default=0)
        spectra = SPECTRA * sum(self.coverage.parameters.values())
        return taken + DECOMPOSED * side**2 + spectra


def _output_of(target: Any, output: int) -> Any:
    """The targets of one output, with what they count."""
    wanted, weight = apart(target)
    one = wanted[:, output : output + 1]
    return one if weight is None else Weighted(one, spread(weight, wanted).expand_as(wanted)[:, output : output + 1])


def _growth(layers: Mapping[Part, Outputwise]) -> int:
    """Bytes that have to stay free for sums that still grow."""
    grown = [layer.growth() for layer in layers.values()]
    return sum(stays for stays, _ in grown) + max(passing for _, passing in grown)


def _add(
    layers: Mapping[Part, LayerCurvature | Outputwise],
    uses: Mapping[str, list[Use]],
    counts: Tensor | None,
    first: bool,
    samples: int,
    *output: int,
) -> None:
    """Hand one column, and with the first of a minibatch the inputs, to all layers; never in a lower precision."""
    for part, layer in layers.items():
        of_part = [use for user in part.users for use in uses[user]]
        with torch.autocast(of_part[0].input.device.type, enabled=False):
            if first:
                layer.read([use.input for use in of_part], samples, counts)
            layer.add(of_part, *output)


class _Sums(NamedTuple):
    losses: Tensor  # of each output, or of all together
    num_data: int
    observations: float  # numbers observed of all samples together, weights counted
    constants: Tensor  # what the losses are of the best constant output
