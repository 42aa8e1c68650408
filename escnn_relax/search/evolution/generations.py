"""The generations of an evolutionary search: who has which children, and who survives."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from escnn.nn import FieldType
from torch import nn

from ...errors import ArgumentError, FieldTypeError, SearchError
from .conditions import Conditions
from .genome import Genome, Ladder
from .individual import Individual, pareto_front
from .network import Shells, fill, stages_of
from .order_of_use import check_order
from .results import EvolutionResult
from .task import Context, Outcome, Task
from .weights_store import Store, fingerprint
from .workers import Crew

__all__ = ["Generations"]


class Generations:
    """One search: reproduction, work, selection.

    Its loop is not that of :func:`~escnn_relax.training.epochs.run_epochs`, which takes one model from epoch to epoch:
    a generation has many, each trained by :func:`~escnn_relax.training.epochs.train_epoch` in whatever process is
    free, and none of them goes on.

    Args:
        settings: what decides about the result besides the conditions, as plain values.
    """

    def __init__(
        self,
        model: nn.Module | Callable[[], nn.Module],
        train_loader: Iterable[Any],
        score: Callable[[nn.Module], float] | None,
        population: int,
        conditions: Conditions,
        settings: dict[str, Any],
    ) -> None:
        if not isinstance(model, nn.Module):
            state = torch.get_rng_state()
            torch.manual_seed(conditions.seed)
            model = model()
            torch.set_rng_state(state)
            if not isinstance(model, nn.Module):
                remedy = "pass the model itself, or lambda: Net()"
                raise ArgumentError(
                    "model", expected="a module, or a function that makes one", got=type(model).__name__, remedy=remedy
                )
        root = next((t for m in model.modules() if isinstance(t := getattr(m, "in_type", None), FieldType)), None)
        if root is None:
            remedy = "pass an escnn model, or one with escnn modules inside"
            raise FieldTypeError(
                type(model).__name__, "the model has no field type, so there is no group to search", remedy=remedy
            )
        self.stages = stages_of(model, conditions.stages)
        self.ladder = Ladder(root.gspace, conditions.groups)
        self.population, self.conditions = population, conditions
        self.criterion = "log_evidence" if conditions.selection == "evidence" else "score"
        likelihood = conditions.likelihood if conditions.selection == "evidence" else None
        optimizer = conditions.optimizer or partial(torch.optim.Adam, lr=conditions.lr)
        self.shells = Shells(model, self.stages, self.ladder)
        curvature = conditions.evidence_loader, conditions.evidence_options or {}, conditions.hypersteps
        context = Context(self.shells, train_loader, score, conditions.loss, optimizer, likelihood, *curvature)
        self.crew = Crew(context, conditions.workers, conditions.retries)
        check_order(model, self._boundaries(settings.get("genomes")), train_loader)
        run = {
            **settings,
            **{name: getattr(conditions, name) for name in ("epochs", "selection", "seed", "hypersteps", "lr")},
            "population": population,
            "groups": [repr(h.id) for h in self.ladder.members.values()],
            "stages": list(self.stages),
            "likelihood": likelihood,
            "evidence": [conditions.evidence_loader is not None, sorted((conditions.evidence_options or {}).items())],
            "optimizer": _name(optimizer),
            "loss": None if likelihood else _name(conditions.loss),
            "weights": fingerprint(model),
        }
        self.store = Store(conditions.checkpoint, run)

    def run(self, generations: int, genomes: None | int | Sequence[Sequence[str]] = None) -> EvolutionResult:
        """Go on until so many generations after the first are there.

        Args:
            genomes: the first generation, from random filters: given, or so many at random; by default the model
                itself.
        """
        stored = self.store.generations()
        individuals = [Individual(**{**e, "genome": tuple(e["genome"])}) for g in stored for e in g["individuals"]]
        before = [
            individual for individual in individuals if individual.generation == len(stored) - 1 and individual.survived
        ]
        before.sort(key=lambda individual: stored[-1]["survivors"].index(individual.id))
        try:
            for generation in range(len(stored), generations + 1):
                tasks, drafts = self._reproduce(before, generation, len(individuals), genomes)
                self._work(tasks, generation)
                born = [self._judged(draft) for draft in drafts]
                chosen = self._select(born, generation)
                born = [
                    Individual(**{**asdict(individual), "survived": individual.id in chosen}) for individual in born
                ]
                individuals += born
                stored.append({"individuals": [asdict(individual) for individual in born], "survivors": chosen})
                self.store.record(stored, set(chosen))
                before = [next(individual for individual in born if individual.id == id) for id in chosen]
                if (callback := self.conditions.callback) is not None:
                    for individual in born:
                        callback(individual)
        finally:
            self.crew.close()
        winner = max(before, key=lambda individual: (self._value(individual), -individual.id))
        last = [individual for individual in individuals if individual.generation == individuals[-1].generation]
        front = pareto_front((individual.id, self._value(individual), individual.parameters) for individual in last)
        model = fill(self.shells.build(winner.genome), self.store.outcome(winner.id).state)
        with torch.no_grad():  # or escnn's layers keep filters with a graph, which cannot be copied
            model.eval()
        return EvolutionResult(model, winner, tuple(individuals), tuple(front), self.stages, self.criterion)

    def _boundaries(self, genomes: None | int | Sequence[Sequence[str]]) -> list[str]:
        """The stages at which the group may change: any in a search, those of the given architectures otherwise."""
        if genomes is None or isinstance(genomes, int):
            return list(self.stages)
        chains = [(self.ladder.whole, *self.ladder.check(genome, len(self.stages))) for genome in genomes]
        return [stage for n, stage in enumerate(self.stages) if any(chain[n] != chain[n + 1] for chain in chains)]

    def _value(self, individual: Individual) -> float:
        value = getattr(individual, self.criterion)
        return value if math.isfinite(value) else -math.inf

    def _reproduce(
        self,
        parents: Sequence[Individual],
        generation: int,
        first: int,
        genomes: None | int | Sequence[Sequence[str]],
    ) -> tuple[list[Task], list[dict[str, Any]]]:
        """The tasks of a generation, and what is known of its individuals beforehand."""
        offspring: list[tuple[Individual | None, Genome, str]] = []
        if generation == 0:
            draw = random.Random(self.conditions.seed)
            whole = len(self.stages) * (self.ladder.whole,)
            if genomes is None:
                offspring = [(None, whole, "start")]
            elif isinstance(genomes, int):
                offspring = [(None, self.ladder.random(len(self.stages), draw), "random") for _ in range(genomes)]
            else:
                offspring = [(None, self.ladder.check(g, len(self.stages)), "given") for g in genomes]
        for survivor in parents:
            offspring += [(survivor, genome, change) for genome, change in self.ladder.children(survivor.genome)]
        tasks, drafts = [], []
        for id, (parent, genome, change) in enumerate(offspring, first):
            known = None if parent is None else self.store.outcome(parent.id)
            tasks.append(
                Task(
                    id=id, genome=genome, parent_genome=None if parent is None else parent.genome,
                    state=None if known is None else known.state,
                    log_precision=None if known is None else known.log_precision, fresh=genomes is not None,
                    seed=(1_000_003 * self.conditions.seed + 7919 * id + 1) % 2**31, epochs=self.conditions.epochs,
                )
            )  # fmt: skip
            parent_id = None if parent is None else parent.id
            drafts.append({"id": id, "parent": parent_id, "generation": generation, "genome": genome, "change": change})
        return tasks, drafts

    def _work(self, tasks: list[Task], generation: int) -> None:
        """Make what is not there yet."""
        from tqdm import tqdm

        missing = [task for task in tasks if self.store.get(task.id) is None]
        title = f"generation {generation}"
        with tqdm(
            total=len(tasks), initial=len(tasks) - len(missing), desc=title, disable=not self.conditions.progress
        ) as bar:

            def done(outcome: Outcome) -> None:
                self.store.put(outcome)
                bar.update()

            self.crew.run(missing, done)

    def _judged(self, draft: dict[str, Any]) -> Individual:
        outcome = self.store.outcome(draft["id"])
        figures = {name: getattr(outcome, name) for name in ("parameters", "loss", "score", "log_evidence", "note")}
        return Individual(**draft, **figures, survived=False)

    def _select(self, born: list[Individual], generation: int) -> list[int]:
        """Ids of the survivors, the best first."""
        able = [individual for individual in born if math.isfinite(getattr(individual, self.criterion))]
        if not able:
            notes = (
                "; ".join(dict.fromkeys(individual.note for individual in born if individual.note))
                or "no score is finite"
            )
            raise SearchError(
                f"generation {generation}",
                f"none of {len(born)} individuals has a finite {self.criterion.replace('_', ' ')}: {notes}",
                remedy="mend the score or lower the learning rate",
            )
        ranked = sorted(able, key=lambda individual: (-self._value(individual), individual.id))
        if self.conditions.selection == "random":
            ranked = random.Random(1_000_003 * self.conditions.seed + generation).sample(ranked, len(ranked))
        if self.conditions.selection == "pareto":
            front = set(
                pareto_front((individual.id, self._value(individual), individual.parameters) for individual in able)
            )
            ranked.sort(
                key=lambda individual: individual.id not in front
            )  # stable: by score within the front and behind it
        return [individual.id for individual in ranked[: self.population]]


def _name(function: Any) -> str:
    if isinstance(function, partial):
        return f"{_name(function.func)}{sorted(function.keywords.items())}"
    return getattr(function, "__qualname__", type(function).__qualname__)
