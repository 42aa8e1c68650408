"""The state of a training run, what a checkpoint contains: taken, stored, put back.

How it is written and read is in :mod:`~escnn_relax.training.checkpoint`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..evidence.evidence import Evidence
from ..evidence.slopes import Slopes
from . import checkpoint as disk
from .gate_policy import Gates
from .history import EpochRecord, read_record
from .length_scales import LengthScales

__all__ = ["Run", "Undo"]


@dataclass(frozen=True)
class Run:
    """What a training run consists of.

    Attributes:
        settings: what must be the same for a checkpoint to be continued.
        length_scales: those that the evidence moves.
        gates: what opens and closes pathways; ``None`` if nothing does.
    """

    model: nn.Module
    optimizer: Optimizer
    scheduler: Any
    evidence: Evidence
    loaders: tuple[Iterable[Any], Iterable[Any] | None]
    settings: dict[str, Any]
    length_scales: LengthScales
    gates: Gates | None = None

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def evidence_data(self) -> Iterable[Any]:
        """What the curvature is taken on."""
        train, other = self.loaders
        return train if other is None else other

    def description(self) -> dict[str, Any]:
        """All that decides about the result, as plain values."""
        evidence, curvature, prior = self.evidence, self.evidence.curvature, self.evidence.prior
        described = {
            **self.settings,
            "parameters": {n: [str(p.dtype), *p.shape] for n, p in self.evidence.model.named_parameters()},
            "optimizer": type(self.optimizer).__name__,
            "scheduler": type(self.scheduler).__name__,
            "likelihood": curvature.likelihood.name,
            "curvature": [curvature.approximation, curvature.samples, curvature.exact_bias],
            "temperature": evidence.temperature,
            "noise": evidence.noise.kind,
            "num_data": evidence.num_data,
            "prior": [list(prior.bounds), sorted(prior.fixed), {g: list(m) for g, m in prior.groups.items()}],
        }
        if self.length_scales:
            described["scales"] = [self.length_scales.rate, *self.length_scales.parameters]
        return disk.plain(described)

    def save(self, path: str | Path, records: Iterable[EpochRecord], slopes: Slopes | None = None) -> None:
        """Write everything that :meth:`load` needs.

        Args:
            slopes: of the last epoch, after it, for :meth:`slopes`.
        """
        state = {
            "run": self.description(),
            "model": self.evidence.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "evidence": self.evidence.state_dict(),
            "scales": self.length_scales.state_dict(),
            "gates": {} if self.gates is None else self.gates.state_dict(),
            "slopes": None if slopes is None else slopes.state_dict(),
            "records": [asdict(record) for record in records],
            **disk.random_numbers(self.device, self.loaders),
        }
        disk.save(path, state)

    def load(self, path: str | Path) -> tuple[list[EpochRecord], Slopes | None]:
        """Continue from a file; returns the epochs done so far, and the slopes of the last, if that was the run's last.

        Nothing is touched if the file is of another run.
        """
        state = disk.load(path, self.description(), self.loaders)
        self.model.train()  # as when it was written: escnn's layers hold other buffers in eval mode
        self.evidence.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.evidence.load_state_dict(state["evidence"])
        self.length_scales.load_state_dict(state.get("scales", {}))
        if self.gates is not None:
            self.gates.load_state_dict(state.get("gates", {}))
        disk.restore_random_numbers(state, self.device, self.loaders)
        slopes = None
        if state.get("slopes") is not None:  # nothing in those of older versions
            slopes = Slopes(self.evidence)
            slopes.load_state_dict(state["slopes"])
        return [read_record(entry) for entry in state["records"]], slopes


class Undo:
    """Remembers weights, buffers, evidence, gates, optimizer, scheduler and modes, to put them back after a failed
    epoch: one that fails in its descent, its test or its refresh."""

    def __init__(self, run: Run, modes: list[tuple[nn.Module, bool]]) -> None:
        self.run, self.modes = run, modes
        run.model.train()
        self.model = {name: value.detach().clone() for name, value in run.evidence.model.state_dict().items()}
        owners: tuple[Any, ...] = (run.optimizer, run.scheduler, run.length_scales, run.gates)
        self.states = [(owner, copy.deepcopy(owner.state_dict())) for owner in owners if hasattr(owner, "state_dict")]
        self.precisions = dict(run.evidence.log_precision)
        self.refreshed = run.evidence.remember()

    def __call__(self) -> None:
        self.run.model.train()
        evidence = self.run.evidence
        moved = {n: v for n, v in self.precisions.items() if (v == math.inf) != (evidence.log_precision[n] == math.inf)}
        evidence.move_gates(moved)
        evidence.log_precision.update(self.precisions)
        evidence.model.load_state_dict(self.model)
        evidence.recall(self.refreshed)
        for owner, state in self.states:
            owner.load_state_dict(state)
        self.run.optimizer.zero_grad()
        with torch.no_grad():
            for module, training in self.modes:  # parents before children
                if module.training != training:
                    module.train(training)
