"""Second moments: sums of outer products over the data, of what a layer reads in particular."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..conventions import FACTOR_DTYPE
from ..distributed import sum_processes
from ..layers.linear_map import LinearMap

__all__ = ["Moments", "MeanPatchMoments", "at_least_single", "weigh_samples", "number"]

#: Sums in the network's own precision are carried over to float64 after so many rows.
FLUSH = 1 << 16

#: So many rows of a moment at a time.
BAND = 128


class Moments:
    r""":math:`\sum_r x_r x_r^\top` for batches of columns, shape ``(groups, D, rows)``; float64 at the end."""

    def __init__(self) -> None:
        self.rows = 0
        self._total = torch.zeros((), dtype=FACTOR_DTYPE)
        self._partial: Tensor | None = None
        self._pending = 0

    def add(self, columns: Tensor, others: Tensor | None = None) -> None:
        """Add the outer products of all columns, with themselves or with as many others."""
        rows = (columns if others is None else others).transpose(-1, -2)
        if self._partial is None:
            self._partial = columns @ rows
        elif columns.dim() == 2:
            self._partial.addmm_(columns, rows)
        else:
            self._partial.baddbmm_(columns, rows)
        self._count(columns.shape[-1])

    def add_samples(self, samples: Tensor) -> None:
        """Add the columns ``(D, rows)`` of each of N samples, shape ``(N, D, rows)``, where they lie."""
        if samples.shape[1] > samples.shape[2]:  # N products (D, D) would be larger than a copy of the columns
            self.add(samples.transpose(0, 1).flatten(1))
            return
        product = (samples @ samples.transpose(1, 2)).sum(0)
        self._partial = product if self._partial is None else self._partial + product
        self._count(len(samples) * samples.shape[-1])

    def add_total(self, total: Tensor) -> None:
        """Add a sum of outer products, ``(groups, D, D)``, float64."""
        self._total = self._total + total

    def _count(self, rows: int) -> None:
        self.rows += rows
        self._pending += rows
        if self._pending >= FLUSH:
            self._flush()

    def _flush(self) -> None:
        if self._partial is not None:
            if not self._total.dim() or self._partial.requires_grad:
                self._total = self._total + self._partial.to(FACTOR_DTYPE)
            else:  # a copy of all in float64 would be as large again
                for start in range(0, self._total.shape[-2], BAND):
                    band = slice(start, start + BAND)
                    self._total[..., band, :] += self._partial[..., band, :]
        self._partial, self._pending = None, 0

    def gather(self) -> None:
        """Add up those of all processes."""
        self._flush()
        self._total, self.rows = sum_processes(self._total), int(sum_processes(torch.tensor(self.rows)))

    @property
    def total(self) -> Tensor:
        """The sum so far, shape ``(groups, D, D)``, float64."""
        self._flush()
        return self._total


class MeanPatchMoments:
    """Second moment of each sample's mean patch, ``(groups, C S, C S)``."""

    def __init__(self, layer: LinearMap) -> None:
        self._layer, self.side = layer, 0
        self._moments = Moments()
        self.rows = 0.0  # how many samples there were, each as often as it counts

    def add(self, inputs: Sequence[Tensor], counts: Tensor | None = None, total: int | None = None) -> None:
        """Add one minibatch: the inputs of all uses of the layer, whose places are averaged together; see
        :func:`weigh_samples`. All samples, however many there are in ``total``: each is but one row."""
        sums = torch.zeros(())
        places = 0
        for input in inputs:
            shape = self._layer.places.shape(input)
            reads = self._layer.places.counts(shape).to(input)
            places += self._layer.places.table(shape).shape[1]
            sums = sums + (self._layer.places.flatten(input) @ reads).flatten(1)
        # in float64 from the start, since the mean over a field cancels most of the kernels that break the symmetry
        mean = weigh_samples((sums / places).to(FACTOR_DTYPE), counts)
        self.rows += number(mean, counts)
        self.side = mean.shape[1] // self._layer.groups
        self._moments.add(mean.unflatten(1, (self._layer.groups, -1)).permute(1, 2, 0))

    def gather(self) -> None:
        """Add up those of all processes."""
        self._moments.gather()
        self.rows = float(sum_processes(torch.tensor(self.rows, dtype=FACTOR_DTYPE)))

    @property
    def mean(self) -> Tensor:
        """Divided by the number of samples, float64."""
        return self._moments.total / (self.rows or 1.0)  # where nothing counts, the sum is zero


def weigh_samples(samples: Tensor, counts: Tensor | None) -> Tensor:
    """Samples, ``(N, ...)``, times the root of how often each counts: so often its second moment enters a sum."""
    return samples if counts is None else samples * counts.to(samples).sqrt().view(-1, *(1,) * (samples.dim() - 1))


def number(samples: Tensor, counts: Tensor | None) -> float:
    """How many samples these are, each as often as it counts."""
    return float(len(samples)) if counts is None else float(counts.double().sum())


def at_least_single(tensor: Tensor) -> Tensor:
    """In float32 or better, whatever precision the forward pass had."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
