"""Methods that need validation data, or a search: the relaxed network without evidence, and three others."""

from __future__ import annotations

import escnn_relax
import torch
from torch import Tensor, nn

from benchmark.cell import Cell, Clock
from benchmark.methods import Outcome
from benchmark.networks import weights
from benchmark.question import Pairs
from benchmark.training import Counted, loss, outputs, train
from escnn_relax.morphism.mix import mixed_layers
from escnn_relax.nn.relaxed_convolution import RelaxedConvolution
from escnn_relax.search import differentiate, evolve

#: Weight decay of the residual pathways that is chosen from (loss per squared weight).
STRENGTHS = (1e-3, 3e-2, 1.0)
#: Of the evolution: rounds, survivors, and the share of the passes that each individual trains in a round.
ROUNDS, SURVIVORS, SHARE = 3, 2, 0.1


def residuals(model: nn.Module) -> list[Tensor]:
    """Weights of the pathways that break the symmetry."""
    layers = [layer for layer in model.modules() if isinstance(layer, RelaxedConvolution)]
    return [layer.weights[p.name] for layer in layers for p in layer.pathways if p.breaks]


def relaxed(cell: Cell, loader: Counted, strength: float) -> nn.Module:
    """All pathways open, trained without evidence."""
    model = escnn_relax.relax(cell.strict())
    of = residuals(model)
    penalty = (lambda: 0.5 * strength * sum(w.square().sum() for w in of)) if strength else None
    return train(model, cell.question, loader, cell.passes, penalty=penalty)


def free(cell: Cell) -> Outcome:
    """The relaxed network without evidence and without a prior."""
    loader = cell.loader()
    with Clock() as clock:
        net = relaxed(cell, loader, 0.0)
    return Outcome(lambda x: outputs(net, x), weights(escnn_relax.harden(net)), clock.seconds, loader.images)


def residual_prior(cell: Cell) -> Outcome:
    """Residual pathway priors (Finzi, Benton, Wilson, NeurIPS 2021): one strength for all residual pathways, chosen by
    the loss on a fifth of the data, then trained on all of them."""
    fewer, held_out = cell.split
    part, whole = cell.loader(fewer), cell.loader()
    with Clock() as clock:
        losses = {s: float(loss(outputs(relaxed(cell, part, s), held_out.x), held_out.y)) for s in STRENGTHS}
        best = min(losses, key=losses.__getitem__)
        net = relaxed(cell, whole, best)
    images, notes = part.images + whole.images, {"strength": best}
    return Outcome(lambda x: outputs(net, x), weights(escnn_relax.harden(net)), clock.seconds, images, notes=notes)


def mixed(cell: Cell) -> Outcome:
    """Layers mixed of all subgroups, their shares moved by gradient on a fifth of the data for the first half of the
    passes; then one group a layer, trained on all data."""
    question = cell.question
    part, held_out, whole = (cell.loader(pairs) for pairs in (*cell.split, cell.data.train))
    smaller = list(question.statics.values())[1:]
    first = cell.passes // 2
    with Clock() as clock:
        options = {"epochs": first, "lr": 5e-3, "loss": loss, "seed": cell.seed, "progress": False}
        found = differentiate(escnn_relax.mix(cell.strict(), smaller), part, held_out, **options)
        for layer in mixed_layers(found.model).values():
            layer.freeze()
        net = train(found.model, question, whole, cell.passes - first)
    images = part.images + held_out.images + whole.images
    notes = {"groups": list(found.architecture.values())}
    return Outcome(lambda x: outputs(net, x), weights(escnn_relax.merge(net)), clock.seconds, images, notes=notes)


class Score:
    """Negative loss on data that were held out."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs

    def __call__(self, model: nn.Module) -> float:
        return -float(loss(outputs(model, self.pairs.x), self.pairs.y))


def evolved(cell: Cell) -> Outcome:
    """Evolution along the lattice of subgroups, selected by a fifth of the data; the winner trains on all of them."""
    question, (fewer, held_out) = cell.question, cell.split
    part, whole = cell.loader(fewer), cell.loader()
    each = SHARE * cell.passes
    with Clock() as clock:
        torch.manual_seed(cell.seed)
        options = {"generations": ROUNDS, "population": SURVIVORS, "epochs": each, "loss": loss, "lr": 5e-3}
        options |= {"groups": list(question.statics.values()), "seed": cell.seed, "progress": False}
        found = evolve(cell.strict(), part, Score(held_out), **options)
        net = train(found.model, question, whole, cell.passes - round(each * (ROUNDS + 1)))
    # the search trains on copies of the loader, which cannot be counted from here
    images = round(len(found.individuals) * each * len(fewer.x)) + whole.images
    notes = {"groups": list(found.winner.genome)}
    return Outcome(lambda x: outputs(net, x), weights(net), clock.seconds, images, notes=notes)
