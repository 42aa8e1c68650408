"""The loop over epochs and the loop over batches, the same for ``fit`` and for both architecture searches."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..curvature.checked_batches import batches, check_weights
from ..curvature.distributed import sum_processes
from ..curvature.likelihood import Likelihood
from ..errors import DataError

__all__ = ["EpochLoss", "Training", "run_epochs", "train_epoch"]

_log = logging.getLogger(__name__)

Record = TypeVar("Record")


@dataclass(frozen=True)
class EpochLoss:
    """What a pass over the data saw.

    Attributes:
        losses: averaged over the samples of each batch (nats).
        sizes: number of samples of each batch.
        targets: of each batch.
    """

    losses: list[float]
    sizes: list[int]
    targets: list[Any]

    @property
    def count(self) -> int:
        """Number of samples."""
        return sum(self.sizes)

    def total(self, start: float = 0.0) -> float:
        """Loss summed over all samples (nats), on top of what there was before."""
        for loss, size in zip(self.losses, self.sizes):
            start += loss * size
        return start

    def means(self, likelihood: Likelihood) -> tuple[float, float]:
        """Loss averaged over the samples of all processes, and what the best constant output would have (nats).

        Raises:
            DataError: no sample was seen.
        """
        if not self.count:
            raise DataError("train_loader", "it yields no batch", remedy="pass a non-empty, re-iterable loader")
        constant = likelihood.joint_constant_loss(self.targets)
        sums = torch.tensor([self.total(), constant * self.count, self.count], dtype=torch.float64)
        total, constant_total, count = sum_processes(sums).tolist()
        return total / count, constant_total / count


class Training(Protocol[Record]):
    """What can be trained epoch by epoch, stopped and continued."""

    def epoch(self, epoch: int) -> Record:
        """Train for one epoch, counted from 0; returns what happened."""
        ...

    def save(self, path: str | Path, records: list[Record]) -> None:
        """Write the state after the last epoch."""
        ...


def train_epoch(
    model: nn.Module,
    loader: Iterable[Any],
    optimizer: Optimizer,
    loss: Callable[[Any, Any], Tensor],
    *,
    steps: int | None = None,
    after_backward: Callable[[int], None] | None = None,
    after_step: Callable[[int], None] | None = None,
) -> EpochLoss:
    """One pass over a loader, with one step of the optimizer for each batch.

    Args:
        model: trained in place, in training mode.
        loader: yields ``(input, target)``.
        optimizer: of its weights; some evaluate the loss several times a step, as ``LBFGS`` does.
        loss: of input and target, averaged over samples (nats).
        steps: batches after which the pass ends; all by default.
        after_backward: called with the number of samples whose gradients there are, at each evaluation.
        after_step: called with the index of the batch.

    Raises:
        DataError: weights or a loss that are not finite.

    >>> model = nn.Linear(2, 1)
    >>> mean = lambda input, target: (model(input) - target).square().mean()
    >>> data = [(torch.zeros(3, 2), torch.ones(3, 1)), (torch.ones(1, 2), torch.zeros(1, 1))]
    >>> train_epoch(model, data, torch.optim.SGD(model.parameters(), 0.1), mean).count
    4
    """
    check_weights(model)
    model.train()
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    others = [p for p in model.parameters() if id(p) not in held]
    seen = EpochLoss([], [], [])
    for index, (input, target) in enumerate(batches(loader, next(model.parameters()).device)):
        if index == steps:
            break

        def closure() -> Any:  # a tensor, where torch's annotations have a number
            optimizer.zero_grad()
            for p in others:
                p.grad = None
            value = loss(input, target)
            if not torch.isfinite(value):
                raise DataError(f"batch {index}", "the loss is not finite", remedy="lower the learning rate")
            value.backward()
            if after_backward is not None:
                after_backward(len(target))
            return value

        seen.losses.append(float(torch.as_tensor(optimizer.step(closure)).detach()))
        seen.sizes.append(len(target))
        seen.targets.append(target)
        if after_step is not None:
            after_step(index)
    return seen


def run_epochs(
    training: Training[Record],
    epochs: range,
    records: list[Record],
    *,
    title: str,
    shown: Callable[[Record], dict[str, str]],
    checkpoint: str | Path | None = None,
    callback: Callable[[Record], None] | None = None,
    progress: bool = True,
) -> None:
    """Train epoch by epoch; the record of each is appended to ``records``, stored and handed on.

    Args:
        epochs: those to come; what was done before is not repeated.
        title: of the progress bar, and of what is to be called again after an interruption.
        shown: what the progress bar says of a record.
        checkpoint: a file that is written after every epoch.
        callback: called with each epoch's record.
    """
    from tqdm import tqdm

    bar = tqdm(epochs, initial=epochs.start, total=epochs.stop, desc=title, unit="epoch", disable=not progress)
    try:
        for epoch in bar:
            record = training.epoch(epoch)
            records.append(record)
            if checkpoint is not None:
                training.save(checkpoint, records)
            if callback is not None:
                callback(record)
            bar.set_postfix(shown(record), refresh=False)
    except KeyboardInterrupt:
        if checkpoint is not None:
            _log.warning(
                "%s: interrupted after %d epochs; call it again with checkpoint=%s to go on",
                title,
                len(records),
                checkpoint,
            )
        raise
