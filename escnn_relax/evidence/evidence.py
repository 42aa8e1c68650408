r"""The log marginal likelihood of a network under a Laplace approximation, and its gradient in every hyperparameter.

.. math::
    \log Z = \log p(D|w) - \tfrac12 \sum_p \Big[ \sum_i \log(h \lambda_{p,i} + \delta_p) - P_p \log \delta_p
             + \delta_p |w_p|^2 \Big]

with :math:`\lambda_{p,i}` the eigenvalues of the curvature of parameter p (one pathway, weight or bias),
:math:`\delta_p` its prior precision, :math:`P_p` its size, and :math:`h = 1 / (\sigma^2 T)` the scale of the likelihood
(observation noise :math:`\sigma`, temperature T). MacKay, *Bayesian interpolation*, 1992; Immer et al., *Scalable
marginal likelihood estimation for model selection in deep learning*, ICML 2021. Everything is in nats.
"""

from __future__ import annotations

import math
from typing import Any, Callable, Iterable, Mapping, Optional, Sequence, Union

import torch
from torch import Tensor, nn

from ..curvature.averaging import averaged, parts
from ..curvature.collect import Curvature
from ..curvature.coverage import join
from ..curvature.likelihood import Likelihood
from ..errors import ArgumentError, CoverageError, CurvatureError
from ..nn.relaxed import RelaxedConvolution
from .ascent import ascend
from .bridge import to_laplace
from .hypergradient import hypergradient
from .posterior import Posterior
from .prior import BOUNDS, Prior, Ties
from .state import pack, unpack
from .terms import EvidenceTerms, complexity, effective_dimension

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
        model: a model with at least one relaxed layer.
        likelihood: ``"categorical"``, ``"bernoulli"`` or ``"gaussian"``.
        curvature: ``"expand"``, ``"reduce"``, ``"eigenvalue-corrected"``, ``"exact"``, ``"diagonal"`` or ``"auto"``.
        samples: Monte-Carlo columns a sample instead of the exact sum over outputs.
        num_data: size of the training set; may be left out if ``refresh`` comes before ``penalty``. A refresh on fewer
            samples is scaled up to it.
        log_precision: initial log prior precision of equivariant pathways, plain weights and biases.
        residual_log_precision: that of pathways that break the symmetry.
        log_noise: initial log standard deviation of the observation noise (``"gaussian"`` only).
        temperature: divides log-likelihood and curvature.
        bias: ``"exact"`` or ``"kronecker"``, see :mod:`escnn_relax.curvature.conventions`.
        normalisation: cover scales and shifts of batch normalisation too (their prior has mean zero as all others).
        ties: which parameters share a precision: ``"parameter"`` (none do), ``"layer"``, ``"model"``, or a mapping or
            function from a parameter's name to its group's.
        fixed: log precisions that do not move, by the name of a parameter or group.
        bounds: least and largest log precision.
        relaxed_only: refuse a model without relaxed layers, which is usually a forgotten call of ``relax``.

    Attributes:
        log_precision: log prior precision by parameter name, float64.
        log_noise: log standard deviation of the observations.
        curvature, estimate: what takes the curvature, and the ``CurvatureEstimate`` it took last (not in the state dict).
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
        likelihood: Union[str, Likelihood] = "categorical",
        curvature: str = "expand",
        *,
        samples: Optional[int] = None,
        num_data: Optional[int] = None,
        log_precision: float = 0.0,
        residual_log_precision: float = 3.0,
        log_noise: float = 0.0,
        temperature: float = 1.0,
        bias: str = "exact",
        normalisation: bool = False,
        relaxed_only: bool = True,
        ties: Ties = "parameter",
        fixed: Optional[Mapping[str, float]] = None,
        bounds: tuple[float, float] = BOUNDS,
    ) -> None:
        if not temperature > 0:
            raise ArgumentError("temperature", expected="a positive number", got=temperature)
        if num_data is not None and not num_data > 0:
            raise ArgumentError("num_data", expected="the number of training samples", got=num_data)
        starts = {"log_precision": log_precision, "residual_log_precision": residual_log_precision, "log_noise": log_noise}
        for argument, value in {**starts, **(fixed or {})}.items():
            if not abs(value) <= 100:
                raise ArgumentError(argument, expected="a logarithm between -100 and 100", got=value)
        self.model = model
        self._layers = {n: m for n, m in model.named_modules() if isinstance(m, RelaxedConvolution)}
        if not self._layers and relaxed_only:
            remedy = "pass escnn_relax.relax(model), or relaxed_only=False for the evidence of a strict model"
            raise CoverageError("model", "no relaxed layer in it", remedy=remedy)
        self.curvature = Curvature(model, likelihood, curvature, samples, bias, normalisation)
        self.likelihood, self.temperature = self.curvature.likelihood, temperature
        self.uncovered = self.curvature.uncovered
        self.num_data, self.log_noise = num_data, float(log_noise)
        breaking = {join(n, f"weights.{p.name}") for n, layer in self._layers.items() for p in layer.pathways if p.breaks}
        start = {n: residual_log_precision if n in breaking else log_precision for n in self.curvature.covered}
        self.prior = Prior.of(start, ties, fixed or (), bounds)
        self.log_precision: dict[str, float] = self.prior.start(start, fixed or {})
        self._parameters = {n: p for n, p in model.named_parameters() if n in self.log_precision}
        self.estimate, self._previous = None, None
        self._eigenvalues: dict[str, Tensor] = {}
        self._loss = math.nan
        self._num_outputs = 0

    @property
    def scale(self) -> float:
        r""":math:`h = 1 / (\sigma^2 T)`, what one unit of the likelihood counts."""
        return math.exp(-2 * self.log_noise) / self.temperature if self.likelihood.noisy else 1 / self.temperature

    @property
    def eigenvalues(self) -> dict[str, Tensor]:
        """Of each parameter's curvature at the last refresh, scaled by the likelihood, float64."""
        return {name: self.scale * values for name, values in self._eigenvalues.items()}

    @property
    def observations(self) -> int:
        """Numbers observed: samples times outputs."""
        return self.num_data * self._num_outputs

    @property
    def mean_loss(self) -> float:
        """Loss of one sample at the last refresh (nats), for one unit of the likelihood, without the prior."""
        self._need_refresh()
        return self._loss / self.num_data

    def refresh(self, loader: Iterable, progress: Optional[Callable] = None, keep: float = 0.0) -> EvidenceTerms:
        """Take curvature and data fit at the present weights, from one pass over ``loader``; returns the evidence.

        Args:
            loader: all the data, or a part, which is scaled up to ``num_data``.
            progress: wraps the loader, as ``tqdm`` does.
            keep: share of the previous curvature and data fit that is kept, for a running average over parts (fraction).

        If the pass fails (see :class:`~escnn_relax.curvature.collect.Curvature` for the errors), all is left as it was.
        """
        if not 0 <= keep < 1:
            raise ArgumentError("keep", expected="a fraction below 1", got=keep)
        estimate = self.curvature(loader, progress)
        if keep and self._previous is not None:
            estimate = averaged(estimate, self._previous, keep)
        eigenvalues = {name: estimate.eigenvalues(name) for name in self.log_precision}
        for name, values in eigenvalues.items():
            if len(values) != (size := self._parameters[name].numel()):
                raise CurvatureError(name, expected=f"{size} eigenvalues", got=len(values))
        self.estimate = estimate
        self._previous = parts(estimate) if keep else None
        self.num_data = self.num_data or estimate.num_data
        share = self.num_data / estimate.num_data  # of the data, whose sum a part is scaled up to
        self._eigenvalues = {name: share * values for name, values in eigenvalues.items()}
        self._loss, self._num_outputs = share * estimate.loss, estimate.num_outputs
        self.publish()
        return self.terms()

    def terms(self) -> EvidenceTerms:
        """The evidence of the last refresh's curvature at the present precisions and weights."""
        self._need_refresh()
        data_fit = -self._loss * self.scale
        if self.likelihood.noisy:
            data_fit -= self.observations * (self.log_noise + 0.5 * math.log(2 * math.pi))
        occam = prior = 0.0
        for name, square in self.squares().items():
            occam += complexity(self.scale * self._eigenvalues[name], self.log_precision[name])
            prior += 0.5 * math.exp(self.log_precision[name]) * square
        return EvidenceTerms(data_fit, occam, prior, self.num_data)

    def log_marginal_likelihood(self) -> float:
        """``terms().total`` (nats)."""
        return self.terms().total

    def posterior(self) -> Posterior:
        """The Laplace posterior of the last refresh, for predictions."""
        return Posterior(self)

    def to_laplace(self) -> Any:
        """The same as a fitted ``laplace.KronLaplace``, see :func:`~escnn_relax.evidence.bridge.to_laplace`."""
        return to_laplace(self)

    def hypergradient(self, loader: Iterable, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
        """Derivative of the log evidence in anything inside the network, through data fit and curvature.

        See :func:`~escnn_relax.evidence.hypergradient.hypergradient`.
        """
        return hypergradient(self, loader, parameters)

    def gradient(self) -> dict[str, float]:
        r"""Derivative of the evidence in every log precision, and in ``"log_noise"`` for a Gaussian likelihood.

        :math:`\partial \log Z / \partial \log \delta_p = \tfrac12 (\gamma_p - \delta_p |w_p|^2)` with the effective
        dimension :math:`\gamma_p`; :math:`\partial \log Z / \partial \log \sigma = 2 L h - N C + \sum_p \gamma_p`.
        """
        gammas, squares = self.effective_dimension(), self.squares()
        found = {n: 0.5 * (gammas[n] - math.exp(self.log_precision[n]) * squares[n]) for n in gammas}
        if self.likelihood.noisy:
            fit = 2 * self._loss * self.scale - self.observations
            found["log_noise"] = fit + sum(gammas.values())
        return found

    def effective_dimension(self) -> dict[str, float]:
        r""":math:`\gamma_p = \sum_i h\lambda_i / (h\lambda_i + \delta_p)`: how many of a parameter's directions the data
        determine (a number between 0 and its size)."""
        self._need_refresh()
        return {name: effective_dimension(v, self.log_precision[name]) for name, v in self.eigenvalues.items()}

    def step(self, steps: int = 3, damping: float = 0.5) -> EvidenceTerms:
        r"""Move every log precision (and the noise) up the evidence, curvature and weights fixed.

        Each step is MacKay's update :math:`\delta_p \leftarrow \gamma_p / |w_p|^2`, damped in the logarithm, and halved
        where the evidence would fall by it. Weights that are all exactly zero, as residual ones are before training, keep
        their precision.

        Args:
            steps: number of updates.
            damping: share of the old log precision that is kept (fraction).
        """
        self._need_refresh()
        if steps < 0 or not 0 <= damping < 1:
            raise ArgumentError("step", expected="steps >= 0 and 0 <= damping < 1", got=(steps, damping))
        ascend(self, steps, damping)
        self.publish()
        return self.terms()

    def penalty(self) -> Tensor:
        r""":math:`\frac{1}{2N} \sum_p \delta_p |w_p|^2`, to be added to a loss averaged over samples.

        For a categorical likelihood of temperature 1 that loss is the cross entropy; for others it is scaled by
        :math:`h`: see :meth:`loss`, which does it all.
        """
        if not self.num_data:
            raise ArgumentError("penalty", "the size of the data set is not known", remedy="pass num_data to Evidence")
        terms = [math.exp(self.log_precision[n]) * p.square().sum() for n, p in self._parameters.items()]
        return torch.stack(terms).sum() / (2 * self.num_data)

    def loss(self, output: Any, target: Tensor) -> Tensor:
        """Penalised loss of a minibatch, averaged over its samples: the negative log posterior divided by N."""
        output = self.likelihood.tensor(output)
        self.likelihood.check(output, target)
        return self.scale * self.likelihood.loss(output, target) / len(output) + self.penalty()

    def publish(self) -> None:
        """Write precisions and effective dimensions into the relaxed layers, where reports and ``harden`` find them."""
        gammas = self.effective_dimension() if self._eigenvalues else {}
        for name, layer in self._layers.items():
            for index, pathway in enumerate(layer.pathways):
                key = join(name, f"weights.{pathway.name}")
                if key in self.log_precision:
                    layer.log_precision[index] = self.log_precision[key]
                    layer.effective_dimension[index] = gammas.get(key, math.nan)

    def state_dict(self) -> dict[str, Any]:
        """Precisions, noise and the last curvature's eigenvalues: all that :meth:`load_state_dict` needs."""
        return pack(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a :meth:`state_dict` of the same model; ``CoverageError`` for that of another."""
        unpack(self, state)

    def squares(self) -> dict[str, float]:
        """:math:`|w|^2` of each parameter with a prior."""
        return {n: float(p.detach().double().square().sum()) for n, p in self._parameters.items()}

    def _need_refresh(self) -> None:
        if not self._eigenvalues:
            raise CoverageError("evidence", "no curvature yet", remedy="call refresh(loader) first")
