"""Likelihoods of which every output is independent of the others: real values, and answers of yes or no."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import DataError, LikelihoodError
from ..batch_format import Weighted
from .base import Likelihood, signs
from .weights import broadcast_weight, split_weight

__all__ = ["Bernoulli", "Gaussian", "Heteroscedastic"]


class _Elementwise(Likelihood):
    """Every output is independent of the others; targets have their shape."""

    @abstractmethod
    def _root(self, output: Tensor) -> Tensor:
        """Square root of the second derivative of the loss in each output."""

    def exact_columns(self, output: Tensor) -> Tensor:
        return torch.stack([*self._exact_series(output)])

    def _exact_series(self, output: Tensor) -> Iterator[Tensor]:
        root, count = self._root(output), output.shape[1]
        return (F.pad(root[:, i : i + 1], (i, count - i - 1)) for i in range(count))

    def _hessian(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        return self._root(output).square(), None

    def sampled_columns(self, output: Tensor, samples: int) -> Tensor:
        return self._root(output.detach()) * signs(samples, output) / samples**0.5

    def _check(self, output: Tensor, target: Tensor) -> None:
        observed = self._observed(output)
        if target.shape != observed.shape or not target.is_floating_point():
            labels = "convert them by .float(), or use likelihood='categorical' for class labels"
            raise LikelihoodError(
                f"likelihood {self.name!r}",
                expected=f"real targets of shape {tuple(observed.shape)}",
                got=f"targets of shape {tuple(target.shape)}, {target.dtype}",
                remedy="give both one shape" if target.is_floating_point() else labels,
            )
        if not torch.isfinite(target).all():
            remedy = "clean the data, or give what was not observed a weight of zero (escnn_relax.Batches)"
            raise DataError("targets", "NaN or infinite values", remedy=remedy)


class Bernoulli(_Elementwise):
    """Each output is the log odds of a yes; targets are probabilities, usually 0 or 1 (binary cross entropy)."""

    name = "bernoulli"

    def elements(self, output: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(output, target, reduction="none")

    def _root(self, output: Tensor) -> Tensor:
        return (output.sigmoid() * (-output).sigmoid()).sqrt()

    def probabilities(self, output: Tensor) -> Tensor:
        return output.sigmoid()

    def classes(self, probabilities: Tensor) -> Tensor:
        return torch.stack([1 - probabilities, probabilities], dim=-1).flatten(0, -2)

    def labels(self, target: Any) -> Tensor:
        if isinstance(target, Weighted):
            raise DataError("targets", expected="0 or 1", got="weights", remedy="leave out what does not count")
        if ((target != 0) & (target != 1)).any():
            raise DataError("targets", expected="0 or 1", got="probabilities", remedy="draw outcomes from them")
        return target.flatten().long()

    def _constant(self, target: Tensor, counts: Tensor) -> float:
        seen = counts.sum(0)
        p = (counts * target.double()).sum(0) / seen.clamp(min=1e-300)
        return float(-(seen * (torch.special.xlogy(p, p) + torch.special.xlogy(1 - p, 1 - p))).sum())

    def _check(self, output: Tensor, target: Tensor) -> None:
        super()._check(output, target)
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

    def elements(self, output: Tensor, target: Tensor) -> Tensor:
        return 0.5 * (output - target).square()

    def _root(self, output: Tensor) -> Tensor:
        return torch.ones_like(output)

    def _constant(self, target: Tensor, counts: Tensor) -> float:
        mean = (counts * target.double()).sum(0) / counts.sum(0).clamp(min=1e-300)
        return 0.5 * float((counts * (target.double() - mean).square()).sum())

    def losses(self, output: Tensor, target: Any) -> Tensor:
        """:meth:`loss` of each output by itself, shape ``(C,)``."""
        target, weight = split_weight(target)
        each = self.elements(output, target)
        each = each if weight is None else broadcast_weight(weight, each) * each
        return each.transpose(0, 1).flatten(1).sum(1)

    def columns_apart(self, output: Tensor, samples: int | None = None, target: Any = None) -> Iterable[Tensor]:
        """Columns of one output each, which take turns; sampled, that many of each output for all places together."""
        if samples is None:
            return self.columns(output, target=target)
        drawn = self.sampled_columns(output, samples)
        importance = None if target is None else self.importance(output, target)
        drawn = drawn if importance is None else drawn * importance.sqrt()
        outputs_apart = torch.eye(output.shape[1]).to(output).view(output.shape[1], 1, -1, *(1,) * (output.dim() - 2))
        return (column * output_only for column in drawn for output_only in outputs_apart)


class Heteroscedastic(_Elementwise):
    r"""Targets ``(N, C, *space)`` are Gaussian, and the network says how widely: of its 2 C outputs the first half are
    the means :math:`\mu`, the others the log variances :math:`s`.

    The loss :math:`\tfrac12 [e^{-s} (y - \mu)^2 + s + \log 2 \pi]` is not convex in both, so the curvature takes its
    expectation under the network's own prediction, the Fisher information :math:`\mathrm{diag}(e^{-s}, \tfrac12)`.

    >>> Heteroscedastic().exact_columns(torch.zeros(1, 2)).square().sum(0)
    tensor([[1.0000, 0.5000]])
    """

    name, density, outputs_each = "heteroscedastic", True, 2

    def elements(self, output: Tensor, target: Tensor) -> Tensor:
        mean, log_variance = output.chunk(2, 1)
        return 0.5 * ((-log_variance).exp() * (target - mean).square() + log_variance + math.log(2 * math.pi))

    def _root(self, output: Tensor) -> Tensor:
        mean, log_variance = output.chunk(2, 1)
        return torch.cat([(-0.5 * log_variance).exp(), torch.full_like(mean, 0.5**0.5)], 1)

    def _observed(self, output: Tensor) -> Tensor:
        return output[:, : output.shape[1] // 2]

    def _per_output(self, weight: Tensor, output: Tensor) -> Tensor:
        return weight if weight.shape[1] == 1 else torch.cat([weight, weight], 1)

    def _check(self, output: Tensor, target: Tensor) -> None:
        if output.shape[1] % 2:
            expected = "means and as many log variances, an even number of outputs"
            remedy = "let the network put out twice as many numbers as there are targets"
            raise LikelihoodError(f"likelihood {self.name!r}", expected=expected, got=output.shape[1], remedy=remedy)
        super()._check(output, target)

    def _constant(self, target: Tensor, counts: Tensor) -> float:
        seen = counts.sum(0)
        mean = (counts * target.double()).sum(0) / seen.clamp(min=1e-300)
        variance = (counts * (target.double() - mean).square()).sum(0) / seen.clamp(min=1e-300)
        return float((0.5 * seen * (2 * math.pi * math.e * variance.clamp(min=1e-12)).log()).sum())
