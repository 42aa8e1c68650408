"""What a user could pick, by name: each a function from a cell to what it ended with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import escnn_relax
import torch
from escnn_relax.evidence import PriorSettings
from torch import Tensor

from benchmark.cell import Cell, Clock
from benchmark.networks import seeded, weights
from benchmark.question import Question
from benchmark.training import outputs, train

CNN, TRUE, FULL, AVERAGED = "CNN", "CNN, true augmentation", "CNN, full augmentation", "CNN, averaged"
RPP, FREE, FIT, SAME = "RPP, tuned", "relaxed, no evidence", "fit", "fit of the strict network"
TESTED, LATER = "tested, restricted", "tested after a tenth, restricted"
PENALISED = "fit, all weights feel a prior"
#: Ways of earlier versions, which are in the tables and are not run any more: the default until all weights but those
#: that break a symmetry ceased to feel their prior, and precisions that the test suggests to move in the training; and
#: that one with a weak, fixed prior (log precision -4) on the former.
FORMER = ("fit, former default", "fit, former default, weak prior on the rest")
MIXED, EVOLVED = "mixed by gradient", "evolved"
EQUAL_WIDTH, EQUAL_WEIGHTS = "strict", "strict, equal weights"


@dataclass
class Outcome:
    """A prediction and what it cost.

    Attributes:
        predict: inputs to outputs.
        weights: of the network that is kept, after hardening where there is something to harden.
        seconds: of a processor, for all that the method did.
        images: that it looked at in training, searching, testing and curvature.
        evaluations: of a network of the common size for one prediction.
        notes: what it chose.
        final: inputs to outputs after hardening, where that is another network.
    """

    predict: Callable[[Tensor], Tensor]
    weights: int
    seconds: float
    images: int
    evaluations: int = 1
    notes: dict[str, Any] = field(default_factory=dict)
    final: Callable[[Tensor], Tensor] | None = None


Method = Callable[[Cell], Outcome]


def plain(elements: str) -> Method:
    """The ordinary network; ``elements`` says by which group its training data are moved: none, the true one at this
    degree of breaking, or the whole."""

    def method(cell: Cell) -> Outcome:
        question = cell.question
        group = {"none": "C1", "true": question.truth(cell.degree), "full": question.group}[elements]
        if f"plain {group}" not in cell.kept:
            loader = cell.loader()
            with Clock() as clock:
                net = seeded(cell.seed, lambda: question.plain(question.channels))
                train(net, question, loader, cell.passes, question.elements[group])
            cell.kept[f"plain {group}"] = Outcome(
                lambda x: outputs(net, x), weights(net), clock.seconds, loader.images, notes={"moved by": group}
            )
        return cell.kept[f"plain {group}"]

    return method


def averaged(cell: Cell) -> Outcome:
    """The ordinary network, its outputs averaged over the orbit of the input under the whole group, turned back."""
    question, alone = cell.question, plain("none")(cell)
    elements = question.elements[question.group]

    def predict(x: Tensor) -> Tensor:
        total = 0.0
        for element in elements:
            there = alone.predict(question.moves.input(x, element))
            total = total + question.moves.target(there, _inverse(element))
        return total / len(elements)

    return Outcome(predict, alone.weights, alone.seconds, alone.images, len(elements))


def _inverse(element):
    return element if element.mirrored else type(element)(-element.quarters % 4)


def strict(group: str, slim: bool = False) -> Method:
    """The strict network of a subgroup, as wide as that of the whole group or with about as many weights."""

    def method(cell: Cell) -> Outcome:
        fields = slim_fields(cell.question.name, group) if slim else cell.question.fields
        loader = cell.loader()
        with Clock() as clock:
            net = train(cell.strict(group, fields), cell.question, loader, cell.passes)
        notes = {"fields": fields}
        return Outcome(lambda x: outputs(net, x), weights(net), clock.seconds, loader.images, notes=notes)

    return method


@cache
def slim_fields(question: str, group: str) -> int:
    """The number of fields at which the subgroup's network has closest to as many weights as the group's."""
    from benchmark.questions import QUESTIONS

    asked = QUESTIONS[question]
    wanted = weights(asked.network(asked.fields))

    def distance(fields: int) -> float:
        net = asked.network(fields)
        net = net if group == asked.group else escnn_relax.restrict(net, asked.statics[group])
        return abs(math.log(weights(net) / wanted))

    return min(range(1, asked.fields + 1), key=distance)


def tested(share: int = 0) -> Method:
    """The symmetry test, and a strict network of the subgroup that it leaves: at random weights, or with ``share``
    after that part of the passes, when the smaller network goes on from the larger one's function."""

    def method(cell: Cell) -> Outcome:
        question, loader = cell.question, cell.loader()
        first = cell.passes // share if share else 0
        with Clock() as clock:
            net = train(cell.strict(), question, loader, first)
            test = escnn_relax.symmetry_test(net, loader, likelihood=question.likelihood, progress=False)
            if test.network.index > 1:
                net = escnn_relax.restrict(net, test.network.id)
            train(net, question, loader, cell.passes - first)
        notes = {"subgroup": test.network.name}
        return Outcome(lambda x: outputs(net, x), weights(net), clock.seconds, loader.images, notes=notes)

    return method


