"""The curvature of one layer: each of its parameters by the approximation that is meant for it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ..errors import UnsupportedModuleError
from .approximation import Approximation, Batch
from .factors import Factor
from .layers.extraction import Use
from .layers.linear_map import LinearMap
from .output_hessian import OutputHessian
from .overrides import prevails
from .sums.accumulation import Bias

__all__ = ["LayerCurvature"]


class LayerCurvature:
    """Sums over the data for a layer's parameters, for each output of the network by itself where outputs are taken
    apart.

    What the layer reads is summed once for all outputs.

    Args:
        name: the layer's.
        layer: its linear map.
        recipe: the approximation of each covered parameter, by its name within the layer, in the order in which they
            sum.
        exact_bias: whether the bias is exact; else it gets the output factor of ``expand``.
    """

    _batch: Batch  # that which is being read
    _open: list[Approximation]  # sums of the first output that need the batch's columns

    def __init__(
        self, name: str, layer: LinearMap, recipe: Mapping[str, Approximation], exact_bias: bool = True
    ) -> None:
        self.name, self.layer, self.recipe, self.exact_bias = name, layer, recipe, exact_bias
        self._sums: list[list[Approximation]] = [self._start()]  # by output
        self._done: list[dict[str, tuple[Factor, ...]]] = [{}]

    def _start(self) -> list[Approximation]:
        """Empty sums for one output."""
        kinds = {id(approximation): approximation for approximation in self.recipe.values()}
        sums: list[Approximation] = []
        for kind, approximation in kinds.items():
            names = [name for name in self.layer.parameters if name in self.recipe and id(self.recipe[name]) == kind]
            if names:
                sums.append(approximation.start(self.name, self.layer, names))
        if self.layer.bias is not None and "bias" in self.recipe:
            shared = not self.exact_bias and not self.recipe["bias"].reduce
            sums.append(Bias(shared).start(self.name, self.layer, ("bias",)))
        return sums

    def _new_batch(self, inputs: Sequence[Tensor], samples: int, counts: Tensor | None, total: int | None) -> Batch:
        for input in inputs:
            if len(input) != samples:
                raise UnsupportedModuleError(
                    self.name,
                    f"the layer sees {len(input)} samples where the network has {samples}",
                    remedy="keep the batch dimension first and to itself",
                )
        return Batch(self.layer, inputs, counts, total)

    def _follow(self, sums: list[Approximation]) -> None:
        for approximation, leader in zip(sums, self._sums[0], strict=True):
            approximation.follow(leader, self._batch)

    def add(
        self,
        uses: Sequence[Use],
        samples: int | None = None,
        counts: Tensor | None = None,
        output: int = 0,
        total: int | None = None,
        hessian: OutputHessian | None = None,
    ) -> None:
        """What one column of the loss Hessian's square root sends to all uses of the layer; never in a lower precision.

        Args:
            uses: of a column of this ``output`` of the network alone where there are several.
            samples: with the first column of a minibatch, how many of them the network has: the inputs of the uses are
                read.
            counts: how often each of them counts.
            total: of a :class:`~.approximation.Batch`.
            hessian: with the first column, of the network's outputs where they are this layer's; sums that take it need
                none of the columns.
        """
        with torch.autocast(uses[0].input.device.type, enabled=False):
            if samples is not None:
                self._batch = self._new_batch([use.input for use in uses], samples, counts, total)
                for approximation in self._sums[0]:
                    approximation.read(self._batch)
                for others in self._sums[1:]:
                    self._follow(others)
                self._open = [sums for sums in self._sums[0] if not self._add_hessian(sums, hessian)]
            while len(self._sums) <= output:
                self._sums.append(self._start())
                self._done.append({})
                self._follow(self._sums[-1])
            waiting = self._sums[output] if output else self._open
            if not waiting:
                return
            gradients = self._batch.gradients(uses)
            for approximation in waiting:
                approximation.add(self._batch, gradients)

    def _add_hessian(self, sums: Approximation, hessian: OutputHessian | None) -> bool:
        """Whether these sums need none of the columns."""
        rows = len(self._batch.inputs[0])
        if hessian is None or (self.layer.places.channels_last and len(hessian.diagonal) > rows):
            return False
        return prevails(type(sums), "add_hessian", ["add"]) and sums.add_hessian(self._batch, hessian)

    def forget(self) -> None:
        """Let go of the minibatch."""
        for name in ("_batch", "_open"):
            vars(self).pop(name, None)

    def row_count(self) -> tuple[float, int]:
        """Of the sums with the fewest rows for their directions, see :meth:`.Approximation.row_count`."""
        counts = (approximation.row_count() for approximation in self._sums[0])
        return min(counts, key=lambda read: read[0] / max(read[1], 1) if read[1] else math.inf)

    def _all(self) -> Iterator[Approximation]:
        return (approximation for sums in self._sums for approximation in sums)

    def rehearse(self) -> list[Factor]:
        """Factors of the sums so far, which go on; of the size that they will have in the end."""
        return [factor for sums in self._all() for factors in sums.rehearse().values() for factor in factors]

    def growth(self) -> tuple[int, int]:
        """Bytes by which the sums may still grow, and bytes more that growing and ending takes for a while."""
        growths = [sums.growth() for sums in self._all()]
        return sum(stays for stays, _ in growths), max((passing for _, passing in growths), default=0)

    def gather(self) -> None:
        """Add up the sums of all processes."""
        known: set[int] = set()  # outputs share what the layer read
        for total in (total for sums in self._all() for total in sums.sums()):
            if id(total) not in known:
                known.add(id(total))
                total.gather()

    def second_pass(self) -> bool:
        """Whether the data are needed once more; if so, prepares for it."""
        for output, sums in enumerate(self._sums):
            again = [(approximation, approximation.second_pass()) for approximation in sums]
            for approximation, unfinished in again:
                if unfinished is None:
                    self._done[output].update(approximation.factors())
            self._sums[output] = [unfinished for _, unfinished in again if unfinished is not None]
        return any(self._sums)

    def factors(self) -> list[dict[str, tuple[Factor, ...]]]:
        """For each output the factors by parameter name within the layer."""
        factors = [dict(done) for done in self._done]
        for output, sums in enumerate(self._sums):
            for approximation in sums:
                factors[output].update(approximation.factors())
        return factors
