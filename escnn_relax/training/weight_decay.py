"""Weight decay beside the evidence's prior."""

from __future__ import annotations

import warnings

from torch.optim import Optimizer

from ..evidence.evidence import Evidence

__all__ = ["warn_of_decay"]


def warn_of_decay(optimizer: Optimizer, evidence: Evidence, stacklevel: int = 3) -> None:
    r"""A ``UserWarning`` that names the weights whose prior counts twice: those that the evidence penalises.

    Decay by :math:`\lambda` adds :math:`\tfrac{\lambda}{2} |w|^2` to the loss, which is a prior of precision :math:`N
    \lambda` beside the :math:`\delta` that the evidence finds: the weights then are at no mode of the posterior that it
    takes them for.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2))
    >>> evidence = Evidence(model, relaxed_only=False)
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     warn_of_decay(torch.optim.AdamW(model.parameters()), evidence)
    >>> print(caught[0].message)
    AdamW decays 2 weights (0.weight, ...) by 0.01, for which the evidence has a prior: it counts twice; pass
    weight_decay=0 in a group of evidence.penalised
    """
    names = {id(p): name for name, p in evidence.model.named_parameters() if name in evidence.penalised}
    rated = [(p, group.get("weight_decay", 0)) for group in optimizer.param_groups for p in group["params"]]
    decayed = {names[id(p)]: float(rate) for p, rate in rated if rate and id(p) in names}
    if decayed:
        first, rates = next(iter(decayed)), sorted(set(decayed.values()))
        warnings.warn(
            f"{type(optimizer).__name__} decays {len(decayed)} weights ({first}, ...) by"
            f" {', '.join(f'{r:g}' for r in rates)}, for which the evidence has a prior: it counts twice; pass"
            " weight_decay=0 in a group of evidence.penalised",
            stacklevel=stacklevel,
        )
