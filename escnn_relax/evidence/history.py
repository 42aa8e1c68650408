"""What happened in a training run, epoch by epoch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Optional

from .evidence import Evidence, EvidenceTerms

__all__ = ["EpochRecord", "History"]


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
    """

    epoch: int
    loss: float
    evidence: Optional[EvidenceTerms] = None
    log_precision: dict[str, float] = field(default_factory=dict)
    effective_dimension: dict[str, float] = field(default_factory=dict)
    note: str = ""


@dataclass
class History:
    """Returned by :func:`~escnn_relax.fit`.

    Attributes:
        records: one :class:`EpochRecord` an epoch.
        evidence: the :class:`~escnn_relax.Evidence` at the end; its last refresh is of the trained weights.
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
        """Plain numbers, for machines."""
        return {"records": [asdict(record) for record in self.records]}

    def __str__(self) -> str:
        lines = ["epoch     loss   -log evidence / N"]
        for r in self.records:
            if r.evidence is not None or r.note:
                evidence = "" if r.evidence is None else f"{-r.evidence.total / r.evidence.num_data:12.4f}"
                lines.append(f"{r.epoch:5d} {r.loss:8.4f} {evidence:>12s}   {r.note}".rstrip())
        return "\n".join(lines)
