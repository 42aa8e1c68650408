"""One phase of a differentiable search: epochs of alternating steps, stored after each and continued with the same
result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...curvature.checked_batches import answer, batches
from ...errors import DataError
from ...evidence import Evidence
from ...evidence.random_state import generators
from ...morphism.mix import mixed_layers
from ...training import checkpoint as disk
from ...training.epochs import run_epochs, train_epoch
from ...training.has_learned import must_wait
from .settings import Settings
from .shares_history import SearchEpoch
from .shares_recorder import SharesRecorder

__all__ = ["AlternatingTraining"]


class AlternatingTraining:
    """The state of one phase, and what moves it.

    Args:
        name: ``"search"`` or ``"retrain"``.
        loaders: for the weights, the architecture weights and the curvature; the last two may be missing.
        optimizer: function from the list of weights to their optimizer; Adam by default.
        alphas: the architecture weights that are trained; none when retraining.
        penalty: terms of the architecture loss that no data have a say in.
        before: the phase before this one, whose state is stored along.

    Attributes:
        shares: those recorded so far.
        constant: loss of the best constant output, once the evidence has asked for it.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        loaders: tuple[Iterable[Any], Iterable[Any] | None, Iterable[Any] | None],
        settings: Settings,
        optimizer: Callable[[list[Any]], Optimizer] | None,
        loss: Callable[[Any, Tensor], Tensor],
        alphas: Sequence[nn.Parameter] = (),
        evidence: Evidence | None = None,
        penalty: Callable[[], Tensor] = lambda: torch.zeros(()),
        before: AlternatingTraining | None = None,
    ) -> None:
        self.name, self.model, self.loaders, self.settings, self.before = name, model, loaders, settings, before
        self.layers = mixed_layers(model)
        self.alphas, self.evidence, self._loss, self._penalty = list(alphas), evidence, loss, penalty
        architecture = {id(layer.alpha) for layer in self.layers.values()}
        weights = [p for p in model.parameters() if p.requires_grad and id(p) not in architecture]
        self.optimizer = torch.optim.Adam(weights, lr=settings.lr) if optimizer is None else optimizer(weights)
        self.architecture_optimizer: Any = None
        if self.alphas:
            self.architecture_optimizer = torch.optim.Adam(self.alphas, lr=settings.architecture_lr)
        self.device = next(model.parameters()).device
        self.shares = SharesRecorder(self.layers, settings.record_every if self.alphas else None)
        self.constant: float | None = None

    def run(
        self,
        epochs: int,
        seed: int,
        records: list[SearchEpoch],
        checkpoint: None | str | Path,
        progress: bool,
        callback: Callable[[SearchEpoch], None] | None,
    ) -> list[SearchEpoch]:
        """Train until ``epochs`` of this phase are recorded, from a seed or from a checkpoint; returns all records.

        Raises:
            CheckpointError: a checkpoint of another run.
        """
        torch.manual_seed(seed)
        for generator, offset in zip(generators(*self.loaders), count(1)):
            generator.manual_seed(seed + offset)
        records = self._resume(checkpoint) or records
        left = range(sum(r.phase == self.name for r in records), epochs)
        options: dict[str, Any] = {"checkpoint": checkpoint, "callback": callback, "progress": progress}
        run_epochs(self, left, records, title=self.name, shown=lambda r: {"loss": f"{r.loss:.3f}"}, **options)
        return records

    def epoch(self, epoch: int) -> SearchEpoch:
        """Weights and architecture weights in turn; then, where it is due, the evidence's step."""
        second = self._second_batches() if self.alphas and self.evidence is None else None
        total, steps = 0.0, 0  # of the architecture loss

        def after_step(index: int) -> None:
            nonlocal total, steps
            if self.settings.normalise:
                for layer in self.layers.values():
                    layer.normalise()
            if second is not None:
                loss = self._value(*next(second)) + self._penalty().to(self.device)
                total, steps = total + self._architecture_step(loss, index), steps + 1
            self.shares.step()

        seen = train_epoch(self.model, self.loaders[0], self.optimizer, self._value, after_step=after_step)
        if not seen.count:
            raise DataError("train_loader", "it yields no batch", remedy="pass a non-empty, re-iterable loader")
        log_evidence, note, settings = None, "", self.settings
        due = epoch >= settings.burn_in and (epoch - settings.burn_in) % settings.refresh_every == 0
        if self.evidence is not None and due:
            log_evidence, note = self._evidence_step(self.evidence, epoch)
            self.model.train()
        self.shares.record()
        mean = total / steps if steps else float("nan")
        return SearchEpoch(self.name, epoch, seen.total() / seen.count, mean, log_evidence, note)

    def _value(self, input: Any, target: Any) -> Tensor:
        output = answer(self.model, input)
        if self.evidence is not None:
            return self.evidence.loss(output, target)
        return self._loss(getattr(output, "tensor", output), target)

    def _architecture_step(self, loss: Tensor, index: int) -> float:
        if not torch.isfinite(loss):
            raise DataError(f"held-out batch {index}", "the loss is not finite", remedy="lower the learning rates")
        for alpha, gradient in zip(self.alphas, torch.autograd.grad(loss, self.alphas)):
            alpha.grad = gradient
        self.architecture_optimizer.step()
        return float(loss.detach())

    def _evidence_step(self, evidence: Evidence, epoch: int) -> tuple[float, str]:
        """Precisions, then shares, up the evidence; waits, as ``fit`` does, while the network has learned nothing."""
        data = self.loaders[0] if self.loaders[2] is None else self.loaders[2]
        terms = evidence.refresh(data)
        if self.constant is None:
            targets = [target for _, target in batches(self.loaders[0], self.device)]
            self.constant = evidence.likelihood.joint_constant_loss(targets)
        if must_wait(evidence, self.constant, epoch, self.settings.epochs):
            return terms.total / terms.num_data, "no better than a constant yet: precisions and shares wait"
        evidence.step(self.settings.hypersteps)
        gradients = evidence.hypergradient(data, self.alphas)
        penalty = self._penalty()
        down: Sequence[Tensor | None] = len(gradients) * [None]
        if penalty.requires_grad:
            down = torch.autograd.grad(penalty, self.alphas, allow_unused=True)
        for alpha, up, slope in zip(self.alphas, gradients, down):
            alpha.grad = -up / terms.num_data + (0 if slope is None else slope)
        terms = evidence.terms()
        self.architecture_optimizer.step()
        return terms.total / terms.num_data, ""

    def _second_batches(self) -> Iterator[tuple[Any, Tensor]]:
        """Batches for the architecture weights, without end."""
        loader = self.loaders[0] if self.loaders[1] is None else self.loaders[1]
        while True:
            empty = True
            for batch in batches(loader, self.device):
                empty = False
                yield batch
            if empty:
                raise DataError("held_out_loader", "it yields no batch", remedy="pass a non-empty, re-iterable loader")

    def save(self, path: str | Path, records: list[SearchEpoch]) -> None:
        """Write everything that it takes to continue."""
        states = {} if self.before is None else {self.before.name: self.before.state_dict()}
        states[self.name] = self.state_dict()
        numbers = disk.random_numbers(self.device, self.loaders)
        stored = {"run": self._description(), "records": [asdict(record) for record in records], **numbers, **states}
        disk.save(path, stored)

    def _resume(self, path: None | str | Path) -> list[SearchEpoch]:
        """Continue from a file, if it exists and has got to this phase; returns all epochs recorded so far."""
        if path is None or not Path(path).exists():
            return []
        stored = disk.load(path, self._description(), self.loaders)
        if self.name not in stored:
            return []
        self.load_state_dict(stored[self.name])
        disk.restore_random_numbers(stored, self.device, self.loaders)
        return [SearchEpoch(**entry) for entry in stored["records"]]

    def _description(self) -> dict[str, Any]:
        """All that decides about the result, as plain values."""
        origin = self if self.before is None else self.before
        described = {
            **asdict(self.settings),
            "parameters": {n: [str(p.dtype), *p.shape] for n, p in origin.model.named_parameters()},
            "groups": {n: list(names) for n, names in origin.shares.groups.items()},
            "optimizer": type(origin.optimizer).__name__,
            "other data": [loader is not None for loader in self.loaders[1:]],
        }
        return disk.plain(described)

    def state_dict(self) -> dict[str, Any]:
        """The present state, on disk under the names that it always had there."""
        self.model.train()
        architecture = self.architecture_optimizer
        return {
            "model": self.model.state_dict(),
            "descent": self.optimizer.state_dict(),
            "architect": None if architecture is None else architecture.state_dict(),
            "evidence": None if self.evidence is None else self.evidence.state_dict(),
            "constant": self.constant,  # stored, since finding it out again would draw from the loader's generator
            **self.shares.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The way back."""
        self.model.train()
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["descent"])
        if self.architecture_optimizer is not None:
            self.architecture_optimizer.load_state_dict(state["architect"])
        if self.evidence is not None:
            self.evidence.load_state_dict(state["evidence"])
        self.constant = state["constant"]
        self.shares.load_state_dict(state)
