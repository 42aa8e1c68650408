r"""Mixtures of fewer groups: summands dropped, or what they did taken over by those that stay.

With :math:`\pi'` the shares after renormalisation, dropping leaves :math:`\sum_{H \in S} \pi'_H \Phi_H w_H`. Taking
over leaves the orthogonal projection of the whole kernel :math:`W` on the sum of the kernels that the groups of S have:
each of them gets back what renormalisation scaled, :math:`w'_H = \pi_H w_H / \pi'_H`, and its projection of what was
dropped.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["select_summands", "nearest_summands"]

Map = Callable[[Tensor], Tensor]

#: Passes over several groups' kernels at most; at the angles at which these meet a few are enough.
SWEEPS = 50


def select_summands(layer: Any, names: Sequence[str]) -> Any:
    """A copy of a mixed layer with these summands only, their coefficients as they were, their shares renormalised."""
    chosen = [index for index, p in enumerate(layer.pathways) if p.name in names]
    new = copy.deepcopy(layer)
    new.pathways = tuple(layer.pathways[index] for index in chosen)
    new.weights = nn.ParameterDict()
    for p in new.pathways:
        new.weights[p.name] = copy.deepcopy(layer.weights[p.name])
    new.kernel.keep([p.name for p in new.pathways])
    for name in ("log_precision", "effective_dimension", "norms"):
        setattr(new, name, getattr(layer, name)[chosen].clone())
    if layer.bias is not None:
        spans = torch.arange(len(layer.bias)).split(layer.bias_sizes)
        columns = torch.cat([spans[index] for index in chosen]).to(layer.bias.device)
        new.bias_sizes = tuple(layer.bias_sizes[index] for index in chosen)
        new.bias = nn.Parameter(layer.bias.detach()[columns].clone(), requires_grad=layer.bias.requires_grad)
        new.bias_basis = layer.bias_basis[:, columns].clone()
    return new


@torch.no_grad()
def nearest_summands(layer: Any, names: Sequence[str]) -> Any:
    """A copy of a mixed layer with these summands only, whose kernel and bias are the closest to the layer's."""
    new = select_summands(layer, names)
    before = dict(zip(layer.kernel.pathways, layer.kernel.shares))
    after = dict(zip(new.kernel.pathways, new.kernel.shares))
    rest = layer.kernel.combine({n: w * before[n] for n, w in layer.weights.items()})
    rest = rest - layer.kernel.combine({n: layer.weights[n] * before[n] for n in after})
    added = _projections(rest, [(partial(layer.kernel.read, n), partial(_combined, layer, n)) for n in after])
    for name, more in zip(after, added):
        new.weights[name].copy_((layer.weights[name] * before[name] + more) / after[name])
    if layer.bias is not None and new.bias is not None:
        bases = new.bias_basis.split(new.bias_sizes, 1)
        coefficients = new.bias.split(new.bias_sizes)
        gone = layer.bias_expansion @ layer.bias - sum(b @ v * before[n] for n, b, v in zip(after, bases, coefficients))
        added = _projections(gone, [(torch.linalg.pinv(b).__matmul__, b.__matmul__) for b in bases])
        values = [(v * before[n] + a) / after[n] for n, v, a in zip(after, coefficients, added)]
        new.bias.copy_(torch.cat(values))
    return new


def _combined(layer: Any, name: str, coefficients: Tensor) -> Tensor:
    combined: Tensor = layer.kernel.combine({name: coefficients})
    return combined


def _projections(vector: Tensor, spaces: Sequence[tuple[Map, Map]]) -> list[Tensor]:
    """Coefficients, in each of some subspaces, of pieces whose sum is the projection of a vector on all of them
    together.

    One pass is exact where one subspace contains the others, or they are orthogonal beyond what they share; otherwise
    passes over the subspaces in turn come ever closer (von Neumann's alternating projections).

    Args:
        spaces: pairs of functions, the projection's coefficients of a vector and the vector of coefficients; the
            largest subspace last.
    """
    total: list[Tensor] = []
    size, limit = float(vector.norm()), 10 * torch.finfo(vector.dtype).eps
    for sweep in range(SWEEPS):
        moved = 0.0
        for index, (read, make) in enumerate(reversed(spaces)):
            piece = read(vector)
            change = make(piece)
            vector = vector - change
            moved = max(moved, float(change.norm()))
            if sweep:
                total[index] = total[index] + piece
            else:
                total.append(piece)
        if len(spaces) == 1 or moved <= limit * size:
            break
    return total[::-1]
