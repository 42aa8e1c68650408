r"""The evidence of a linear family of kernels, at the precisions that suit it best: Laplace's likelihood with another
prior.

A Laplace posterior :math:`\mathcal N(\hat w, (hH + \Lambda)^{-1})` says what the likelihood is near :math:`\hat w`: as
a function of w it is :math:`\exp(b^\top w - \tfrac12 w^\top hH w)` up to a constant, with :math:`b = (hH + \Lambda)\hat
w - r`, where r is the slope of the negative log posterior, zero at its mode: where a training ended before it, b
without r takes for data what is left of the way. So the evidence of :math:`w = B^\top c`, with orthonormal rows B and
the prior :math:`p(w)` conditioned on that form, relative to that of w = 0, is

.. math::
    \log Z = \tfrac12 \Big[ \log\det T - \log\det (B hH B^\top + T) + b^\top B^\top (B hH B^\top + T)^{-1} B b \Big],
    \qquad T = B \Lambda B^\top ,

and the precisions :math:`\Lambda` in it are free. Their best values are fixed points of
:math:`\delta_p = \gamma_p / |w_p|^2` (MacKay, *Bayesian interpolation*, Neural Computation 4, 1992) for this family,
too. All of w is the family B = 1. Exact for a linear model with Gaussian noise if H is; where H holds no blocks between
parameters, as the evidence's, that is so only of data that do not couple them, such as all transforms of each sample
(:mod:`escnn_relax.evidence.verdicts.joint_curvature` has the blocks). Which precisions a family has matters: one that
needs only a few directions of a pathway is not to be judged by the width that the others have left it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...curvature.factors import Factor
from .fixed_point import climb
from .kernel_family import LARGEST, FamilyBlock, FamilyModes, check_weights, family_modes, too_large

__all__ = ["evidence_of_all", "evidence_of_coupled", "evidence_of_family"]


def evidence_of_all(
    blocks: Sequence[tuple[Factor, Tensor, float]],
    scale: float,
    bounds: tuple[float, float] | None = None,
    slopes: Sequence[Tensor] | None = None,
) -> float:
    """The log evidence (nats) of all weights of some blocks under one precision, relative to all of them being zero.

    Args:
        blocks: each with the values of their weights ``(P,)``, and the log precision at which they were found.
        scale: h, what one unit of the likelihood counts.
        bounds: of the log precision, for the best one within; that of the first block without.
        slopes: of the negative log posterior at the weights of each block; ``None``: they are its mode.

    Raises:
        DataError: weights that are not finite.

    >>> from escnn_relax.curvature.factors import DenseFactor
    >>> block = DenseFactor("w", torch.diag(torch.tensor([8., 8.]))), torch.ones(2), 0.0
    >>> round(evidence_of_all([block], 1.0), 2), round(evidence_of_all([block], 1.0, (-9.0, 9.0)), 2)
    (6.8, 6.81)
    """
    for factor, weights, _ in blocks:
        check_weights(weights, factor.name)
    modes = []
    for n, (factor, weights, log_precision) in enumerate(blocks):
        slope = torch.zeros_like(weights) if slopes is None else slopes[n].to(weights)
        modes.append(factor.modes(weights, slope, scale, math.exp(log_precision)))
    values, counts, linear = (torch.cat(tensors) for tensors in zip(*modes))

    def at(logs: Mapping[str, float]) -> tuple[float, dict[str, float]]:
        delta = math.exp(logs[""])
        total = values + delta
        nats = 0.5 * float((linear / total).sum() - (counts * torch.log1p(values / delta)).sum())
        gamma, size = float((counts * values / total).sum()), float((linear / total**2).sum())
        return nats, {"": math.log(gamma / size) if gamma > 0 and size > 0 else math.inf}

    return climb(at, {"": blocks[0][2]}, bounds)


def evidence_of_family(
    blocks: Sequence[Sequence[FamilyBlock]], scale: float, bounds: tuple[float, float] | None = None
) -> float:
    """The log evidence (nats) of the weights that the families of some blocks span, relative to all of them being zero.

    Args:
        blocks: lists of blocks with the same O and the same n each; the lists are independent but for their precisions.
        scale: h, what one unit of the likelihood counts.
        bounds: of the log precisions, for the best ones within; those of the blocks without.

    Raises:
        ArgumentError: a matrix of more than :data:`LARGEST` rows would have to be decomposed.
        DataError: weights that are not finite.
    """
    families = [family_modes(of_family, scale) for of_family in blocks if len(of_family[0].matrix)]
    start = {block.name: block.log_precision for of_family in blocks for block in of_family}
    return _evidence_of(families, start, bounds)


def evidence_of_coupled(
    curvature: Tensor,
    linear: Tensor,
    matrices: Mapping[str, Tensor],
    log_precision: Mapping[str, float],
    bounds: tuple[float, float] | None = None,
) -> float:
    r"""The log evidence (nats) of the weights :math:`w = B^\top c`, relative to all of them being zero, with a
    likelihood :math:`\exp(b^\top w - \tfrac12 w^\top H w)` that couples all of them.

    Args:
        curvature, linear: H ``(P, P)``, the likelihood's scale included, and b ``(P,)``.
        matrices: B by the name of the parameter, each ``(n, its size)``, in the order of the weights.
        log_precision, bounds: as of :func:`evidence_of_family`.

    Raises:
        ArgumentError: a matrix of more than :data:`LARGEST` rows would have to be decomposed.
    """
    B = torch.cat(list(matrices.values()), dim=1)
    if not len(B):
        return 0.0
    if len(B) > LARGEST:
        raise too_large(len(B))
    overlaps = {name: N @ N.T for name, N in matrices.items()}
    family = FamilyModes(B @ curvature @ B.T, (B @ linear).unsqueeze(0), overlaps)
    return _evidence_of([family], dict(log_precision), bounds)


def _evidence_of(
    families: Sequence[FamilyModes], start: Mapping[str, float], bounds: tuple[float, float] | None
) -> float:
    def at(logs: Mapping[str, float]) -> tuple[float, dict[str, float]]:
        nats, dimensions, squares = zip(*(family.at(logs) for family in families)) if families else ((), (), ())
        gammas = {n: sum(of_family.get(n, 0.0) for of_family in dimensions) for n in logs}
        sizes = {n: sum(of_family.get(n, 0.0) for of_family in squares) for n in logs}
        better = {n: math.log(gammas[n] / sizes[n]) if gammas[n] > 0 and sizes[n] > 0 else logs[n] for n in logs}
        return sum(nats), better

    return climb(at, start, bounds)
