"""What the outputs of a network mean: loss, square root of its Hessian, and checks of the targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Callable, Iterable, Iterator, Optional, Sequence, Union

import torch
from escnn.nn import GeometricTensor
from torch import Tensor
from torch.nn import functional as F

from ..errors import DataError, LikelihoodError

__all__ = ["Likelihood", "Categorical", "Bernoulli", "Gaussian", "likelihood"]


class Likelihood(ABC):
    """One unit of a likelihood: temperature 1, observation noise 1. Outputs are ``(N, C)`` or ``(N, C, *space)``."""

    name: str
    #: whether the likelihood has an observation noise, learned beside the prior precisions
    noisy = False

    @abstractmethod
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Negative log-likelihood summed over the samples, without normaliser (nats)."""

    @abstractmethod
    def exact_columns(self, output: Tensor) -> Tensor:
        r"""Columns :math:`S_c` with :math:`\sum_c S_c S_c^\top` the loss Hessian of outputs ``(N, C)``; ``(columns, N, C)``."""

    @abstractmethod
    def sampled_columns(self, output: Tensor, samples: int) -> Tensor:
        r"""Draws with that Hessian as their covariance, each divided by :math:`\sqrt{samples}`; shape ``(samples, N, C)``."""

    def columns(self, output: Tensor, samples: Optional[int] = None) -> Iterable[Tensor]:
        """Columns of the shape of the outputs, one after the other.

        Places of outputs with spatial dimensions are independent: exactly, each has columns of its own; sampled, all
        places share a column, whose cross terms vanish on average.
        """
        if samples is not None:
            drawn = self.sampled_columns(_places_last(output), samples)
            return (_as_output(column, output) for column in drawn)
        if output.dim() == 2:
            return self.exact_columns(output)
        return self._place_by_place(output)

    def _place_by_place(self, output: Tensor) -> Iterator[Tensor]:
        flat = output.flatten(2)
        for place in range(flat.shape[2]):
            for column in self.exact_columns(flat[..., place]):
                yield F.pad(column.unsqueeze(-1), (place, flat.shape[2] - place - 1)).view_as(output)

    def probabilities(self, output: Tensor) -> Tensor:
        """Class probabilities of outputs ``(..., C)``; ``LikelihoodError`` where there are no classes."""
        raise LikelihoodError(f"likelihood {self.name!r}", "it has no class probabilities")

    def classes(self, probabilities: Tensor) -> Tensor:
        """:meth:`probabilities` as those of one choice a row, ``(choices, classes)``."""
        return probabilities

    def labels(self, target: Tensor) -> Tensor:
        """The classes that were right in each of these choices, ``(choices,)``."""
        return target.long()

    @abstractmethod
    def constant_loss(self, target: Tensor) -> float:
        """:meth:`loss` of the best output that is the same for every sample, divided by N (nats)."""

    def constant_loss_of(self, targets: Sequence[Tensor]) -> float:
        """:meth:`constant_loss` of all minibatches; where these differ in size, of one constant at all places."""
        if len({target.shape[1:] for target in targets}) == 1:
            return self.constant_loss(torch.cat(list(targets)))
        labels = not targets[0].is_floating_point()
        places = torch.cat([t.flatten() if labels else t.movedim(1, -1).flatten(0, -2) for t in targets])
        return self.constant_loss(places) * len(places) / sum(len(target) for target in targets)

    def losses(self, output: Tensor, target: Tensor) -> Tensor:
        """:meth:`loss` of each output by itself, shape ``(C,)``; ``LikelihoodError`` unless the likelihood is ``noisy``."""
        raise LikelihoodError(f"likelihood {self.name!r}", "its outputs have no noise, so they are not taken apart")

    def columns_apart(self, output: Tensor, samples: Optional[int] = None) -> Iterable[Tensor]:
        """Columns of one output each, which take turns; ``LikelihoodError`` unless the likelihood is ``noisy``."""
        raise LikelihoodError(f"likelihood {self.name!r}", "its outputs have no noise, so they are not taken apart")

    def tensor(self, output: Any) -> Tensor:
        """The network's output as a tensor ``(N, C, ...)``; raises ``LikelihoodError`` where it is none."""
        if isinstance(output, GeometricTensor):
            output = output.tensor
        if not isinstance(output, Tensor) or output.dim() < 2:
            got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            expected = "an output of shape (N, outputs) or (N, outputs, *space)"
            raise LikelihoodError(f"likelihood {self.name!r}", expected=expected, got=got, remedy="return one such tensor")
        if not torch.isfinite(output).all():
            raise DataError("model", "the output is not finite", remedy="look for NaN or infinite weights or inputs")
        return output

    @abstractmethod
    def check(self, output: Tensor, target: Tensor) -> None:
        """Raise ``LikelihoodError`` or ``DataError`` unless the targets fit the outputs."""


