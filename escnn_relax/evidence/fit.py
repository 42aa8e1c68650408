"""Training of weights and prior precisions together."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Callable, Iterable, Optional, Union

import torch
from torch import nn
from torch.optim import Optimizer

from ..curvature.collect import batches
from ..curvature.likelihood import Likelihood
from ..errors import ArgumentError, DataError
from . import checkpoint as disk
from .evidence import Evidence, EvidenceTerms
from .history import EpochRecord, History

__all__ = ["fit"]

_log = logging.getLogger(__name__)

#: While the loss is above this share of what the best constant output has, the network has learned nothing that the
#: evidence could judge; stepping the precisions then would switch everything off for good.
LEARNED = 0.9


def fit(
    model: nn.Module,
    train_loader: Iterable,
    *,
    epochs: int = 100,
    likelihood: Union[str, Likelihood] = "categorical",
    evidence: Optional[Evidence] = None,
    optimizer: Optional[Callable[[list], Optimizer]] = None,
    scheduler: Optional[Callable[[Optimizer], Any]] = None,
    lr: float = 5e-3,
    burn_in: int = 10,
    refresh_every: int = 3,
    hypersteps: int = 6,
    evidence_loader: Optional[Iterable] = None,
    checkpoint: Union[None, str, Path] = None,
    progress: bool = True,
    callback: Optional[Callable[[EpochRecord], None]] = None,
    **evidence_options: Any,
) -> History:
    """Train a relaxed model: its weights by gradient descent, its prior precisions by the evidence.

    Each epoch descends the penalised loss (the negative log posterior); after ``burn_in`` epochs, every
    ``refresh_every``-th one ends with a refresh of the curvature and ``hypersteps`` updates of the precisions. Where a
    strict network can learn nothing, the evidence of an untrained one is best with everything switched off: so in the
    first half of the training the precisions wait until the network is clearly better than a constant output.

    Args:
        model: a model with relaxed layers; trained in place.
        train_loader: yields ``(input, target)``; re-iterable.
        epochs: passes over it.
        likelihood: ``"categorical"`` or ``"gaussian"``.
        evidence: an :class:`~escnn_relax.Evidence` of this model; by default one is made with ``evidence_options``.
        optimizer: from a list of parameters to an optimiser; Adam with ``lr`` by default.
        scheduler: from the optimiser to a scheduler stepped once an epoch; cosine to ``lr / 50`` by default.
        burn_in: epochs before the first refresh; long enough that the data had a say in the residual weights.
        refresh_every: epochs from one refresh to the next.
        hypersteps: updates of the precisions after each refresh.
        evidence_loader: data for the curvature; ``train_loader`` by default. It must hold the whole training set, or
            ``num_data`` must say how large that is (the curvature of a part is scaled up).
        checkpoint: a file that is written after every epoch; if it exists, training continues from it, with the same
            result as if it had never stopped.
        progress: show a progress bar.
        callback: called with each epoch's record.

    Raises:
        DataError: an empty loader, NaN data, a loss that is not finite (before it touches a weight).
        CheckpointError: a checkpoint that belongs to another run.
        ArgumentError: numbers of epochs that make no sense.

    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> from escnn import gspaces, nn as enn
    >>> from escnn_relax.nn import RelaxedR2Conv
    >>> space = gspaces.rot2dOnR2(4)
    >>> gray, out = enn.FieldType(space, [space.trivial_repr]), enn.FieldType(space, [space.regular_repr])
    >>> class Net(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.convolution, self.pool = RelaxedR2Conv(gray, out, 3), enn.GroupPooling(out)
    ...         self.linear = nn.Linear(1, 2)
    ...     def forward(self, x):
    ...         return self.linear(self.pool(self.convolution(gray(x))).tensor.mean((-2, -1)))
    >>> loader = DataLoader(TensorDataset(torch.randn(16, 1, 5, 5), torch.randint(2, (16,))), batch_size=8)
    >>> history = fit(Net(), loader, epochs=3, burn_in=1, refresh_every=1, progress=False)
    >>> [epoch for epoch, _ in history.evidences]
    [1, 2]
    """
    if epochs < 0 or burn_in < 0 or refresh_every < 1 or hypersteps < 0:
        got = {"epochs": epochs, "burn_in": burn_in, "refresh_every": refresh_every, "hypersteps": hypersteps}
        raise ArgumentError("fit", expected="epochs, burn_in, hypersteps >= 0 and refresh_every >= 1", got=got)
    if evidence is not None and (evidence_options or evidence.model is not model):
        problem = "an evidence of another model" if evidence.model is not model else "both evidence and options for one"
        raise ArgumentError("fit", problem, got=sorted(evidence_options) or None, remedy="pass Evidence(model, ...) alone")
    if evidence is None:
        evidence_options.setdefault("num_data", _size(train_loader))
        evidence = Evidence(model, likelihood, **evidence_options)
    device = next(model.parameters()).device
    parameters = [p for p in model.parameters() if p.requires_grad]
    descent = torch.optim.Adam(parameters, lr=lr) if optimizer is None else optimizer(parameters)
    schedule = _cosine(descent, epochs) if scheduler is None else scheduler(descent)
    history, first = History(evidence), 0
    run = {
        "epochs": epochs,
        "burn_in": burn_in,
        "refresh_every": refresh_every,
        "hypersteps": hypersteps,
        "parameters": {name: list(p.shape) for name, p in model.named_parameters()},
    }
    if checkpoint is not None and Path(checkpoint).exists():
        state = disk.load(checkpoint, run)
        model.load_state_dict(state["model"])
        descent.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["scheduler"])
        evidence.load_state_dict(state["evidence"])
        history.records = [_record(entry) for entry in state["records"]]
        disk.set_random_state(state["random"], device)
        _set_loader_state(train_loader, state["loader"])
        first = len(history.records)
    bar = _bar(range(first, epochs), first, epochs, progress)
    try:
        for epoch in bar:
            loss, constant = _epoch(model, train_loader, evidence, descent, device)
            schedule.step()
            record = EpochRecord(epoch, loss)
            if epoch >= burn_in and (epoch - burn_in) % refresh_every == 0:
                terms, note = evidence.refresh(evidence_loader or train_loader), ""
                if epoch < epochs // 2 and evidence.mean_loss > LEARNED * constant:
                    note = "no better than a constant yet: the precisions wait"
                else:
                    terms = evidence.step(hypersteps)
                gammas = evidence.effective_dimension()
                record = EpochRecord(epoch, loss, terms, dict(evidence.log_precision), gammas, note)
            history.records.append(record)
            if checkpoint is not None:
                entry = {
                    "run": run,
                    "model": model.state_dict(),
                    "optimizer": descent.state_dict(),
                    "scheduler": schedule.state_dict(),
                    "evidence": evidence.state_dict(),
                    "records": history.to_dict()["records"],
                    "random": disk.random_state(device),
                    "loader": _loader_state(train_loader),
                }
                disk.save(checkpoint, entry)
            if callback is not None:
                callback(record)
            _show(bar, record)
    except KeyboardInterrupt:
        if checkpoint is not None:
            _log.warning("interrupted after epoch %d; call fit again with checkpoint=%s", len(history.records), checkpoint)
        raise
    if epochs:
        evidence.refresh(evidence_loader or train_loader)
    return history


def _epoch(model: nn.Module, loader: Iterable, evidence: Evidence, descent: Optimizer, device: torch.device):
    """One pass; returns the loss averaged over samples, and what the best constant output would have."""
    model.train()
    total, count, targets = 0.0, 0, []
    for index, (input, target) in enumerate(batches(loader, device)):
        loss = evidence.loss(model(input), target)
        if not torch.isfinite(loss):
            raise DataError(f"batch {index}", "the loss is not finite", remedy="lower the learning rate")
        descent.zero_grad()
        loss.backward()
        descent.step()
        total, count = total + float(loss.detach()) * len(target), count + len(target)
        targets.append(target)
    if not count:
        raise DataError("train_loader", "it yields no batch", remedy="pass a non-empty, re-iterable loader")
    return total / count, evidence.likelihood.constant_loss(torch.cat(targets))


def _size(loader: Iterable) -> int:
    dataset = getattr(loader, "dataset", None)
    if dataset is not None and hasattr(dataset, "__len__") and not getattr(loader, "drop_last", False):
        return len(dataset)
    return sum(len(batch[1]) for batch in loader)


def _cosine(descent: Optimizer, epochs: int):
    base = descent.param_groups[0]["lr"]
    return torch.optim.lr_scheduler.CosineAnnealingLR(descent, max(epochs, 1), eta_min=base / 50)


def _bar(epochs: range, first: int, total: int, progress: bool):
    from tqdm import tqdm

    return tqdm(epochs, initial=first, total=total, desc="fit", unit="epoch", disable=not progress)


def _show(bar, record: EpochRecord) -> None:
    shown = {"loss": f"{record.loss:.3f}"}
    if record.evidence is not None:
        shown["-log evidence/N"] = f"{-record.evidence.total / record.evidence.num_data:.3f}"
    bar.set_postfix(shown, refresh=False)


def _record(entry: dict) -> EpochRecord:
    terms = entry["evidence"]
    return EpochRecord(**{**entry, "evidence": None if terms is None else EvidenceTerms(**terms)})


def _loader_state(loader: Iterable):
    generator = getattr(loader, "generator", None)
    return None if generator is None else generator.get_state()


def _set_loader_state(loader: Iterable, state) -> None:
    generator = getattr(loader, "generator", None)
    if generator is not None and state is not None:
        generator.set_state(state)
