"""An epoch of ``fit``: a descent of the weights between what the policy does at its start and at its end."""

from __future__ import annotations

from typing import Any

from ..curvature.checked_batches import answer
from ..errors import RelaxError
from .epochs import train_epoch
from .evidence_policy import EvidencePolicy
from .history import EpochRecord
from .learning_rate import anneal
from .run_state import Run, Undo

__all__ = ["EvidenceTraining"]


class EvidenceTraining:
    """A training run, epoch by epoch.

    Args:
        run: what is trained, and what trains it.
        policy: what happens to its evidence.
    """

    def __init__(self, run: Run, policy: EvidencePolicy) -> None:
        self.run, self.policy = run, policy
        self._modes = [(module, module.training) for module in run.model.modules()]

    def save(self, path: Any, records: list[EpochRecord]) -> None:
        """Write everything that :meth:`Run.load <escnn_relax.training.run_state.Run.load>` needs."""
        self.run.save(path, records, self.policy.slopes)

    def epoch(self, epoch: int) -> EpochRecord:
        """Train for one epoch, counted from 0; after an error of ours all is as it was before it."""
        undo = Undo(self.run, self._modes)
        try:
            self.policy.begin(epoch)
            with self.run.length_scales.frozen():
                loss, constant = self._descend()
            anneal(self.run.scheduler, loss)
            return self.policy.finish(epoch, loss, constant, self.run.optimizer)
        except RelaxError:
            undo()
            raise

    def _descend(self) -> tuple[float, float]:
        """One pass; returns the loss averaged over samples, and what the best constant output would have."""
        run, slopes = self.run, self.policy.slopes
        seen = train_epoch(
            run.model,
            run.loaders[0],
            run.optimizer,
            lambda input, target: run.evidence.loss(answer(run.model, input), target),
            after_backward=None if slopes is None else slopes.add,
        )
        return seen.means(run.evidence.likelihood)
