r"""The curvature of many parameters together, with the blocks that couple them: what one pathway explains, another need
not.

The evidence takes the posterior to be independent between parameters, so that its cost does not grow with the square of
the model. Asked how much a subgroup costs, that is wrong by nats where the data are few: the same part of them is
explained by several pathways, or by the bias. Here the Gauss-Newton matrix is exact,

.. math:: H = \sum_n J_n^\top S_n S_n^\top J_n ,

of all covered parameters if they are few enough, else of each layer's own. What is not asked about is integrated out:
with the posterior precision :math:`Q = hH + \Lambda` and the mean :math:`\hat w`, the likelihood left to the weights r,
those of the rest (o) at their precisions, is :math:`\exp(\tilde b^\top r - \tfrac12 r^\top \tilde H r)` with

.. math:: \tilde H = hH_{rr} - hH_{ro} Q_{oo}^{-1} hH_{or},
    \qquad \tilde b = (Q \hat w)_r - hH_{ro} Q_{oo}^{-1} (Q \hat w)_o .

Weights that feel no prior in the training end where the slope of the loss is zero: :math:`Q \hat w` is :math:`hH w` in
them. Where the training ended before the mode, :math:`Q \hat w` is :math:`hH w - h \nabla L(w)` with the loss's slope
there, which is its own at the mode. For a linear model with Gaussian noise that is exact, wherever w is. Curvature and
precisions are those of the moment; no approximation of the evidence's own (factors, samples, exact or reduced) enters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...curvature.checked_batches import batches
from ...curvature.jacobian import rows
from ...errors import CurvatureError, DataError
from ..evidence_view import EvidenceView

__all__ = ["ASKED", "JointCurvature", "Marginal", "TOGETHER", "marginals"]

#: Parameters of which the whole matrix is kept (32 MB).
TOGETHER = 2_000
#: Weights of one layer that are asked about together: their matrix is decomposed for each step to the best precisions.
ASKED = 800


@dataclass(frozen=True)
class Marginal:
    """The likelihood of some weights near the mode, the others integrated out.

    Attributes:
        curvature: :math:`\\tilde H`, likelihood scale included, ``(P, P)``, float64.
        linear: :math:`\\tilde b`, ``(P,)``.
        names: of the parameters, whose weights follow each other.
        sizes: how many each has.
    """

    curvature: Tensor
    linear: Tensor
    names: tuple[str, ...]
    sizes: tuple[int, ...]


class JointCurvature:
    """The matrix H of a model's covered parameters, from one pass over the data; of single layers where it would be too
    large.

    Args:
        evidence: refreshed; its precisions and noise are read when asked.
        data: yields ``(input, target)``. A part of the data is scaled up to ``evidence.num_data``.
        together: how many parameters may be taken together.

    Raises:
        DataError: no data.
        CurvatureError: derivatives that are not finite.

    >>> from torch import nn
    >>> from escnn_relax import Evidence
    >>> evidence = Evidence(nn.Sequential(nn.Linear(3, 2)), relaxed_only=False)
    >>> data = [(torch.randn(20, 3), torch.randint(2, (20,)))]
    >>> _ = evidence.refresh(data)
    >>> joint = JointCurvature(evidence, data)
    >>> joint.marginal(["0.weight"]).curvature.shape
    torch.Size([6, 6])
    """

    def __init__(self, evidence: EvidenceView, data: Iterable[Any], together: int = TOGETHER) -> None:
        self.evidence = evidence
        shut = set(evidence.closed)
        sizes = {n: p.numel() for n, p in evidence.parameters.items() if n not in shut}
        if sum(sizes.values()) <= together:
            groups = [list(sizes)]
        else:  # each relaxed layer with its bias
            owners = sorted(evidence.layers, key=len)  # a layer inside another one goes with that one
            by_owner: dict[str, list[str]] = {}
            for name in sizes:
                owner = next((o for o in owners if not o or name.startswith(f"{o}.")), None)
                if owner is not None:
                    by_owner.setdefault(owner, []).append(name)
            groups = [names for names in by_owner.values() if sum(sizes[n] for n in names) <= together]
        self.sizes = sizes
        self._groups: list[tuple[list[str], Tensor, Tensor]] = []
        self.num_data = 0
        if groups:
            self._collect(groups, data)

    def marginal(self, names: Sequence[str], settled: bool = True) -> Marginal | None:
        """Of these parameters, whatever else was taken with them integrated out; ``None`` if they were not taken
        together.

        Args:
            settled: take the weights for the mode; else they are where they are, on the slope that the data have there.
        """
        for group, H, slope in self._groups:
            if set(names) <= set(group):
                return self._marginal(names, group, H, None if settled else slope)
        return None

    def _marginal(self, names: Sequence[str], group: Sequence[str], H: Tensor, slope: Tensor | None) -> Marginal:
        evidence = self.evidence
        ends = torch.tensor([0, *(self.sizes[n] for n in group)]).cumsum(0).tolist()
        place = {n: torch.arange(a, b) for n, a, b in zip(group, ends, ends[1:])}
        asked = torch.cat([place[n] for n in names])
        rest = torch.cat([torch.zeros(0, dtype=torch.long), *(place[n] for n in group if n not in names)])
        scale = evidence.scale * (evidence.num_data or self.num_data) / self.num_data
        logs = evidence.log_precision
        precision = torch.cat([torch.full((self.sizes[n],), math.exp(logs[n])) for n in group]).double()
        felt = torch.cat([torch.full((self.sizes[n],), float(n in evidence.penalised)) for n in group])
        mode = torch.cat([evidence.parameters[n].detach().to("cpu", torch.float64).flatten() for n in group])
        hH = scale * H
        linear = hH @ mode + (felt * precision * mode if slope is None else -scale * slope)
        curvature, sizes = hH[asked][:, asked], tuple(self.sizes[n] for n in names)
        if not len(rest):
            return Marginal(curvature, linear[asked], tuple(names), sizes)
        root = torch.linalg.cholesky(hH[rest][:, rest] + torch.diag(precision[rest]))
        across = torch.linalg.solve_triangular(root, hH[rest][:, asked], upper=False)
        shift = torch.linalg.solve_triangular(root, linear[rest].unsqueeze(1), upper=False)
        curvature = curvature - across.T @ across
        return Marginal(
            (curvature + curvature.T) / 2, linear[asked] - (across.T @ shift).squeeze(1), tuple(names), sizes
        )

    def _collect(self, groups: Sequence[list[str]], data: Iterable[Any]) -> None:
        evidence, likelihood = self.evidence, self.evidence.likelihood
        totals = [torch.zeros(2 * (sum(self.sizes[n] for n in names),), dtype=torch.float64) for names in groups]
        slopes = [torch.zeros(len(total), dtype=torch.float64) for total in totals]
        parameters = [n for names in groups for n in names]
        device = next(evidence.model.parameters()).device
        for input, target in batches(data, device):

            def columns(output: Tensor) -> list[Tensor]:
                likelihood.check(output, target)
                vectors = list(likelihood.columns(output, None, target))
                if evidence.noise.each:
                    evidence.noise.widen(output.shape[1])
                    weights = evidence.noise.weights.sqrt().to(output)
                    vectors = [column * weights.view(1, -1, *[1] * (column.dim() - 2)) for column in vectors]
                with torch.enable_grad():
                    put_out = output.detach().requires_grad_()
                    (downhill,) = torch.autograd.grad(evidence.noise.loss(put_out, target) / evidence.scale, put_out)
                return [*vectors, downhill]

            V = rows(evidence.curvature, input, columns, parameters)
            for total, slope, names in zip(totals, slopes, groups):
                derivatives = torch.cat([V[n].to("cpu", torch.float64) for n in names], dim=2)
                slope += derivatives[:, -1].sum(0)
                derivatives = derivatives[:, :-1].flatten(0, 1)
                total += derivatives.T @ derivatives
            self.num_data += len(target)
        if not self.num_data:
            raise DataError(
                "data", "it yields no batch", remedy="pass a list or a DataLoader: an iterator is empty after one pass"
            )
        for names, total, slope in zip(groups, totals, slopes):
            if not (torch.isfinite(total).all() and torch.isfinite(slope).all()):
                raise CurvatureError(
                    names[0],
                    "the curvature is not finite",
                    remedy="look for NaN or huge weights, inputs or activations",
                )
        self._groups = list(zip(groups, totals, slopes))


def marginals(joint: JointCurvature | None, names: Mapping[str, str], settled: bool = True) -> Marginal | None:
    """Of the parameters of one layer's pathways, ``None`` where they are not known together, or too many."""
    if joint is None or not names or sum(joint.sizes.get(n, 0) for n in names.values()) > ASKED:
        return None
    return joint.marginal(list(names.values()), settled)
