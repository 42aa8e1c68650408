r"""Differentiable search: architecture weights and filter weights trained in turn.

Maile, Wilson, Forré: *Equivariance-aware architectural optimization of neural networks*, ICLR 2023 (EquiNAS_D). Beyond
it: a held-out split, the evidence instead of any second data, discretisation, and chains of groups that shrink with
depth.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from ...curvature.checked_batches import batches, call
from ...errors import ArgumentError, naming
from ...evidence import Evidence
from ...evidence.settings import with_ties
from ...morphism.mix import mixed_layers
from ...training.loaders import data_size
from ..architecture import architecture_penalty, chosen_summands, group_chain, keep_summands
from .alternating_training import AlternatingTraining
from .result import GradientSearchResult
from .settings import Settings
from .shares_history import SearchEpoch, SharesHistory

__all__ = ["differentiate"]

Loss = Callable[[Any, Tensor], Tensor]
#: A loss that discretising raised by so much (nats a sample) is worth a warning.
SPOILED = 0.1


def differentiate(
    model: nn.Module,
    train_loader: Iterable[Any],
    held_out_loader: Iterable[Any] | None = None,
    *,
    epochs: int = 50,
    by: str = "held-out",
    loss: Loss = F.cross_entropy,
    likelihood: str = "categorical",
    evidence_loader: Iterable[Any] | None = None,
    evidence_options: Mapping[str, Any] | None = None,
    optimizer: Callable[[list[Any]], Optimizer] | None = None,
    lr: float = 1e-2,
    architecture_lr: float | None = None,
    entropy: float = 0.0,
    monotone: float = 0.0,
    normalise: bool | None = None,
    burn_in: int = 5,
    refresh_every: int = 1,
    hypersteps: int = 3,
    discretise: None | str | float = "argmax",
    retrain: int = 0,
    record_every: int = 1,
    seed: int = 0,
    checkpoint: None | str | Path = None,
    progress: bool = True,
    callback: Callable[[SearchEpoch], None] | None = None,
) -> GradientSearchResult:
    r"""Search the groups of a mixed network's layers by gradient steps on its architecture weights.

    ``by="held-out"``: after each step on the weights by a training batch, one step on the architecture weights by a
    batch of ``held_out_loader`` (without one, another training batch, as EquiNAS_D does). ``by="evidence"``: no second
    data; after ``burn_in`` epochs, every ``refresh_every``-th one ends with updates of the prior precisions and one
    step of the architecture weights along the gradient of the log evidence, taken through the curvature. Where each
    summand had a precision of its own, shares and precisions would be one and the same hyperparameter twice; so the
    summands of a layer share one precision, and the shares are what tells them apart.

    Args:
        model: a network with mixed layers, e.g. ``mix(model, subgroups)``; it is left alone.
        train_loader: yields ``(input, target)``; re-iterable.
        held_out_loader: likewise; data that the weights never see (running averages of batch norms see their inputs).
        epochs: passes over ``train_loader``; 0 leaves the shares as they are.
        loss: function of output and target, averaged over samples (``by="held-out"``).
        likelihood: of the evidence.
        evidence_loader: data for the curvature, ``train_loader`` by default; that of a part is scaled up.
        evidence_options: further arguments of :class:`~escnn_relax.Evidence`, e.g. ``{"curvature": "exact"}``.
        optimizer: function from the list of weights to their optimizer; Adam with ``lr`` by default.
        architecture_lr: of Adam on the architecture weights; 0.01 by default, 0.1 for the evidence, which steps rarely.
        entropy: weight of the shares' mean entropy (fraction of the largest) in the architecture loss: makes them
            decide.
        monotone: if positive, symmetry must not increase with depth: softly by this weight of :func:`degree_penalty
            <escnn_relax.search.architecture.degree_penalty>` during the search, and strictly at its end, where the best
            chain of contained groups is chosen.
        normalise: bring every filter back to its initial norm after each step on the weights, so that only the shares
            say how much each group counts; on by default, and excluded by the evidence, which judges the norms.
        discretise: see :func:`~escnn_relax.search.discretise`; ``None`` keeps the mixture. One group can be too little
            where several shared the work: ``losses`` of the result says what was lost, a warning that it was much.
        retrain: epochs of training the found architecture from the model's initial weights, shares frozen; after a
            search by the evidence with the prior precisions and the noise that it found.
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

    >>> import torch
    >>> from escnn import gspaces, nn as enn
    >>> space = gspaces.rot2dOnR2(4)
    >>> gray, fields = enn.FieldType(space, [space.trivial_repr]), enn.FieldType(space, [space.regular_repr])
    >>> net = enn.SequentialModule(enn.R2Conv(gray, fields, 3), enn.ReLU(fields), enn.R2Conv(fields, fields, 3))
    >>> from escnn_relax import mix
    >>> data = [(gray(torch.randn(4, 1, 5, 5)), torch.randn(4, 4, 1, 1))]
    >>> options = {"epochs": 1, "loss": F.mse_loss, "progress": False}
    >>> found = differentiate(mix(net, [2, 1]), data, **options)
    >>> found.history.steps, len(found.architecture)
    ((0, 1), 2)
    """
    if architecture_lr is None:
        architecture_lr = 0.1 if by == "evidence" else 1e-2
    settings = Settings(
        epochs=epochs, by=by, lr=lr, architecture_lr=architecture_lr, entropy=entropy, monotone=monotone,
        normalise=by != "evidence" if normalise is None else normalise, burn_in=burn_in, refresh_every=refresh_every,
        hypersteps=hypersteps, discretise=discretise, retrain=retrain, record_every=record_every, seed=seed,
    )  # fmt: skip
    settings.check()
    with naming("differentiate"):
        mixed_layers(model)
    initial = copy.deepcopy(model)
    searched = copy.deepcopy(model)
    layers = mixed_layers(searched)
    alphas = [layer.alpha for layer in layers.values() if layer.alpha.requires_grad]
    if not alphas:
        raise ArgumentError(
            "differentiate", "all architecture weights are frozen", remedy="call freeze(False) on a layer"
        )
    evidence = None
    if by == "evidence":
        ties = {f"{n}.weights.{p.name}": f"{n}.weights" for n, layer in layers.items() for p in layer.pathways}
        options = {"num_data": data_size(train_loader), **with_ties(evidence_options or {}, ties)}
        evidence = Evidence(searched, likelihood, **options)
    loaders = (train_loader, held_out_loader, evidence_loader)
    penalty = lambda: architecture_penalty(layers, entropy, monotone)
    search = AlternatingTraining("search", searched, loaders, settings, optimizer, loss, alphas, evidence, penalty)
    records = search.run(epochs, seed, [], checkpoint, progress, callback)
    chosen = chosen_summands(searched, discretise, monotone > 0) if discretise is not None else None
    chosen_model, losses = searched, None
    if chosen is not None:
        chosen_model = keep_summands(searched, chosen)
        losses = _losses(searched, chosen_model, search, loss)
        if not losses[1] <= losses[0] + SPOILED and not retrain:
            remedy = "train the found model on, pass retrain=, or keep more groups: discretise=0.2"
            warnings.warn(
                f"discretising raised the loss from {losses[0]:.3f} to {losses[1]:.3f}; {remedy}", stacklevel=2
            )
    if retrain:
        chosen_model = initial if chosen is None else keep_summands(initial, chosen, nearest=False)
        theirs = mixed_layers(chosen_model)
        with torch.no_grad():
            for name, layer in theirs.items():
                names = [p.name for p in layer.pathways]
                positions = [[p.name for p in layers[name].pathways].index(n) for n in names]
                layer.alpha.copy_(layers[name].alpha[positions])
        for layer in theirs.values():
            layer.freeze()
        if evidence is not None:
            loss = _as_found(evidence, Evidence(chosen_model, likelihood, **options)).loss
        second = AlternatingTraining("retrain", chosen_model, loaders, settings, optimizer, loss, before=search)
        records = second.run(retrain, seed + 1, records, checkpoint, progress, callback)
    shares = search.shares
    history = SharesHistory(shares.groups, tuple(shares.steps), shares.recorded(), tuple(records))
    return GradientSearchResult(chosen_model, searched, group_chain(chosen_model), history, losses)


def _as_found(old: Evidence, new: Evidence) -> Evidence:
    """Give an evidence, in place, the precisions and the noise that another one has for parameters of the same
    names."""
    new.log_precision = {name: old.log_precision[name] for name in new.log_precision}
    if old.likelihood.noisy:
        new.log_noise = old.log_noise
    return new


@torch.no_grad()
def _losses(
    mixture: nn.Module, chosen_model: nn.Module, search: AlternatingTraining, loss: Loss
) -> tuple[float, float]:
    """Loss of two networks, averaged over the samples (nats), without a prior."""
    train, held_out, _ = search.loaders
    values = []
    for model in (mixture, chosen_model):
        model = copy.deepcopy(model).eval()
        total, seen = 0.0, 0
        for input, target in batches(
            train if held_out is None or search.evidence is not None else held_out, search.device
        ):
            output = call(model, input)
            if search.evidence is None:
                value = float(loss(getattr(output, "tensor", output), target)) * len(target)
            else:
                likelihood = search.evidence.likelihood
                value = float(likelihood.loss(likelihood.tensor(output), target))
            total, seen = total + value, seen + len(target)
        values.append(total / max(seen, 1))
    return values[0], values[1]
