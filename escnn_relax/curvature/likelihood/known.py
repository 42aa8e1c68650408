"""Likelihoods by name, and losses of torch's as the likelihoods that they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn import functional as F

from ...deprecation import former_keyword
from ...errors import LikelihoodError
from .base import Likelihood
from .categorical import Categorical
from .elementwise import Bernoulli, Gaussian, Heteroscedastic

__all__ = ["likelihood", "loss_likelihood"]

_KNOWN: dict[str, Callable[[], Likelihood]] = {
    **dict.fromkeys(("categorical", "classification"), Categorical),
    **dict.fromkeys(("bernoulli", "binary"), Bernoulli),
    **dict.fromkeys(("gaussian", "regression"), Gaussian),
    "heteroscedastic": Heteroscedastic,
}


@former_keyword("given", "choice")
def likelihood(choice: str | Likelihood | Callable[..., Any]) -> Likelihood:
    """A likelihood by its name: ``"categorical"`` (``"classification"``), ``"bernoulli"`` (``"binary"``),
    ``"gaussian"`` (``"regression"``) or ``"heteroscedastic"``; or the one of a loss of torch's."""
    if isinstance(choice, Likelihood):
        return choice
    if isinstance(choice, type) and issubclass(choice, Likelihood):
        return choice()
    if callable(choice):
        return loss_likelihood(choice)
    if not isinstance(choice, str) or choice not in _KNOWN:
        remedy = "pass one of these names, or a Likelihood of your own"
        raise LikelihoodError("likelihood", expected=f"one of {sorted(_KNOWN)}", got=repr(choice), remedy=remedy)
    return _KNOWN[choice]()


#: Losses that are no likelihood of a network's outputs as they stand, and what to do instead.
_OTHERS = {
    "BCELoss": "return log odds instead of probabilities, and take 'bernoulli'",
    "binary_cross_entropy": "return log odds instead of probabilities, and take 'bernoulli'",
    "GaussianNLLLoss": "return means and log variances as one output, and take 'heteroscedastic'",
    "gaussian_nll_loss": "return means and log variances as one output, and take 'heteroscedastic'",
}


def loss_likelihood(loss: Any) -> Likelihood:
    """The likelihood whose negative logarithm a loss of torch's is, whatever its ``reduction``: the evidence sums over
    samples.

    ``LikelihoodError`` for another function.

    >>> loss_likelihood(nn.CrossEntropyLoss(ignore_index=255)).ignore_index
    255
    >>> loss_likelihood(F.mse_loss).name
    'gaussian'
    """
    match = _module(loss) if isinstance(loss, nn.Module) else _FUNCTIONS.get(loss)
    if match is not None:
        return match() if isinstance(match, type) else match
    name = getattr(loss, "__name__", type(loss).__name__)
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


def _module(loss: nn.Module) -> Likelihood | None:
    if type(loss) is nn.CrossEntropyLoss:
        return Categorical(loss.weight, loss.ignore_index, loss.label_smoothing)
    if type(loss) is nn.NLLLoss:
        return Categorical(loss.weight, loss.ignore_index)
    if type(loss) is nn.MSELoss:
        return Gaussian()
    if type(loss) is nn.BCEWithLogitsLoss:
        if loss.weight is None and loss.pos_weight is None:
            return Bernoulli()
        remedy = "weigh what is observed by the third entry of a batch (escnn_relax.Batches), and take 'bernoulli'"
        raise LikelihoodError("likelihood", "a BCEWithLogitsLoss with weights of its own", remedy=remedy)
    return None
