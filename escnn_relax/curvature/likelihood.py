"""What the outputs of a network mean: loss, square root of its Hessian, and checks of the targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Optional, Union

import torch
from backpack.core.derivatives.crossentropyloss import CrossEntropyLossDerivatives
from backpack.core.derivatives.mseloss import MSELossDerivatives
from escnn.nn import GeometricTensor
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import DataError, LikelihoodError

__all__ = ["Likelihood", "Categorical", "Gaussian", "likelihood"]


class Likelihood(ABC):
    """One unit of a likelihood: temperature 1, observation noise 1."""

    name: str
    #: whether the likelihood has an observation noise, learned beside the prior precisions
    noisy: bool

    @abstractmethod
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Negative log-likelihood summed over the samples, without normaliser (nats)."""

    @abstractmethod
    def columns(self, output: Tensor, samples: Optional[int] = None) -> Tensor:
        r"""Columns :math:`S_c` with :math:`\sum_c S_c S_c^\top` the loss Hessian, shape ``(columns, N, outputs)``.

        Args:
            samples: draw that many columns from the network's own predictions instead of taking all exactly.
        """

    def probabilities(self, output: Tensor) -> Tensor:
        """Class probabilities, shape ``(..., outputs)``; ``LikelihoodError`` where there are no classes."""
        raise LikelihoodError(f"likelihood {self.name!r}", "it has no class probabilities")

    @abstractmethod
    def constant_loss(self, target: Tensor) -> float:
        """:meth:`loss` of the best output that is the same for every sample, divided by N (nats)."""

    def tensor(self, output) -> Tensor:
        """The network's output as a matrix ``(N, outputs)``; raises ``LikelihoodError`` where it is none."""
        if isinstance(output, GeometricTensor):
            output = output.tensor
        if not isinstance(output, Tensor) or output.dim() != 2:
            got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise LikelihoodError(
                f"likelihood {self.name!r}", expected="an output of shape (N, outputs)", got=got, remedy="flatten it"
            )
        if not torch.isfinite(output).all():
            raise DataError("model", "the output is not finite", remedy="look for NaN or infinite weights or inputs")
        return output

    @abstractmethod
    def check(self, output: Tensor, target: Tensor) -> None:
        """Raise ``LikelihoodError`` or ``DataError`` unless the targets fit the outputs."""


class Categorical(Likelihood):
    """Class probabilities by a softmax of the outputs; targets are labels ``0 ... outputs - 1`` (cross entropy).

    >>> import torch
    >>> columns = Categorical().columns(torch.zeros(1, 2))
    >>> columns.shape
    torch.Size([1, 1, 2])
    >>> torch.einsum("cno,cnp->op", columns, columns)
    tensor([[ 0.2500, -0.2500],
            [-0.2500,  0.2500]])
    """

    name, noisy = "categorical", False

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target, reduction="sum")

    def probabilities(self, output: Tensor) -> Tensor:
        return output.softmax(-1)

    def constant_loss(self, target: Tensor) -> float:
        share = target.flatten().bincount().double() / target.numel()
        return float(-torch.special.xlogy(share, share).sum()) * target[0].numel()

    def columns(self, output: Tensor, samples: Optional[int] = None) -> Tensor:
        if samples is not None:
            return _columns(CrossEntropyLossDerivatives(), nn.CrossEntropyLoss(reduction="sum"), output, samples)
        # diag(p) - p p^T has rank C - 1, so C - 1 columns will do: sqrt(p) times an orthonormal basis of its complement,
        # which a Householder reflection of the last axis onto it provides
        root = output.softmax(1).sqrt()
        normal = root.clone()
        normal[:, -1] += 1
        columns = torch.diag_embed(root) - torch.einsum("ni,nj->nij", root * normal / normal[:, -1:], root)
        return columns[..., :-1].permute(2, 0, 1)

    def check(self, output: Tensor, target: Tensor) -> None:
        if target.dim() != 1 or target.is_floating_point() or len(target) != len(output):
            raise LikelihoodError(
                "likelihood 'categorical'",
                expected=f"{len(output)} integer labels",
                got=f"targets of shape {tuple(target.shape)}, {target.dtype}",
                remedy="use likelihood='gaussian' for real-valued targets",
            )
        if len(target) and not (0 <= int(target.min()) and int(target.max()) < output.shape[1]):
            raise DataError(
                "targets",
                expected=f"labels in 0 ... {output.shape[1] - 1}",
                got=f"labels in {int(target.min())} ... {int(target.max())}",
                remedy="give the model as many outputs as there are classes",
            )


class Gaussian(Likelihood):
    r"""Targets are the outputs plus noise :math:`N(0, \sigma^2)`; :math:`\sigma` is learned with the precisions."""

    name, noisy = "gaussian", True

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return 0.5 * (output - target).square().sum()

    def constant_loss(self, target: Tensor) -> float:
        return 0.5 * float(target.double().var(0, correction=0).sum())

    def columns(self, output: Tensor, samples: Optional[int] = None) -> Tensor:
        # BackPACK's squared error has no factor one half: its Hessian is twice ours
        return _columns(MSELossDerivatives(), nn.MSELoss(reduction="sum"), output, samples) / 2**0.5

    def check(self, output: Tensor, target: Tensor) -> None:
        if target.shape != output.shape or not target.is_floating_point():
            raise LikelihoodError(
                "likelihood 'gaussian'",
                expected=f"real targets of shape {tuple(output.shape)}",
                got=f"targets of shape {tuple(target.shape)}, {target.dtype}",
                remedy="use likelihood='categorical' for class labels",
            )
        if not torch.isfinite(target).all():
            raise DataError("targets", "NaN or infinite values", remedy="clean the data")


_KNOWN = {"categorical": Categorical, "classification": Categorical, "gaussian": Gaussian, "regression": Gaussian}


def likelihood(given: Union[str, Likelihood]) -> Likelihood:
    """A likelihood by its name: ``"categorical"`` (or ``"classification"``), ``"gaussian"`` (or ``"regression"``)."""
    if isinstance(given, Likelihood):
        return given
    if given not in _KNOWN:
        raise LikelihoodError("likelihood", expected=f"one of {sorted(_KNOWN)}", got=repr(given))
    return _KNOWN[given]()


def _columns(derivatives, module: nn.Module, output: Tensor, samples: Optional[int]) -> Tensor:
    module.input0, module.output = output.detach(), output.new_zeros(())  # what BackPACK looks at: a scalar loss
    if samples is None:
        return derivatives.sqrt_hessian(module, None, None)
    return derivatives.sqrt_hessian_sampled(module, None, None, mc_samples=samples)
