"""An epoch of ``fit``: a descent of the weights, gates, and at some of them a refresh and updates of the precisions."""

from __future__ import annotations

from typing import Any

import torch

from ..curvature.checked_batches import answer
from ..curvature.distributed import sum_processes
from ..errors import DataError, RelaxError
from ..evidence.slopes import Slopes
from .epochs import train_epoch
from .history import EpochRecord
from .learning_rate import anneal
from .loaders import Replayed
from .run_state import Run, Undo
from .schedule import Schedule, tested
from .waiting import has_learned, must_wait

__all__ = ["EvidenceTraining"]


class EvidenceTraining:
    """A training run, epoch by epoch.

    Args:
        run: what is trained, and what trains it.
        schedule: which epochs end with a refresh, and what it looks at.
        epochs: of the whole training.
        hypersteps: updates of the precisions after each refresh.
        keep: as of :meth:`Evidence.refresh <escnn_relax.Evidence.refresh>`.
    """

    def __init__(self, run: Run, schedule: Schedule, epochs: int, hypersteps: int, keep: float) -> None:
        self.run, self.schedule = run, schedule
        self.epochs, self.hypersteps, self.keep = epochs, hypersteps, keep
        self.slopes: Slopes | None = None
        self._modes = [(module, module.training) for module in run.model.modules()]

    def save(self, path: Any, records: list[EpochRecord]) -> None:
        """Write everything that :meth:`Run.load <escnn_relax.training.run_state.Run.load>` needs."""
        self.run.save(path, records)

    def epoch(self, epoch: int) -> EpochRecord:
        """Train for one epoch, counted from 0; after an error of ours all is as it was before it."""
        undo = Undo(self.run, self._modes)
        gates, notes = self.run.gates, []
        self.slopes = Slopes(self.run.evidence) if epoch == self.epochs - 1 else None
        try:
            if gates is not None and not epoch:
                gates.start()
            with self.run.length_scales.frozen():
                loss, constant = self._descend()
        except RelaxError:
            undo()
            raise
        anneal(self.run.scheduler, loss)
        if gates is not None and epoch == tested(self.epochs) and epoch < self.epochs - 1:
            evidence = self.run.evidence
            # a loss with a noise is in other units than the constant's
            learned = not evidence.likelihood.noisy and has_learned(evidence.temperature * loss, constant)
            if learned or not self.schedule.epochs:
                notes.append(gates.test(learned))
        if epoch in self.schedule.epochs:
            return self._refreshed(epoch, loss, constant, notes)
        return EpochRecord(epoch, loss, note=_joined(notes))

    def end(self) -> None:
        """Refresh at the trained weights, which have moved since the precisions did."""
        evidence, last = self.run.evidence, self.schedule.last
        evidence.refresh(last.data, enough=last.enough)
        if evidence.learned:
            evidence.step(self.hypersteps)
        evidence.slopes = self.slopes
        if self.slopes is not None:
            self.slopes.end()

    def _descend(self) -> tuple[float, float]:
        """One pass; returns the loss averaged over samples, and what the best constant output would have."""
        run, slopes = self.run, self.slopes
        seen = train_epoch(
            run.model,
            run.loaders[0],
            run.optimizer,
            lambda input, target: run.evidence.loss(answer(run.model, input), target),
            after_backward=None if slopes is None else slopes.add,
        )
        if not seen.count:
            raise DataError("train_loader", "it yields no batch", remedy="pass a non-empty, re-iterable loader")
        constant = run.evidence.likelihood.joint_constant_loss(seen.targets)
        sums = torch.tensor([seen.total(), constant * seen.count, seen.count], dtype=torch.float64)
        total, constant_total, count = sum_processes(sums).tolist()
        return total / count, constant_total / count

    def _refreshed(self, epoch: int, loss: float, constant: float, notes: list[str]) -> EpochRecord:
        """Refresh; unless nothing is learned yet, move precisions and length scales, and close what has died."""
        run, evidence, gates = self.run, self.run.evidence, self.run.gates
        index = self.schedule.epochs.index(epoch)
        data, enough = self.schedule.look(index)
        data = Replayed(data, run.evidence_data, run.device) if run.length_scales else data
        terms = evidence.refresh(data, keep=self.keep, enough=enough)
        waits = must_wait(evidence, constant, epoch, self.epochs)
        if waits:
            notes.append("no better than a constant yet: the precisions wait")
        else:
            terms = evidence.step(self.hypersteps)
            run.length_scales.step(data, self.keep)
            if gates is not None:
                notes.append(gates.prune(run.optimizer))
        if gates is not None and tested(self.epochs) <= epoch < self.epochs - 1:  # what opens is yet to be trained
            if waits or not gates.tested or epoch == self.schedule.again(self.epochs):
                notes.append(gates.test(has_learned(evidence.mean_loss, constant)))
        gammas, logs = evidence.effective_dimension(), dict(evidence.log_precision)
        return EpochRecord(epoch, loss, terms, logs, gammas, _joined(notes), run.length_scales.values())


def _joined(notes: list[str]) -> str:
    return "; ".join(note for note in notes if note)
