"""``EvidenceCallback`` as a callback of Lightning's, of ``lightning`` or ``pytorch_lightning``, whichever is there."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Unpack

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from ..curvature.batch_format import Batches, Weighted
from ..curvature.checked_batches import batches
from ..curvature.likelihood import Likelihood
from ..errors import ArgumentError, CheckpointError, InstallationError
from ..evidence.evidence import Evidence
from ..evidence.settings import EvidenceKeywords
from .callback import EvidenceCallback
from .history import History
from .plain_loss import plain_loss
from .scalar_log import Writer, check_writers

__all__ = ["LightningHooks", "lightning_callback"]

#: Where ``Callback`` and ``Trainer`` are found.
PACKAGES = ("lightning.pytorch", "pytorch_lightning")
#: Strategies that keep a part of each weight in each process.
SHARDED = ("FSDP", "DeepSpeed", "ModelParallel")


class LightningHooks:
    """What a ``Trainer`` calls; :func:`lightning_callback` makes a ``Callback`` of it.

    Attributes:
        inner: the :class:`~escnn_relax.EvidenceCallback`, once a training has begun.
    """

    def __init__(
        self,
        model: None | str | nn.Module = None,
        loader: Iterable[Any] | None = None,
        epochs: int | None = None,
        log: bool | Writer | Iterable[Writer] = True,
        **options: Any,
    ) -> None:
        self.model, self.loader, self.total, self.options = model, loader, epochs, options
        self.writers = log  # log itself is a name that the Trainer gives to a method of its own
        if log is not True and log is not False:
            check_writers(log)
        self.inner: EvidenceCallback | None = None
        self._stored: dict[str, Any] = {}
        self._undo: Callable[[], None] | None = None

    def __reduce__(self) -> Any:
        named: dict[str, Any] = {"model": self.model, "loader": self.loader, "epochs": self.total, "log": self.writers}
        return functools.partial(lightning_callback, **named, **self.options), ()

    @property
    def begun(self) -> EvidenceCallback:
        """What a training has begun with; ``ArgumentError`` before."""
        if self.inner is None:
            problem = "there is none before the training begins"
            raise ArgumentError("EvidenceCallback", problem, remedy="read it after trainer.fit(...), or during it")
        return self.inner

    @property
    def evidence(self) -> Evidence:
        """The evidence of the training."""
        return self.begun.evidence

    @property
    def history(self) -> History:
        """A record of each epoch, as :func:`~escnn_relax.fit` returns it."""
        return self.begun.history

    def loss(self, output: Any, target: Any, weight: Tensor | None = None) -> Tensor:
        """For ``training_step`` and ``validation_step``: see :meth:`EvidenceCallback.loss
        <escnn_relax.EvidenceCallback.loss>`.

        Before a training begins, in its sanity check and in ``trainer.validate`` alone, there is no prior yet: it is
        the negative log likelihood without a penalty, at the noise that a training would begin with. A loss that
        requires a gradient is refused then.
        """
        if self.inner is not None:
            return self.inner.loss(output, target, weight)
        loss = plain_loss(self.options, output, target if weight is None else Weighted(target, weight))
        return self.begun.loss(output, target, weight) if loss.requires_grad else loss

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Make the evidence, look over optimizers and data, and let ``training_step`` return penalised losses."""
        sharded = [name for name in SHARDED if name in type(trainer.strategy).__name__]
        if sharded:
            problem = f"{type(trainer.strategy).__name__} keeps a part of each weight in each process"
            raise ArgumentError(
                "strategy", problem, remedy="train with strategy='ddp', which keeps all of them in each"
            )
        inner = self._make(trainer, self._model(trainer, pl_module))
        stored, self._stored = self._stored, {}
        ahead = trainer.current_epoch - inner.epoch  # by one where the last step of an epoch was stored, not its end
        if ahead != 0 and not (ahead == 1 and inner.noted):
            problem = f"epoch {trainer.current_epoch} begins, of which the evidence has seen {inner.epoch}"
            remedy = (
                "resume from a checkpoint that was written with this callback, and make a new one for each training"
            )
            raise CheckpointError("EvidenceCallback", problem, remedy=remedy)
        inner.begin(*trainer.optimizers)
        if ahead:
            self._finish()
        if stored and not inner.noted and inner.epoch < inner.policy.epochs:  # at the end of an epoch
            _begin_loader(trainer)
        self._penalise(pl_module, self._loader(trainer))

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """The first batch of an epoch begins it."""
        if not self.begun.inside:
            self.begun.begin_epoch()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Test, refresh, step, as they are due."""
        self._finish()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """A refresh at the trained weights."""
        self._leave()
        self.begun.end()

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Of a run that was at its end already, no training began: what its checkpoint holds, and the last refresh."""
        if not self._stored or trainer.train_dataloader is None:
            return
        pl_module.to(trainer.strategy.root_device)  # the Trainer has taken it from there
        try:
            inner = self._make(trainer, self._model(trainer, pl_module))
            self._stored = {}
            inner.begin(*trainer.optimizers)
            if inner.noted:
                self._finish()
            inner.end()
        finally:
            self._leave()
            pl_module.cpu()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Nothing of ours stays in the module."""
        self._leave()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Nothing of ours stays in the module."""
        self._leave()

    def state_dict(self) -> dict[str, Any]:
        """For the ``Trainer``'s checkpoint."""
        return dict(self._stored) if self.inner is None else self.inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the ``Trainer``'s checkpoint; looked at when the training begins."""
        self._stored = dict(state_dict)

    def _make(self, trainer: Any, model: nn.Module) -> EvidenceCallback:
        """The evidence, as the checkpoint has it if there is one."""
        total = trainer.max_epochs if self.total is None else self.total
        if total is None or total < 0:
            remedy = "pass Trainer(max_epochs=...), or the number to lightning_callback(epochs=...)"
            raise ArgumentError("epochs", "the length of the training is not known", got=total, remedy=remedy)
        log = [functools.partial(_write, trainer)] if self.writers is True else self.writers or None
        loader = _single(self._loader(trainer))
        self.inner = EvidenceCallback(model, loader, epochs=total, log=log, **self.options)
        if self._stored:
            self.inner.load_state_dict(self._stored)
        return self.inner

    def _finish(self) -> None:
        """End an epoch; one whose batches all came before the checkpoint has not begun here."""
        if not self.begun.inside:
            self.begun.begin_epoch()
        self.begun.end_epoch()

    def _loader(self, trainer: Any) -> Any:
        return trainer.train_dataloader if self.loader is None else self.loader

    def _model(self, trainer: Any, module: Any) -> nn.Module:
        if isinstance(self.model, str):
            inner: nn.Module = module.get_submodule(self.model)
            return inner
        if self.model is not None:
            return self.model
        whole: nn.Module = trainer.model if isinstance(trainer.model, DistributedDataParallel) else module
        return whole

    def _penalise(self, module: Any, loader: Any) -> None:
        """From now on losses that ``training_step`` returns have the prior's penalty, unless they are ours."""
        original, before = module.training_step, module.__dict__.get("training_step")

        @functools.wraps(original)
        def training_step(*arguments: Any, **named: Any) -> Any:
            inner, noted = self.begun, self.begun.noted
            output = original(*arguments, **named)
            loss: Any = output.get("loss") if isinstance(output, Mapping) else output
            if inner.noted > noted or (loss is None and module.automatic_optimization):
                return output
            if not module.automatic_optimization:
                problem = "with manual optimization the loss that it returns is not the one that is descended"
                raise ArgumentError("training_step", problem, remedy="compute it by callback.loss(output, target)")
            penalised = inner.penalised(loss, _target((*arguments, *named.values())[0], loader, module.device))
            return {**output, "loss": penalised} if isinstance(output, Mapping) else penalised

        def undo() -> None:
            if before is None:
                module.__dict__.pop("training_step", None)
            else:
                module.training_step = before

        module.training_step, self._undo = training_step, undo

    def _leave(self) -> None:
        if self._undo is not None:
            self._undo()
            self._undo = None
        if self.inner is not None:
            self.inner.abandon()


