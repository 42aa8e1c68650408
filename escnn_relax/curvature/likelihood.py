"""What the outputs of a network mean: loss, square root of its Hessian, and checks of the targets."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from escnn.nn import GeometricTensor
from torch import Tensor
from torch.nn import functional as F

from ..errors import ArgumentError, DataError, LikelihoodError
from .reader import Weighted

__all__ = ["Likelihood", "Categorical", "Bernoulli", "Gaussian", "Heteroscedastic", "likelihood"]


class Likelihood(ABC):
    """One unit of a likelihood: temperature 1, observation noise 1. Outputs are ``(N, C)`` or ``(N, C, *space)``."""

    name: str
    #: whether the likelihood has an observation noise, learned beside the prior precisions
    noisy = False

    @abstractmethod
    def elements(self, output: Tensor, target: Tensor) -> Tensor:
        """Negative log-likelihood of each observation, without normaliser (nats): ``(N, *space)``, or the targets'
        shape."""

    def loss(self, output: Tensor, target: Any) -> Tensor:
        """Negative log-likelihood summed over the samples, each times its weight, without normaliser (nats)."""
        target, weight = apart(target)
        each = self.elements(output, target)
        return each.sum() if weight is None else (spread(weight, each) * each).sum()

    def importance(self, output: Tensor, target: Any) -> Tensor | None:
        """What each output counts in loss and curvature, in a shape that broadcasts to the outputs'; ``None``: each
        once."""
        target, weight = apart(target)
        own = self._importance(output, target)
        if weight is None:
            return own
        given = self._per_output(spread(weight, output).to(output), output)
        return given if own is None else own * given

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
        C)``."""

    def columns(self, output: Tensor, samples: int | None = None, target: Any = None) -> Iterable[Tensor]:
        """Columns of the shape of the outputs, one after the other; with targets, each times the root of its
        importance.

        Places of outputs with spatial dimensions are independent: exactly, each has columns of its own; sampled, all
        places share a column, whose cross terms vanish on average.
        """
        if samples is not None:
            drawn = self.sampled_columns(_places_last(output), samples)
            found: Iterable[Tensor] = (_as_output(column, output) for column in drawn)
        else:
            found = self.exact_columns(output) if output.dim() == 2 else self._place_by_place(output)
        importance = None if target is None else self.importance(output, target)
        return found if importance is None else (column * importance.sqrt() for column in found)

    def _place_by_place(self, output: Tensor) -> Iterator[Tensor]:
        flat = output.flatten(2)
        for place in range(flat.shape[2]):
            for column in self.exact_columns(flat[..., place]):
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
        target, weight = apart(target)
        counts = torch.ones_like(target, dtype=torch.float64) if weight is None else spread(weight, target).double()
        return self._constant(target, counts.expand_as(target)) / len(target)

    @abstractmethod
    def _constant(self, target: Tensor, counts: Tensor) -> float:
        """:meth:`loss` of the best constant, where each target counts as often as that."""

    def constant_loss_of(self, targets: Sequence[Any]) -> float:
        """:meth:`constant_loss` of all minibatches; where these differ in size, of one constant at all places."""
        pairs = [apart(target) for target in targets]
        wanted = [target for target, _ in pairs]
        one_size = len({target.shape[1:] for target in wanted}) == 1

        def joined(parts: Iterable[Tensor]) -> Tensor:
            if one_size:
                return torch.cat(list(parts))
            labels = not wanted[0].is_floating_point()
            return torch.cat([t.flatten() if labels else t.movedim(1, -1).flatten(0, -2) for t in parts])

        whole: Any = joined(wanted)
        if any(weight is not None for _, weight in pairs):
            counts = (torch.ones(t.shape) if w is None else spread(w, t).expand_as(t) for t, w in pairs)
            whole = Weighted(whole, joined(c.to(whole.device, torch.float64) for c in counts))
        return self.constant_loss(whole) * len(whole) / sum(map(len, wanted))

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
        wanted, weight = apart(target)
        self._check(output, wanted)
        if weight is None:
            return
        observed = self._observed(output[:1].detach())
        for like in (observed, self.elements(output[:1].detach(), wanted[:1])):
            if not _fits(spread(weight[:1], like).shape, like.shape):
                expected = f"weights of shape ({len(wanted)},), or as the targets {tuple(wanted.shape)}"
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


