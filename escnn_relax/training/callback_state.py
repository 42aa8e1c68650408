"""What a callback stores beside a model and its optimizer, and how it goes on from there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import torch

from ..curvature.batch_format import Weighted
from ..errors import CheckpointError
from ..evidence.slopes import Slopes
from . import checkpoint as disk
from .epochs import EpochLoss
from .evidence_policy import EvidencePolicy
from .history import EpochRecord, read_record

__all__ = ["losses_of", "restored", "state_of"]


def state_of(policy: EvidencePolicy, records: Iterable[EpochRecord], seen: EpochLoss | None) -> dict[str, Any]:
    """Plain values and tensors: all that a training by this policy needs to go on.

    Args:
        seen: what an epoch that has not ended has seen.
    """
    targets = [] if seen is None else [_entries(target) for target in seen.targets]
    device = next(policy.evidence.model.parameters()).device
    state = {
        "settings": policy.settings,
        "evidence": policy.evidence.state_dict(),
        "scales": policy.length_scales.state_dict(),
        "gates": {} if policy.gates is None else policy.gates.state_dict(),
        "slopes": None if policy.slopes is None else policy.slopes.state_dict(),
        "records": [asdict(record) for record in records],
        "seen": None if seen is None else {"losses": seen.losses, "sizes": seen.sizes, "targets": targets},
        "random_numbers": disk.random_numbers(device, (policy.train_loader, policy.evidence_loader)),
    }
    plain: dict[str, Any] = disk.plain(state)
    return plain


def restored(policy: EvidencePolicy, state: Mapping[str, Any]) -> list[EpochRecord]:
    """Let a policy go on from a state; returns the records of the epochs that are done.

    Raises:
        CheckpointError: what is no state, or that of a training with other settings; nothing is touched then.
    """
    stored = state.get("settings")
    differ = [k for k, v in disk.plain(policy.settings).items() if k != "units" and (stored or {}).get(k, v) != v]
    if not isinstance(stored, Mapping) or differ:
        what = f"of a training with other {', '.join(sorted(differ))}" if differ else "of something else"
        remedy = "make the callback as it was made then, or start anew"
        raise CheckpointError("EvidenceCallback", f"the state is {what}", remedy=remedy)
    policy.restore(stored)
    policy.evidence.load_state_dict(state["evidence"])
    policy.length_scales.load_state_dict(state["scales"])
    if policy.gates is not None:
        policy.gates.load_state_dict(state["gates"])
    policy.slopes = None
    if state.get("slopes") is not None:
        policy.slopes = Slopes(policy.evidence)
        policy.slopes.load_state_dict(state["slopes"])
    return [read_record(entry) for entry in state["records"]]


def losses_of(seen: Mapping[str, Any] | None) -> EpochLoss:
    """What an epoch had seen when the state was taken."""
    if seen is None:
        return EpochLoss([], [], [])
    targets = [Weighted(*entries) if len(entries) == 2 else entries[0] for entries in seen["targets"]]
    return EpochLoss(list(seen["losses"]), list(seen["sizes"]), targets)


def _entries(target: Any) -> list[torch.Tensor]:
    return [target.target, target.weight] if isinstance(target, Weighted) else [target]
