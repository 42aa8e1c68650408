r"""The log marginal likelihood of a network under a Laplace approximation, and its gradient in every hyperparameter.

.. math::
    \log Z = \log p(D|w) - \tfrac12 \sum_p \Big[ \sum_i \log(h \lambda_{p,i} + \delta_p) - P_p \log \delta_p
             + \delta_p |w_p|^2 \Big]

with :math:`\lambda_{p,i}` the eigenvalues of the curvature of parameter p (one pathway, weight or bias),
:math:`\delta_p` its prior precision, :math:`P_p` its size, and :math:`h = 1 / (\sigma^2 T)` the scale of the likelihood
(observation noise :math:`\sigma`, one or one for each output, see :mod:`.noise`; temperature T). MacKay, *Bayesian
interpolation*, 1992; Immer et al., *Scalable marginal likelihood estimation for model selection in deep learning*, ICML
2021. Everything is in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..curvature.approximation import Approximation
from ..curvature.approximation_choice import AUTOMATIC
from ..curvature.curvature import Curvature
from ..curvature.enough import Enough
from ..curvature.estimate import CurvatureEstimate
from ..curvature.layers.coverage import join
from ..curvature.layers.wrappers import unwrapped
from ..curvature.likelihood import Likelihood
from ..curvature.processes import agreed, distributed, several
from ..curvature.reader import Weighted
from ..diagnosis import SymmetryTest
from ..errors import ArgumentError, CoverageError, DataError
from ..nn.evidence_record import Recorded
from ..nn.relaxed_convolution import RelaxedConvolution
from ..symmetry.decision import Decisions
from ..symmetry.kernels.pathway import SWITCHED_OFF
from .closed_pathways import closed_weights, follow, gateable, move_gates, opened, starts
from .distinct import draws
from .hypergradient import hypergradient
from .laplace_torch import to_laplace
from .noise import Noise
from .posterior import Posterior
from .precision_updates import move
from .prior import BOUNDS, Prior, Ties
from .recurring import Recurring
from .slopes import Slopes
from .spectrum import Spectrum
from .state import pack, unpack
from .terms import EvidenceTerms

__all__ = ["Evidence", "EvidenceTerms"]

#: What is said of a network that has not learned.
CONSTANT = "no better than a constant output: its precisions and pathways say nothing about the data"


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
        curvature: ``"expand"``, ``"reduce"``, ``"eigenvalue-corrected"``, ``"exact"``, ``"diagonal"``, ``"sketched"``
            or ``"auto"``, which wide networks need: the cost of ``"expand"`` grows with the cube of the width; or an
            :class:`~escnn_relax.curvature.approximation.Approximation` of your own.
        samples: Monte-Carlo columns a sample instead of the exact sum over outputs (``None``). ``"auto"`` draws one
            where there are more than 256 outputs or a layer is sketched, and says so in the log.
        num_data: size of the training set, to which a refresh on fewer samples is scaled up. May be left out if
            ``refresh`` comes before ``penalty``: then it is the largest number of different samples that a refresh has
            seen (see :func:`~escnn_relax.evidence.distinct.draws`).
        log_precision: initial log prior precision of equivariant pathways, plain weights and biases.
        residual_log_precision: that of pathways that break the symmetry.
        log_noise: initial log standard deviation of the observation noise (``"gaussian"`` only), or those of all
            outputs.
        noise: ``"shared"`` by all outputs, or one for each ``"output"`` (dimension 1 of the model's output).
        temperature: divides log-likelihood and curvature.
        bias: ``"exact"`` or ``"kronecker"``, see :mod:`escnn_relax.curvature.conventions`.
        normalisation: cover scales and shifts of batch normalisation too (their prior has mean zero as all others).
        memory: what a refresh may take beside what is there already (MiB): minibatches are cut so that it holds, and
            less than a single sample takes is a ``MemoryLimitError``. With ``curvature="auto"`` the smallest parameters
            become exact, as many as fit into a quarter of it; without, those of at most 256 weights.
        ties: which parameters share a precision: ``"parameter"`` (none do), ``"layer"``, ``"model"``, or a mapping or
            function from a parameter's name to its group's.
        fixed: log precisions that do not move, by the name of a parameter or group.
        bounds: least and largest log precision.
        relaxed_only: refuse a model without relaxed layers, which is usually a forgotten call of ``relax``.

    Attributes:
        log_precision: log prior precision by parameter name, float64.
        curvature: what takes the curvature.
        estimate: what it took last, its outputs weighted by their present noises (not in the state dict).
        slopes: how steep the posterior was where :func:`~escnn_relax.fit` ended; ``None`` after other trainings.
        uncovered: parameters without a prior and a curvature, with the reason (batch-norm scales, frozen ones).

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
        curvature: str | Approximation = "expand",
        *,
        samples: None | int | str = AUTOMATIC,
        num_data: int | None = None,
        log_precision: float = 0.0,
        residual_log_precision: float = 3.0,
        log_noise: float | Sequence[float] | Tensor = 0.0,
        noise: str = "shared",
        temperature: float = 1.0,
        bias: str = "exact",
        normalisation: bool = False,
        memory: float | None = None,
        relaxed_only: bool = True,
        ties: Ties = "parameter",
        fixed: Mapping[str, float] | None = None,
        bounds: tuple[float, float] = BOUNDS,
    ) -> None:
        if num_data is not None and not num_data > 0:
            remedy = "pass len(train_set), or leave it out and refresh on all the data first"
            raise ArgumentError("num_data", expected="the number of training samples", got=num_data, remedy=remedy)
        self.model = model = unwrapped(model)
        self._layers = {n: m for n, m in model.named_modules() if isinstance(m, Recorded)}
        if not self._layers and relaxed_only:
            remedy = "pass escnn_relax.relax(model), or relaxed_only=False for the evidence of a strict model"
            raise CoverageError("model", "no relaxed layer in it", remedy=remedy)
        self._settings = (likelihood, curvature, samples, bias, normalisation, noise == "output", memory)
        shut = closed_weights(self._layers)
        with opened(model, shut):
            self.curvature = Curvature(model, *self._settings)
        self.likelihood, self.uncovered = self.curvature.likelihood, self.curvature.uncovered
        self.noise = Noise(self.likelihood, noise, log_noise, temperature)
        self.num_data, self.temperature = num_data, temperature
        self._counting = num_data is None
        breaking = {join(n, own) for n, layer in self._layers.items() for own in layer.breaking_weights()}
        start = {n: residual_log_precision if n in breaking else log_precision for n in self.curvature.covered}
        self.prior = Prior.of(start, ties, fixed or (), bounds)
        self.log_precision: dict[str, float] = self.prior.start(start, fixed or {})
        self._start = dict(self.log_precision)
        self._parameters = {n: p for n, p in model.named_parameters() if n in self.log_precision}
        self.estimate: CurvatureEstimate | None = None
        self._previous: dict[str, Any] | None = None
        self._spectrum: Spectrum | None = None
        self.slopes: Slopes | None = None
        if shut:
            self.close(shut)

    @property
    def closed(self) -> tuple[str, ...]:
        """Names of the weights of closed pathways: exactly zero, without curvature, prior or a share in the
        evidence."""
        return tuple(n for n, value in self.log_precision.items() if value == math.inf)

    def close(self, names: Iterable[str] | None = None) -> None:
        """Set pathways to exactly zero, by their weights' names, and leave them out of everything until they are
        opened.

        Without names all that break a symmetry.

        Raises:
            CoverageError: a name that is not of a covered pathway that breaks a symmetry.
        """
        move_gates(self, {name: math.inf for name in (gateable(self) if names is None else names)})

    def open(self, precisions: Mapping[str, float] | SymmetryTest) -> tuple[str, ...]:
        """Open closed pathways, each with the log precision it starts from; those that are open already stay as they
        are.

        Args:
            precisions: log precision by the name of the weights; or a :class:`~escnn_relax.diagnosis.SymmetryTest`,
                which opens what it found broken.

        Returns:
            the names of the weights that were opened; an optimiser made before has to hold them to move them.

        >>> import torch
        >>> from escnn import gspaces, nn as enn
        >>> from escnn_relax import relax
        >>> space = gspaces.rot2dOnR2(4)
        >>> one = enn.FieldType(space, [space.regular_repr])
        >>> evidence = Evidence(nn.Sequential(relax(enn.R2Conv(one, one, 3, bias=False))), num_data=10)
        >>> evidence.close(["0.weights.irrep_1", "0.weights.irrep_2"])
        >>> evidence.open({"0.weights.irrep_2": 4.0})
        ('0.weights.irrep_2',)
        >>> evidence.closed
        ('0.weights.irrep_1',)
        """
        if isinstance(precisions, SymmetryTest):
            precisions = starts(self, precisions)
        shut = set(self.closed)
        return move_gates(
            self, {name: value for name, value in precisions.items() if name in shut or name not in self.log_precision}
        )

    def decide(self, data: Iterable[Any] | None = None, energy: float = SWITCHED_OFF) -> Decisions:
        """What each layer of the model keeps: the record of :func:`~escnn_relax.survivors`, with its arguments and
        errors."""
        from .verdicts.survivors import survivors  # which reads evidences

        groups = {m.space.fibergroup.name for m in self._layers.values() if isinstance(m, RelaxedConvolution)}
        return survivors(self.model, self, data=data, energy=energy, depth=len(groups) == 1).decisions

    @property
    def log_noise(self) -> float | Tensor:
        """Log standard deviation of the observations: a number, or ``(outputs,)`` with ``noise="output"``."""
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
        return {name: self.noise.weighted(values) for name, values in self.spectrum.values.items()}

    @property
    def spectrum(self) -> Spectrum:
        """What the last refresh found; ``CoverageError`` before the first."""
        if self._spectrum is None:
            raise CoverageError("evidence", "no curvature yet", remedy="call refresh(loader) first")
        return self._spectrum

    def _refreshed(self, where: str) -> tuple[CurvatureEstimate, int]:
        """The last refresh's curvature, and the number of training samples; ``CoverageError`` before the first."""
        if self.estimate is None or self.num_data is None:
            raise CoverageError(where, "no curvature yet", remedy="call evidence.refresh(loader) first")
        return self.estimate, self.num_data

    def _covering(self, where: str) -> tuple[CurvatureEstimate, int]:
        """The same; ``CoverageError`` too for pathways that were opened after it."""
        estimate, num_data = self._refreshed(where)
        for name in self._parameters:
            if name not in estimate.factors:
                raise CoverageError(
                    where, f"no curvature of {name}, opened since", remedy="call evidence.refresh(loader) first"
                )
        return estimate, num_data

    @property
    def mean_loss(self) -> float:
        """Loss of one sample at the last refresh (nats), for one unit of the likelihood, without the prior."""
        return float(self.spectrum.losses.sum()) / self.spectrum.num_data

    @property
    def learned(self) -> bool:
        r"""Whether the network of the last refresh is better than a constant output, as far as that is known.

        It is if the data are likelier under it by more than the effective dimension of its covered weights and one for
        each output (nats): so much likeliness weights that follow the noise alone gain at most, on average half of it
        (Akaike, 1974). Where it is not, precisions and pathways say nothing about the data.
        """
        if self._spectrum is None:
            return True
        gain = self.spectrum.gain_over_constant(self.noise)
        return not gain <= sum(self.effective_dimension().values()) + self.spectrum.num_outputs

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
            enough: ends the pass early, see :class:`~escnn_relax.curvature.enough.Enough`; ``num_data`` has to be known
                then.

        If the pass fails (see :class:`~escnn_relax.curvature.curvature.Curvature` for the errors), all is left as it
        was.
        """
        if not 0 <= keep < 1:
            raise ArgumentError(
                "keep", expected="a fraction below 1", got=keep, remedy="0 keeps nothing, and is the default"
            )
        follow(self)
        counting = self.num_data is None or self._counting
        known = draws(loader) if counting and not (several() and distributed(loader)) else None
        watch = Recurring() if counting and known is None and not several() else None
        passing = progress if watch is None else lambda of: watch.through(progress(of) if progress else of)
        estimate = self.curvature(loader, passing, enough)
        if not estimate.num_outputs:
            remedy = "look at ignore_index, or at the weights of the batches"
            raise DataError("targets", "none of them counts: all are ignored, or have no weight", remedy=remedy)
        if keep and self._previous is not None:
            estimate = estimate.average(self._previous, keep)
        self.noise.widen(len(estimate.outputs))
        previous, estimate = estimate.plain() if keep else None, self.noise.weigh(estimate)
        sizes = {name: p.numel() for name, p in self._parameters.items()}
        num_data = self.num_data
        if num_data is None or counting:
            # a sample that is drawn again says nothing new; those of a distributed sampler were counted once already
            seen = estimate.num_data if known is None else round(estimate.num_data * known.distinct / known.drawn)
            num_data = max(num_data or 0, seen)
            if watch is not None:
                watch.warn()
        spectrum = Spectrum.of(estimate, sizes, num_data).agreed()
        self.estimate, self._previous, self._spectrum = estimate, previous, spectrum
        self.num_data = spectrum.num_data
        self.publish()
        return self.terms()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """What the last refresh found is put back in the end, whatever refreshes come meanwhile."""
        found = self.estimate, self._previous, self._spectrum, self.num_data
        try:
            yield
        finally:
            self.estimate, self._previous, self._spectrum, self.num_data = found
            self.publish()

    def terms(self) -> EvidenceTerms:
        """The evidence of the last refresh's curvature at the present precisions and weights."""
        return self.spectrum.terms(self.noise, self.log_precision, self.squares())

    def log_marginal_likelihood(self) -> float:
        """``terms().total`` (nats)."""
        return self.terms().total

    def posterior(self) -> Posterior:
        """The Laplace posterior of the last refresh, for predictions."""
        return Posterior(self)

    def to_laplace(self) -> Any:
        """The same as a fitted ``laplace.KronLaplace``, see :func:`~escnn_relax.evidence.laplace_torch.to_laplace`."""
        return to_laplace(self)

    def hypergradient(self, loader: Iterable[Any], parameters: Sequence[nn.Parameter]) -> list[Tensor]:
        """Derivative of the log evidence in parameters of the network, see
        :mod:`~escnn_relax.evidence.hypergradient`."""
        return hypergradient(self, loader, parameters)

    def gradient(self) -> dict[str, float]:
        r"""Derivative of the evidence in every log precision, and in ``"log_noise"`` for a Gaussian likelihood
        (``"log_noise.0"``, ``"log_noise.1"``, ... with a noise of each output).

        :math:`\partial \log Z / \partial \log \delta_p = \tfrac12 (\gamma_p - \delta_p |w_p|^2)` with the effective
        dimension :math:`\gamma_p`; :math:`\partial \log Z / \partial \log \sigma_c = 2 L_c h_c - N_c + \gamma_c`.
        """
        gammas, squares = self.effective_dimension(), self.squares()
        found = {n: 0.5 * (gammas[n] - math.exp(self.log_precision[n]) * squares[n]) for n in gammas}
        if self.likelihood.noisy:
            slopes = self.spectrum.noise_slopes(self.noise, self.log_precision)
            found.update({f"log_noise.{c}" if self.noise.each else "log_noise": float(s) for c, s in enumerate(slopes)})
        return found

    def effective_dimension(self) -> dict[str, float]:
        r""":math:`\gamma_p = \sum_i h\lambda_i / (h\lambda_i + \delta_p)`: how many of a parameter's directions the
        data determine (a number between 0 and its size)."""
        return self.spectrum.effective_dimension(self.noise, self.log_precision)

    def effective_dimension_of_outputs(self) -> Tensor:
        r""":math:`\gamma_c`: how many directions the observations of each output determine, shape ``(outputs,)``; their
        sum is that of :meth:`effective_dimension`. One number for all outputs where they share a noise."""
        return self.spectrum.effective_dimension_of_outputs(self.noise, self.log_precision)

    def step(self, steps: int = 3, damping: float = 0.5, *, method: str = "mackay", rate: float = 0.1) -> EvidenceTerms:
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
        """
        move(self, method, steps, damping, rate)
        if several():  # another machine's processor may round otherwise
            moved = agreed(torch.tensor([*self.log_precision.values()], dtype=torch.float64))
            self.log_precision.update(zip(self.log_precision, moved.tolist()))
            noise = agreed(torch.as_tensor(self.noise.log, dtype=torch.float64))
            self.noise.log = noise if noise.dim() else float(noise)
        self.log_noise = self.noise.log  # with a noise of each output, the curvature is now another sum over them
        self.publish()
        return self.terms()

    def penalty(self) -> Tensor:
        r""":math:`\frac{1}{2N} \sum_p \delta_p |w_p|^2`, to be added to a loss averaged over samples.

        For a categorical likelihood of temperature 1 that loss is the cross entropy; for others it is scaled by
        :math:`h`: see :meth:`loss`, which does it all.
        """
        if not self.num_data:
            raise ArgumentError("penalty", "the size of the data set is not known", remedy="pass num_data to Evidence")
        follow(self)
        terms = [math.exp(self.log_precision[n]) * p.square().sum() for n, p in self._parameters.items()]
        return torch.stack(terms).sum() / (2 * self.num_data)

    def loss(self, output: Any, target: Any, weight: Tensor | None = None) -> Tensor:
        """Penalised loss of a minibatch, averaged over its samples: the negative log posterior divided by N.

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
        for name, layer in self._layers.items():
            own = {w: join(name, w) for of in layer.pathway_weights().values() for w in of}
            layer.record(
                {w: self.log_precision[key] for w, key in own.items() if key in self.log_precision},
                {
                    w: gammas.get(key, 0.0)
                    for w, key in own.items()
                    if key in gammas or self.log_precision.get(key) == math.inf
                },
            )

    def state_dict(self) -> dict[str, Any]:
        """Precisions, noise and the last curvature's eigenvalues: all that :meth:`load_state_dict` needs."""
        return pack(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a :meth:`state_dict` of the same model; ``CoverageError`` for that of another."""
        unpack(self, state)

    def squares(self) -> dict[str, float]:
        """:math:`|w|^2` of each parameter with a prior."""
        return {n: float(p.detach().double().square().sum()) for n, p in self._parameters.items()}
