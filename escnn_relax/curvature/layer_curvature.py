"""The curvature of one layer: each of its parameters by the approximation that is meant for it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..errors import UnsupportedModuleError
from .factors import Factor
from .layers.extraction import Use
from .layers.linear_map import LinearMap
from .sums.accumulation import Accumulator, Batch, Bias, Expand, Reduce
from .sums.eigenvalue_corrected import Corrected
from .sums.exact import Diagonal, Exact
from .sums.sketched import Sketched

__all__ = ["LayerCurvature"]

#: What is summed in the first pass over the data; ``eigenvalue-corrected`` needs a second one in ``expand``'s
#: eigenbasis.
_FIRST_PASS: dict[str, type[Any]] = {
    "expand": Expand,
    "reduce": Reduce,
    "exact": Exact,
    "diagonal": Diagonal,
    "eigenvalue-corrected": Expand,
    "sketched": Sketched,
}


class LayerCurvature:
    """Accumulates the factors of a layer's parameters.

    Args:
        name: the layer's.
        layer: its linear map.
        recipe: the approximation of each covered parameter, by its name within the layer.
        exact_bias: whether the bias is exact; else it gets the output factor of ``expand``.
    """

    _batch: Batch  # that which is being read

    def __init__(self, name: str, layer: LinearMap, recipe: Mapping[str, str], exact_bias: bool = True) -> None:
        self.name, self.layer = name, layer
        by_kind: dict[str, list[str]] = {}
        for parameter in layer.parameters:
            if parameter in recipe:
                by_kind.setdefault(recipe[parameter], []).append(parameter)
        self._to_correct = by_kind.get("eigenvalue-corrected", [])
        self._parts: list[Accumulator] = []
        for kind in dict.fromkeys(_FIRST_PASS.values()):
            wanted = [p for k, parameters in by_kind.items() if _FIRST_PASS[k] is kind for p in parameters]
            if wanted:
                self._parts.append(kind(name, layer, wanted))
        if layer.bias is not None and "bias" in recipe:
            self._parts.append(Bias(name, layer, layer.bias, shared=not exact_bias and recipe["bias"] != "reduce"))
        self._done: dict[str, tuple[Factor, ...]] = {}

    def read(self, inputs: Sequence[Tensor], samples: int, counts: Tensor | None = None) -> None:
        """The inputs of all uses of the layer in one minibatch, and how often each sample counts."""
        for input in inputs:
            if len(input) != samples:
                raise UnsupportedModuleError(
                    self.name,
                    f"the layer sees {len(input)} samples where the network has {samples}",
                    remedy="keep the batch dimension first and to itself",
                )
        self._batch = Batch(self.layer, inputs, counts)
        for part in self._parts:
            part.read(self._batch)

    def add(self, uses: Sequence[Use]) -> None:
        """The output gradients that one column of the loss Hessian's square root sends to the same uses."""
        gradients = self._batch.gradients(uses)
        for part in self._parts:
            part.add(self._batch, gradients)

    def forget(self) -> None:
        """Let go of the minibatch."""
        vars(self).pop("_batch", None)

    def rehearsed(self) -> list[Factor]:
        """Factors of the sums so far, which go on; of the size that they will have in the end."""
        return [factor for part in self._parts for of in part.rehearsed().values() for factor in of]

    def growth(self) -> tuple[int, int]:
        """Bytes by which the sums may still grow, and bytes more that growing and ending takes for a while."""
        grown = [part.growth() for part in self._parts]
        return sum(stays for stays, _ in grown), max((passing for _, passing in grown), default=0)

    def read_so_far(self) -> tuple[float, int]:
        """Of the part with the fewest rows for its directions, see :meth:`.Accumulator.read_so_far`."""
        return min(
            (part.read_so_far() for part in self._parts),
            key=lambda read: read[0] / max(read[1], 1) if read[1] else math.inf,
        )

    def follow(self, first: LayerCurvature) -> None:
        """Take over what another one of the same layer has read, and the sums over it."""
        self._batch = first._batch
        for part, leader in zip(self._parts, first._parts, strict=True):
            part.follow(leader)

    def sums(self) -> Iterator[Any]:
        """All that the pass summed over the data."""
        for part in self._parts:
            yield from part.sums()

    @property
    def corrects(self) -> bool:
        """Whether this is the second pass."""
        return any(isinstance(part, Corrected) for part in self._parts)

    def second_pass(self) -> bool:
        """Whether the data are needed once more; if so, prepares for it."""
        self._done = self.factors()
        kronecker = {parameter: self._done.pop(parameter) for parameter in self._to_correct}
        self._parts = [Corrected(self.name, self.layer, kronecker)] if kronecker else []
        return bool(kronecker)

    def factors(self) -> dict[str, tuple[Factor, ...]]:
        """Factors by parameter name within the layer."""
        found = dict(self._done)
        for part in self._parts:
            found.update(part.factors())
        return found