class Categorical(Likelihood):
    """Class probabilities by a softmax over C (cross entropy); targets are labels ``0 ... C - 1``, ``(N,)`` or ``(N,
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
        # diag(p) - p p^T has rank C - 1, so C - 1 columns will do: sqrt(p) times an orthonormal basis of its
        # complement, which a Householder reflection of the last axis onto it provides
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

    def _constant(self, target: Tensor, counts: Tensor) -> float:
        if target.is_floating_point():
            masses = self._masses(target, target.shape[1]) * counts
        else:
            kept = target.long()[target.long() != self.ignore_index]
            classes = max(int(kept.max()) + 1 if len(kept) else 1, 0 if self.weight is None else len(self.weight))
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
                wanted, sums = "probabilities that add up to 1", f"sums up to {float(target.sum(1).max()):g}"
                remedy = "use likelihood='gaussian' for real-valued targets, 'bernoulli' for several labels"
                raise LikelihoodError("likelihood 'categorical'", expected=wanted, got=sums, remedy=remedy)
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


class _Elementwise(Likelihood):
    """Every output is independent of the others; targets have their shape."""

    @abstractmethod
    def _root(self, output: Tensor) -> Tensor:
        """Square root of the second derivative of the loss in each output."""

    def exact_columns(self, output: Tensor) -> Tensor:
        return torch.diag_embed(self._root(output)).permute(2, 0, 1)

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

    def sampled_columns(self, output: Tensor, samples: int) -> Tensor:
        p = output.detach().sigmoid().expand(samples, *output.shape)
        return (torch.bernoulli(p) - p) / samples**0.5

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

    def sampled_columns(self, output: Tensor, samples: int) -> Tensor:
        return torch.randn(samples, *output.shape, dtype=output.dtype, device=output.device) / samples**0.5

    def _constant(self, target: Tensor, counts: Tensor) -> float:
        mean = (counts * target.double()).sum(0) / counts.sum(0).clamp(min=1e-300)
        return 0.5 * float((counts * (target.double() - mean).square()).sum())

    def losses(self, output: Tensor, target: Any) -> Tensor:
        """:meth:`loss` of each output by itself, shape ``(C,)``."""
        target, weight = apart(target)
        each = self.elements(output, target)
        each = each if weight is None else spread(weight, each) * each
        return each.transpose(0, 1).flatten(1).sum(1)

    def columns_apart(self, output: Tensor, samples: int | None = None, target: Any = None) -> Iterable[Tensor]:
        """Columns of one output each, which take turns; sampled, that many of each output for all places together."""
        if samples is None:
            return self.columns(output, target=target)
        drawn = self.sampled_columns(output, samples)
        importance = None if target is None else self.importance(output, target)
        drawn = drawn if importance is None else drawn * importance.sqrt()
        only = torch.eye(output.shape[1]).to(output).view(output.shape[1], 1, -1, *(1,) * (output.dim() - 2))
        return (column * one for column in drawn for one in only)


class Heteroscedastic(_Elementwise):
    r"""Targets ``(N, C, *space)`` are Gaussian, and the network says how widely: of its 2 C outputs the first half are
    the means :math:`\mu`, the others the log variances :math:`s`.

    The loss :math:`\tfrac12 [e^{-s} (y - \mu)^2 + s + \log 2 \pi]` is not convex in both, so the curvature takes its
    expectation under the network's own prediction, the Fisher information :math:`\mathrm{diag}(e^{-s}, \tfrac12)`.

    >>> Heteroscedastic().exact_columns(torch.zeros(1, 2)).square().sum(0)
    tensor([[1.0000, 0.5000]])
    """

    name = "heteroscedastic"

    def elements(self, output: Tensor, target: Tensor) -> Tensor:
        mean, log_variance = output.chunk(2, 1)
        return 0.5 * ((-log_variance).exp() * (target - mean).square() + log_variance + math.log(2 * math.pi))

    def _root(self, output: Tensor) -> Tensor:
        mean, log_variance = output.chunk(2, 1)
        return torch.cat([(-0.5 * log_variance).exp(), torch.full_like(mean, 0.5**0.5)], 1)

    def sampled_columns(self, output: Tensor, samples: int) -> Tensor:
        mean, log_variance = output.detach().chunk(2, 1)
        drawn = torch.randn(samples, *mean.shape, dtype=mean.dtype, device=mean.device)
        return torch.cat([drawn * (-0.5 * log_variance).exp(), (drawn.square() - 1) / 2], 2) / samples**0.5

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


_KNOWN: dict[str, Callable[[], Likelihood]] = {
    **dict.fromkeys(("categorical", "classification"), Categorical),
    **dict.fromkeys(("bernoulli", "binary"), Bernoulli),
    **dict.fromkeys(("gaussian", "regression"), Gaussian),
    "heteroscedastic": Heteroscedastic,
}


def likelihood(given: str | Likelihood | Callable[..., Any]) -> Likelihood:
    """A likelihood by its name: ``"categorical"`` (``"classification"``), ``"bernoulli"`` (``"binary"``),
    ``"gaussian"`` (``"regression"``) or ``"heteroscedastic"``; or the one of a loss of torch's (:mod:`.losses`)."""
    if isinstance(given, Likelihood):
        return given
    if isinstance(given, type) and issubclass(given, Likelihood):
        return given()
    if callable(given):
        from .losses import of_loss  # which needs the classes here

        return of_loss(given)
    if not isinstance(given, str) or given not in _KNOWN:
        remedy = "pass one of these names, or a Likelihood of your own"
        raise LikelihoodError("likelihood", expected=f"one of {sorted(_KNOWN)}", got=repr(given), remedy=remedy)
    return _KNOWN[given]()


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


def apart(target: Any) -> tuple[Tensor, Tensor | None]:
    """Targets and weights; what counts nothing may be anything, even NaN, and comes as 0."""
    if not isinstance(target, Weighted):
        return target, None
    weight = spread(target.weight, target.target)
    nothing = (
        (weight == 0).expand_as(target.target) if _fits(weight.shape, target.target.shape) else torch.tensor(False)
    )
    return target.target.masked_fill(nothing.to(target.target.device), 0), target.weight


def spread(weight: Tensor, like: Tensor) -> Tensor:
    """Weights of samples ``(N,)``, of places ``(N, *space)``, or of all, in a shape that broadcasts to ``like``."""
    if weight.dim() == like.dim():
        return weight.to(like.device)
    if weight.dim() == 1:
        return weight.view(-1, *(1,) * (like.dim() - 1)).to(like.device)
    return weight.unsqueeze(1).to(like.device)


def _fits(shape: Sequence[int], whole: Sequence[int]) -> bool:
    return len(shape) == len(whole) and all(a in (1, b) for a, b in zip(shape, whole))
