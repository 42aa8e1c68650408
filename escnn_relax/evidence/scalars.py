"""What an evidence knows, as numbers with flat names, for TensorBoard, Weights & Biases and the like."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..curvature.layers.coverage import join
from .evidence import Evidence
from .verdicts.survivors import survivors

__all__ = ["evidence_scalars"]


def evidence_scalars(evidence: Evidence, verdicts: bool = False) -> dict[str, float]:
    r"""Precisions, energies, effective dimensions, the log evidence and verdicts, by names like
    ``"conv1/irrep_2/energy"``.

    ===============================================  ===============================================================
    name                                             value
    ===============================================  ===============================================================
    ``evidence/log_evidence``, ``.../data_fit``,     the log marginal likelihood and its parts (nats)
    ``.../complexity``, ``.../prior``
    ``evidence/log_evidence_per_sample``             the first over N (nats)
    ``evidence/log_noise``                           log standard deviation, of a Gaussian likelihood
    ``LAYER/PATHWAY/log_precision``                  :math:`\log \delta`; left out while the pathway is closed
    ``LAYER/PATHWAY/effective_dimension``            :math:`\gamma`, how many directions the data determine
    ``LAYER/PATHWAY/energy``                         share of the energy of the layer's kernel (fraction)
    ``LAYER/PATHWAY/open``                           1, or 0 while it is closed, of pathways that break a symmetry
    ``LAYER/verdict/order``                          elements of the subgroup that survived; 0 for a continuous one
    ``LAYER/verdict/margin``                         by how many nats; left out where it is not known or infinite
    ===============================================  ===============================================================

    A layer that is itself called ``evidence`` is ``model.evidence`` here. Biases and the weights of other layers come
    by the name of the parameter, as in ``"linear/weight/log_precision"``.
    Only finite numbers are given: before the first refresh, precisions and energies.

    Args:
        evidence: of the model.
        verdicts: find the surviving subgroups, too (:func:`~escnn_relax.survivors`); takes seconds for groups with many
            subgroups. There is none while the network is not known to be better than a constant.

    >>> from torch import nn
    >>> from escnn import gspaces, nn as enn
    >>> from escnn_relax import relax
    >>> space = gspaces.rot2dOnR2(4)
    >>> fields = enn.FieldType(space, [space.regular_repr])
    >>> evidence = Evidence(nn.Sequential(relax(enn.R2Conv(fields, fields, 3, bias=False))), num_data=10)
    >>> evidence.close(["0.weights.irrep_1"])
    >>> [name for name in evidence_scalars(evidence) if "irrep_1" in name]
    ['0/irrep_1/energy', '0/irrep_1/open']
    """
    numbers = {f"evidence/{name}": value for name, value in _network(evidence).items()}
    gammas = evidence.effective_dimension() if evidence.has_curvature else {}
    rest = dict(evidence.log_precision)
    for layer, module in evidence.layers.items():
        relaxed: Any = module
        for pathway, energy in relaxed.energies().items():
            weights = [join(layer, weight) for weight in module.pathway_weights()[pathway]]
            logs = [rest.pop(weight) for weight in weights if weight in rest]
            path = f"{_room(layer)}/{pathway}"
            numbers[f"{path}/log_precision"] = max(logs, default=math.nan)
            numbers[f"{path}/effective_dimension"] = sum(gammas.get(weight, math.nan) for weight in weights)
            numbers[f"{path}/energy"] = energy
            if any(weight in evidence.gates for weight in weights):
                numbers[f"{path}/open"] = float(all(log < math.inf for log in logs))
    for parameter, log in rest.items():
        layer, _, own = parameter.rpartition(".")
        path = f"{_room(layer)}/{own}" if layer else _room(own)
        numbers[f"{path}/log_precision"] = log
        numbers[f"{path}/effective_dimension"] = gammas.get(parameter, math.nan)
    if verdicts and evidence.has_curvature and evidence.learned:
        for survivor in survivors(evidence.model, evidence, depth=False).layers:
            path = f"{_room(survivor.name)}/verdict"
            numbers[f"{path}/order"] = float(max(survivor.subgroup.order, 0))
            numbers[f"{path}/margin"] = survivor.margin
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def _room(layer: str) -> str:
    """The name under which a layer's numbers stand; those of the whole network have ``evidence``."""
    return "model.evidence" if layer == "evidence" else layer or "model"


def _network(evidence: Evidence) -> dict[str, float]:
    """What is said of the whole network."""
    numbers: dict[str, float] = {}
    if evidence.has_curvature:
        terms = evidence.terms()
        numbers = {"log_evidence": terms.total, "log_evidence_per_sample": terms.total / terms.num_data}
        numbers |= {"data_fit": terms.data_fit, "complexity": terms.complexity, "prior": terms.prior}
    if evidence.likelihood.noisy:
        noise = torch.as_tensor(evidence.log_noise)
        outputs = enumerate(noise.tolist()) if noise.dim() else ()
        numbers |= {f"log_noise_{n}": value for n, value in outputs} or {"log_noise": float(noise)}
    return numbers