class Categorical(Likelihood):
    """Class probabilities by a softmax over C; targets are labels ``0 ... C - 1``, ``(N,)`` or ``(N, *space)`` (cross entropy).

    >>> import torch
    >>> columns = Categorical().exact_columns(torch.zeros(1, 2))
    >>> columns.shape
    torch.Size([1, 1, 2])
    >>> torch.einsum("cno,cnp->op", columns, columns)
    tensor([[ 0.2500, -0.2500],
            [-0.2500,  0.2500]])
    """

    name = "categorical"

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target.long(), reduction="sum")

    def exact_columns(self, output: Tensor) -> Tensor:
        # diag(p) - p p^T has rank C - 1, so C - 1 columns will do: sqrt(p) times an orthonormal basis of its complement,
        # which a Householder reflection of the last axis onto it provides
        root = output.softmax(1).sqrt()
        normal = torch.cat([root[:, :-1], root[:, -1:] + 1], dim=1)
        columns = torch.diag_embed(root) - torch.einsum("ni,nj->nij", root * normal / normal[:, -1:], root)
        return columns[..., :-1].permute(2, 0, 1)

    def sampled_columns(self, output: Tensor, samples: int) -> Tensor:
        p = output.detach().softmax(1)
        drawn = torch.multinomial(p, samples, replacement=True).T
        return (F.one_hot(drawn, p.shape[1]).to(p) - p) / samples**0.5

    def probabilities(self, output: Tensor) -> Tensor:
        return output.softmax(-1)

    def constant_loss(self, target: Tensor) -> float:
        share = target.flatten().long().bincount().double() / target.numel()
        return float(-torch.special.xlogy(share, share).sum()) * target[0].numel()

    def check(self, output: Tensor, target: Tensor) -> None:
        expected = (len(output), *output.shape[2:])
        if tuple(target.shape) != expected or target.is_floating_point():
            raise LikelihoodError(
                "likelihood 'categorical'",
                expected=f"integer labels of shape {expected}",
                got=f"targets of shape {tuple(target.shape)}, {target.dtype}",
                remedy="use likelihood='gaussian' for real-valued targets",
            )
        if output.shape[1] < 2:
            raise LikelihoodError(
                "likelihood 'categorical'", expected="two outputs or more", got=1, remedy="use likelihood='bernoulli'"
            )
        if len(target) and not (0 <= int(target.min()) and int(target.max()) < output.shape[1]):
            raise DataError(
                "targets",
                expected=f"labels in 0 ... {output.shape[1] - 1}",
                got=f"labels in {int(target.min())} ... {int(target.max())}",
                remedy="give the model as many outputs as there are classes",
            )


class _Elementwise(Likelihood):
    """Every output is independent of the others; targets have their shape."""

    @abstractmethod
    def _root(self, output: Tensor) -> Tensor:
        """Square root of the second derivative of the loss in each output."""

    def exact_columns(self, output: Tensor) -> Tensor:
        return torch.diag_embed(self._root(output)).permute(2, 0, 1)

    def check(self, output: Tensor, target: Tensor) -> None:
        if target.shape != output.shape or not target.is_floating_point():
            labels = "convert them by .float(), or use likelihood='categorical' for class labels"
            raise LikelihoodError(
                f"likelihood {self.name!r}",
                expected=f"real targets of shape {tuple(output.shape)}",
                got=f"targets of shape {tuple(target.shape)}, {target.dtype}",
                remedy="give both one shape" if target.is_floating_point() else labels,
            )
        if not torch.isfinite(target).all():
            raise DataError("targets", "NaN or infinite values", remedy="clean the data")


