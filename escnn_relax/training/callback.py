"""All that ``fit`` does beside its descent, for a training loop of the user's own."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Unpack

from torch import Tensor, nn
from torch.optim import Optimizer

from ..curvature.batch_format import Weighted
from ..curvature.likelihood import Likelihood
from ..errors import ArgumentError
from ..evidence.evidence import Evidence
from ..evidence.settings import EvidenceKeywords
from . import checkpoint as disk
from .arguments import check_evidence_options, warn_of_burn_in
from .backward_watch import BackwardWatch
from .callback_state import losses_of, restored, state_of
from .epochs import EpochLoss
from .evidence_policy import EvidencePolicy
from .history import EpochRecord, History
from .moved_weights import MovedWeights
from .scalar_log import Writer, check_writers, log_scalars

__all__ = ["EvidenceCallback"]


class EvidenceCallback:
    """Keeps the evidence of a model beside a training loop of your own, by the same policy as :func:`~escnn_relax.fit`.

    In a loop of one's own::

        callback = EvidenceCallback(model, loader, epochs=40)
        optimizer = torch.optim.Adam(callback.parameters(), 5e-3)
        for epoch in callback.epochs(optimizer):       # begins and ends each epoch
            for x, y in loader:
                loss = callback.loss(model(x), y)      # negative log likelihood and prior, averaged over the batch
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        print(report(model, callback.evidence))

    ``begin(optimizer)``, ``begin_epoch()``, ``end_epoch()`` and ``end()`` are what :meth:`epochs` calls, for loops of
    another form. For Lightning there is :func:`~escnn_relax.lightning_callback`.

    Args:
        model: with relaxed layers; what is trained, a ``DistributedDataParallel`` of it too. In a regression its last
            layer begins at the targets' mean and scale, from now on; so load pretrained weights before.
        train_loader: what the loop goes through; re-iterable. Its samples are counted, the symmetry test and the
            refreshes look at it.
        epochs: of the whole training: they say when refreshes and tests are due.
        likelihood, evidence, burn_in, refresh_every, hypersteps: as of :func:`~escnn_relax.fit`.
        evidence_loader, share, keep, omega_rate, gates, evidence_options: likewise.
        log: where :func:`~escnn_relax.evidence.evidence_scalars` go after each refresh: a TensorBoard
            ``SummaryWriter``, a Weights & Biases run, a logger of Lightning's, or a function of the numbers and the
            epoch; several in a list.
        verdicts: log which subgroup survives in each layer, too; takes seconds for groups with many subgroups.
        progress: show a progress bar for refreshes that take more than some seconds.

    Attributes:
        evidence: the :class:`~escnn_relax.Evidence`.
        history: a record of each epoch, as ``fit`` returns it.
        epoch: how many are done.

    Raises:
        ArgumentError: numbers of epochs that make no sense; what is called in the wrong order; an optimizer that does
            not hold a pathway that may open, or holds a length scale.
        DataError: an empty loader.
        CheckpointError: the state of another training.

    With the same batches and the same optimizer all numbers are those of ``fit``:

    >>> import torch
    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> from escnn import gspaces, nn as enn
    >>> from escnn_relax.nn import RelaxedR2Conv
    >>> space = gspaces.rot2dOnR2(4)
    >>> gray, out = enn.FieldType(space, [space.trivial_repr]), enn.FieldType(space, [space.regular_repr])
    >>> class Net(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.convolution, self.pool = RelaxedR2Conv(gray, out, 3), enn.GroupPooling(out)
    ...         self.linear = nn.Linear(1, 2)
    ...     def forward(self, x):
    ...         return self.linear(self.pool(self.convolution(gray(x))).tensor.mean((-2, -1)))
    >>> model, loader = Net(), DataLoader(TensorDataset(torch.randn(16, 1, 5, 5), torch.randint(2, (16,))), 8)
    >>> callback = EvidenceCallback(model, loader, epochs=3, burn_in=1, refresh_every=1)
    >>> optimizer = torch.optim.Adam(callback.parameters(), 1e-3)
    >>> for epoch in callback.epochs(optimizer):
    ...     for x, y in loader:
    ...         loss = callback.loss(model(x), y)
    ...         optimizer.zero_grad()
    ...         loss.backward()
    ...         _ = optimizer.step()
    >>> [epoch for epoch, _ in callback.history.evidences]
    [1, 2]
    """

    def __init__(
        self,
        model: nn.Module,
        train_loader: Iterable[Any],
        *,
        epochs: int,
        likelihood: str | Likelihood | Callable[..., Any] = "categorical",
        evidence: Evidence | None = None,
        burn_in: int | None = None,
        refresh_every: int | None = None,
        hypersteps: int = 6,
        evidence_loader: Iterable[Any] | None = None,
        share: float | None = None,
        keep: float = 0.0,
        omega_rate: float = 0.1,
        gates: bool | None = None,
        log: None | Writer | Iterable[Writer] = None,
        verdicts: bool = False,
        progress: bool = True,
        **evidence_options: Unpack[EvidenceKeywords],
    ) -> None:
        check_evidence_options(evidence, model, evidence_options, inspect.signature(EvidenceCallback.__init__))
        self.log, self.verdicts = check_writers(log), verdicts
        self.policy = EvidencePolicy(
            model,
            train_loader,
            epochs=epochs,
            likelihood=likelihood,
            evidence=evidence,
            burn_in=burn_in,
            refresh_every=refresh_every,
            hypersteps=hypersteps,
            evidence_loader=evidence_loader,
            share=share,
            keep=keep,
            omega_rate=omega_rate,
            gates=gates,
            progress=progress,
            **evidence_options,
        )
        warn_of_burn_in(epochs, burn_in)
        self.evidence = self.policy.evidence
        self.history = History(self.evidence)
        self._begun = self._inside = False
        self._stored: dict[str, Any] = {}
        self._optimizers: tuple[Optimizer, ...] = ()
        self._seen = EpochLoss([], [], [])
        self._watch: BackwardWatch | None = None
        self._frozen: Any = None
        self._moved: MovedWeights | None = MovedWeights(self.evidence.model, lambda: self.policy.settle({}))

    @property
    def epoch(self) -> int:
        """How many epochs are done."""
        return len(self.history.records)

    def parameters(self) -> list[nn.Parameter]:
        """What an optimizer of the loss has to hold: trainable weights, those of closed pathways too, without length
        scales, which the evidence moves."""
        return self.policy.parameters()

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """The same as groups for an optimizer: in a regression whose targets are in units of their own the last layer
        takes longer steps, as in :func:`~escnn_relax.fit`.

        In a run that goes on they are those of the run once :meth:`load_state_dict` was called, and before it if the
        callback was made before the model's state was loaded.

        Args:
            lr: learning rate of a network of unit scale.
        """
        units = self.policy.units
        if units is None:
            return [{"params": self.parameters(), "lr": lr}]
        return units.groups(self.evidence.model, lr, self.parameters())

    def epochs(self, *optimizers: Optimizer) -> Iterator[int]:
        """The epochs that are left, counted from 0; each is begun before and ended after the loop's body, and the
        training after the last of them. An epoch that ``break`` or an exception leaves is abandoned: it is in no
        record, and :meth:`end` may be called, or ``epochs`` again.

        Args:
            optimizers: as of :meth:`begin`.
        """
        self.begin(*optimizers)
        for epoch in range(self.epoch, self.policy.epochs):
            self.begin_epoch()
            try:
                yield epoch
                self.end_epoch()
            finally:  # nothing is left to abandon after an epoch that ended
                self.abandon()
        self.end()

    def begin(self, *optimizers: Optimizer) -> None:
        """Before the first epoch, or the first one after a stop: looks over optimizers and data.

        Args:
            optimizers: of the loss, all of them.
        """
        if not optimizers or not all(isinstance(o, Optimizer) for o in optimizers):
            got = ", ".join(type(o).__name__ for o in optimizers) or "none"
            raise ArgumentError(
                "optimizer", expected="an optimizer of torch's", got=got, remedy="pass those of the loss"
            )
        self._moved = None
        self.policy.check(*optimizers)
        if not self.epoch:
            self.policy.rehearse()
        if self._stored:
            device = next(self.evidence.model.parameters()).device
            loaders = self.policy.train_loader, self.policy.evidence_loader
            disk.restore_random_numbers(self._stored, device, loaders)
            self._stored = {}
        self._optimizers, self._begun = optimizers, True

    def begin_epoch(self) -> None:
        """At the start of an epoch: before the first, pathways are closed."""
        self._require(
            self._begun and not self._inside, "begin_epoch", "begin(optimizer) once, and after each end_epoch()"
        )
        if self.epoch >= self.policy.epochs:
            remedy = "pass the number of all epochs to EvidenceCallback(epochs=)"
            raise ArgumentError("begin_epoch", expected=f"{self.policy.epochs} epochs", got="one more", remedy=remedy)
        self.policy.begin(self.epoch, anew=not self.noted)
        self._watch = None if self.policy.slopes is None else BackwardWatch(self.policy.slopes)
        self._frozen = self.policy.length_scales.frozen()
        self._frozen.__enter__()
        self._inside = True

    def loss(self, output: Any, target: Any, weight: Tensor | None = None) -> Tensor:
        """Penalised loss of a minibatch, see :meth:`Evidence.loss <escnn_relax.Evidence.loss>`; what came is noted.

        Outside of an epoch and in evaluation it is the same, and nothing is noted.
        """
        loss = self.evidence.loss(output, target, weight)
        return self.note(loss, target if weight is None else Weighted(target, weight))

    def penalised(self, loss: Tensor, target: Any) -> Tensor:
        """A loss of your own, the mean negative log likelihood of a minibatch, with the prior's penalty; it is noted.

        Raises:
            ArgumentError: a likelihood with a noise or a temperature, by which such a loss has to be scaled.
        """
        if self.evidence.likelihood.noisy or self.evidence.temperature != 1:
            why = "a noise" if self.evidence.likelihood.noisy else f"temperature {self.evidence.temperature:g}"
            raise ArgumentError(
                "loss",
                f"the likelihood {self.evidence.likelihood.name!r} has {why}, by which the loss has to be scaled",
                remedy="compute it by callback.loss(output, target)",
            )
        return self.note(loss + self.evidence.penalty(), target)

    def note(self, loss: Tensor, target: Any) -> Tensor:
        """A penalised loss that was computed elsewhere is that of these targets' samples; returns it."""
        if self._inside and loss.requires_grad:
            self._seen.losses.append(float(loss.detach()))
            self._seen.sizes.append(len(target))
            self._seen.targets.append(target)
            if self._watch is not None:
                self._watch.follow(loss, len(target))
        return loss

    @property
    def inside(self) -> bool:
        """Whether an epoch has begun and not ended."""
        return self._inside

    @property
    def noted(self) -> int:
        """How many losses came in this epoch."""
        return len(self._seen.losses)

    def end_epoch(self) -> EpochRecord:
        """At the end of an epoch: test, refresh, step, as they are due; returns what happened."""
        self._require(self._inside, "end_epoch", "begin_epoch() first")
        if not self.noted:
            problem = f"no loss was noted in epoch {self.epoch}"
            remedy = "compute it by callback.loss(model(x), y), between begin_epoch() and end_epoch()"
            raise ArgumentError("end_epoch", problem, remedy=remedy)
        self._leave()
        loss, constant = self._seen.means(self.evidence.likelihood)
        record = self.policy.finish(self.epoch, loss, constant, *self._optimizers)
        self._seen = EpochLoss([], [], [])
        self.history.records.append(record)
        if self.log and record.evidence is not None:
            log_scalars(self.log, self.evidence, record.epoch, self.verdicts)
        return record

    def end(self) -> History:
        """After the last epoch: a refresh on all data, at the trained weights."""
        self._require(self._begun and not self._inside, "end", "end_epoch() first")
        if self.epoch:
            self.policy.end()
            if self.evidence.doubt:
                warnings.warn(f"after {self.epoch} epochs {self.evidence.doubt}", stacklevel=2)
            log_scalars(self.log, self.evidence, self.epoch, self.verdicts)
        return self.history

    def abandon(self) -> None:
        """After an exception in an epoch: nothing is left in the model; the epoch can be begun again."""
        if self._inside:
            self._leave()
            self.policy.slopes = None
        self._seen = EpochLoss([], [], [])

    def state_dict(self) -> dict[str, Any]:
        """All that :meth:`load_state_dict` needs, beside the states of model and optimizer: plain values and tensors,
        which ``torch.load(weights_only=True)`` reads."""
        return state_of(self.policy, self.history.records, self._seen if self._inside else None)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a state was taken, with the same numbers; the model's own state is loaded by you. What this
        callback moved in a regression's last layer when it was made is undone, unless other weights were loaded since.

        Raises:
            CheckpointError: the state of a training with other settings, or of something else.
        """
        self.history.records = restored(self.policy, state)
        if self._moved is not None:
            self._moved.undo()
            self._moved = None
        if self._inside:
            self._leave()
        self._seen = losses_of(state["seen"])
        self._stored = dict(state["random_numbers"])
        self._begun = False

    def _leave(self) -> None:
        self._inside = False
        self._frozen.__exit__(None, None, None)
        if self._watch is not None:
            self._watch.close()

    def _require(self, ready: bool, method: str, remedy: str) -> None:
        if not ready:
            raise ArgumentError(method, "called out of turn", remedy=f"call {remedy}")
