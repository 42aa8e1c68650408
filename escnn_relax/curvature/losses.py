"""Losses of torch's, as the likelihoods that they are."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn import functional as F

from ..errors import LikelihoodError
from .likelihood import Bernoulli, Categorical, Gaussian, Likelihood

__all__ = ["of_loss"]

#: Losses that are no likelihood of a network's outputs as they stand, and what to do instead.
_OTHERS = {
    "BCELoss": "return log odds instead of probabilities, and take 'bernoulli'",
    "binary_cross_entropy": "return log odds instead of probabilities, and take 'bernoulli'",
    "GaussianNLLLoss": "return means and log variances as one output, and take 'heteroscedastic'",
    "gaussian_nll_loss": "return means and log variances as one output, and take 'heteroscedastic'",
}


def of_loss(given: Any) -> Likelihood:
    """The likelihood whose negative logarithm a loss of torch's is, whatever its ``reduction``: the evidence sums over
    samples.

    ``LikelihoodError`` for another function.

    >>> of_loss(nn.CrossEntropyLoss(ignore_index=255)).ignore_index
    255
    >>> of_loss(F.mse_loss).name
    'gaussian'
    """
    found = _module(given) if isinstance(given, nn.Module) else _FUNCTIONS.get(given)
    if found is not None:
        return found() if isinstance(found, type) else found
    name = getattr(given, "__name__", type(given).__name__)
    remedy = _OTHERS.get(
        name, "subclass escnn_relax.curvature.likelihood.Likelihood, which also says what its curvature is"
    )
    raise LikelihoodError("likelihood", "a loss whose curvature is not known", got=name, remedy=remedy)


_FUNCTIONS: dict[Any, type[Likelihood]] = {
    F.cross_entropy: Categorical,
    F.nll_loss: Categorical,  # a softmax leaves log probabilities as they are
    F.mse_loss: Gaussian,
    F.binary_cross_entropy_with_logits: Bernoulli,
}


def _module(given: nn.Module) -> Likelihood | None:
    if type(given) is nn.CrossEntropyLoss:
        return Categorical(given.weight, given.ignore_index, given.label_smoothing)
    if type(given) is nn.NLLLoss:
        return Categorical(given.weight, given.ignore_index)
    if type(given) is nn.MSELoss:
        return Gaussian()
    if type(given) is nn.BCEWithLogitsLoss:
        if given.weight is None and given.pos_weight is None:
            return Bernoulli()
        remedy = "weigh what is observed by the third entry of a batch (escnn_relax.Batches), and take 'bernoulli'"
        raise LikelihoodError("likelihood", "a BCEWithLogitsLoss with weights of its own", remedy=remedy)
    return None
