"""One phase of a differentiable search: epochs of alternating steps, stored after each, continued from there."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Optional, Sequence, Union

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..curvature.collect import batches, check_weights
from ..errors import CheckpointError, DataError
from ..evidence import Evidence
from ..evidence import checkpoint as disk
from ..evidence.fit import LEARNED
from ..evidence.loading import generators
from ..morphism.mix import mixed_layers
from .shares_history import SearchEpoch

__all__ = ["Phase", "Settings"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """The arguments of :func:`~escnn_relax.search.differentiate` that decide about its result."""

    epochs: int
    by: str
    lr: float
    architecture_lr: float
    entropy: float
    monotone: float
    normalise: bool
    burn_in: int
    refresh_every: int
    hypersteps: int
    discretise: Any
    retrain: int
    record_every: int
    seed: int


class Phase:
    """The state of one phase, and what moves it.

    Args:
        name: ``"search"`` or ``"retrain"``.
        loaders: for the weights, the architecture weights and the curvature; the last two may be missing.
        alphas: the architecture weights that are trained; none when retraining.
        before: the phase before this one, whose state is stored along.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        loaders: tuple[Iterable, Optional[Iterable], Optional[Iterable]],
        settings: Settings,
        optimizer: Optional[Callable[[list], Optimizer]],
        loss: Callable[[Any, Tensor], Tensor],
        alphas: Sequence[nn.Parameter],
        evidence: Optional[Evidence],
        before: Optional["Phase"] = None,
    ) -> None:
        self.name, self.model, self.loaders, self.settings, self.before = name, model, loaders, settings, before
        self.layers = mixed_layers(model)
        self.groups = {n: tuple(layer.group_names.values()) for n, layer in self.layers.items()}
        self.alphas, self.evidence, self._loss = list(alphas), evidence, loss
        architecture = {id(layer.alpha) for layer in self.layers.values()}
        weights = [p for p in model.parameters() if p.requires_grad and id(p) not in architecture]
        self.descent = torch.optim.Adam(weights, lr=settings.lr) if optimizer is None else optimizer(weights)
        self.architect = torch.optim.Adam(self.alphas, lr=settings.architecture_lr) if self.alphas else None
        self.device = next(model.parameters()).device
        self.step, self.steps = 0, [0]
        self._shares = {n: [tuple(layer.shares.values())] for n, layer in self.layers.items()}
        self._constant: Optional[float] = None

    def seed(self, seed: int) -> None:
        """Start torch's generator and those of the loaders from a seed."""
        torch.manual_seed(seed)
        for generator, offset in zip(generators(*self.loaders), count(1)):
            generator.manual_seed(seed + offset)

    def recorded(self) -> dict[str, tuple[tuple[float, ...], ...]]:
        """Shares of each layer at :attr:`steps`."""
        return {name: tuple(of) for name, of in self._shares.items()}

    # --- training -----------------------------------------------------------------------------------------------------

    def run(
        self,
        epochs: int,
        records: list[SearchEpoch],
        checkpoint: Union[None, str, Path],
        progress: bool,
        callback: Optional[Callable[[SearchEpoch], None]],
        penalty: Optional[Callable[[], Tensor]],
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
                    self.save(checkpoint, records)
                if callback is not None:
                    callback(record)
                bar.set_postfix(loss=f"{record.loss:.3f}", refresh=False)
        except KeyboardInterrupt:
            if checkpoint is not None:
                _log.warning("interrupted; call differentiate again with checkpoint=%s to go on", checkpoint)
            raise

    def _epoch(self, epoch: int, penalty: Optional[Callable[[], Tensor]]) -> SearchEpoch:
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
            log_evidence, note = self._evidence_step(epoch, penalty)
            self.model.train()
        self._record(always=True)
        mean = architecture / steps if steps else float("nan")
        return SearchEpoch(self.name, epoch, total / seen, mean, log_evidence, note)

    def _value(self, input, target: Tensor) -> Tensor:
        output = self.model(input)
        if self.evidence is not None:
            return self.evidence.loss(output, target)
        return self._loss(getattr(output, "tensor", output), target)

    def _weights_step(self, input, target: Tensor, index: int) -> float:
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

    def _evidence_step(self, epoch: int, penalty: Callable[[], Tensor]) -> tuple[float, str]:
        """Precisions, then shares, up the evidence; waits, as ``fit`` does, while the network has learned nothing."""
        data = self.loaders[0] if self.loaders[2] is None else self.loaders[2]
        terms = self.evidence.refresh(data)
        if self._constant is None:
            targets = torch.cat([target for _, target in batches(self.loaders[0], self.device)])
            self._constant = self.evidence.likelihood.constant_loss(targets)
        if epoch < self.settings.epochs // 2 and self.evidence.mean_loss > LEARNED * self._constant:
            return terms.total / terms.num_data, "no better than a constant yet: precisions and shares wait"
        self.evidence.step(self.settings.hypersteps)
        gradients = self.evidence.hypergradient(data, self.alphas)
        rest = penalty()
        soft = torch.autograd.grad(rest, self.alphas, allow_unused=True) if rest.requires_grad else [None] * len(gradients)
        for alpha, up, down in zip(self.alphas, gradients, soft):
            alpha.grad = -up / self.evidence.num_data + (0 if down is None else down)
        terms = self.evidence.terms()
        self.architect.step()
        return terms.total / terms.num_data, ""

    def _second_batches(self) -> Iterator[tuple]:
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
            for of in self._shares.values():
                of.pop()
        self.steps.append(self.step)
        for name, layer in self.layers.items():
            self._shares[name].append(tuple(layer.shares.values()))

    # --- on disk ------------------------------------------------------------------------------------------------------

    def description(self) -> dict[str, Any]:
        """All that decides about the result, as plain values."""
        origin = self if self.before is None else self.before
        described = {
            **asdict(self.settings),
            "parameters": {n: [str(p.dtype), *p.shape] for n, p in origin.model.named_parameters()},
            "groups": {n: list(of) for n, of in origin.groups.items()},
            "optimiser": type(origin.descent).__name__,
            "other data": [loader is not None for loader in self.loaders[1:]],
        }
        return disk.plain(described)

    def _state(self) -> dict[str, Any]:
        self.model.train()
        return {
            "model": self.model.state_dict(),
            "descent": self.descent.state_dict(),
            "architect": None if self.architect is None else self.architect.state_dict(),
            "evidence": None if self.evidence is None else self.evidence.state_dict(),
            "constant": self._constant,  # stored, since finding it out again would draw from the loader's generator
            "step": self.step,
            "steps": list(self.steps),
            "shares": {n: [list(s) for s in of] for n, of in self._shares.items()},
        }

    def save(self, path: Union[str, Path], records: Sequence[SearchEpoch]) -> None:
        """Write everything that :meth:`resume` needs."""
        states = {} if self.before is None else {self.before.name: self.before._state()}
        states[self.name] = self._state()
        state = {
            "run": self.description(),
            "records": [asdict(record) for record in records],
            "random": disk.random_state(self.device),
            "generators": [g.get_state() for g in generators(*self.loaders)],
            **states,
        }
        disk.save(path, state)

    def resume(self, path: Union[None, str, Path]) -> list[SearchEpoch]:
        """Continue from a file, if it exists and has got to this phase; returns all epochs recorded so far."""
        if path is None or not Path(path).exists():
            return []
        stored = disk.load(path, self.description())
        state = stored.get(self.name)
        if state is None:
            return []
        own = list(generators(*self.loaders))
        if len(own) != len(stored["generators"]):
            raise CheckpointError(str(path), "belongs to a run with other random generators in its loaders")
        self.model.train()
        self.model.load_state_dict(state["model"])
        self.descent.load_state_dict(state["descent"])
        if self.architect is not None:
            self.architect.load_state_dict(state["architect"])
        if self.evidence is not None:
            self.evidence.load_state_dict(state["evidence"])
        self.step, self.steps, self._constant = state["step"], list(state["steps"]), state["constant"]
        self._shares = {n: [tuple(s) for s in of] for n, of in state["shares"].items()}
        disk.set_random_state(stored["random"], self.device)
        for generator, saved in zip(own, stored["generators"]):
            generator.set_state(saved)
        return [SearchEpoch(**entry) for entry in stored["records"]]
