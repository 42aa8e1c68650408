"""Training of weights and prior precisions together."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Unpack

from torch import nn
from torch.optim import Optimizer

from ..curvature.likelihood import Likelihood
from ..evidence.evidence import Evidence
from ..evidence.settings import EvidenceKeywords
from . import checkpoint as disk
from .arguments import check_evidence_options, check_numbers, warn_of_burn_in
from .epochs import run_epochs
from .evidence_policy import EvidencePolicy
from .evidence_training import EvidenceTraining
from .history import EpochRecord, History
from .learning_rate import adam, cosine
from .run_state import Run

__all__ = ["fit"]


def fit(
    model: nn.Module,
    train_loader: Iterable[Any],
    *,
    epochs: int = 100,
    likelihood: str | Likelihood | Callable[..., Any] = "categorical",
    evidence: Evidence | None = None,
    optimizer: None | Optimizer | Callable[[list[Any]], Optimizer] = None,
    scheduler: Callable[[Optimizer], Any] | None = None,
    lr: float = 5e-3,
    burn_in: int | None = None,
    refresh_every: int | None = None,
    hypersteps: int = 6,
    evidence_loader: Iterable[Any] | None = None,
    share: float | None = None,
    keep: float = 0.0,
    omega_rate: float = 0.1,
    gates: bool | None = None,
    checkpoint: None | str | Path = None,
    progress: bool = True,
    callback: Callable[[EpochRecord], None] | None = None,
    **evidence_options: Unpack[EvidenceKeywords],
) -> History:
    """Train a relaxed model: its weights by gradient descent, its prior precisions by the evidence.

    Before the training the residual pathways are closed, exactly zero. Once the strict network has learned for a few
    epochs, symmetry tests open those that are broken and gain in evidence, each with a precision of its own; where it
    learns nothing, all that are broken (:class:`~escnn_relax.training.gate_policy.Gates`). Each epoch descends the
    loss with the penalty of what is open; all other weights are trained as in the strict network, unless ``prior`` says
    otherwise. After ``burn_in`` of them some end with a refresh of the curvature
    and ``hypersteps`` updates of the precisions (:class:`~escnn_relax.training.schedule.Schedule` says which, and how
    much of the data they look at). Where a strict network can learn nothing, the evidence of an untrained one is best
    with everything switched off: so in the first half of the training the precisions wait until the network is clearly
    better than a constant output.

    Args:
        model: a model with relaxed layers; trained in place.
        train_loader: yields ``(input, target)``; re-iterable.
        epochs: passes over it.
        likelihood: as of :class:`~escnn_relax.Evidence`.
        evidence: an :class:`~escnn_relax.Evidence` of this model; by default one is made with ``evidence_options``.
        optimizer: an optimizer, or a function from a list of parameters to one; Adam with ``lr`` by default. It must
            not hold length scales (``log_omega``), which that list does not have, and should decay no weight that feels
            its prior: there is a warning if it does.
        scheduler: function from the optimizer to a scheduler stepped once an epoch; cosine to ``lr / 50`` by default.
        burn_in: epochs before the first refresh; long enough that the data had a say in the residual weights. By
            default 10, in short trainings a quarter of them.
        refresh_every: epochs from one refresh to the next; by default the distance grows, from 4 at epoch 10 to 20 at
            epoch 54.
        hypersteps: updates of the precisions after each refresh.
        evidence_loader: data for the curvature; ``train_loader`` by default. It must hold the whole training set, or
            ``num_data`` must say how large that is (the curvature of a part is scaled up).
        share: how many of its batches each refresh looks at (fraction), one part after the other; the last refresh of
            all looks at every batch. By default as many batches, with one Monte-Carlo column a sample, as show the
            scale of every block of the curvature to 10 % (:class:`~escnn_relax.curvature.enough_data.Enough`): about
            200 samples, however many there are. Where ``samples`` is given, as many columns as that; all data where
            length scales are learned.
        keep: what a refresh leaves of the weight of the samples before it (fraction), for a running average over such
            parts.
        omega_rate: largest step of a length scale at a refresh, in log omega; see below.
        gates: keep residual pathways closed until a symmetry test opens them, after epoch 4 (a tenth of the training,
            if that is less), at refreshes up to the first past three tenths, and at those at which nothing was learned.
            With ``False`` all are open from the start, at ``residual_log_precision``, those too that an earlier
            training closed; that is also meant where this is given and ``gates`` is not. Where an ``evidence`` is given
            and ``gates`` is not, what is closed stays closed, and the rest open.
        checkpoint: a file that is written after every epoch; if it exists, training continues from it, with the same
            result as if it had never stopped.
        progress: show a progress bar, and one for each refresh that takes more than some seconds.
        callback: called with each epoch's record.

    Raises:
        DataError: an empty loader, NaN data or weights, a loss that is not finite.
        LikelihoodError, CoverageError, CurvatureError: see :class:`~escnn_relax.Evidence`.
        CheckpointError: a checkpoint that belongs to another run.
        CurvatureError: a slope of the evidence in a length scale that is not finite.
        ArgumentError: numbers of epochs that make no sense; an optimizer that holds a length scale; length scales to
            learn and a curvature that cannot be differentiated (``samples``, ``"eigenvalue-corrected"``).

    Length scales of anchors (``learn_omega=True``) are moved by the evidence alone, never by the loss: after the
    updates of the precisions, each refresh that does not wait takes one step of Adam along the hypergradient of its own
    data (:mod:`~escnn_relax.training.length_scales`), at most ``omega_rate`` or so in log omega; omega stays within
    0.001 and 100 (1 / pixels). It costs one more pass over these data, with a graph, and two with ``keep``. What a
    loader shuffles or augments comes the same again in each of them. Scales with ``requires_grad=False`` stay.

    For ten outputs a refresh on all the data with a column for each output costs about as much as six epochs; the
    default looks at all the data only once, in the end. What training costs beside that of the strict network:
    ``tests/benchmarks/gates.md``.

    One batch goes through all that later epochs need before the first one begins, so that what cannot work fails in
    seconds. After an error of ours in an epoch, in its descent, its test or its refresh, weights, buffers, gates,
    precisions, optimizer, scheduler and modes are those from before that epoch.

    >>> import torch
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
    check_numbers(epochs, burn_in, refresh_every, hypersteps, share)
    check_evidence_options(evidence, model, evidence_options, inspect.signature(fit))
    warn_of_burn_in(epochs, burn_in)
    policy = EvidencePolicy(
        model,
        train_loader,
        epochs=epochs,
        likelihood=likelihood,
        evidence=evidence,
        burn_in=burn_in,
        refresh_every=refresh_every,
        hypersteps=hypersteps,
        evidence_loader=evidence_loader,
        share=share,
        keep=keep,
        omega_rate=omega_rate,
        gates=gates,
        progress=progress,
        **evidence_options,
    )
    stored = checkpoint is not None and Path(checkpoint).exists()
    policy.settle(disk.settings(checkpoint) if checkpoint and stored else {})
    evidence, units, length_scales = policy.evidence, policy.units, policy.length_scales
    parameters = policy.parameters()  # what opens later is the optimizer's as well; what is closed has no gradient
    if optimizer is None:
        groups = parameters if units is None else units.groups(evidence.model, lr, parameters)
        optimizer = adam(groups, lr)
    elif not isinstance(optimizer, Optimizer):
        optimizer = optimizer(parameters)
    policy.check(optimizer)
    annealing = cosine(optimizer, epochs) if scheduler is None else scheduler(optimizer)
    settings = policy.settings | {"lr": [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]}
    loaders = (train_loader, evidence_loader)
    run = Run(model, optimizer, annealing, evidence, loaders, settings, length_scales, policy.gates)
    history = History(evidence)
    if checkpoint is not None and stored:
        history.records, policy.slopes = run.load(checkpoint)
    left = range(len(history.records), epochs)
    if not history.records:
        policy.rehearse()
    options: dict[str, Any] = {"checkpoint": checkpoint, "callback": callback, "progress": progress}
    run_epochs(EvidenceTraining(run, policy), left, history.records, title="fit", shown=_shown, **options)
    if epochs:
        policy.end()
        if evidence.doubt:
            warnings.warn(f"after {epochs} epochs {evidence.doubt}", stacklevel=2)
    return history


def _shown(record: EpochRecord) -> dict[str, str]:
    """What the progress bar says."""
    shown = {"loss": f"{record.loss:.3f}"}
    if record.evidence is not None:
        shown["-log evidence/N"] = f"{-record.evidence.total / record.evidence.num_data:.3f}"
    return shown
