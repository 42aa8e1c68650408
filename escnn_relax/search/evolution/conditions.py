"""Under which conditions the individuals of a search are trained and judged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from ...deprecation import warn_former
from ...errors import ArgumentError
from .individual import Individual

__all__ = ["SELECTIONS", "ConditionKeywords", "Conditions", "SearchKeywords", "SelectionKeywords"]

SELECTIONS = ("score", "pareto", "evidence", "random")


@dataclass(frozen=True)
class Conditions:
    """What :func:`~escnn_relax.search.evolution.evolve` and :func:`~escnn_relax.search.static` take as keywords.

    Attributes:
        epochs: passes over the data for each individual of each generation; fractions count, and 0 trains nothing.
        selection: ``"score"``; ``"pareto"``: the front of score and number of parameters, filled up by score;
            ``"evidence"``: by the log evidence of the strict networks, each trained under its own prior precisions,
            which its children inherit; ``"random"``, an ablation.
        groups: ids of the subgroups to choose from; all by default.
        stages: names of the layers at which the group may change; all steerable layers by default.
        loss: function of output and target, averaged over samples (the likelihood's own where the evidence selects).
        likelihood: of the evidence.
        evidence_loader: data for the curvature, ``train_loader`` by default; that of a part is scaled up.
        evidence_options: further arguments of :class:`~escnn_relax.Evidence`, e.g. ``{"curvature": "exact"}``.
        hypersteps: updates of the prior precisions for each individual.
        optimizer: function from a list of parameters to an optimizer; Adam with ``lr`` by default. It is called anew
            for every individual and generation: a clone has no advantage of a warmer optimizer over its changed
            sisters.
        lr: learning rate of the default optimizer.
        seed: with an individual's id it gives that individual's random numbers, so that the result depends on nothing
            else.
        workers: processes, one thread each; the result is the same for any number. From 2 on, model, loader and
            functions must be picklable.
        retries: how often a generation goes on after a worker died.
        checkpoint: a folder in which every finished individual and generation is kept; if it holds this search, it
            continues from there with the same result.
        progress: show a progress bar.
        callback: called with the record of each individual once its generation is selected.

    >>> Conditions(epochs=2, selection="pareto").workers
    1
    """

    epochs: float = 0.5
    selection: str = "score"
    groups: Sequence[Any] | None = None
    stages: Sequence[str] | None = None
    loss: Callable[[Any, Tensor], Tensor] = F.cross_entropy
    likelihood: str = "categorical"
    evidence_loader: Iterable[Any] | None = None
    evidence_options: Mapping[str, Any] | None = None
    hypersteps: int = 5
    optimizer: Callable[[list[Any]], Optimizer] | None = None
    lr: float = 5e-3
    seed: int = 0
    workers: int = 1
    retries: int = 2
    checkpoint: None | str | Path = None
    progress: bool = True
    callback: Callable[[Individual], None] | None = None

    def check(self, score: Any) -> None:
        """Raise ``ArgumentError`` for values that make no sense."""
        if self.selection not in SELECTIONS:
            remedy = "leave it out for the default"
            raise ArgumentError(
                "", expected=f"selection to be one of {SELECTIONS}", got=repr(self.selection), remedy=remedy
            )
        if not self.epochs >= 0 or self.workers < 1 or self.retries < 0:
            got = {"epochs": self.epochs, "workers": self.workers, "retries": self.retries}
            remedy = "leave out what should have its default"
            raise ArgumentError("", expected="epochs, retries >= 0 and workers >= 1", got=got, remedy=remedy)
        if score is None and self.selection != "evidence":
            raise ArgumentError(
                "", f"selection={self.selection!r} needs a score", remedy="pass a function of the model"
            )
        if score is not None and not callable(score):
            remedy = "pass a function from a model to a number, or leave it out"
            raise ArgumentError("", expected="score to be a function of the model", got=repr(score), remedy=remedy)


def _of(cls: type[Conditions], title: str, options: dict[str, Any]) -> Conditions:
    warn_former("Conditions.of(title, options)", "Conditions(**options)")
    return cls(**options)


setattr(Conditions, "of", classmethod(_of))


class ConditionKeywords(TypedDict, total=False):
    """The fields of :class:`Conditions` but for the selection, as keywords."""

    epochs: float
    groups: Sequence[Any] | None
    stages: Sequence[str] | None
    loss: Callable[[Any, Tensor], Tensor]
    likelihood: str
    evidence_loader: Iterable[Any] | None
    evidence_options: Mapping[str, Any] | None
    hypersteps: int
    optimizer: Callable[[list[Any]], Optimizer] | None
    lr: float
    seed: int
    workers: int
    retries: int
    checkpoint: None | str | Path
    progress: bool
    callback: Callable[[Individual], None] | None


class SelectionKeywords(ConditionKeywords, total=False):
    """The same with the selection."""

    selection: str


class SearchKeywords(ConditionKeywords, total=False):
    """The same with what only a search of several generations has."""

    generations: int
    population: int
