"""Optimizers that do not go with an evidence are refused, or warned of, before anything is trained."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable

from torch.optim import Optimizer

from ..errors import ArgumentError
from ..evidence.evidence import Evidence
from .length_scales import LengthScales
from .weight_decay import warn_of_decay

__all__ = ["check_optimizers"]


def check_optimizers(
    optimizers: Iterable[Optimizer],
    evidence: Evidence,
    length_scales: LengthScales,
    opening: Collection[str] = (),
    depth: int = 3,
) -> None:
    """Look over what moves the weights of a model, all of them together.

    Args:
        optimizers: of the loss.
        length_scales: which they must not hold.
        opening: names of the weights of pathways that may open during the training.
        depth: stack level of the warnings.

    Raises:
        ArgumentError: an optimizer that holds a length scale, or none that holds the weights of a pathway that may
            open: it would stay at zero.

    Weights with a prior that none of them holds, and weights that they decay beside their prior, are warned of.

    >>> import torch
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    >>> evidence = Evidence(net, relaxed_only=False)
    >>> half = torch.optim.SGD(net[0].parameters(), 0.1)
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     check_optimizers([half], evidence, LengthScales(evidence))
    >>> print(caught[0].message)
    no optimizer holds 2 weights that have a prior (1.weight, ...): they stay where they are, and the evidence takes
    them for trained
    """
    optimizers = list(optimizers)
    moved = {id(p) for o in optimizers for group in o.param_groups for p in group["params"]}
    left = [n for n, p in evidence.model.named_parameters() if n in evidence.log_precision and id(p) not in moved]
    lost = [n for n in left if n in opening]
    if lost:
        problem = f"no optimizer holds the weights of {len(lost)} pathways that may open ({lost[0]}, ...)"
        remedy = "make it of all of model.parameters(), closed pathways too (a callback has parameters() for it)"
        raise ArgumentError("optimizer", problem, remedy=remedy)
    idle = [n for n in left if n not in evidence.closed]
    if idle:
        warnings.warn(
            f"no optimizer holds {len(idle)} weights that have a prior ({idle[0]}, ...): they stay where they are, and"
            " the evidence takes them for trained",
            stacklevel=depth,
        )
    for optimizer in optimizers:
        length_scales.refuse_in(optimizer)
        warn_of_decay(optimizer, evidence, depth + 1)
