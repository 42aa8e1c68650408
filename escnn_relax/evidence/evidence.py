r"""The log marginal likelihood of a network under a Laplace approximation, and its gradient in every hyperparameter.

.. math::
    \log Z = \log p(D|w) - \tfrac12 \sum_p \Big[ \sum_i \log(h \lambda_{p,i} + \delta_p) - P_p \log \delta_p
             + \delta_p |w_p|^2 \Big]

with :math:`\lambda_{p,i}` the eigenvalues of the curvature of parameter p (one pathway, weight or bias),
:math:`\delta_p` its prior precision, :math:`P_p` its size, and :math:`h = 1 / (\sigma^2 T)` the scale of the likelihood
(observation noise :math:`\sigma`, one or one for each output, see :mod:`.noise`; temperature T). MacKay, *Bayesian
interpolation*, 1992; Immer et al., *Scalable marginal likelihood estimation for model selection in deep learning*, ICML
2021. Everything is in nats.

The weights :math:`w` are those that a training ends with. That of a relaxed network penalises only the weights that
break a symmetry, so that one in which nothing opens is trained as the strict network is: with few data for each class
the priors of all others, at their best evidence, shrank strict classifiers until they made half as many errors again
(``examples/site/benchmark.md``). Their :math:`\delta_p` then say what these weights cost, and do not move them, as in
a Laplace approximation that is made after the training; the mode of the posterior is elsewhere, and without a weight
decay the sum above is below that of its quadratic model by
:math:`\tfrac12 \delta_p^2 w_p^\top (h H_p + \delta_p)^{-1} w_p` each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from ..curvature.approximation import Approximation
from ..curvature.batch_format import Weighted
from ..curvature.curvature import Curvature
from ..curvature.distributed import broadcast_first, several
from ..curvature.enough_data import Enough
from ..curvature.estimate import CurvatureEstimate
from ..curvature.layers.coverage import join
from ..curvature.layers.wrappers import unwrap
from ..curvature.likelihood import Likelihood
from ..deprecation import former_method, former_where
from ..diagnosis import SymmetryTest
from ..errors import ArgumentError, CoverageError, DataError, naming
from ..nn.evidence_record import Recorded
from ..nn.steerable import SteerableConvolution
from ..symmetry.decision import Decisions
from ..symmetry.kernels.pathway import SWITCHED_OFF
from .closed_pathways import (
    Gate,
    check_log_precisions,
    closed_weights,
    gated_precisions,
    gates_of,
    move_gates,
    opening_precisions,
    unfollowed,
    weights_open,
)
from .hypergradient import check_differentiable, hypergradient
from .laplace_approximation import LaplaceApproximation
from .laplace_torch import to_laplace
from .noise import Noise
from .posterior import Posterior
from .precision_updates import FixedWeights, check_step, updated
from .prior import Prior
from .sample_count import SampleCount
from .settings import RESIDUAL, CurvatureSettings, FormerKeywords, NoiseSettings, PriorSettings, regrouped
from .slopes import Slopes
from .spectrum import Spectrum
from .state import check_state, spectrum_state
from .terms import EvidenceTerms
from .verdicts.survivors import survivors

__all__ = ["Evidence", "EvidenceTerms"]


class Evidence:
    """Keeps one prior precision for every pathway, weight and bias of a model, and moves them up the evidence.

    In a training loop of your own::

        evidence = Evidence(model, likelihood="categorical", num_data=len(train_set))
        for epoch in range(epochs):
            for x, y in loader:
                loss = cross_entropy(model(x), y) + evidence.penalty()
                ...
            if epoch >= 10 and epoch % 2 == 0:
                evidence.refresh(loader)     # curvature at the present weights
                evidence.step()              # moves the precisions

    Args:
        model: a model with at least one relaxed layer; of a ``DistributedDataParallel`` the one inside. In several
            processes each refreshes with its share of the data: sums run over all of them, and all take the same
            decisions.
        likelihood: ``"categorical"``, ``"bernoulli"``, ``"gaussian"``, ``"heteroscedastic"``, a
            :class:`~escnn_relax.curvature.likelihood.Likelihood`, or a loss of torch's (``nn.CrossEntropyLoss(...)``).
        curvature: a :class:`~escnn_relax.evidence.CurvatureSettings`, or its ``approximation``, such as ``"expand"``,
            ``"auto"`` or an :class:`~escnn_relax.curvature.approximation.Approximation` of your own.
        num_data: size of the training set, to which a refresh on fewer samples is scaled up. May be left out if
            ``refresh`` comes before ``penalty``: then it is the largest number of different samples that a refresh has
            seen (see :func:`~escnn_relax.evidence.distinct_samples.draws`).
        prior: a :class:`~escnn_relax.evidence.PriorSettings`: where the precisions start, and how they may move.
        noise: a :class:`~escnn_relax.evidence.NoiseSettings`, or its ``kind``, ``"shared"`` or ``"output"``.
        relaxed_only: refuse a model without relaxed layers, which is usually a forgotten call of ``relax``.
        former: fields of these settings as arguments, which goes with the next release.

    Attributes:
        log_precision: log prior precision by parameter name, float64; infinite for closed pathways.
        parameters: the weights that have a prior, by name; without those of closed pathways.
        layers: the layers whose pathways are weighed, by name.
        initial: the log precisions that it was made with.
        prior, noise: which precisions are tied or fixed; the observation noise.
        curvature: what takes the curvature.
        estimate: what it took last, its outputs weighted by their present noises (not in the state dict).
        slopes: how steep the posterior was where :func:`~escnn_relax.fit` ended; ``None`` after other trainings.
        uncovered: parameters without a prior and a curvature, with the reason (batch-norm scales, frozen ones).
        penalised: names of the weights that feel their prior in the training, those of closed pathways too.

    Raises:
        CoverageError: a model without any relaxed layer.

    >>> import torch
    >>> from escnn import gspaces, nn as enn
    >>> from escnn_relax import relax
    >>> space = gspaces.rot2dOnR2(4)
    >>> gray = enn.FieldType(space, [space.trivial_repr])
    >>> class Readout(nn.Module):
    ...     def forward(self, x):
    ...         return x.tensor.flatten(1)[:, :2]
    >>> model = nn.Sequential(relax(enn.R2Conv(gray, gray, 5, bias=False)), Readout())
    >>> evidence = Evidence(model, num_data=8)
    >>> sorted(evidence.log_precision.items())
    [('0.weights.equivariant', 0.0), ('0.weights.irrep_1', 3.0), ('0.weights.irrep_2', 3.0)]
    >>> terms = evidence.refresh([(gray(torch.randn(8, 1, 7, 7)), torch.randint(2, (8,)))])
    >>> terms.total == terms.data_fit - terms.complexity - terms.prior
    True
    """

    def __init__(
        self,
        model: nn.Module,
        likelihood: str | Likelihood | Callable[..., Any] = "categorical",
        curvature: str | Approximation | CurvatureSettings = "expand",
        *,
        num_data: int | None = None,
        prior: PriorSettings | None = None,
        noise: str | NoiseSettings = "shared",
        relaxed_only: bool = True,
        **former: Unpack[FormerKeywords],
    ) -> None:
        if num_data is not None and not num_data > 0:
            remedy = "pass len(train_set), or leave it out and refresh on all the data first"
            raise ArgumentError("num_data", expected="the number of training samples", got=num_data, remedy=remedy)
        self.settings, start, noises = regrouped(curvature, prior, noise, former)
        self.model = model = unwrap(model)
        self.layers = {n: m for n, m in model.named_modules() if isinstance(m, Recorded)}
        if not self.layers and relaxed_only:
            remedy = "pass escnn_relax.relax(model), or relaxed_only=False for the evidence of a strict model"
            raise CoverageError("model", "no relaxed layer in it", remedy=remedy)
        self._likelihood, self._apart = likelihood, noises.kind == "output"
        self._announced: set[str] = set()
        shut = closed_weights(self.layers)
        with weights_open(model, shut):
            self.curvature = self.new_curvature()
        self.likelihood, self.uncovered = self.curvature.likelihood, self.curvature.uncovered
        self.noise = Noise(self.likelihood, noises.kind, noises.log_noise, noises.temperature)
        self.num_data, self._counting = num_data, num_data is None
        breaking = {join(n, weight) for n, layer in self.layers.items() for weight in layer.breaking_weights()}
        breaking &= set(self.curvature.covered)
        residual = RESIDUAL if start.residual_log_precision is None else start.residual_log_precision
        logs = {n: residual if n in breaking else start.log_precision for n in self.curvature.covered}
        fixed = start.fixed or {}
        self.prior = Prior.grouped(logs, start.ties or "parameter", fixed, start.bounds)
        self.log_precision: dict[str, float] = self.prior.start(logs, fixed)
        penalty = start.penalty or ("breaking" if breaking else "all")
        self.penalised = frozenset(n for n in logs if penalty == "all" or n in breaking)
        self.initial = dict(self.log_precision)
        self.parameters = {n: p for n, p in model.named_parameters() if n in self.log_precision}
        self.estimate: CurvatureEstimate | None = None
        self._averaged: dict[str, Any] | None = None
        self._spectrum: Spectrum | None = None
        self._penalty: tuple[tuple[Any, ...], Tensor] | None = None
        self.slopes: Slopes | None = None
        if shut:
            self.close(shut)

    def new_curvature(self) -> Curvature:
        """What takes the curvature of the weights that are open now."""
        s = self.settings
        options = (s.approximation, s.samples, s.bias, s.normalisation, self._apart, s.memory)
        return Curvature(self.model, self._likelihood, *options, announced=self._announced)

    @property
    def closed(self) -> tuple[str, ...]:
        """Names of the weights of closed pathways: exactly zero, without curvature, prior or a share in the
        evidence."""
        return tuple(n for n, value in self.log_precision.items() if value == math.inf)

    @property
    def gates(self) -> dict[str, Gate]:
        """What can be closed: layer and pathway by the name of the weights, in the order of the model."""
        return gates_of(self.layers, self.log_precision)

    def close(self, names: Iterable[str] | None = None) -> None:
        """Set pathways to exactly zero, by their weights' names, and leave them out of everything until they are
        opened.

        Without names all that break a symmetry.

        Raises:
            ArgumentError: one name instead of a list of some.
            CoverageError: a name that is not of a covered pathway that breaks a symmetry.
        """
        if isinstance(names, str):
            remedy = f"pass close([{names!r}])"
            raise ArgumentError("close", expected="a list of names of weights", got=repr(names), remedy=remedy)
        self.move_gates({name: math.inf for name in (self.gates if names is None else names)})

    def open(self, precisions: Mapping[str, float] | SymmetryTest) -> tuple[str, ...]:
        """Open closed pathways, each with the log precision it starts from; those that are open already stay as they
        are.

        Args:
            precisions: log precision by the name of the weights; or a :class:`~escnn_relax.diagnosis.SymmetryTest`,
                which opens what it found broken.

        Returns:
            the names of the weights that were opened; an optimizer made before has to hold them to move them.

        Raises:
            ArgumentError: names without precisions, or a precision that is no number.
            CoverageError: a name that is not of a covered pathway that breaks a symmetry.

        >>> import torch
        >>> from escnn import gspaces, nn as enn
        >>> from escnn_relax import relax
        >>> space = gspaces.rot2dOnR2(4)
        >>> fields = enn.FieldType(space, [space.regular_repr])
        >>> evidence = Evidence(nn.Sequential(relax(enn.R2Conv(fields, fields, 3, bias=False))), num_data=10)
        >>> evidence.close(["0.weights.irrep_1", "0.weights.irrep_2"])
        >>> evidence.open({"0.weights.irrep_2": 4.0})
        ('0.weights.irrep_2',)
        >>> evidence.closed
        ('0.weights.irrep_1',)
        """
        if isinstance(precisions, SymmetryTest):
            precisions = opening_precisions(precisions, self.initial)
        if not isinstance(precisions, Mapping):
            first = precisions if isinstance(precisions, str) else next(iter(self.gates), "0.weights.irrep_1")
            expected = "log precisions by the names of weights, or a SymmetryTest"
            remedy = f"pass open({{{first!r}: 3.0}}), where 3 is what an evidence starts from by default"
            raise ArgumentError("open", expected=expected, got=repr(precisions), remedy=remedy)
        check_log_precisions(precisions)
        shut = set(self.closed)
        moved = {name: value for name, value in precisions.items() if name in shut or name not in self.log_precision}
        return self.move_gates(moved)

    def move_gates(self, precisions: Mapping[str, float]) -> tuple[str, ...]:
        """Close what is given an infinite log precision, open the rest; returns what was opened.

        Eigenvalues of what opens are zero until the next refresh; running averages of the curvature begin anew.

        Raises:
            ArgumentError: a log precision that is no number.
            CoverageError: a name that is not of a covered pathway that breaks a symmetry.
        """
        if not precisions:
            return ()
        move_gates(self.gates, precisions)
        self.log_precision.update(gated_precisions(precisions, self.log_precision, self.initial, self.prior))
        self.curvature = self.new_curvature()
        shut = set(self.closed)
        self.uncovered = {n: why for n, why in self.curvature.uncovered.items() if n not in shut}
        everything = dict(self.model.named_parameters())
        self.parameters = {n: everything[n] for n in self.log_precision if n not in shut}
        self._averaged = None
        if self._spectrum is not None:
            opened = {name: everything[name].numel() for name in precisions if name not in shut}
            self._spectrum = self._spectrum.gated(shut & set(precisions), opened)
        self.publish()
        return tuple(name for name, value in precisions.items() if value != math.inf)

    def _follow(self) -> None:
        """Where gates of the model were moved by other hands, as by loading a state dict, the evidence has them,
        too."""
        self.move_gates(unfollowed(self.gates, self.log_precision, self.initial))

    def decide(self, data: Iterable[Any] | None = None, energy: float = SWITCHED_OFF) -> Decisions:
        """What each layer of the model keeps: the record of :func:`~escnn_relax.survivors`, with its arguments and
        errors."""
        groups = {m.space.fibergroup.name for m in self.layers.values() if isinstance(m, SteerableConvolution)}
        return survivors(self.model, self, data=data, energy=energy, depth=len(groups) == 1).decisions

    @property
    def temperature(self) -> float:
        """What divides log-likelihood and curvature."""
        return self.noise.temperature

    @property
    def log_noise(self) -> float | Tensor:
        """Log standard deviation of the observations: a number, or ``(outputs,)`` with a noise of each output."""
        return self.noise.log

    @log_noise.setter
    def log_noise(self, value: float | Sequence[float] | Tensor) -> None:
        self.noise.log = value
        if self.estimate is not None:
            self.noise.widen(len(self.estimate.outputs))
            self.estimate = self.noise.weigh(self.estimate)

    @property
    def scale(self) -> float:
        r""":math:`h = 1 / (\sigma^2 T)`, what one unit of the likelihood counts (of a typical output, if they
        differ)."""
        return self.noise.scale

    @property
    def eigenvalues(self) -> dict[str, Tensor]:
        """Of each parameter's curvature at the last refresh, scaled by the likelihood, float64. Where noises of single
        outputs moved since: the diagonal in that eigenbasis, right to first order; it makes the evidence a lower
        bound."""
        return self.spectrum.eigenvalues(self.noise)

    @property
    def spectrum(self) -> Spectrum:
        """What the last refresh found; ``CoverageError`` before the first."""
        if self._spectrum is None:
            raise CoverageError("evidence", "no curvature yet", remedy="call refresh(loader) first")
        return self._spectrum

    @property
    def has_curvature(self) -> bool:
        """Whether there was a refresh, or a state dict of one."""
        return self._spectrum is not None

    @former_where
    def approximation(self, *, complete: bool = True) -> LaplaceApproximation:
        """The Laplace approximation of the last refresh, at the present precisions and noise.

        Args:
            complete: refuse one without the pathways that were opened since.

        Raises:
            CoverageError: no refresh yet (a state dict has the eigenvalues only), or pathways that were opened after
                it.
        """
        remedy = "call evidence.refresh(loader) first"
        if self.estimate is None or self.num_data is None:
            raise CoverageError(type(self), "no curvature yet", remedy=remedy)
        for name in self.parameters if complete else ():
            if name not in self.estimate.factors:
                raise CoverageError(type(self), f"no curvature of {name}, opened since", remedy=remedy)
        return LaplaceApproximation(
            self.estimate, dict(self.log_precision), self.noise.at(self.noise.log), self.num_data
        )

    @property
    def mean_loss(self) -> float:
        """Loss of one sample at the last refresh (nats), for one unit of the likelihood, without the prior."""
        return self.spectrum.mean_loss

    @property
    def learned(self) -> bool:
        r"""Whether the network of the last refresh is better than a constant output, as far as that is known.

        It is if the data are likelier under it by more than the effective dimension of its covered weights and one for
        each output (nats): so much likeliness weights that follow the noise alone gain at most, on average half of it
        (Akaike, 1974).
        """
        return self._spectrum is None or self._spectrum.learned(self.noise, self.log_precision)

    @property
    def doubt(self) -> str:
        """Where it has not :attr:`learned`, as far as is known: what was compared, with both numbers. Empty if it
        has."""
        return "" if self.learned else self.spectrum.doubt(self.noise, self.log_precision)

    def refresh(
        self,
        loader: Iterable[Any],
        progress: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
        keep: float = 0.0,
        enough: Enough | None = None,
    ) -> EvidenceTerms:
        """Take curvature and data fit at the present weights, from one pass over ``loader``; returns the evidence.

        Args:
            loader: all the data, or a part, which is scaled up to ``num_data``.
            progress: wraps the loader, as ``tqdm`` does.
            keep: what is left of the weight of older samples beside new ones (fraction), for a running average over
                parts: the mean over all samples seen, those of the last refresh but one ``keep`` times as heavy as the
                last ones.
            enough: ends the pass early, see :class:`~escnn_relax.curvature.enough_data.Enough`; ``num_data`` has to be
                known then.

        If the pass fails (see :class:`~escnn_relax.curvature.curvature.Curvature` for the errors), all is left as it
        was.
        """
        if not 0 <= keep < 1:
            raise ArgumentError(
                "keep", expected="a fraction below 1", got=keep, remedy="0 keeps nothing, and is the default"
            )
        self._follow()
        count = SampleCount(loader) if self.num_data is None or self._counting else None
        estimate = self.curvature(loader, progress if count is None else count.through(progress), enough)
        if not estimate.num_outputs:
            remedy = "look at ignore_index, or at the weights of the batches"
            raise DataError("targets", "none of them counts: all are ignored, or have no weight", remedy=remedy)
        if keep and self._averaged is not None:
            estimate = estimate.average(self._averaged, keep)
        self.noise.widen(len(estimate.outputs))
        average, estimate = estimate.plain() if keep else None, self.noise.weigh(estimate)
        num_data = self.num_data or 0
        num_data = num_data if count is None else max(num_data, count.number(estimate.num_data))
        sizes = {name: p.numel() for name, p in self.parameters.items()}
        spectrum = Spectrum.from_estimate(estimate, sizes, num_data).agreed()
        self.estimate, self._averaged, self._spectrum = estimate, average, spectrum
        self.num_data = spectrum.num_data
        self.publish()
        return self.terms()

    @contextmanager
    def refresh_undone(self) -> Iterator[None]:
        """What the last refresh found is put back in the end, whatever refreshes come meanwhile."""
        before = self.remember()
        try:
            yield
        finally:
            self.recall((*before[:-1], self.noise.log))
            self.publish()

    def remember(self) -> tuple[Any, ...]:
        """What the last refresh found, and the noise, for :meth:`recall`; nothing is copied."""
        return self.estimate, self._averaged, self._spectrum, self.num_data, self.noise.log

    def recall(self, before: tuple[Any, ...]) -> None:
        """Put it back; precisions and gates are put back before, and what layers record."""
        self.estimate, self._averaged, self._spectrum, self.num_data, self.noise.log = before

    def terms(self) -> EvidenceTerms:
        """The evidence of the last refresh's curvature at the present precisions and weights."""
        return self.spectrum.terms(self.noise, self.log_precision, self.squares())

    def log_marginal_likelihood(self) -> float:
        """``terms().total`` (nats)."""
        return self.terms().total

    def posterior(self) -> Posterior:
        """The Laplace posterior of the last refresh at the present precisions and noise, for predictions."""
        with naming("posterior"):
            return Posterior(self.approximation(), self.curvature)

    def to_laplace(self) -> Any:
        """The same as a fitted ``laplace.KronLaplace``, see :func:`~escnn_relax.evidence.laplace_torch.to_laplace`."""
        with naming("to_laplace"):
            return to_laplace(self.approximation(), self.curvature)

    def hypergradient(
        self, loader: Iterable[Any], parameters: Sequence[nn.Parameter], refreshed: bool = False
    ) -> list[Tensor]:
        """Derivative of the log evidence (nats) in parameters of the network, precisions fixed; no ``.grad`` is
        touched.

        Args:
            loader: the data, the same at each pass.
            parameters: leaves of the model: weights, mixing weights, length scales.
            refreshed: the evidence was refreshed with this loader just now, at the same weights and without ``keep``;
                it is not again.

        Raises:
            ArgumentError: parameters that are none of the model's, or frozen; a sampled or ``"eigenvalue-corrected"``
                curvature.
            DataError: a loader that yields other data in the second pass.
        """
        check_differentiable(self.model, self.curvature, parameters)
        if not refreshed:
            self.refresh(loader)
        with naming("hypergradient"):
            approximation = self.approximation(complete=False)
        return hypergradient(approximation, self.curvature, loader, parameters)

    def gradient(self) -> dict[str, float]:
        r"""Derivative of the evidence in every log precision, and in ``"log_noise"`` for a Gaussian likelihood
        (``"log_noise.0"``, ``"log_noise.1"``, ... with a noise of each output).

        :math:`\partial \log Z / \partial \log \delta_p = \tfrac12 (\gamma_p - \delta_p |w_p|^2)` with the effective
        dimension :math:`\gamma_p`; :math:`\partial \log Z / \partial \log \sigma_c = 2 L_c h_c - N_c + \gamma_c`.
        """
        return self.spectrum.gradient(self.noise, self.log_precision, self.squares())

    def effective_dimension(self) -> dict[str, float]:
        r""":math:`\gamma_p = \sum_i h\lambda_i / (h\lambda_i + \delta_p)`: how many of a parameter's directions the
        data determine (a number between 0 and its size)."""
        return self.spectrum.effective_dimension(self.noise, self.log_precision)

    def effective_dimension_of_outputs(self) -> Tensor:
        r""":math:`\gamma_c`: how many directions the observations of each output determine, shape ``(outputs,)``; their
        sum is that of :meth:`effective_dimension`. One number for all outputs where they share a noise."""
        return self.spectrum.effective_dimension_of_outputs(self.noise, self.log_precision)

    def step(
        self,
        steps: int = 3,
        damping: float = 0.5,
        *,
        method: str = "mackay",
        rate: float = 0.1,
        fixed: Iterable[str] = (),
    ) -> EvidenceTerms:
        r"""Move every log precision (and the noise) up the evidence, curvature and weights fixed; it never falls.

        With ``"mackay"`` each step is MacKay's update :math:`\delta_p \leftarrow \gamma_p / |w_p|^2`, damped in the
        logarithm, and halved where the evidence would fall by it; ``"gradient"`` takes Adam's steps instead. Weights
        that are all exactly zero, as residual ones are before training, keep their precision. On three small networks 2
        to 6 of MacKay's steps came within 0.1 % of the highest evidence, 30 to 70 of Adam's
        (``tests/benchmarks/precision.md``).

        Args:
            steps: number of updates.
            damping: share of the old log precision that is kept (fraction); for ``"mackay"``.
            method: ``"mackay"`` or ``"gradient"``.
            rate: Adam's learning rate, in units of the logarithms; for ``"gradient"``.
            fixed: names of weights whose precisions stay this time, and all that are tied to them.
        """
        check_step(method, steps, damping, rate)
        weights = FixedWeights(self.spectrum, self.prior.with_fixed(fixed), self.squares())
        logs, noise = updated(weights, self.log_precision, self.noise, method, steps, damping, rate)
        if several():  # another machine's processor may round otherwise
            moved = broadcast_first(torch.tensor([*logs.values()], dtype=torch.float64))
            logs = dict(zip(logs, moved.tolist()))
            noise = noise.at(broadcast_first(torch.as_tensor(noise.log, dtype=torch.float64)))
        self.log_precision.update(logs)
        self.log_noise = noise.log  # with a noise of each output, the curvature is now another sum over them
        self.publish()
        return self.terms()

    def penalty(self) -> Tensor:
        r""":math:`\frac{1}{2N} \sum_p \delta_p |w_p|^2`, to be added to a loss averaged over samples.

        The sum is over the weights that break a symmetry and are open, or over all that have a prior where nothing
        breaks one, or :class:`~escnn_relax.evidence.PriorSettings` says so.

        For a categorical likelihood of temperature 1 that loss is the cross entropy; for others it is scaled by
        :math:`h`: see :meth:`loss`, which does it all.
        """
        if not self.num_data:
            raise ArgumentError("penalty", "the size of the data set is not known", remedy="pass num_data to Evidence")
        self._follow()
        penalised = {n: p for n, p in self.parameters.items() if n in self.penalised}
        if not penalised:
            nothing = next(self.model.parameters()).new_zeros(())
            return nothing.requires_grad_(torch.is_grad_enabled())  # so that what has nothing else can go backwards
        flat = torch.cat([p.reshape(-1) for p in penalised.values()])
        # one product, since it is taken at each step of a training
        return torch.dot(flat * self._halves(penalised, flat), flat)

    def _halves(self, penalised: Mapping[str, Tensor], like: Tensor) -> Tensor:
        """Half the precision of each single weight, for each sample; kept until a precision moves."""
        key = (*((n, self.log_precision[n]) for n in penalised), self.num_data, like.dtype, like.device)
        if self._penalty is None or self._penalty[0] != key:
            halves = [math.exp(self.log_precision[n]) / (2 * (self.num_data or 1)) for n in penalised]
            sizes = torch.tensor([p.numel() for p in penalised.values()])
            each = torch.tensor(halves, dtype=torch.float64).repeat_interleave(sizes)
            self._penalty = key, each.to(like)
        return self._penalty[1]

    def loss(self, output: Any, target: Any, weight: Tensor | None = None) -> Tensor:
        """Penalised loss of a minibatch, averaged over its samples: the negative log posterior divided by N, as far as
        weights feel their prior (:meth:`penalty`).

        Args:
            output: of the model.
            target: what the likelihood compares it with.
            weight: what each sample counts, or each number observed; see :class:`~escnn_relax.Batches`.
        """
        output = self.likelihood.tensor(output)
        target = target if weight is None else Weighted(target, weight)
        self.likelihood.check(output, target)
        return self.noise.loss(output, target) / len(output) + self.penalty()

    def publish(self) -> None:
        """Write precisions and effective dimensions into the relaxed layers, where reports and ``harden`` find them."""
        gammas = {} if self._spectrum is None else self.effective_dimension()
        for name, layer in self.layers.items():
            names = {weight: join(name, weight) for weights in layer.pathway_weights().values() for weight in weights}
            logs = {weight: self.log_precision[key] for weight, key in names.items() if key in self.log_precision}
            known = {weight: key for weight, key in names.items() if key in gammas or logs.get(weight) == math.inf}
            layer.record(logs, {weight: gammas.get(key, 0.0) for weight, key in known.items()})

    def state_dict(self) -> dict[str, Any]:
        """Precisions, noise and the last curvature's eigenvalues: all that :meth:`load_state_dict` needs."""
        return {
            "log_precision": dict(self.log_precision),
            "log_noise": self.log_noise,
            "num_data": self.num_data,
            "spectrum": spectrum_state(self._spectrum),
            "previous": self._averaged,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a :meth:`state_dict` of the same model; ``CoverageError`` for that of another."""
        sizes = {n: p.numel() for n, p in self.model.named_parameters() if n in self.log_precision}
        spectrum = check_state(state, sizes, self.noise.each)
        shut = {name for name, value in state["log_precision"].items() if value == math.inf}
        self.move_gates({name: state["log_precision"][name] for name in shut | set(self.closed)})
        self.log_precision, self.num_data = dict(state["log_precision"]), state["num_data"]
        self.noise.log = state["log_noise"]
        self.estimate, self._averaged, self._spectrum = None, state["previous"], spectrum
        self.publish()

    def squares(self) -> dict[str, float]:
        """:math:`|w|^2` of each parameter with a prior."""
        return {n: float(p.detach().double().square().sum()) for n, p in self.parameters.items()}


setattr(Evidence, "kept", former_method("kept", "refresh_undone"))
