"""What an evidence found out about the pathways of a layer, kept in the layer, where reports and morphisms find it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..symmetry.kernels.pathway import SWITCHED_OFF

__all__ = ["DETERMINED", "Recorded", "switched_off"]

#: Fraction of its dimension up to which the data count as not determining a pathway.
DETERMINED = 0.01


def switched_off(
    shares: Mapping[str, float],
    fractions: Mapping[str, float],
    energy: float = SWITCHED_OFF,
    determined: float = DETERMINED,
) -> tuple[list[str], float]:
    """The pathways in ``fractions`` that may go, the weakest first, and the share of the energy that goes with them.

    Args:
        shares: of the energy, by name (fractions).
        fractions: effective dimension over dimension; NaN where it was not measured, which lets the energy decide.
        energy: largest sum of the shares that go.
        determined: largest fraction of a pathway that goes.

    >>> switched_off({"a": 0.9, "b": 0.06, "c": 0.04}, {"b": 0.0, "c": 0.5}, energy=0.1)
    (['b'], 0.06)
    """
    off, removed = [], 0.0
    for name in sorted(fractions, key=shares.__getitem__):
        if removed + shares[name] <= energy and (math.isnan(fractions[name]) or fractions[name] <= determined):
            off.append(name)
            removed += shares[name]
    return off, removed


class Recorded:
    """A layer with pathways that an evidence weighs; a base class beside ``nn.Module``.

    Attributes:
        log_precision: log prior precision of each pathway, shape ``(pathways,)``; of several weights the largest, since
            what switches one of them off switches off the pathway. NaN until an evidence sets it; infinite for a closed
            pathway.
        effective_dimension: effective number of weights of each pathway; NaN until an evidence sets it.
    """

    log_precision: Tensor
    effective_dimension: Tensor
    register_buffer: Callable[..., None]  # of nn.Module

    def pathway_weights(self) -> dict[str, tuple[str, ...]]:
        """The names of each pathway's weights, biases aside, in the order of the records."""
        raise NotImplementedError

    def breaking_weights(self) -> tuple[str, ...]:
        """The names of those parameters that break a symmetry, biases too."""
        raise NotImplementedError

    def _begin_record(self, pathways: int) -> None:
        for name in ("log_precision", "effective_dimension"):
            self.register_buffer(name, torch.full((pathways,), torch.nan))

    def record(self, log_precision: Mapping[str, float], effective_dimension: Mapping[str, float]) -> None:
        """Keep what was found, by the weights' names within the layer; what is not named stays."""
        for index, names in enumerate(self.pathway_weights().values()):
            known = [name for name in names if name in log_precision]
            if known:
                self.log_precision[index] = max(log_precision[name] for name in known)
                self.effective_dimension[index] = sum(effective_dimension.get(name, math.nan) for name in known)
