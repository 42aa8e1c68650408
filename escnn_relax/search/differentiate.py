r"""Differentiable search: architecture weights and filter weights trained in turn.

Maile, Wilson, Forré: *Equivariance-aware architectural optimization of neural networks*, ICLR 2023 (EquiNAS_D). Beyond it: a
held-out split, the evidence instead of any second data, discretisation, and chains of groups that shrink with depth.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterable, Optional, Union

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from ..errors import ArgumentError
from ..evidence import Evidence
from ..evidence.loading import data_size
from ..morphism.mix import mixed_layers
from .architecture import chosen_summands, degree_penalty, group_chain, keep_summands
from .phase import Phase, Settings
from .shares_history import SearchEpoch, SharesHistory

__all__ = ["Differentiated", "differentiate"]

Loss = Callable[[Any, Tensor], Tensor]
SOURCES = ("held-out", "evidence")


@dataclass(frozen=True)
class Differentiated:
    """Returned by :func:`differentiate`.

    Attributes:
        model: the searched architecture: each mixed layer keeps its chosen summands and goes on training as such;
            :func:`escnn_relax.merge` makes plain layers of them.
        mixture: the mixed network at the end of the search.
        architecture: the groups that each layer keeps, by readable name.
        history: shares by layer and step.
    """

    model: nn.Module
    mixture: nn.Module
    architecture: dict[str, str]
    history: SharesHistory

    def table(self) -> str:
        """Shares at the start and at the end, and what was kept."""
        kept = " → ".join(self.architecture.values())
        return f"{self.history.table()}\nkept: {kept}"

    __str__ = table

    def plot(self, axes=None):
        """See :meth:`SharesHistory.plot`."""
        return self.history.plot(axes)


def differentiate(
    model: nn.Module,
    train_loader: Iterable,
    held_out_loader: Optional[Iterable] = None,
    *,
    epochs: int = 50,
    by: str = "held-out",
    loss: Loss = F.cross_entropy,
    likelihood: str = "categorical",
    evidence_loader: Optional[Iterable] = None,
    optimizer: Optional[Callable[[list], Optimizer]] = None,
    lr: float = 1e-2,
    architecture_lr: Optional[float] = None,
    entropy: float = 0.0,
    monotone: float = 0.0,
    normalise: Optional[bool] = None,
    burn_in: int = 5,
    refresh_every: int = 1,
    hypersteps: int = 3,
    discretise: Union[None, str, float] = "argmax",
    retrain: int = 0,
    record_every: int = 1,
    seed: int = 0,
    checkpoint: Union[None, str, Path] = None,
    progress: bool = True,
    callback: Optional[Callable[[SearchEpoch], None]] = None,
) -> Differentiated:
    r"""Search the groups of a mixed network's layers by gradient steps on its architecture weights.

    ``by="held-out"``: after each step on the weights by a training batch, one step on the architecture weights by a batch of
    ``held_out_loader`` (without one, another training batch, as EquiNAS_D does). ``by="evidence"``: no second data; after
    ``burn_in`` epochs, every ``refresh_every``-th one ends with updates of the prior precisions and one step of the
    architecture weights along the gradient of the log evidence, taken through the curvature. Where each summand had a
    precision of its own, shares and precisions would be one and the same hyperparameter twice; so the summands of a
    layer share one precision, and the shares are what tells them apart.

    Args:
        model: a network with mixed layers, e.g. ``mix(model, subgroups)``; it is left alone.
        train_loader: yields ``(input, target)``; re-iterable.
        held_out_loader: likewise; data that the weights never see.
        epochs: passes over ``train_loader``; 0 leaves the shares as they are.
        loss: function of output and target, averaged over samples (``by="held-out"``).
        likelihood: of the evidence.
        evidence_loader: data for the curvature, ``train_loader`` by default; that of a part is scaled up.
        optimizer: function from the list of weights to their optimiser; Adam with ``lr`` by default.
        architecture_lr: of Adam on the architecture weights; 0.01 by default, 0.1 for the evidence, which steps rarely.
        entropy: weight of the shares' mean entropy (fraction of the largest) in the architecture loss: makes them decide.
        monotone: if positive, symmetry must not increase with depth: softly by this weight of :func:`degree_penalty
            <escnn_relax.search.architecture.degree_penalty>` during the search, and strictly at its end, where the best
            chain of contained groups is chosen.
        normalise: bring every filter back to its initial norm after each step on the weights, so that only the shares
            say how much each group counts; on by default, and excluded by the evidence, which judges the norms.
        discretise: see :func:`~escnn_relax.search.discretise`; ``None`` keeps the mixture.
        retrain: epochs of training the found architecture from the model's initial weights, shares frozen.
        record_every: steps between two records of the shares.
        seed: of torch's generator and the loaders' own.
        checkpoint: a file written after every epoch; if it exists, the search continues from it with the same result.
        progress: show a progress bar.
        callback: called with each epoch's record.

    Raises:
        UnsupportedModuleError: no mixed layer, or all architecture weights frozen.
        ArgumentError: numbers that make no sense; normalisation together with the evidence.
        DataError: empty loaders, a loss that is not finite (the checkpoint of the epoch before stays).
        CheckpointError: a checkpoint of another run.
    """
    _check(by, epochs, retrain, burn_in, refresh_every, record_every, entropy, monotone, discretise, normalise)
    mixed_layers(model, "differentiate")
    initial = copy.deepcopy(model)
    searched = copy.deepcopy(model)
    layers = mixed_layers(searched)
    alphas = [layer.alpha for layer in layers.values() if layer.alpha.requires_grad]
    if not alphas:
        raise ArgumentError("differentiate", "all architecture weights are frozen", remedy="call freeze(False) on a layer")
    evidence = None
    if by == "evidence":
        ties = {f"{n}.weights.{p.name}": f"{n}.weights" for n, layer in layers.items() for p in layer.pathways}
        evidence = Evidence(searched, likelihood, num_data=data_size(train_loader), ties=ties)
    architecture_lr = architecture_lr or (0.1 if by == "evidence" else 1e-2)
    settings = Settings(
        epochs=epochs, by=by, lr=lr, architecture_lr=architecture_lr, entropy=entropy, monotone=monotone,
        normalise=by != "evidence" if normalise is None else normalise, burn_in=burn_in, refresh_every=refresh_every,
        hypersteps=hypersteps, discretise=discretise, retrain=retrain, record_every=record_every, seed=seed,
    )  # fmt: skip
    loaders = (train_loader, held_out_loader, evidence_loader)
    phase = Phase("search", searched, loaders, settings, optimizer, loss, alphas, evidence)
    phase.seed(seed)
    records = phase.resume(checkpoint)
    phase.run(epochs, records, checkpoint, progress, callback, lambda: _architecture_penalty(layers, settings))
    chosen = chosen_summands(searched, discretise, monotone > 0) if discretise is not None else None
    found = searched if chosen is None else keep_summands(searched, chosen)
    if retrain:
        found = initial if chosen is None else keep_summands(initial, chosen)
        theirs = mixed_layers(found)
        with torch.no_grad():
            for name, layer in theirs.items():
                names = [p.name for p in layer.pathways]
                positions = [[p.name for p in layers[name].pathways].index(n) for n in names]
                layer.alpha.copy_(layers[name].alpha[positions])
        for layer in theirs.values():
            layer.freeze()
        second = Phase("retrain", found, loaders, settings, optimizer, loss, [], None, before=phase)
        second.seed(seed + 1)
        records = second.resume(checkpoint) or records
        second.run(retrain, records, checkpoint, progress, callback, None)
    history = SharesHistory(phase.groups, tuple(phase.steps), phase.recorded(), tuple(records))
    return Differentiated(found, searched, group_chain(found), history)


def _architecture_penalty(layers, settings: Settings) -> Tensor:
    """The terms of the architecture loss that no data have a say in."""
    total = torch.zeros(())
    if settings.entropy:
        entropies = []
        for layer in layers.values():
            shares = layer.kernel.shares
            most = math.log(max(len(shares), 2))
            entropies.append(-(shares * shares.clamp(min=1e-12).log()).sum() / most)
        total = total + settings.entropy * torch.stack(entropies).mean().cpu()
    if settings.monotone:
        total = total + settings.monotone * degree_penalty(layers).cpu()
    return total


def _check(by, epochs, retrain, burn_in, refresh_every, record_every, entropy, monotone, discretise, normalise) -> None:
    if by not in SOURCES:
        raise ArgumentError("differentiate", expected=f"by to be one of {SOURCES}", got=repr(by))
    if min(epochs, retrain, burn_in) < 0 or refresh_every < 1 or record_every < 1:
        got = {"epochs": epochs, "retrain": retrain, "burn_in": burn_in, "refresh_every": refresh_every}
        expected = "epochs, retrain, burn_in >= 0 and refresh_every, record_every >= 1"
        raise ArgumentError("differentiate", expected=expected, got={**got, "record_every": record_every})
    if not (entropy >= 0 and monotone >= 0):
        raise ArgumentError("differentiate", expected="entropy, monotone >= 0", got=(entropy, monotone))
    if by == "evidence" and normalise:
        problem = "the evidence judges each filter's norm, which normalisation would fix"
        raise ArgumentError("differentiate", problem, remedy="leave normalise out")
    if discretise is not None and discretise != "argmax":
        if isinstance(discretise, str) or not 0 < discretise <= 1:
            expected = "discretise to be 'argmax', a threshold in (0, 1] or None"
            raise ArgumentError("differentiate", expected=expected, got=repr(discretise))
        if monotone:
            raise ArgumentError("differentiate", "a monotone choice is one group for each layer", remedy="use 'argmax'")