class Bernoulli(_Elementwise):
    """Each output is the log odds of a yes; targets are probabilities, usually 0 or 1 (binary cross entropy)."""

    name = "bernoulli"

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(output, target, reduction="sum")

    def _root(self, output: Tensor) -> Tensor:
        return (output.sigmoid() * (-output).sigmoid()).sqrt()

    def sampled_columns(self, output: Tensor, samples: int) -> Tensor:
        p = output.detach().sigmoid().expand(samples, *output.shape)
        return (torch.bernoulli(p) - p) / samples**0.5

    def probabilities(self, output: Tensor) -> Tensor:
        return output.sigmoid()

    def classes(self, probabilities: Tensor) -> Tensor:
        return torch.stack([1 - probabilities, probabilities], dim=-1).flatten(0, -2)

    def labels(self, target: Tensor) -> Tensor:
        if ((target != 0) & (target != 1)).any():
            raise DataError("targets", expected="0 or 1", got="probabilities", remedy="draw outcomes from them")
        return target.flatten().long()

    def constant_loss(self, target: Tensor) -> float:
        p = target.double().mean(0)
        return float(-(torch.special.xlogy(p, p) + torch.special.xlogy(1 - p, 1 - p)).sum())

    def check(self, output: Tensor, target: Tensor) -> None:
        super().check(output, target)
        if len(target) and not (0 <= float(target.min()) and float(target.max()) <= 1):
            raise DataError(
                "targets",
                expected="values in 0 ... 1",
                got=f"{float(target.min()):g} ... {float(target.max()):g}",
                remedy="use likelihood='gaussian' for other real values",
            )


class Gaussian(_Elementwise):
    r"""Targets are the outputs plus noise :math:`N(0, \sigma^2)`; :math:`\sigma` is learned with the precisions.

    It may differ between outputs, which dimension 1 counts: then losses and columns are wanted of each by itself.

    >>> Gaussian().losses(torch.zeros(1, 2), torch.tensor([[1.0, 2.0]]))
    tensor([0.5000, 2.0000])
    """

    name, noisy = "gaussian", True

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return 0.5 * (output - target).square().sum()

    def _root(self, output: Tensor) -> Tensor:
        return torch.ones_like(output)

    def sampled_columns(self, output: Tensor, samples: int) -> Tensor:
        return torch.randn(samples, *output.shape, dtype=output.dtype, device=output.device) / samples**0.5

    def constant_loss(self, target: Tensor) -> float:
        return 0.5 * float(target.double().var(0, correction=0).sum())

    def losses(self, output: Tensor, target: Tensor) -> Tensor:
        """:meth:`loss` of each output by itself, shape ``(C,)``."""
        return 0.5 * (output - target).square().transpose(0, 1).flatten(1).sum(1)

    def columns_apart(self, output: Tensor, samples: Optional[int] = None) -> Iterable[Tensor]:
        """Columns of one output each, which take turns; sampled, that many of each output for all places together."""
        if samples is None:
            return self.columns(output)
        drawn = self.sampled_columns(output, samples)
        only = torch.eye(output.shape[1]).to(output).view(output.shape[1], 1, -1, *(1,) * (output.dim() - 2))
        return (column * one for column in drawn for one in only)


_KNOWN: dict[str, Callable[[], Likelihood]] = {
    **dict.fromkeys(("categorical", "classification"), Categorical),
    **dict.fromkeys(("bernoulli", "binary"), Bernoulli),
    **dict.fromkeys(("gaussian", "regression"), Gaussian),
}


def likelihood(given: Union[str, Likelihood]) -> Likelihood:
    """A likelihood by its name: ``"categorical"`` (``"classification"``), ``"bernoulli"`` (``"binary"``) or
    ``"gaussian"`` (``"regression"``)."""
    if isinstance(given, Likelihood):
        return given
    if not isinstance(given, str) or given not in _KNOWN:
        raise LikelihoodError("likelihood", expected=f"one of {sorted(_KNOWN)}", got=repr(given))
    return _KNOWN[given]()


def _places_last(output: Tensor) -> Tensor:
    """Outputs ``(N, C, *space)`` as ``(N places, C)``."""
    return output if output.dim() == 2 else output.flatten(2).transpose(1, 2).flatten(0, 1)


def _as_output(column: Tensor, output: Tensor) -> Tensor:
    """The way back."""
    return column if output.dim() == 2 else column.view(len(output), -1, output.shape[1]).transpose(1, 2).reshape(output.shape)
