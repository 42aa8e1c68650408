"""Training of weights and prior precisions together."""

from __future__ import annotations

import inspect
import logging
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..curvature.batches import answer, batches, check_weights
from ..curvature.layers.wrappers import unwrapped
from ..curvature.likelihood import Likelihood
from ..curvature.processes import summed
from ..errors import ArgumentError, DataError, RelaxError, nearest
from ..evidence import checkpoint as disk
from ..evidence.evidence import CONSTANT, Evidence
from ..evidence.settings import FormerKeywords
from ..evidence.slopes import Slopes
from .gate_policy import Gates
from .history import EpochRecord, History
from .length_scales import Scales
from .loaders import Replayed, data_size
from .regression_units import Units, settle_units
from .rehearsal import rehearse
from .run_state import Run, Undo
from .schedule import Schedule, first
from .weight_decay import warn_of_decay

__all__ = ["fit"]

_log = logging.getLogger(__name__)

#: While the loss is above this share of what the best constant output has, the network has learned nothing that the
#: evidence could judge; stepping the precisions then would switch everything off for good.
LEARNED = 0.9


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
    **evidence_options: Any,
) -> History:
    """Train a relaxed model: its weights by gradient descent, its prior precisions by the evidence.

    Before the training the residual pathways are closed, exactly zero, and a symmetry test opens those that the data
    ask for, each with a precision of its own (:class:`~escnn_relax.training.gate_policy.Gates`). Each epoch descends
    the penalised loss (the negative log posterior); after ``burn_in`` of them some end with a refresh of the curvature
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
        optimizer: an optimiser, or a function from a list of parameters to one; Adam with ``lr`` by default. It must
            not hold length scales (``log_omega``), which that list does not have, and should decay no weight that the
            evidence has a prior for: there is a warning if it does.
        scheduler: function from the optimiser to a scheduler stepped once an epoch; cosine to ``lr / 50`` by default.
        burn_in: epochs before the first refresh; long enough that the data had a say in the residual weights. By
            default 10, in short trainings a quarter of them.
        refresh_every: epochs from one refresh to the next; by default the distance grows, from 4 at epoch 10 to 20 at
            epoch 54.
        hypersteps: updates of the precisions after each refresh.
        evidence_loader: data for the curvature; ``train_loader`` by default. It must hold the whole training set, or
            ``num_data`` must say how large that is (the curvature of a part is scaled up).
        share: how many of its batches each refresh looks at (fraction), one part after the other; the last refresh of
            all looks at every batch. By default as many batches, with one Monte-Carlo column a sample, as show the
            scale of every block of the curvature to 10 % (:class:`~escnn_relax.curvature.enough.Enough`): about 200
            samples, however many there are. Where ``samples`` is given, as many columns as that; all data where length
            scales are learned.
        keep: what a refresh leaves of the weight of the samples before it (fraction), for a running average over such
            parts.
        omega_rate: largest step of a length scale at a refresh, in log omega; see below.
        gates: keep residual pathways closed until a symmetry test opens them, at the start, at the first refresh and
            after those at which nothing was learned yet. With ``False`` all are open from the start, at
            ``residual_log_precision``; that is also meant where this is given, or an ``evidence``, and ``gates`` is
            not.
        checkpoint: a file that is written after every epoch; if it exists, training continues from it, with the same
            result as if it had never stopped.
        progress: show a progress bar.
        callback: called with each epoch's record.

    Raises:
        DataError: an empty loader, NaN data or weights, a loss that is not finite.
        LikelihoodError, CoverageError, CurvatureError: see :class:`~escnn_relax.Evidence`.
        CheckpointError: a checkpoint that belongs to another run.
        CurvatureError: a slope of the evidence in a length scale that is not finite.
        ArgumentError: numbers of epochs that make no sense; an optimiser that holds a length scale; length scales to
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
    seconds. After an error of ours in an epoch, weights, buffers, optimiser and modes are those from before that epoch.

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
    if epochs < 0 or (burn_in or 0) < 0 or (refresh_every is not None and refresh_every < 1) or hypersteps < 0:
        got = {"epochs": epochs, "burn_in": burn_in, "refresh_every": refresh_every, "hypersteps": hypersteps}
        remedy = "leave out what should have its default"
        raise ArgumentError(
            "fit", expected="epochs, burn_in, hypersteps >= 0 and refresh_every >= 1", got=got, remedy=remedy
        )
    if share is not None and not 0 < share <= 1:
        remedy = "leave it out for as many as it takes, or 1 to look at all batches"
        raise ArgumentError("share", expected="a fraction above 0 and at most 1", got=share, remedy=remedy)
    if evidence is not None and (evidence_options or evidence.model is not unwrapped(model)):
        another = evidence.model is not unwrapped(model)
        problem = "an evidence of another model" if another else "both evidence and options for one"
        raise ArgumentError(
            "fit", problem, got=sorted(evidence_options) or None, remedy="pass Evidence(model, ...) alone"
        )
    known = [
        n for n in inspect.signature(Evidence.__init__).parameters if n not in ("self", "model", "likelihood", "former")
    ]
    known += FormerKeywords.__annotations__
    for name in evidence_options:
        if name not in known:
            own = [n for n, p in inspect.signature(fit).parameters.items() if p.kind is p.KEYWORD_ONLY]
            raise ArgumentError("fit", f"it has no argument {name!r}", remedy=nearest(name, [*known, *own], most=30))
    burn_in = first(epochs) if burn_in is None else burn_in
    if epochs and epochs <= burn_in:
        warnings.warn(f"burn_in={burn_in} leaves none of {epochs} epochs: no precision will move", stacklevel=2)
    gates = evidence is None and not _residuals_given(evidence_options) if gates is None else gates
    all_of = train_loader if evidence_loader is None else evidence_loader
    if share is not None:
        Schedule.of(all_of, epochs, burn_in, refresh_every, share)  # to fail before anything is trained
    units: Units | None = None
    if evidence is None:
        evidence_options.setdefault("num_data", data_size(train_loader))
        evidence = Evidence(model, likelihood, **evidence_options)
        began: Any = (
            disk.settings(checkpoint).get("units") if checkpoint is not None and Path(checkpoint).exists() else None
        )
        if began is None:
            units = settle_units(evidence, train_loader)
        else:
            units = Units(*began)
            units.widen(evidence)
    scales = Scales(evidence, omega_rate)
    partly = (
        evidence.num_data is not None
        and not scales
        and "eigenvalue-corrected" not in evidence.curvature.recipe.values()
    )
    schedule = Schedule.of(all_of, epochs, burn_in, refresh_every, share, evidence.num_data if partly else None)
    shut = set(evidence.closed)  # what opens later is the optimiser's as well; what is closed has no gradient
    parameters = scales.others(p for n, p in evidence.model.named_parameters() if p.requires_grad or n in shut)
    in_units = parameters if units is None else units.groups(evidence.model, lr, parameters)
    descent = torch.optim.Adam(in_units, lr=lr) if optimizer is None else optimizer
    descent = descent if isinstance(descent, Optimizer) else descent(parameters)
    scales.refuse_in(descent)
    warn_of_decay(descent, evidence)
    annealing = _cosine(descent, epochs) if scheduler is None else scheduler(descent)
    settings: dict[str, Any] = {"epochs": epochs, "burn_in": burn_in, "refresh_every": refresh_every}
    settings |= {"hypersteps": hypersteps, "share": share, "keep": keep, "gates": gates}
    settings["units"] = None if units is None else [units.layer, units.step, units.size]
    settings["lr"] = [group.get("initial_lr", group["lr"]) for group in descent.param_groups]
    gate = Gates(evidence, train_loader, model) if gates else None
    run = Run(model, descent, annealing, evidence, (train_loader, evidence_loader), settings, scales, gate)
    modes = [(module, module.training) for module in model.modules()]
    history = History(evidence)
    if checkpoint is not None and Path(checkpoint).exists():
        history.records = run.load(checkpoint)
    done = len(history.records)
    if not done and epochs > burn_in:
        rehearse(evidence, train_loader, evidence_loader, schedule.look(0).enough)
    moves, slopes = "", None
    bar = _bar(range(done, epochs), done, epochs, progress)
    try:
        for epoch in bar:
            undo = Undo(run, modes)
            slopes = Slopes(evidence) if epoch == epochs - 1 else None
            try:
                if gate is not None and not epoch:
                    moves = gate.start()
                with scales.held():
                    loss, constant = _epoch(run, slopes)
            except RelaxError:
                undo()
                raise
            _anneal(annealing, loss)
            record = EpochRecord(epoch, loss, note=moves)
            if epoch in schedule.epochs:
                index = schedule.epochs.index(epoch)
                part, enough = schedule.look(index)
                part = Replayed(part, all_of, run.device) if scales else part
                if gate is not None and (not index or gate.waited):
                    moves = _also(moves, gate.again())
                terms, note = evidence.refresh(part, keep=keep, enough=enough), ""
                waits = epoch < epochs // 2 and evidence.mean_loss > LEARNED * constant
                if gate is not None:
                    gate.waited = waits
                if waits:
                    note = "no better than a constant yet: the precisions wait"
                else:
                    terms = evidence.step(hypersteps)
                    scales.step(part, keep)
                    if gate is not None:
                        note = gate.prune(descent)
                gammas = evidence.effective_dimension()
                record = EpochRecord(
                    epoch, loss, terms, dict(evidence.log_precision), gammas, _also(moves, note), scales.values()
                )
            moves = ""
            history.records.append(record)
            if checkpoint is not None:
                run.save(checkpoint, history)
            if callback is not None:
                callback(record)
            _show(bar, record)
    except KeyboardInterrupt:
        if checkpoint is not None:
            _log.warning(
                "interrupted after epoch %d; call fit again with checkpoint=%s", len(history.records), checkpoint
            )
        raise
    if epochs:
        evidence.refresh(schedule.last.data, enough=schedule.last.enough)
        evidence.slopes = slopes
        if slopes is not None:
            slopes.end()
        if not evidence.learned:
            warnings.warn(f"after {epochs} epochs the network is {CONSTANT}", stacklevel=2)
    return history


def _residuals_given(options: Mapping[str, Any]) -> bool:
    """Whether residual pathways are to start at a precision of the user's."""
    prior = options.get("prior")
    return "residual_log_precision" in options or (prior is not None and prior.residual_log_precision is not None)


