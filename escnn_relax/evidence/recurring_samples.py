"""Samples that come again from a loader that cannot say so: told by their content."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..curvature.batch_format import input_tensors, read
from ..errors import RelaxError

__all__ = ["Recurring"]

#: Up to this share of equal samples nothing is said: data that take few values have some.
USUAL = 0.1


class Recurring:
    """Watches a pass and counts its samples, and the different ones, by the bytes of input and target.

    Whether equal ones are one sample drawn again or several that look alike cannot be known, nor whether samples that
    were augmented are one: so the caller is asked.

    >>> x, y = torch.arange(4.0).view(4, 1), torch.zeros(4)
    >>> watch = Recurring()
    >>> _ = list(watch.through([(x[:2], y[:2]), (x, y)]))
    >>> watch.drawn, watch.distinct
    (6, 4)
    """

    def __init__(self) -> None:
        self.drawn, self._seen = 0, set[Any]()

    @property
    def distinct(self) -> int:
        """How many different samples there were."""
        return len(self._seen)

    def through(self, loader: Iterable[Any]) -> Iterator[Any]:
        """The batches of a new pass."""
        self.drawn, self._seen = 0, set()
        for batch in loader:
            if self.drawn >= 0:
                keys = _contents(batch)
                self.drawn = -1 if keys is None else self.drawn + len(keys)
                self._seen.update(keys or ())
            yield batch

    def warn(self, stacklevel: int = 3) -> None:
        """Say how many there are, and ask, where many came again."""
        if self.distinct < (1 - USUAL) * self.drawn:
            warnings.warn(
                f"the loader yields {self.drawn} samples, {self.distinct} different ones, and does not say what it"
                f" repeats: the evidence counts all of them as data; pass num_data={self.distinct} if they are draws of"
                " the same ones",
                stacklevel=stacklevel,
            )


def _contents(batch: Any) -> list[Any] | None:
    """What tells the samples of a batch apart; ``None`` where it is not known what belongs to which."""
    try:
        input, target, _ = read(batch)
        parts: list[Any] = [*input_tensors(input), target]
    except RelaxError:  # which is said where the batch is used
        return None
    if not all(isinstance(p, Tensor) and p.dim() and p.layout == torch.strided for p in parts):
        return None
    if any(len(p) != len(target) or not p.numel() for p in parts):
        return None
    rows = [p.detach().cpu().reshape(len(p), -1).contiguous().view(torch.uint8).numpy() for p in parts]
    return [tuple(hash(row[n].tobytes()) for row in rows) for n in range(len(target))]
