"""A fitted laplace-torch object from an evidence, for those who are at home there."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..curvature.curvature import Curvature
from ..curvature.factors import Factor
from ..errors import CoverageError, InstallationError, LikelihoodError
from .laplace_approximation import LaplaceApproximation

__all__ = ["to_laplace"]


def to_laplace(approximation: LaplaceApproximation, curvature: Curvature) -> Any:
    """``laplace.KronLaplace`` with an approximation's curvature, precisions, noise and loss; its ``fit`` need not be
    called.

    Its log marginal likelihood is that of the evidence, and it samples weights. Parameters with one Kronecker factor
    keep it; others (several representations in one parameter, exact blocks) are passed as one dense block. Linearised
    predictions need Jacobians that laplace-torch cannot take of escnn layers: use :meth:`Evidence.posterior` for these.

    Raises:
        InstallationError: laplace-torch is missing.
        CoverageError: parameters that ask for a gradient but have no curvature.
        LikelihoodError: a likelihood that laplace-torch does not have.
    """
    try:
        from laplace import KronLaplace
        from laplace.utils.matrix import Kron
    except ImportError as error:
        raise InstallationError(
            "to_laplace", "laplace-torch cannot be imported", remedy="install laplace-torch"
        ) from error
    estimate, noise, likelihood = approximation.estimate, approximation.noise, curvature.likelihood
    model: Any = curvature.model
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    loose = [name for name in names if name not in estimate.factors]
    if loose:
        raise CoverageError("to_laplace", f"{loose[0]} has no curvature", remedy="freeze it by requires_grad_(False)")
    kinds = {"categorical": "classification", "gaussian": "regression"}
    if likelihood.name not in kinds:
        remedy = "use Posterior of this package for other likelihoods"
        raise LikelihoodError("to_laplace", expected=f"one of {sorted(kinds)}", got=likelihood.name, remedy=remedy)
    if noise.each or not isinstance(noise.log, float):
        raise LikelihoodError("to_laplace", "laplace-torch has one noise for all outputs", remedy="use noise='shared'")
    like = next(model.parameters())
    laplace: Any = KronLaplace(
        model,
        kinds[likelihood.name],
        sigma_noise=math.exp(noise.log) if likelihood.noisy else 1.0,
        prior_precision=torch.tensor([math.exp(approximation.log_precision[name]) for name in names]).to(like),
        temperature=noise.temperature,
    )
    share = approximation.share
    laplace.H_facs = Kron([[m.to(like) for m in _matrices(estimate.factors[name], share)] for name in names])
    laplace.H = laplace.H_facs.decompose()
    laplace.mean = torch.nn.utils.parameters_to_vector(laplace.params).detach()
    laplace.loss, laplace.n_data = share * estimate.loss, approximation.num_data
    laplace.n_outputs = estimate.num_outputs
    model.output_size = estimate.num_outputs
    return laplace


def _matrices(factors: tuple[Factor, ...], share: float) -> list[Tensor]:
    """``[B, A]`` where one product of them is the whole parameter's curvature, else that itself."""
    (first, *others) = factors
    if not others and first.kronecker_factors is not None and _in_order(first):
        B, A = first.kronecker_factors
        return [share * B, A]
    size = sum(factor.dimension for factor in factors)
    whole = torch.zeros(size, size, dtype=torch.float64)
    for factor in factors:
        where = torch.arange(size) if factor.positions is None else factor.positions.flatten()
        whole[where.unsqueeze(1), where] = share * factor.dense().cpu()
    return [whole]


def _in_order(factor: Factor) -> bool:
    return factor.positions is None or torch.equal(factor.positions.flatten(), torch.arange(factor.dimension))