def lightning_callback(
    model: None | str | nn.Module = None,
    *,
    loader: Iterable[Any] | None = None,
    epochs: int | None = None,
    likelihood: str | Likelihood | Callable[..., Any] = "categorical",
    evidence: Evidence | None = None,
    burn_in: int | None = None,
    refresh_every: int | None = None,
    hypersteps: int = 6,
    evidence_loader: Iterable[Any] | None = None,
    share: float | None = None,
    keep: float = 0.0,
    omega_rate: float = 0.1,
    gates: bool | None = None,
    log: bool | Writer | Iterable[Writer] = True,
    verdicts: bool = False,
    **evidence_options: Unpack[EvidenceKeywords],
) -> Any:
    """An :class:`~escnn_relax.EvidenceCallback` for a ``Trainer`` of Lightning's::

        callback = escnn_relax.lightning_callback()
        trainer = lightning.Trainer(max_epochs=40, callbacks=[callback])
        trainer.fit(module, loader)
        print(escnn_relax.report(module, callback.evidence))

    The module may stay as it is: where ``training_step`` returns the mean negative log likelihood of its batch, such as
    ``cross_entropy(self(x), y)``, the penalty of the prior is added, once for each batch, before anything is scaled,
    accumulated or clipped. It may also return ``callback.loss(output, target)`` itself, and has to for a likelihood
    with a noise or a temperature, and under manual optimization. Works with ``lightning`` and ``pytorch_lightning``;
    install one of them, e.g. by ``pip install 'escnn-relax[lightning]'``.

    The state of the evidence is part of the ``Trainer``'s checkpoints, random numbers included; a run that is resumed
    from the end of an epoch goes on with the same numbers.

    Args:
        model: what has relaxed layers and gives the outputs: the whole module by default, of which ``forward`` is
            called; or a module, or the name of one in it, such as ``"net"``.
        loader: what the symmetry test and the refreshes look at, and whose samples are counted: that of the ``Trainer``
            by default; ``escnn_relax.Batches(...)`` says how batches are read.
        epochs: of the whole training, ``max_epochs`` by default.
        log: ``True`` for the ``Trainer``'s loggers, at its global step; else as of
            :class:`~escnn_relax.EvidenceCallback`.
        likelihood, evidence, burn_in, refresh_every, hypersteps: as of :class:`~escnn_relax.EvidenceCallback`.
        evidence_loader, share, keep, omega_rate, gates, verdicts, evidence_options: likewise.

    Returns:
        a ``Callback`` with the attributes ``evidence``, ``history`` and ``inner``, and the method ``loss``.

    Raises:
        InstallationError: neither package is installed.
        ArgumentError: when the training begins: optimizers that do not hold a pathway that may open, a training of
            unknown length, several loaders, a strategy that splits weights.
        CheckpointError: a checkpoint that was written without this callback, or with other settings.

    >>> from escnn_relax.errors import RelaxError
    >>> try:
    ...     made = type(lightning_callback()).__name__
    ... except RelaxError as error:
    ...     made = str(error)
    >>> made == "EvidenceCallback" or "pip install lightning" in made
    True
    """
    options: dict[str, Any] = {"likelihood": likelihood, "evidence": evidence, "burn_in": burn_in}
    options |= {"refresh_every": refresh_every, "hypersteps": hypersteps, "evidence_loader": evidence_loader}
    options |= {"share": share, "keep": keep, "omega_rate": omega_rate, "gates": gates, "verdicts": verdicts}
    return _of(_bases())(model, loader, epochs, log, **options, **evidence_options)


