"""Numbers to whatever keeps them: TensorBoard, Weights & Biases, a logger of Lightning's, a function."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from ..errors import ArgumentError
from ..evidence.evidence import Evidence
from ..evidence.scalars import evidence_scalars

__all__ = ["Writer", "check_writers", "log_scalars", "write_scalars"]

#: A ``SummaryWriter`` (``add_scalar``), a logger (``log_metrics``), a run (``log``), or a function of numbers and step.
Writer: TypeAlias = Any


def write_scalars(writer: Writer, numbers: Mapping[str, float], step: int) -> None:
    """Hand named numbers to a writer, by the method that it has.

    Args:
        writer: has ``add_scalar(name, value, step)`` as TensorBoard's ``SummaryWriter``, ``log_metrics(numbers, step)``
            as Lightning's loggers, ``log(numbers, step=step)``; or is a function of numbers and step. A run of Weights
            & Biases has a step of its own, which only goes up with each of its user's calls: there the step is a
            number beside the others, ``"epoch"``, and the axis of them.
        numbers: by flat names.
        step: the epoch, or what the writer counts.

    >>> write_scalars(lambda numbers, step: print(step, numbers), {"conv/irrep_1/energy": 0.25}, 3)
    3 {'conv/irrep_1/energy': 0.25}
    """
    if hasattr(writer, "add_scalar"):
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
    elif hasattr(writer, "log_metrics"):
        writer.log_metrics(dict(numbers), step)
    elif hasattr(writer, "log") and hasattr(writer, "define_metric"):
        _log_beside(writer, numbers, step)
    elif hasattr(writer, "log"):
        writer.log(dict(numbers), step=step)
    else:
        writer(dict(numbers), step)


def _log_beside(run: Any, numbers: Mapping[str, float], epoch: int) -> None:
    """To Weights & Biases, which drops what comes at a step that its user's own calls have passed."""
    for room in dict.fromkeys(name.split("/")[0] for name in numbers):
        run.define_metric(f"{room}/*", step_metric="epoch")
    run.log({**numbers, "epoch": epoch})


def check_writers(log: None | Writer | Iterable[Writer]) -> list[Writer]:
    """The writers in a list; ``ArgumentError`` for what nothing can be written to."""
    writers = [] if log is None else list(log) if isinstance(log, (list, tuple)) else [log]
    for writer in writers:
        known = any(callable(getattr(writer, name, None)) for name in ("add_scalar", "log_metrics", "log"))
        if not known and not callable(writer):
            raise ArgumentError(
                "log",
                expected="a SummaryWriter, a run of Weights & Biases, a logger of Lightning's, or a function",
                got=type(writer).__name__,
                remedy="pass what has add_scalar, log or log_metrics",
            )
    return writers


def log_scalars(writers: Iterable[Writer], evidence: Evidence, step: int, verdicts: bool = False) -> None:
    """:func:`~escnn_relax.evidence.evidence_scalars` of this moment, to each writer."""
    writers = list(writers)
    if writers:
        numbers = evidence_scalars(evidence, verdicts)
        for writer in writers:
            write_scalars(writer, numbers, step)
