"""What a training does with its evidence between two epochs: gates, refreshes, updates of the precisions.

The one policy of :func:`~escnn_relax.fit` and of :class:`~escnn_relax.EvidenceCallback`, whoever descends the loss.
When refreshes are due says :mod:`~escnn_relax.training.schedule`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Unpack

import torch
from torch import nn
from torch.optim import Optimizer

from ..curvature.likelihood import Likelihood
from ..evidence.evidence import Evidence
from ..evidence.settings import EvidenceKeywords
from ..evidence.slopes import Slopes
from .arguments import check_numbers, has_residual_precision
from .dry_run import rehearse
from .gate_policy import Gates, refuse_forgotten
from .has_learned import has_learned, must_wait, was_learned
from .history import EpochRecord
from .length_scales import LengthScales
from .loaders import Replayed, data_size
from .optimizer_check import check_optimizers
from .regression_units import Units, settled_units
from .schedule import Schedule, first, tested

__all__ = ["EvidencePolicy"]

#: Seconds after which a progress bar appears.
PATIENCE = 5


class EvidencePolicy:
    """The evidence of a training, and when it is refreshed, stepped, tested and pruned.

    Args:
        model: with relaxed layers.
        train_loader: what it is trained on.
        options: the others as of :func:`~escnn_relax.fit`.

    Attributes:
        schedule: which epochs end with a refresh, and what it looks at.
        length_scales: those that the evidence moves.
        gates: what opens and closes pathways; ``None`` if nothing does.
        units: what a regression was moved to by :meth:`settle`.
        slopes: of the last epoch, once that has begun.
    """

    def __init__(
        self,
        model: nn.Module,
        train_loader: Iterable[Any],
        *,
        epochs: int,
        likelihood: str | Likelihood | Callable[..., Any],
        evidence: Evidence | None,
        burn_in: int | None,
        refresh_every: int | None,
        hypersteps: int,
        evidence_loader: Iterable[Any] | None,
        share: float | None,
        keep: float,
        omega_rate: float,
        gates: bool | None,
        progress: bool = False,
        **options: Unpack[EvidenceKeywords],
    ) -> None:
        check_numbers(epochs, burn_in, refresh_every, hypersteps, share)
        self.epochs, self.hypersteps, self.keep, self.progress = epochs, hypersteps, keep, progress
        self.burn_in = first(epochs) if burn_in is None else burn_in
        gated = evidence is None and not has_residual_precision(options) if gates is None else gates
        self.train_loader, self.evidence_loader = train_loader, evidence_loader
        spacing = (epochs, self.burn_in, refresh_every, share)
        if share is not None:
            Schedule.plan(self.data, *spacing)  # to fail before anything is trained
        self.units: Units | None = None
        self._begins = evidence is None  # else its owner has seen to the units
        counted = evidence is None and evidence_loader is None and options.get("num_data") is None
        if evidence is None:
            options.setdefault("num_data", data_size(train_loader))
            evidence = Evidence(model, likelihood, **options)
        self.evidence, self._prior = evidence, evidence.prior
        self.length_scales = LengthScales(evidence, omega_rate)
        in_parts = not self.length_scales and evidence.curvature.passes == 1
        self.schedule = Schedule.plan(self.data, *spacing, evidence.num_data if in_parts else None, counted)
        self.gates = Gates(evidence, train_loader, model, progress) if gated else None
        # what a user closed in an evidence of one's own stays closed, unless all is to be open
        opens = not gated and (self._begins or gates is False)
        self._opening = {name: evidence.initial[name] for name in evidence.closed} if opens else {}
        if self._opening:
            refuse_forgotten(model, evidence)
        self.slopes: Slopes | None = None
        self.settings: dict[str, Any] = {"epochs": epochs, "burn_in": self.burn_in, "refresh_every": refresh_every}
        self.settings |= {"hypersteps": hypersteps, "share": share, "keep": keep, "gates": gated}
        self.settings |= {"penalised": sorted(evidence.penalised)}

    @property
    def data(self) -> Iterable[Any]:
        """What the curvature is taken on."""
        return self.train_loader if self.evidence_loader is None else self.evidence_loader

    def settle(self, stored: Mapping[str, Any]) -> None:
        """Begin a regression at its targets' mean and scale; in a run that goes on, what it began with.

        Args:
            stored: the settings of that run.
        """
        if self._begins:
            self.units = settled_units(self.evidence, self.train_loader, stored)
        self._write_units()

    def restore(self, stored: Mapping[str, Any]) -> None:
        """Go on in the units of a run with these settings, whose weights are loaded."""
        if self.units is not None:
            self.evidence.prior = self._prior
        self.units = None if stored.get("units") is None else Units(*stored["units"])
        if self.units is not None:
            self.units.widen(self.evidence)
        self._write_units()

    def _write_units(self) -> None:
        self.settings["units"] = None if self.units is None else [self.units.layer, self.units.step, self.units.size]

    def parameters(self) -> list[nn.Parameter]:
        """What descends the loss: those that need a gradient, and those of closed pathways, which may open; without
        length scales."""
        gates = self.evidence.gates.items()  # of a model whose state was loaded: the evidence's comes later
        shut = {name for name, (layer, pathway) in gates if pathway in layer.closed} | set(self.evidence.closed)
        named = self.evidence.model.named_parameters()
        return self.length_scales.others(p for n, p in named if p.requires_grad or n in shut)

    def check(self, *optimizers: Optimizer, stacklevel: int = 4) -> None:
        """Raise ``ArgumentError``, or warn, where optimizers of the loss do not go with the evidence."""
        opening = self._opening if self.gates is None else self.gates.movable()
        check_optimizers(optimizers, self.evidence, self.length_scales, opening, depth=stacklevel)

    def rehearse(self) -> None:
        """One batch through all that a refresh needs."""
        if self.epochs > self.burn_in:
            rehearse(self.evidence, self.train_loader, self.evidence_loader, self.schedule.look(0).enough)

    def begin(self, epoch: int, anew: bool = True) -> None:
        """An epoch, counted from 0, is about to begin.

        Args:
            anew: not in its midst, where a state was loaded that has the slopes of what went before.
        """
        if not epoch:
            self.evidence.open(self._opening)
        if self.gates is not None and not epoch:
            self.gates.start()
        if anew or self.slopes is None:  # of what is open now
            self.slopes = Slopes(self.evidence) if epoch == self.epochs - 1 else None

    def finish(self, epoch: int, loss: float, constant: float, *optimizers: Optimizer) -> EpochRecord:
        """An epoch has ended.

        Args:
            loss: penalised, averaged over its samples (nats).
            constant: what the best constant output would have (nats).
            optimizers: what forgets the weights that are closed.
        """
        notes: list[str] = []
        gates = self.gates
        if gates is not None and epoch == tested(self.epochs) and epoch < self.epochs - 1:
            evidence = self.evidence
            # a loss with a noise is in other units than the constant's; what a density observes a refresh tells
            apart = evidence.likelihood.noisy or evidence.likelihood.density
            learned = not apart and has_learned(evidence.temperature * loss, constant)
            if learned or not self.schedule.epochs:
                notes.append(gates.test(learned))
        if epoch in self.schedule.epochs:
            return self._refreshed(epoch, loss, constant, notes, optimizers)
        return EpochRecord(epoch, loss, note=_joined(notes))

    def end(self) -> None:
        """Refresh at the trained weights, which have moved since the precisions did."""
        evidence, last = self.evidence, self.schedule.last
        evidence.refresh(last.data, self._bar("last refresh, on all data"), enough=last.enough)
        if evidence.learned:
            evidence.step(self.hypersteps)
        evidence.slopes = self.slopes
        if self.slopes is not None:
            self.slopes.end()

    def _refreshed(
        self, epoch: int, loss: float, constant: float, notes: list[str], optimizers: tuple[Optimizer, ...]
    ) -> EpochRecord:
        """Refresh; unless nothing is learned yet, move precisions and length scales, and close what has died."""
        evidence, gates = self.evidence, self.gates
        data, enough = self.schedule.look(self.schedule.epochs.index(epoch))
        data = Replayed(data, self.data, self._device) if self.length_scales else data
        terms = evidence.refresh(data, self._bar("refresh"), self.keep, enough)
        waits = must_wait(evidence, constant, epoch, self.epochs)
        if waits:
            notes.append("no better than a constant yet: the precisions wait")
        else:
            terms = evidence.step(self.hypersteps, fixed=() if gates is None else gates.unmoved)
            self.length_scales.step(data, self.keep)
            if gates is not None:
                notes.append(gates.prune(*optimizers))
        # what opens is yet to be trained, and no weights are tested twice
        if gates is not None and tested(self.epochs) < epoch < self.epochs - 1:
            if waits or not gates.tested or epoch in self.schedule.tests(self.epochs):
                notes.append(gates.test(was_learned(evidence, constant)))
        gammas, logs = evidence.effective_dimension(), dict(evidence.log_precision)
        return EpochRecord(epoch, loss, terms, logs, gammas, _joined(notes), self.length_scales.values())

    def _bar(self, title: str) -> Callable[[Iterable[Any]], Iterable[Any]]:
        """A progress bar for a pass that takes more than some seconds."""
        from tqdm import tqdm

        return partial(tqdm, desc=title, unit="batch", delay=PATIENCE, leave=False, disable=not self.progress)

    @property
    def _device(self) -> torch.device:
        return next(self.evidence.model.parameters()).device


def _joined(notes: list[str]) -> str:
    return "; ".join(note for note in notes if note)