@functools.cache
def _of(bases: tuple[type, ...]) -> Any:
    return type("EvidenceCallback", (LightningHooks, *bases), {"__doc__": LightningHooks.__doc__})


def _bases() -> tuple[type, ...]:
    """``Callback`` of the packages that are imported already, else of the first one that can be."""
    imported = tuple(sys.modules[name].Callback for name in PACKAGES if hasattr(sys.modules.get(name), "Callback"))
    if imported:
        return imported
    for name in PACKAGES:
        try:
            return (importlib.import_module(name).Callback,)
        except ImportError:
            continue
    raise InstallationError(
        "lightning_callback",
        "neither lightning nor pytorch_lightning is installed",
        remedy="pip install lightning, or use EvidenceCallback in a loop of your own",
    )


def _single(loader: Any) -> Any:
    """One loader; ``ArgumentError`` for several, or none."""
    several = isinstance(loader, Mapping) or type(loader).__name__ == "CombinedLoader"
    if isinstance(loader, Sequence) and any(isinstance(entry, DataLoader) for entry in loader):
        several = True
    if loader is None or several:
        got = "several" if several else "none"
        remedy = "pass lightning_callback(loader=...) with (input, target) pairs for the evidence"
        raise ArgumentError("train_dataloader", expected="one loader", got=got, remedy=remedy)
    return loader


def _begin_loader(trainer: Any) -> None:
    """Where a run goes on, Lightning began to go through the loader before random numbers were put back: begin
    again."""
    loop = trainer.fit_loop
    fetcher = getattr(loop, "_data_fetcher", None)
    restarts = getattr(loop, "is_resuming", False) or loop.epoch_loop.restarting
    if restarts and fetcher is not None:
        iter(fetcher)


def _target(batch: Any, loader: Any, device: Any) -> Any:
    """The targets in a batch, read as everywhere."""
    source = Batches([batch], loader.read) if isinstance(loader, Batches) else [batch]
    return next(iter(batches(source, device)))[1]


def _write(trainer: Any, numbers: dict[str, float], epoch: int) -> None:
    """To the loggers of a ``Trainer``, at its step."""
    for logger in trainer.loggers:
        logger.log_metrics({**numbers, "epoch": epoch}, step=trainer.global_step)
