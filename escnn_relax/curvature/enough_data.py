"""When a part of the data says as much about the curvature as prior precisions need."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Protocol

from torch import Tensor

__all__ = ["Enough", "INPUTS", "PLENTY", "ROWS", "SAMPLES"]

#: Samples that count, see below. The scale of every block is then known to 10 %; a log precision that is off by that
#: costs :math:`\gamma / 400` nats of evidence, where :math:`\gamma` directions are determined, less than one per cent
#: of a nat for each.
SAMPLES = 100.0
#: Rows for each number that a kernel sees at a place: eigenvalues of a sample covariance are off by the root of its
#: inverse, and their logarithms on average by half of it (Marchenko and Pastur, 1967).
ROWS = 4.0
#: Rows for each such number, where all the data are read: more of independent ones change the logarithms of eigenvalues
#: by less than 1 %.
PLENTY = 50.0
#: Samples that are read in any case: the places of one are alike, and count for few rows.
INPUTS = 500


class _Read(Protocol):
    def row_count(self) -> tuple[float, int]: ...


class Enough:
    r"""Counts what a pass has seen, and says when to stop.

    The Hessian of the loss weighs samples very differently: late in the training that of most is nearly zero. What
    counts is the *effective* number :math:`(\sum_i t_i)^2 / \sum_i t_i^2` with :math:`t_i` the trace of sample i's
    Hessian, as it is drawn. Beside that each layer has to have read more rows than it has directions.

    Args:
        samples: effective number of samples; infinite to go on to the end.
        columns: how many are drawn for each sample where the choice is left to ``samples="auto"``; ``None`` for all of
            them.
        total: how many samples there are, where all of them are looked at: layers that read more than :data:`PLENTY`
            rows for each of their directions then read of evenly spaced samples only, of :data:`INPUTS` or more.

    >>> import torch
    >>> enough = Enough(2.5)
    >>> for column in enough.watch([torch.tensor([[1.0, 1.0], [0.0, 0.1]])]):
    ...     pass
    >>> round(enough.effective, 2), enough.reached([])
    (1.01, False)
    >>> for column in enough.watch([torch.ones(3, 2)]):
    ...     pass
    >>> round(enough.effective, 2), enough.reached([])
    (4.01, True)
    """

    def __init__(self, samples: float = SAMPLES, columns: int | None = 1, total: int | None = None) -> None:
        self.samples, self.columns, self.total = samples, columns, total
        self._total = self._squares = 0.0

    @property
    def effective(self) -> float:
        """Number of samples that count, so far."""
        return self._total**2 / self._squares if self._squares > 0 else 0.0

    def watch(self, columns: Iterable[Tensor]) -> Iterator[Tensor]:
        """The columns of one minibatch, on their way to the layers."""
        traces: Tensor | None = None
        for column in columns:
            trace = column.detach().flatten(1).double().square().sum(1)
            traces = trace if traces is None else traces + trace
            yield column
        if traces is not None:
            self._total += float(traces.sum())
            self._squares += float(traces.square().sum())

    def reached(self, layers: Iterable[_Read]) -> bool:
        """Whether the pass may end here."""
        if not self.effective >= self.samples or math.isinf(self.samples):
            return False
        return all(rows >= ROWS * side for rows, side in (layer.row_count() for layer in layers))
