"""Class labels and class probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import ArgumentError, DataError, LikelihoodError
from .base import Likelihood, signs

__all__ = ["Categorical"]


class Categorical(Likelihood):
    """Class probabilities by a softmax over C (cross entropy); targets are labels from 0 to C - 1, ``(N,)`` or ``(N,
    *space)``, or probabilities of the outputs' shape.

    Loss and curvature are those of :func:`torch.nn.functional.cross_entropy`, summed: with a mass :math:`m_c` on
    :math:`-\\log p_c`, the Hessian is :math:`\\sum_c m_c` times that of one label.

    Args:
        weight: of each class, ``(C,)``.
        ignore_index: a label that marks what was not observed.
        label_smoothing: share of each label that is spread over all classes (fraction).

    >>> import torch
    >>> columns = Categorical().exact_columns(torch.zeros(1, 2))
    >>> columns.shape
    torch.Size([1, 1, 2])
    >>> torch.einsum("cno,cnp->op", columns, columns)
    tensor([[ 0.2500, -0.2500],
            [-0.2500,  0.2500]])
    """

    name = "categorical"

    def __init__(
        self, weight: None | Tensor | Sequence[float] = None, ignore_index: int = -100, label_smoothing: float = 0.0
    ) -> None:
        if not 0 <= label_smoothing < 1:
            remedy = "leave it out for 0"
            raise ArgumentError("label_smoothing", expected="a fraction below 1", got=label_smoothing, remedy=remedy)
        self.weight = None if weight is None else torch.as_tensor(weight, dtype=torch.float64).detach()
        if self.weight is not None and (self.weight.dim() != 1 or not (self.weight >= 0).all()):
            remedy = "pass a tensor as torch.nn.CrossEntropyLoss takes it"
            raise ArgumentError("weight", expected="one number of at least 0 for each class", got=weight, remedy=remedy)
        self.ignore_index, self.label_smoothing = ignore_index, label_smoothing

    def elements(self, output: Tensor, target: Tensor) -> Tensor:
        weight = None if self.weight is None else self.weight.to(output)
        options: dict[str, Any] = {"label_smoothing": self.label_smoothing, "reduction": "none"}
        if target.is_floating_point():
            return F.cross_entropy(output, target.to(output), weight, **options)
        return F.cross_entropy(output, target.long(), weight, ignore_index=self.ignore_index, **options)

    def _importance(self, output: Tensor, target: Tensor) -> Tensor | None:
        if target.is_floating_point() or self.weight is not None or (target == self.ignore_index).any():
            return self._masses(target, output.shape[1]).sum(1, keepdim=True).to(output)
        return None

    def _masses(self, target: Tensor, classes: int) -> Tensor:
        r"""What multiplies :math:`-\log p_c` in the loss, ``(N, C, *space)``, float64."""
        if target.is_floating_point():
            masses = target.double()
        else:
            ignored = target.long() == self.ignore_index
            masses = F.one_hot(target.long().masked_fill(ignored, 0), classes).movedim(-1, 1).double()
        masses = (1 - self.label_smoothing) * masses + self.label_smoothing / classes
        if not target.is_floating_point():
            masses = masses * ~ignored.unsqueeze(1)
        weight = torch.ones(classes, dtype=torch.float64) if self.weight is None else self.weight
        return masses * weight.to(masses).view(-1, *(1,) * (masses.dim() - 2))

    def exact_columns(self, output: Tensor) -> Tensor:
        return torch.stack([*self._exact_series(output)])

    def _exact_series(self, output: Tensor) -> Iterator[Tensor]:
        # diag(p) - p p^T has rank C - 1, so C - 1 columns will do: sqrt(p) times an orthonormal basis of its
        # complement, which a Householder reflection of the last axis onto it provides
        root = output.softmax(1).sqrt()
        normal = torch.cat([root[:, :-1], root[:, -1:] + 1], dim=1)
        reflected = root * normal / normal[:, -1:]
        for index in range(output.shape[1] - 1):
            beside = reflected * root[:, index : index + 1]
            unit = F.pad(root[:, index : index + 1], (index, output.shape[1] - index - 1))
            yield unit - beside

    def _hessian(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        p = output.softmax(1)
        return p, p

    def sampled_columns(self, output: Tensor, samples: int) -> Tensor:
        # the C columns sqrt(p_c) (e_c - p), added up with random signs
        p = output.detach().softmax(1)
        weighted = p.sqrt() * signs(samples, p)
        return (weighted - p * weighted.sum(2, keepdim=True)) / samples**0.5

    def probabilities(self, output: Tensor) -> Tensor:
        return output.softmax(-1)

    def _constant(self, target: Tensor, counts: Tensor) -> float:
        if target.is_floating_point():
            masses = self._masses(target, target.shape[1]) * counts
        else:
            labels = target.long()[target.long() != self.ignore_index]
            classes = max(int(labels.max()) + 1 if len(labels) else 1, 0 if self.weight is None else len(self.weight))
            masses = self._masses(target, classes) * counts.unsqueeze(1)
        mass = masses.transpose(0, 1).flatten(1).sum(1)
        return float(-torch.special.xlogy(mass, mass / mass.sum().clamp(min=1e-300)).sum())

    def _check(self, output: Tensor, target: Tensor) -> None:
        expected = (len(output), *output.shape[2:])
        soft = target.is_floating_point() and target.shape == output.shape
        if not soft and (tuple(target.shape) != expected or target.is_floating_point()):
            raise LikelihoodError(
                "likelihood 'categorical'",
                expected=f"integer labels of shape {expected}, or probabilities of shape {tuple(output.shape)}",
                got=f"targets of shape {tuple(target.shape)}, {target.dtype}",
                remedy="use likelihood='gaussian' for real-valued targets",
            )
        if self.weight is not None and len(self.weight) != output.shape[1]:
            remedy = "pass one weight for each class that the network puts out"
            raise LikelihoodError(
                "likelihood 'categorical'", expected=f"{output.shape[1]} weights", got=len(self.weight), remedy=remedy
            )
        if output.shape[1] < 2:
            raise LikelihoodError(
                "likelihood 'categorical'", expected="two outputs or more", got=1, remedy="use likelihood='bernoulli'"
            )
        if soft:
            # to the rounding of probabilities in half precision
            if not (target >= 0).all() or not ((target.sum(1) - 1).abs() <= 2**-7).all():
                right, sums = "probabilities that add up to 1", f"sums up to {float(target.sum(1).max()):g}"
                remedy = "use likelihood='gaussian' for real-valued targets, 'bernoulli' for several labels"
                raise LikelihoodError("likelihood 'categorical'", expected=right, got=sums, remedy=remedy)
            return
        target = target[target != self.ignore_index]
        if len(target) and not (0 <= int(target.min()) and int(target.max()) < output.shape[1]):
            raise DataError(
                "targets",
                expected=f"labels in 0 ... {output.shape[1] - 1}",
                got=f"labels in {int(target.min())} ... {int(target.max())}",
                remedy=(
                    "give the model as many outputs as there are classes, or leave labels out by"
                    " Categorical(ignore_index=)"
                ),
            )
