"""The work on one individual: inherit, train, judge. It runs in any process and depends on nothing but its
arguments."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...curvature.checked_batches import call
from ...errors import ArgumentError, CurvatureError, DataError
from ...evidence import Evidence
from ...evidence.random_state import generators
from ...training.epochs import train_epoch
from ...training.loaders import data_size
from .genome import Genome
from .network import Shells, State, fill, parts_apart, read, scatter, transfer

__all__ = ["Context", "Outcome", "Task"]


@dataclass(frozen=True)
class Task:
    """One individual to be made.

    Attributes:
        id: of the individual.
        genome: its own.
        parent_genome: that of the state it inherits; ``None`` for the template's own weights.
        state: the inherited weights.
        log_precision: the inherited log prior precisions, in the order of the covered parameters.
        fresh: start with random filters instead.
        seed: of all random numbers.
        epochs: passes over the training data; fractions count.
    """

    id: int
    genome: Genome
    parent_genome: Genome | None
    state: State | None
    log_precision: list[float] | None
    fresh: bool
    seed: int
    epochs: float


@dataclass(frozen=True)
class Outcome:
    """What became of it.

    Attributes:
        score: of the user's function, NaN if there is none or it failed.
        loss: mean training loss, NaN without training.
        log_evidence: log evidence / N (nats a sample), NaN where it is not asked for.
        note: what went wrong; empty if nothing did.
    """

    id: int
    state: State
    parameters: int
    score: float
    loss: float
    log_evidence: float
    log_precision: list[float] = field(default_factory=list)
    note: str = ""


@dataclass
class Context:
    """What all individuals of a search share; pickled once for each worker."""

    shells: Shells
    train_loader: Iterable[Any]
    score: Callable[[nn.Module], float] | None
    loss: Callable[[Any, Tensor], Tensor]
    optimizer: Callable[[list[Any]], Optimizer]
    likelihood: str | None
    evidence_loader: Iterable[Any] | None
    evidence_options: Mapping[str, Any]
    hypersteps: int

    def work(self, task: Task) -> Outcome:
        """Make one individual."""
        self._seed(task.seed)
        model = self._inherit(task)
        evidence = None
        if self.likelihood is not None:
            options = {"num_data": data_size(self.train_loader), "relaxed_only": False, **self.evidence_options}
            evidence = Evidence(model, self.likelihood, **options)
            if task.log_precision:
                evidence.log_precision = dict(zip(evidence.log_precision, task.log_precision, strict=True))
        loss, score, log_evidence, note = math.nan, math.nan, math.nan, ""
        try:
            loss = self._train(model, task.epochs, evidence)
            if evidence is not None:
                evidence.refresh(self.train_loader if self.evidence_loader is None else self.evidence_loader)
                terms = evidence.step(self.hypersteps)
                log_evidence = terms.total / terms.num_data
        except (DataError, CurvatureError) as error:
            note = str(error)
        if self.score is not None and not note:
            score = self._judge(model, self.score)
            note = "" if math.isfinite(score) else f"the score is {score}"
        precisions = [] if evidence is None else [float(v) for v in evidence.log_precision.values()]
        parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        return Outcome(task.id, read(model), parameters, score, loss, log_evidence, precisions, note)

    def _seed(self, seed: int) -> None:
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        for generator, offset in zip(generators(self.train_loader, self.evidence_loader), count(1)):
            generator.manual_seed(seed + offset)

    def _inherit(self, task: Task) -> nn.Module:
        model = self.shells(task.genome)
        if task.state is None or task.parent_genome is None:
            if set(task.genome) == {self.shells.ladder.whole}:
                fill(model, read(self.shells.template))
            else:
                transfer(self.shells.template, model)
            return scatter(model) if task.fresh else model
        if task.parent_genome == task.genome:
            return fill(model, task.state)
        return transfer(fill(self.shells(task.parent_genome), task.state), model)

    def _train(self, model: nn.Module, epochs: float, evidence: Evidence | None) -> float:
        """Loss averaged over samples; NaN without training."""
        optimizer = self.optimizer([p for p in model.parameters() if p.requires_grad])

        def loss(input: Any, target: Any) -> Tensor:
            output = self._output(model, input)
            if evidence is not None:
                return evidence.loss(output, target)
            return self.loss(getattr(output, "tensor", output), target)

        total, seen, left = 0.0, 0, epochs
        while left > 0:
            size = len(self.train_loader) if isinstance(self.train_loader, Sized) else sum(1 for _ in self.train_loader)
            steps = max(1, round(min(left, 1.0) * size))
            done = train_epoch(model, self.train_loader, optimizer, loss, steps=steps)
            total, seen = done.total(total), seen + done.count
            left -= 1
        if epochs and not seen:
            raise DataError("train_loader", "it yields no batch", remedy="pass a non-empty, re-iterable loader")
        return total / seen if seen else math.nan

    def _output(self, model: nn.Module, input: Any) -> Any:
        try:
            return call(model, input)
        except AssertionError as error:  # escnn's word for fields of the wrong type
            raise parts_apart(model, error) from error

    def _judge(self, model: nn.Module, score: Callable[[nn.Module], float]) -> float:
        model.train()
        with torch.no_grad():  # or escnn's layers keep filters with a graph
            value = score(model.eval())
        try:
            return float(value)
        except (TypeError, ValueError) as error:
            remedy = "let the score function return a float"
            raise ArgumentError("score", expected="one number", got=repr(value), remedy=remedy) from error
