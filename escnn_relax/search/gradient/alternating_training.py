"""One phase of a differentiable search: epochs of alternating steps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...curvature.batches import answer, batches, check_weights
from ...errors import DataError
from ...evidence import Evidence
from ...evidence.random_state import generators
from ...morphism.mix import mixed_layers
from ...training.fit import LEARNED
from .checkpoint import save
from .settings import Settings
from .shares_history import SearchEpoch

__all__ = ["Phase"]

_log = logging.getLogger(__name__)


class Phase:
    """The state of one phase, and what moves it.

    Args:
        name: ``"search"`` or ``"retrain"``.
        loaders: for the weights, the architecture weights and the curvature; the last two may be missing.
        alphas: the architecture weights that are trained; none when retraining.
        before: the phase before this one, whose state is stored along.

    Attributes:
        step: steps on the weights so far.
        steps: those after which shares were recorded.
        shares: the recorded ones, by layer.
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
        alphas: Sequence[nn.Parameter],
        evidence: Evidence | None,
        before: Phase | None = None,
    ) -> None:
        self.name, self.model, self.loaders, self.settings, self.before = name, model, loaders, settings, before
        self.layers = mixed_layers(model)
        self.groups = {n: tuple(layer.group_names.values()) for n, layer in self.layers.items()}
        self.alphas, self.evidence, self._loss = list(alphas), evidence, loss
        architecture = {id(layer.alpha) for layer in self.layers.values()}
        weights = [p for p in model.parameters() if p.requires_grad and id(p) not in architecture]
        self.descent = torch.optim.Adam(weights, lr=settings.lr) if optimizer is None else optimizer(weights)
        self.architect: Any = torch.optim.Adam(self.alphas, lr=settings.architecture_lr) if self.alphas else None
        self.device = next(model.parameters()).device
        self.step, self.steps = 0, [0]
        self.shares = {n: [tuple(layer.shares.values())] for n, layer in self.layers.items()}
        self.constant: float | None = None

    def seed(self, seed: int) -> None:
        """Start torch's generator and those of the loaders from a seed."""
        torch.manual_seed(seed)
        for generator, offset in zip(generators(*self.loaders), count(1)):
            generator.manual_seed(seed + offset)

    def recorded(self) -> dict[str, tuple[tuple[float, ...], ...]]:
        """Shares of each layer at :attr:`steps`."""
        return {name: tuple(of) for name, of in self.shares.items()}

    def run(
        self,
        epochs: int,
        records: list[SearchEpoch],
        checkpoint: None | str | Path,
        progress: bool,
        callback: Callable[[SearchEpoch], None] | None,
        penalty: Callable[[], Tensor],
    ) -> None:
        """Train until ``epochs`` of this phase are recorded; records are appended to ``records``."""
        from tqdm import tqdm

        done = sum(r.phase == self.name for r in records)
        bar = tqdm(range(done, epochs), initial=done, total=epochs, desc=self.name, unit="epoch", disable=not progress)
        try:
            for epoch in bar:
                record = self._epoch(epoch, penalty)
                records.append(record)
                if checkpoint is not None:
                    save(self, checkpoint, records)
                if callback is not None:
                    callback(record)
                bar.set_postfix(loss=f"{record.loss:.3f}", refresh=False)
        except KeyboardInterrupt:
            if checkpoint is not None:
                _log.warning("interrupted; call differentiate again with checkpoint=%s to go on", checkpoint)
            raise

    def _epoch(self, epoch: int, penalty: Callable[[], Tensor]) -> SearchEpoch:
        check_weights(self.model)
        self.model.train()
        total = seen = architecture = steps = 0.0
        second = self._second_batches() if self.alphas and self.evidence is None else None
        for index, (input, target) in enumerate(batches(self.loaders[0], self.device)):
            value = self._weights_step(input, target, index)
            total, seen = total + value * len(target), seen + len(target)
            if second is not None:
                input, target = next(second)
                architecture += self._architecture_step(self._value(input, target) + penalty().to(self.device), index)
                steps += 1
            self._record()
        if not seen:
            raise DataError("train_loader", "it yields no batch", remedy="pass a non-empty, re-iterable loader")
        log_evidence, note = None, ""
        due = epoch >= self.settings.burn_in and (epoch - self.settings.burn_in) % self.settings.refresh_every == 0
        if self.evidence is not None and due:
            log_evidence, note = self._evidence_step(self.evidence, epoch, penalty)
            self.model.train()
        self._record(always=True)
        mean = architecture / steps if steps else float("nan")
        return SearchEpoch(self.name, epoch, total / seen, mean, log_evidence, note)

    def _value(self, input: Any, target: Tensor) -> Tensor:
        output = answer(self.model, input)
        if self.evidence is not None:
            return self.evidence.loss(output, target)
        return self._loss(getattr(output, "tensor", output), target)

    def _weights_step(self, input: Any, target: Tensor, index: int) -> float:
        loss = self._value(input, target)
        if not torch.isfinite(loss):
            raise DataError(f"batch {index}", "the loss is not finite", remedy="lower the learning rate")
        self.model.zero_grad()
        loss.backward()
        self.descent.step()
        if self.settings.normalise:
            for layer in self.layers.values():
                layer.normalise()
        return float(loss.detach())

    def _architecture_step(self, loss: Tensor, index: int) -> float:
        if not torch.isfinite(loss):
            raise DataError(f"held-out batch {index}", "the loss is not finite", remedy="lower the learning rates")
        for alpha, gradient in zip(self.alphas, torch.autograd.grad(loss, self.alphas)):
            alpha.grad = gradient
        self.architect.step()
        return float(loss.detach())

    def _evidence_step(self, evidence: Evidence, epoch: int, penalty: Callable[[], Tensor]) -> tuple[float, str]:
        """Precisions, then shares, up the evidence; waits, as ``fit`` does, while the network has learned nothing."""
        data = self.loaders[0] if self.loaders[2] is None else self.loaders[2]
        terms = evidence.refresh(data)
        if self.constant is None:
            targets = [target for _, target in batches(self.loaders[0], self.device)]
            self.constant = evidence.likelihood.joint_constant_loss(targets)
        if epoch < self.settings.epochs // 2 and evidence.mean_loss > LEARNED * self.constant:
            return terms.total / terms.num_data, "no better than a constant yet: precisions and shares wait"
        evidence.step(self.settings.hypersteps)
        gradients = evidence.hypergradient(data, self.alphas)
        rest = penalty()
        soft = (
            torch.autograd.grad(rest, self.alphas, allow_unused=True) if rest.requires_grad else [None] * len(gradients)
        )
        for alpha, up, down in zip(self.alphas, gradients, soft):
            alpha.grad = -up / terms.num_data + (0 if down is None else down)
        terms = evidence.terms()
        self.architect.step()
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

    def _record(self, always: bool = False) -> None:
        if not always:
            self.step += 1
        if not self.alphas or not (always or self.step % self.settings.record_every == 0):
            return
        if self.steps[-1] == self.step:
            self.steps.pop()
            for of in self.shares.values():
                of.pop()
        self.steps.append(self.step)
        for name, layer in self.layers.items():
            self.shares[name].append(tuple(layer.shares.values()))
