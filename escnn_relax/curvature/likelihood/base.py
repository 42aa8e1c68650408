"""What every likelihood answers for: loss, square root of its Hessian, and checks of outputs and targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from escnn.nn import GeometricTensor
from torch import Tensor
from torch.nn import functional as F

from ...deprecation import former_method
from ...errors import DataError, LikelihoodError
from ..batch_format import Weighted
from ..output_hessian import OutputHessian
from ..overrides import prevails
from .weights import broadcast_weight, broadcasts, split_weight

__all__ = ["Likelihood", "signs"]


class Likelihood(ABC):
    """One unit of a likelihood: temperature 1, observation noise 1. Outputs are ``(N, C)`` or ``(N, C, *space)``."""

    name: str
    #: whether the likelihood has an observation noise, learned beside the prior precisions
    noisy = False
    #: whether the loss is that of a density with a width of its own, so that it moves with the units of the targets
    density = False
    #: outputs for each number that is observed
    outputs_each = 1

    @abstractmethod
    def elements(self, output: Tensor, target: Tensor) -> Tensor:
        """Negative log-likelihood of each observation, without normaliser (nats): ``(N, *space)``, or the targets'
        shape."""

    def loss(self, output: Tensor, target: Any) -> Tensor:
        """Negative log-likelihood summed over the samples, each times its weight, without normaliser (nats)."""
        target, weight = split_weight(target)
        each = self.elements(output, target)
        return each.sum() if weight is None else (broadcast_weight(weight, each) * each).sum()

    def importance(self, output: Tensor, target: Any) -> Tensor | None:
        """What each output counts in loss and curvature, in a shape that broadcasts to the outputs'; ``None``: each
        once."""
        target, weight = split_weight(target)
        intrinsic = self._importance(output, target)
        if weight is None:
            return intrinsic
        counts = self._per_output(broadcast_weight(weight, output).to(output), output)
        return counts if intrinsic is None else intrinsic * counts

    def _importance(self, output: Tensor, target: Tensor) -> Tensor | None:
        """The likelihood's own part of :meth:`importance`."""
        return None

    def _per_output(self, weight: Tensor, output: Tensor) -> Tensor:
        """Weights of what is observed, for the outputs that it depends on."""
        return weight

    def observations(self, output: Tensor, target: Any) -> float:
        """How many numbers were observed, weights counted."""
        importance = self.importance(output, target)
        return output.numel() if importance is None else float(importance.expand_as(output).double().sum())

    def counts(self, output: Tensor, target: Any) -> Tensor | None:
        """How often each sample counts, ``(N,)``: the mean :meth:`importance` of its outputs; ``None``: each once."""
        importance = self.importance(output, target)
        return None if importance is None else importance.detach().expand_as(output).flatten(1).mean(1)

    @abstractmethod
    def exact_columns(self, output: Tensor) -> Tensor:
        r"""Columns :math:`S_c` with :math:`\sum_c S_c S_c^\top` the loss Hessian of outputs ``(N, C)``; ``(columns,
        N, C)``."""

    @abstractmethod
    def sampled_columns(self, output: Tensor, samples: int) -> Tensor:
        r"""Draws with that Hessian as their covariance, each divided by :math:`\sqrt{samples}`; shape ``(samples, N,
        C)``. The less their squared norms scatter the better: :math:`S s` for random signs s, and no drawn labels, of
        which a rare one has all that a sure sample has."""

    def columns(self, output: Tensor, samples: int | None = None, target: Any = None) -> Iterable[Tensor]:
        """Columns of the shape of the outputs, one after the other; with targets, each times the root of its
        importance.

        Places of outputs with spatial dimensions are independent: exactly, each has columns of its own; sampled, all
        places share a column, whose cross terms vanish on average.
        """
        if samples is not None:
            drawn = self.sampled_columns(_places_last(output), samples)
            columns: Iterable[Tensor] = (_as_output(column, output) for column in drawn)
        else:
            columns = self._series(output) if output.dim() == 2 else self._place_by_place(output)
        importance = None if target is None else self.importance(output, target)
        return columns if importance is None else (column * importance.sqrt() for column in columns)

    def _series(self, output: Tensor) -> Iterable[Tensor]:
        """:meth:`exact_columns`, where they can be made one after the other: all of them are ``N C C`` numbers."""
        return self._exact_series(output) if self._has_form("_exact_series") else self.exact_columns(output)

    def _exact_series(self, output: Tensor) -> Iterable[Tensor]:
        """:meth:`exact_columns` of ``(N, C)``, each made when it is asked for."""
        return self.exact_columns(output)

    def output_hessian(self, output: Tensor, target: Any) -> OutputHessian | None:
        """The loss Hessian of each sample at each place, as :meth:`columns` has it on average, in a form that is linear
        in the number of outputs; ``None`` where the likelihood has none."""
        if not self._has_form("_hessian"):
            return None
        flat = _places_last(output.detach())
        diagonal, root = self._hessian(flat if flat.dtype == torch.float64 else flat.float())
        importance = self.importance(output, target)
        if importance is None:
            return OutputHessian(diagonal, root)
        counts = _places_last(importance.expand_as(output))
        return OutputHessian(counts * diagonal, None if root is None else counts.sqrt() * root)

    def _hessian(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        r"""d and r of outputs ``(N, C)`` with :math:`\mathrm{diag}(d) - r r^\top` the loss Hessian, see
        :class:`~.output_hessian.OutputHessian`."""
        raise NotImplementedError

    def _has_form(self, form: str) -> bool:
        """Whether it is that of the columns, whatever a subclass has made of them."""
        defined = getattr(type(self), form) is not getattr(Likelihood, form)
        return defined and prevails(type(self), form, ["columns", "exact_columns"])

    def _place_by_place(self, output: Tensor) -> Iterator[Tensor]:
        flat = output.flatten(2)
        for place in range(flat.shape[2]):
            for column in self._series(flat[..., place]):
                yield F.pad(column.unsqueeze(-1), (place, flat.shape[2] - place - 1)).view_as(output)

    def probabilities(self, output: Tensor) -> Tensor:
        """Class probabilities of outputs ``(..., C)``; ``LikelihoodError`` where there are no classes."""
        remedy = "use 'categorical' or 'bernoulli', or read the mean and variance of predict"
        raise LikelihoodError(f"likelihood {self.name!r}", "it has no class probabilities", remedy=remedy)

    def classes(self, probabilities: Tensor) -> Tensor:
        """:meth:`probabilities` as those of one choice a row, ``(choices, classes)``."""
        return probabilities

    def labels(self, target: Any) -> Tensor:
        """The classes that were right in each of these choices, ``(choices,)``; ``DataError`` where these are no
        plain labels."""
        if isinstance(target, Weighted) or target.is_floating_point() or (target < 0).any():
            got = "weights" if isinstance(target, Weighted) else f"{target.dtype} from {float(target.min()):g}"
            raise DataError(
                "targets", expected="one class for each sample", got=got, remedy="leave out what does not count"
            )
        return target.long()

    def constant_loss(self, target: Any) -> float:
        """:meth:`loss` of the best output that is the same for every sample, divided by N (nats)."""
        target, weight = split_weight(target)
        counts = torch.ones_like(target) if weight is None else broadcast_weight(weight, target)
        counts = counts.double()
        return self._constant(target, counts.expand_as(target)) / len(target)

    @abstractmethod
    def _constant(self, target: Tensor, counts: Tensor) -> float:
        """:meth:`loss` of the best constant, where each target counts as often as that."""

    def joint_constant_loss(self, targets: Sequence[Any]) -> float:
        """:meth:`constant_loss` of all minibatches; where these differ in size, of one constant at all places."""
        pairs = [split_weight(target) for target in targets]
        targets = [target for target, _ in pairs]
        same_size = len({target.shape[1:] for target in targets}) == 1

        def joined(tensors: Iterable[Tensor]) -> Tensor:
            if same_size:
                return torch.cat(list(tensors))
            labels = not targets[0].is_floating_point()
            return torch.cat([t.flatten() if labels else t.movedim(1, -1).flatten(0, -2) for t in tensors])

        whole: Any = joined(targets)
        if any(weight is not None for _, weight in pairs):
            counts = (torch.ones(t.shape) if w is None else broadcast_weight(w, t).expand_as(t) for t, w in pairs)
            whole = Weighted(whole, joined(c.to(whole.device, torch.float64) for c in counts))
        return self.constant_loss(whole) * len(whole) / sum(map(len, targets))

    constant_loss_of = former_method("constant_loss_of", "joint_constant_loss")

    def losses(self, output: Tensor, target: Any) -> Tensor:
        """:meth:`loss` of each output by itself, shape ``(C,)``; ``LikelihoodError`` unless the likelihood is
        ``noisy``."""
        remedy = "leave out noise='output', or use likelihood='gaussian'"
        raise LikelihoodError(
            f"likelihood {self.name!r}", "its outputs have no noise, so they are not taken apart", remedy=remedy
        )

    def columns_apart(self, output: Tensor, samples: int | None = None, target: Any = None) -> Iterable[Tensor]:
        """Columns of one output each, which take turns; ``LikelihoodError`` unless the likelihood is ``noisy``."""
        remedy = "leave out noise='output', or use likelihood='gaussian'"
        raise LikelihoodError(
            f"likelihood {self.name!r}", "its outputs have no noise, so they are not taken apart", remedy=remedy
        )

    def tensor(self, output: Any) -> Tensor:
        """The network's output as a tensor ``(N, C, ...)``; raises ``LikelihoodError`` where it is none."""
        if not isinstance(output, (Tensor, GeometricTensor)):  # an object or a dictionary, as of transformers' models
            output = output.get("logits", output) if isinstance(output, Mapping) else getattr(output, "logits", output)
        if isinstance(output, GeometricTensor):
            output = output.tensor
        if isinstance(output, Tensor) and not output.dim():
            problem = "the model returns one number, as if it were a loss"
            remedy = (
                "return the outputs that the loss is of, in training and evaluation mode, or pick them by"
                " Batches(forward=)"
            )
            raise LikelihoodError(f"likelihood {self.name!r}", problem, remedy=remedy)
        if not isinstance(output, Tensor) or output.dim() < 2:
            got: Any = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            got = f"{got} of {', '.join(map(str, output))}" if isinstance(output, Mapping) else got
            expected = "an output of shape (N, outputs) or (N, outputs, *space)"
            remedy = (
                "return one such tensor, or pick it by escnn_relax.Batches(loader, forward=lambda model, x:"
                " model(x)...)"
            )
            raise LikelihoodError(f"likelihood {self.name!r}", expected=expected, got=got, remedy=remedy)
        if not torch.isfinite(output).all():
            raise DataError("model", "the output is not finite", remedy="look for NaN or infinite weights or inputs")
        return output

    def check(self, output: Tensor, target: Any) -> None:
        """Raise ``LikelihoodError`` or ``DataError`` unless the targets, and their weights, fit the outputs."""
        values, weight = split_weight(target)
        self._check(output, values)
        if weight is None:
            return
        observed = self._observed(output[:1].detach())
        for like in (observed, self.elements(output[:1].detach(), values[:1])):
            if not broadcasts(broadcast_weight(weight[:1], like).shape, like.shape):
                expected = f"weights of shape ({len(values)},), or as the targets {tuple(values.shape)}"
                remedy = "pass one weight for each sample, or one for each of its targets"
                raise LikelihoodError(
                    f"likelihood {self.name!r}", expected=expected, got=tuple(weight.shape), remedy=remedy
                )

    def _observed(self, output: Tensor) -> Tensor:
        """As many outputs as there are numbers observed."""
        return output

    @abstractmethod
    def _check(self, output: Tensor, target: Tensor) -> None:
        """:meth:`check` of targets without weights."""


def signs(samples: int, like: Tensor) -> Tensor:
    """Plus or minus one, independent, ``(samples, *like.shape)``.

    >>> signs(3, torch.zeros(2)).abs()
    tensor([[1., 1.],
            [1., 1.],
            [1., 1.]])
    """
    return 2 * torch.randint(2, (samples, *like.shape), device=like.device).to(like) - 1


def _places_last(output: Tensor) -> Tensor:
    """Outputs ``(N, C, *space)`` as ``(N places, C)``."""
    return output if output.dim() == 2 else output.flatten(2).transpose(1, 2).flatten(0, 1)


def _as_output(column: Tensor, output: Tensor) -> Tensor:
    """The way back."""
    return (
        column
        if output.dim() == 2
        else column.view(len(output), -1, output.shape[1]).transpose(1, 2).reshape(output.shape)
    )
