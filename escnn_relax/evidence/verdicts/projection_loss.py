"""What a network's fit to data loses where a subgroup is demanded of its layers: measured, not read off the
curvature."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from ...curvature.checked_batches import answer, batches
from ...errors import DataError
from ...morphism.module_tree import copy_module
from ...nn.gates import Gated
from ...nn.measured.kernel_symmetry import KernelSymmetry
from ...symmetry.groups.lattice import Subgroup
from ..evidence_view import EvidenceView

__all__ = ["ProjectionLoss"]


class ProjectionLoss:
    r"""The log-likelihood that goes if layers are projected on what a subgroup fixes and the other weights stay.

    :math:`\log p(D \mid w) - \log p(D \mid P_H w)`, in nats of ``evidence.num_data`` samples. It is no approximation,
    unlike the margins, which take the log-likelihood to be quadratic in the weights; but an upper bound of what
    demanding the subgroup costs, for a network that is trained with it adapts its other weights.

    Args:
        evidence: says which model, likelihood, noise and number of data.
        data: yields ``(input, target)``; re-iterable. A part of the data is scaled up.
    """

    def __init__(self, evidence: EvidenceView, data: Iterable[Any]) -> None:
        self._evidence, self._data = evidence, data
        self._model: nn.Module = copy_module(evidence.model).eval()
        for submodule in self._model.modules():
            if isinstance(submodule, Gated):  # what is closed here the subgroup's kernels may have a part in
                submodule.open(*submodule.closed)
        self._device = next(self._model.parameters()).device
        self._before = self._loss()
        self._known: dict[tuple[tuple[str, ...], Any], float] = {}

    def __call__(self, layers: Sequence[KernelSymmetry], demanded: Subgroup) -> float:
        key = tuple(layer.name for layer in layers), demanded.id
        if key not in self._known:
            weights: dict[str, Any] = {layer.name: self._model.get_submodule(layer.name).weights for layer in layers}
            saved = {layer.name: copy.deepcopy(dict(weights[layer.name])) for layer in layers}
            try:
                for layer in layers:
                    _write(weights[layer.name], layer.projected_weights(demanded))
                self._known[key] = self._loss() - self._before
            finally:
                for name, before in saved.items():
                    _write(weights[name], before)
        return self._known[key]

    @torch.no_grad()
    def _loss(self) -> float:
        evidence, total, seen = self._evidence, 0.0, 0
        for input, target in batches(self._data, self._device):
            output = evidence.likelihood.tensor(answer(self._model, input))
            evidence.likelihood.check(output, target)
            total += float(evidence.noise.loss(output, target))
            seen += len(target)
        if not seen:
            raise DataError(
                "survivors", "no data", remedy="pass a list or a DataLoader: an iterator is empty after one pass"
            )
        return total * (evidence.num_data or seen) / seen


@torch.no_grad()
def _write(weights: Any, values: Any) -> None:
    for name, value in values.items():
        weights[name].copy_(value)