def _also(one: str, other: str) -> str:
    return "; ".join(note for note in (one, other) if note)


def _epoch(run: Run, slopes: Slopes | None = None) -> tuple[float, float]:
    """One pass; returns the loss averaged over samples, and what the best constant output would have. Gradients go
    into ``slopes``."""
    check_weights(run.model)
    total, count, targets = 0.0, 0, []
    for index, (input, target) in enumerate(batches(run.loaders[0], run.device)):

        def closure() -> Any:  # a tensor, where torch's annotations have a number
            run.descent.zero_grad()
            loss = run.evidence.loss(answer(run.model, input), target)
            if not torch.isfinite(loss):
                raise DataError(f"batch {index}", "the loss is not finite", remedy="lower the learning rate")
            loss.backward()
            if slopes is not None:
                slopes.add(len(target))
            return loss

        loss = torch.as_tensor(run.descent.step(closure))  # some optimisers look at several points, LBFGS for one
        total, count = total + float(loss.detach()) * len(target), count + len(target)
        targets.append(target)
    if not count:
        raise DataError("train_loader", "it yields no batch", remedy="pass a non-empty, re-iterable loader")
    constant = run.evidence.likelihood.joint_constant_loss(targets)
    total, of_constant, count = summed(torch.tensor([total, constant * count, count], dtype=torch.float64)).tolist()
    return total / count, of_constant / count


def _anneal(schedule: Any, loss: float) -> None:
    if isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
        schedule.step(loss)
    else:
        schedule.step()


def _cosine(descent: Optimizer, epochs: int) -> torch.optim.lr_scheduler.LRScheduler:
    """From the learning rate of each group to a fiftieth of it."""
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(
        descent, max(epochs, 1), eta_min=descent.param_groups[0]["lr"] / 50
    )
    if len({group["lr"] for group in descent.param_groups}) == 1:
        return falling
    cosine = lambda epoch: 0.51 + 0.49 * math.cos(math.pi * epoch / max(epochs, 1))  # noqa: E731
    return torch.optim.lr_scheduler.LambdaLR(descent, cosine)


def _bar(epochs: range, first: int, total: int, progress: bool) -> Any:
    from tqdm import tqdm

    return tqdm(epochs, initial=first, total=total, desc="fit", unit="epoch", disable=not progress)


def _show(bar: Any, record: EpochRecord) -> None:
    shown = {"loss": f"{record.loss:.3f}"}
    if record.evidence is not None:
        shown["-log evidence/N"] = f"{-record.evidence.total / record.evidence.num_data:.3f}"
    bar.set_postfix(shown, refresh=False)
