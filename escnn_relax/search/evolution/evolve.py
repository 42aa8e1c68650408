"""Evolutionary search along the lattice of subgroups: networks give up symmetry, layer by layer, and the best stay.

Maile, Wilson, Forré: *Equivariance-aware architectural optimization of neural networks*, ICLR 2023 (EquiNAS_E). Beyond
it: selection by the log evidence, which needs no validation data; any group, model and score; runs that can be killed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Unpack

from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from ...errors import ArgumentError, naming, nearest
from .conditions import Conditions, SearchKeywords, SelectionKeywords
from .generations import Generations
from .individual import Individual
from .results import EvolutionResult

__all__ = ["evolve", "random_search", "static"]

Score = Callable[[nn.Module], float] | None
Model = nn.Module | Callable[[], nn.Module]


def evolve(
    model: Model,
    train_loader: Iterable[Any],
    score: Score = None,
    *,
    generations: int = 10,
    population: int = 5,
    epochs: float = 0.5,
    selection: str = "score",
    groups: Sequence[Any] | None = None,
    stages: Sequence[str] | None = None,
    loss: Callable[[Any, Tensor], Tensor] = F.cross_entropy,
    likelihood: str = "categorical",
    evidence_loader: Iterable[Any] | None = None,
    evidence_options: Mapping[str, Any] | None = None,
    hypersteps: int = 5,
    optimizer: Callable[[list[Any]], Optimizer] | None = None,
    lr: float = 5e-3,
    seed: int = 0,
    workers: int = 1,
    retries: int = 2,
    checkpoint: None | str | Path = None,
    progress: bool = True,
    callback: Callable[[Individual], None] | None = None,
) -> EvolutionResult:
    """Evolve which group each layer of an escnn network keeps.

    Generation 0 is the network itself, trained for ``epochs``. In every further one each survivor has as children an
    unchanged clone and the network after every single move: its last stage one step down the lattice, or a stage down
    to the smaller group of the one behind it. Children start with their parent's function, are trained for ``epochs``
    and judged; the best ``population`` of them survive. Symmetry never increases with depth, and every network's
    subgroups are in one embedding.

    Args:
        model: an escnn network, left alone; or a function without arguments that makes one, called after seeding. In
            its ``forward``, modules must be used in the order in which they are registered, since from a stage on
            everything registered after it lives on the smaller group.
        train_loader: yields ``(input, target)``; re-iterable.
        score: function of a trained model in evaluation mode, larger is better. It may be left out for
            ``selection="evidence"``.
        generations: rounds of reproduction; 0 trains and judges the initial network only.
        population: number of survivors of each generation.
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
        optimizer: function from a list of parameters to an optimizer, called anew for every individual and generation;
            Adam with ``lr`` by default.
        lr: learning rate of the default optimizer.
        seed: with an individual's id it gives that individual's random numbers.
        workers: processes, one thread each; the result is the same for any number. From 2 on, model, loader and
            functions must be picklable.
        retries: how often a generation goes on after a worker died.
        checkpoint: a folder in which every finished individual and generation is kept; if it holds this search, it
            continues from there with the same result.
        progress: show a progress bar.
        callback: called with the record of each individual once its generation is selected.

    Raises:
        ArgumentError: numbers that make no sense (an empty population, a negative budget), a score that is missing or
            no number, something that cannot be sent to workers.
        SubgroupError: ids that name no subgroup of the network's group, or one twice.
        UnsupportedModuleError: no steerable layer; modules used in another order than they are registered in, which a
            first pass finds out; something that skips over a change of group.
        DataError: a loader that is empty or can be gone through only once.
        SearchError: no individual of a generation has a finite score (one that has none is passed over and its record
            says why), or workers died more than ``retries`` times. Finished individuals stay in ``checkpoint``.
        CheckpointError: a checkpoint of another search.

    >>> import torch
    >>> from escnn import gspaces, nn as enn
    >>> space = gspaces.rot2dOnR2(4)
    >>> gray, fields = enn.FieldType(space, [space.trivial_repr]), enn.FieldType(space, [space.regular_repr])
    >>> net = enn.SequentialModule(enn.R2Conv(gray, fields, 3), enn.ReLU(fields), enn.R2Conv(fields, fields, 3))
    >>> data = [(gray(torch.randn(4, 1, 5, 5)), torch.randn(4, 4, 1, 1))]
    >>> size = lambda m: float(sum(p.numel() for p in m.parameters()))
    >>> options = {"loss": torch.nn.functional.mse_loss, "progress": False}
    >>> found = evolve(net, data, size, generations=1, population=1, **options)
    >>> [one.groups for one in found.individuals], found.winner.groups
    (['C4²', 'C4²', 'C4 C2'], 'C4 C2')
    """
    conditions = Conditions(
        epochs=epochs, selection=selection, groups=groups, stages=stages, loss=loss, likelihood=likelihood,
        evidence_loader=evidence_loader, evidence_options=evidence_options, hypersteps=hypersteps, optimizer=optimizer,
        lr=lr, seed=seed, workers=workers, retries=retries, checkpoint=checkpoint, progress=progress, callback=callback,
    )  # fmt: skip
    with naming("evolve"):
        conditions.check(score)
    if not isinstance(population, int) or population < 1:
        problem = "an empty population has no winner" if population == 0 else ""
        remedy = "pass how many candidates survive each generation"
        raise ArgumentError(
            "evolve", problem, expected="population to be a whole number >= 1", got=population, remedy=remedy
        )
    if not isinstance(generations, int) or generations < 0:
        remedy = "pass 0 to evaluate the first population alone"
        raise ArgumentError("evolve", expected="generations to be a whole number >= 0", got=generations, remedy=remedy)
    return Generations(model, train_loader, score, population, conditions, {"generations": generations}).run(
        generations
    )


def random_search(
    model: Model, train_loader: Iterable[Any], score: Score, **options: Unpack[SearchKeywords]
) -> EvolutionResult:
    """:func:`evolve` with survivors drawn at random, as an ablation: what the selection is worth.

    Args:
        options: the other arguments of :func:`evolve`, which says what they mean.

    >>> import torch
    >>> from escnn import gspaces, nn as enn
    >>> space = gspaces.rot2dOnR2(4)
    >>> gray, fields = enn.FieldType(space, [space.trivial_repr]), enn.FieldType(space, [space.regular_repr])
    >>> net = enn.SequentialModule(enn.R2Conv(gray, fields, 3), enn.ReLU(fields), enn.R2Conv(fields, fields, 3))
    >>> data = [(gray(torch.randn(4, 1, 5, 5)), torch.randn(4, 4, 1, 1))]
    >>> options = {"loss": torch.nn.functional.mse_loss, "generations": 0, "progress": False}
    >>> len(random_search(net, data, lambda m: 0.0, **options).individuals)
    1
    """
    arguments: dict[str, Any] = dict(options)
    if "selection" in arguments:
        raise ArgumentError("random_search", "it selects at random", got=arguments["selection"], remedy="call evolve")
    return evolve(model, train_loader, score, selection="random", **arguments)


def static(
    model: Model,
    train_loader: Iterable[Any],
    score: Score,
    genomes: int | Sequence[Sequence[str]],
    **options: Unpack[SelectionKeywords],
) -> EvolutionResult:
    """Train given architectures, or so many random ones, from random filters and without any search, as a baseline.

    Args:
        genomes: a number of random ones, each with the same probability among all whose symmetry does not increase with
            depth; or lists of group names, one for each stage, e.g. ``[3 * ["D4"], 3 * ["C4"]]``.
        options: as for :func:`evolve`; 10 epochs by default.

    >>> import torch
    >>> from escnn import gspaces, nn as enn
    >>> space = gspaces.rot2dOnR2(4)
    >>> gray = enn.FieldType(space, [space.trivial_repr])
    >>> fields = enn.FieldType(space, [space.regular_repr])
    >>> net = enn.SequentialModule(enn.R2Conv(gray, fields, 3), enn.ReLU(fields), enn.R2Conv(fields, fields, 3))
    >>> data = [(gray(torch.randn(4, 1, 5, 5)), torch.randn(4, 4, 1, 1))]
    >>> count = lambda m: -float(sum(p.numel() for p in m.parameters()))
    >>> chains = [["C4", "C4"], ["C4", "trivial"]]
    >>> found = static(net, data, count, chains, epochs=1, loss=torch.nn.functional.mse_loss, progress=False)
    >>> [(one.groups, one.parameters) for one in found.individuals], found.winner.id
    ([('C4²', 32), ('C4 trivial', 107)], 0)
    """
    known = [field.name for field in fields(Conditions)]
    for name in options:
        if name not in known:
            raise ArgumentError("static", f"it has no argument {name!r}", remedy=nearest(name, known, most=30))
    options.setdefault("epochs", 10)
    conditions = Conditions(**options)
    with naming("static"):
        conditions.check(score)
    if isinstance(genomes, int) and genomes < 1 or not isinstance(genomes, int) and not list(genomes):
        remedy = "pass tuples of subgroup names, one for each stage"
        raise ArgumentError("static", expected="at least one genome", got=genomes, remedy=remedy)
    settings = {"genomes": genomes if isinstance(genomes, int) else [list(g) for g in genomes]}
    return Generations(model, train_loader, score, 1, conditions, settings).run(0, genomes)
