"""What happened in a training run, epoch by epoch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from ..evidence.evidence import Evidence, EvidenceTerms
from ..symmetry.html_table import html_table

__all__ = ["EpochRecord", "History", "read_record"]


@dataclass(frozen=True)
class EpochRecord:
    """One epoch.

    Attributes:
        epoch: counted from 0.
        loss: penalised loss averaged over the epoch's samples (nats).
        evidence: the evidence after this epoch's refresh and hypersteps, or ``None`` without one.
        log_precision: log prior precision by parameter, after them.
        effective_dimension: effective dimension by parameter, after them.
        note: what the training loop did out of the ordinary.
        omega: inverse length scale by the name of its parameter, after this epoch's step (1 / pixels), where a refresh
            was.

    >>> record = EpochRecord(4, 0.31, EvidenceTerms(data_fit=-40.0, complexity=12.0, prior=8.0, num_data=100))
    >>> record.evidence.total
    -60.0
    """

    epoch: int
    loss: float
    evidence: EvidenceTerms | None = None
    log_precision: dict[str, float] = field(default_factory=dict)
    effective_dimension: dict[str, float] = field(default_factory=dict)
    note: str = ""
    omega: dict[str, float] = field(default_factory=dict)


def read_record(entry: dict[str, Any]) -> EpochRecord:
    """A record of what ``dataclasses.asdict`` made of it.

    >>> read_record(asdict(EpochRecord(4, 0.31))) == EpochRecord(4, 0.31)
    True
    """
    terms = entry["evidence"]
    return EpochRecord(**{**entry, "evidence": None if terms is None else EvidenceTerms(**terms)})


@dataclass
class History:
    """Returned by :func:`~escnn_relax.fit`.

    Attributes:
        records: one :class:`EpochRecord` an epoch.
        evidence: the :class:`~escnn_relax.Evidence` at the end; its last refresh is of the trained weights.

    >>> from torch import nn
    >>> evidence = Evidence(nn.Sequential(nn.Linear(3, 2)), relaxed_only=False)
    >>> terms = EvidenceTerms(data_fit=-40.0, complexity=12.0, prior=8.0, num_data=100)
    >>> history = History(evidence, [EpochRecord(0, 0.7), EpochRecord(1, 0.5, terms)])
    >>> history.losses, history.evidences
    ([0.7, 0.5], [(1, -0.6)])
    >>> print(history)
    epoch     loss   -log evidence / N
        1   0.5000       0.6000
    """

    evidence: Evidence
    records: list[EpochRecord] = field(default_factory=list)

    @property
    def losses(self) -> list[float]:
        """Penalised loss of each epoch (nats a sample)."""
        return [record.loss for record in self.records]

    @property
    def evidences(self) -> list[tuple[int, float]]:
        """``(epoch, log evidence / N)`` at each refresh (nats a sample)."""
        return [(r.epoch, r.evidence.total / r.evidence.num_data) for r in self.records if r.evidence is not None]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for machines; ``None`` for what is infinite, as the log precisions of closed pathways are."""
        plain: dict[str, Any] = _finite({"records": [asdict(record) for record in self.records]})
        return plain

    def _repr_html_(self) -> str:
        rows = []
        for r in self.records:
            if r.evidence is not None or r.note:
                evidence = "" if r.evidence is None else f"{-r.evidence.total / r.evidence.num_data:.4f}"
                rows.append([str(r.epoch), f"{r.loss:.4f}", evidence, r.note])
        notes = [self.evidence.doubt] if self.evidence.doubt else []
        return html_table(["epoch", "loss", "-log evidence / N", "note"], rows, notes, words=0)

    def __str__(self) -> str:
        lines = ["epoch     loss   -log evidence / N"]
        for r in self.records:
            if r.evidence is not None or r.note:
                evidence = "" if r.evidence is None else f"{-r.evidence.total / r.evidence.num_data:12.4f}"
                lines.append(f"{r.epoch:5d} {r.loss:8.4f} {evidence:>12s}   {r.note}".rstrip())
        if self.evidence.doubt:
            lines.append(self.evidence.doubt)
        return "\n".join(lines)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
