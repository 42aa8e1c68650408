"""The curvature of a layer, for each output of the network by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from .factors import Factor
from .layer_curvature import LayerCurvature
from .layers.extraction import Use

__all__ = ["Outputwise"]


class Outputwise:
    """One :class:`LayerCurvature` for each output; what the layer reads is summed once for all of them.

    Args:
        make: a new one.
    """

    def __init__(self, make: Callable[[], LayerCurvature]) -> None:
        self._make, self._of = make, [make()]

    def read(self, inputs: Sequence[Tensor], samples: int, counts: Tensor | None = None) -> None:
        """The inputs of all uses of the layer in one minibatch, and how often each sample counts."""
        first, *others = self._of
        first.read(inputs, samples, counts)
        for other in others:
            other.follow(first)

    def add(self, uses: Sequence[Use], output: int = 0) -> None:
        """The output gradients that one column sends to the same uses, a column of this output of the network alone."""
        while len(self._of) <= output:
            self._of.append(self._make())
            self._of[-1].follow(self._of[0])
        self._of[output].add(uses)

    def read_so_far(self) -> tuple[float, int]:
        """Number of rows, and of the directions that they have."""
        return self._of[0].read_so_far()

    def forget(self) -> None:
        """Let go of the minibatch."""
        for of in self._of:
            of.forget()

    def rehearsed(self) -> list[Factor]:
        """Factors of the sums so far, which go on; of the size that they will have in the end."""
        return [factor for of in self._of for factor in of.rehearsed()]

    def growth(self) -> tuple[int, int]:
        """Bytes by which the sums may still grow, and bytes more that growing and ending takes for a while."""
        grown = [of.growth() for of in self._of]
        return sum(stays for stays, _ in grown), max(passing for _, passing in grown)

    def gather(self) -> None:
        """Add up the sums of all processes."""
        known: set[int] = set()  # outputs share what the layer read
        for total in (total for of in self._of for total in of.sums()):
            if id(total) not in known:
                known.add(id(total))
                total.gather()

    @property
    def corrects(self) -> bool:
        """Whether this is the second pass."""
        return self._of[0].corrects

    def second_pass(self) -> bool:
        """Whether the data are needed once more; if so, prepares for it."""
        return self._of[0].second_pass()

    def factors(self) -> list[dict[str, tuple[Factor, ...]]]:
        """For each output the factors by parameter name within the layer."""
        return [of.factors() for of in self._of]
