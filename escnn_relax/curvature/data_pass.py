"""One pass over the data: from the loader, minibatch by minibatch, to the sums of all layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import LikelihoodError
from .batch_format import Weighted
from .checked_batches import batches, detach_input, drop_uncounted, first, halves
from .conventions import DECOMPOSED, FACTOR_BYTES
from .distributed import check_batches, drop_padding, several, sum_processes
from .enough_data import Enough
from .layer_curvature import LayerCurvature
from .layers.coverage import Coverage, LayerWeights
from .layers.extraction import Extraction
from .layers.probe import probe
from .likelihood import Likelihood
from .likelihood.weights import broadcast_weight, split_weight
from .memory_budget import Budget

__all__ = ["DataPass", "Totals"]

#: Samples that show what the uses of layers do not, and which rows are whose.
PROBED = 16

#: Bytes of a weight's eigenvalue: in its factor, in the spectrum of all, and on the way.
SPECTRA = 3 * FACTOR_BYTES

#: Of more outputs than that the layer that returns them takes their Hessian as it is.
MANY = 64


class Totals(NamedTuple):
    """What a pass sums beside the curvature: of each output by itself, or of all together.

    Attributes:
        losses: of the network.
        num_data: number of samples.
        observations: numbers observed of all samples together, weights counted.
        constants: what the losses are of the best constant output.
    """

    losses: Tensor
    num_data: int
    observations: float
    constants: Tensor


class DataPass:
    """Passes over data of one model, in evaluation mode, whose layers are tapped by an extraction that is open.

    Args:
        draws: from outputs to how many columns are drawn for each sample; ``None`` for all.
        apart: take each output by itself.
    """

    def __init__(
        self,
        model: nn.Module,
        likelihood: Likelihood,
        coverage: Coverage,
        extraction: Extraction,
        draws: Callable[[Tensor, Enough | None], int | None],
        apart: bool,
    ) -> None:
        self.model, self.likelihood, self.coverage, self.extraction = model, likelihood, coverage, extraction
        self.draws, self.apart = draws, apart
        self._probed = False
        self._ending: int | None = None  # bytes that factors and their spectra take at the end, beside the sums

    def run(
        self,
        loader: Iterable[Any],
        layers: Mapping[LayerWeights, LayerCurvature],
        progress: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
        budget: Budget | None = None,
        enough: Enough | None = None,
        kind: str = "first",
    ) -> Totals:
        """One pass; see :class:`~.collect.Curvature` for the arguments and errors.

        Args:
            kind: which pass this is, for the budget.
        """
        device = next(self.model.parameters()).device
        losses, num_data, observations = torch.zeros(1, dtype=torch.float64), 0, 0.0
        pairs = batches(loader, device, progress)
        pairs = drop_padding(loader, pairs) if several() else pairs
        chunks = halves(pairs) if budget is None else budget.chunks(pairs, kind, lambda: _growth(layers))
        probed, targets = False, []
        for input, target in chunks:
            targets.append(target)
            if not num_data or (
                budget is not None and not probed
            ):  # which samples know of each other two of them can show
                self._probe(input, len(target), enough is not None)
                probed = len(target) > 1
            loss, observed = self.add(input, target, layers, enough)
            losses, observations, num_data = losses + loss, observations + observed, num_data + len(target)
            if enough is not None and enough.reached(layers.values()):
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
            total = sum_processes(torch.tensor([float(num_data), observations], dtype=torch.float64))
            num_data, observations = int(total[0]), float(total[1])
            losses, constants = sum_processes(losses), sum_processes(constants)
        return Totals(losses, num_data, observations, constants)

    def add(
        self, input: Any, target: Any, layers: Mapping[LayerWeights, LayerCurvature], enough: Enough | None = None
    ) -> tuple[Tensor, float]:
        """Loss of each output, or of all together, and numbers observed, of samples that are handed to the layers."""
        input, target = drop_uncounted(input, target)
        output = self.likelihood.tensor(self.extraction.forward(self.model, detach_input(input)))
        if len(output) != len(target):
            remedy = "pass one target for each sample of a batch"
            raise LikelihoodError("targets", expected=f"{len(output)} of them", got=len(target), remedy=remedy)
        self.likelihood.check(output, target)
        draws = self.draws(output, enough)
        with torch.no_grad():
            if self.apart:
                losses = self.likelihood.losses(output, target).to("cpu", torch.float64)
                columns = self.likelihood.columns_apart(output.detach(), draws, target)
            else:
                losses = self.likelihood.loss(output, target).to("cpu", torch.float64)
                columns = self.likelihood.columns(output.detach(), draws, target)
        counts = self.likelihood.counts(output, target)
        columns = columns if enough is None else enough.watch(columns)
        ending, hessian = None if self.apart or output.shape[1] <= MANY else self.extraction.ending(output), None
        if ending is not None:
            hessian = self.likelihood.output_hessian(output, target)
        for index, uses in enumerate(self.extraction.backward(output, columns)):
            for layer_weights, layer in layers.items():
                samples = len(output) if index == 0 else None
                layer.add(
                    [use for user in layer_weights.users for use in uses[user]],
                    samples,
                    counts,
                    index % len(losses) if self.apart else 0,
                    None if enough is None else enough.total,
                    hessian if layer_weights.users == (ending,) else None,
                )
        self.extraction.forget()
        for layer in layers.values():
            layer.forget()
        return losses, self.likelihood.observations(output, target)

    def _probe(self, input: Any, samples: int, again: bool) -> None:
        """Refuse what the uses of layers do not show, see :func:`~.probe.probe`; once for many passes over parts of the
        data.

        Args:
            again: whether there are many passes.
        """
        if self._probed and again:
            return
        self._probed = True
        covered = {name: self.model.get_parameter(name) for name in self.coverage.parameters}
        few = first(input, samples, PROBED)
        probe(
            self.coverage.layers, covered, lambda x: self.likelihood.tensor(self.extraction.forward(self.model, x)), few
        )
        with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
            self.extraction.find(self.likelihood.tensor(self.extraction.forward(self.model, detach_input(few))))
        self.extraction.forget()

    def _constants(self, targets: Sequence[Any]) -> Tensor:
        """Loss of the best constant of each output, or of all together."""
        whole, number = self.likelihood.joint_constant_loss(targets), sum(map(len, targets))
        if not self.apart:
            return torch.tensor([whole * number], dtype=torch.float64)
        outputs = range(split_weight(targets[0])[0].shape[1])
        each = [self.likelihood.joint_constant_loss([_output_target(t, c) for t in targets]) for c in outputs]
        return torch.tensor(each, dtype=torch.float64) * number

    def _rehearse(self, layers: Mapping[LayerWeights, LayerCurvature], budget: Budget) -> int:
        """Bytes that the end takes beside the sums: all factors, then the decomposition of one after the other."""
        factors, taken = budget.taken(lambda: [factor for layer in layers.values() for factor in layer.rehearse()])
        side = max((max(factor.sides) for factor in factors), default=0)
        spectra = SPECTRA * sum(self.coverage.parameters.values())
        return taken + DECOMPOSED * side**2 + spectra


def _output_target(target: Any, output: int) -> Any:
    """The targets of one output, with what they count."""
    whole, weight = split_weight(target)
    column = whole[:, output : output + 1]
    if weight is None:
        return column
    return Weighted(column, broadcast_weight(weight, whole).expand_as(whole)[:, output : output + 1])


def _growth(layers: Mapping[LayerWeights, LayerCurvature]) -> int:
    """Bytes that have to stay free for sums that still grow."""
    growths = [layer.growth() for layer in layers.values()]
    return sum(stays for stays, _ in growths) + max(passing for _, passing in growths)