def fitted(penalty: str | None = None) -> Method:
    """``fit`` with its defaults, from the strict network relaxed; or with all weights feeling their prior."""

    def method(cell: Cell) -> Outcome:
        question, loader = cell.question, cell.loader()
        with Clock() as clock:
            net = escnn_relax.relax(cell.strict())
            torch.manual_seed(cell.seed)
            prior = PriorSettings(penalty=penalty)
            history = escnn_relax.fit(
                net, loader, epochs=cell.passes, likelihood=question.likelihood, progress=False, prior=prior
            )
        final = escnn_relax.harden(net)
        notes = {"changes": [f"{r.epoch}: {r.note}" for r in history.records if r.note]}
        notes["evidence"] = round(history.evidence.terms().total / cell.count, 4)
        costs = weights(final), clock.seconds, loader.images
        return Outcome(lambda x: outputs(net, x), *costs, notes=notes, final=lambda x: outputs(final, x))

    return method


def fitted_strictly(cell: Cell) -> Outcome:
    """The strict network of the whole group, all its weights under priors of the evidence."""
    question, loader = cell.question, cell.loader()
    with Clock() as clock:
        net = cell.strict()
        torch.manual_seed(cell.seed)
        evidence = escnn_relax.Evidence(net, question.likelihood, num_data=cell.count, relaxed_only=False)
        escnn_relax.fit(
            net, loader, epochs=cell.passes, likelihood=question.likelihood, evidence=evidence, progress=False
        )
    return Outcome(lambda x: outputs(net, x), weights(net), clock.seconds, loader.images)


def methods(question: Question) -> dict[str, Method]:
    """All of them for a question, by name, in the order of the tables."""
    from benchmark.rivals import evolved, free, mixed, residual_prior

    groups = list(question.statics)
    found: dict[str, Method] = {f"{EQUAL_WIDTH} {group}": strict(group) for group in groups}
    found |= {f"{EQUAL_WEIGHTS} {group}": strict(group, slim=True) for group in groups[1:]}
    found |= {CNN: plain("none"), TRUE: plain("true"), FULL: plain("full"), AVERAGED: averaged}
    found |= {FREE: free, RPP: residual_prior, MIXED: mixed, EVOLVED: evolved, TESTED: tested()}
    found |= {LATER: tested(share=10), SAME: fitted_strictly, FIT: fitted(), PENALISED: fitted("all")}
    return found


def listed(question: Question) -> list[str]:
    """Names of the methods in a question's tables, in their order."""
    return [*methods(question), *FORMER]


def static(name: str) -> bool:
    """Whether a method is a network whose symmetry is fixed before it sees data; regret is against the best of
    these."""
    return name == CNN or name.startswith(EQUAL_WIDTH)
