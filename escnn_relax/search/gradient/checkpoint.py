"""A phase of a differentiable search on disk: stored after every epoch, continued from there with the same result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...evidence import checkpoint as disk
from .shares_history import SearchEpoch

if TYPE_CHECKING:
    from .alternating_training import Phase

__all__ = ["save", "resume"]


def save(phase: Phase, path: str | Path, records: Sequence[SearchEpoch]) -> None:
    """Write everything that :func:`resume` needs."""
    states = {} if phase.before is None else {phase.before.name: _state(phase.before)}
    states[phase.name] = _state(phase)
    state = {
        "run": _description(phase),
        "records": [asdict(record) for record in records],
        **disk.random_numbers(phase.device, phase.loaders),
        **states,
    }
    disk.save(path, state)


def resume(phase: Phase, path: None | str | Path) -> list[SearchEpoch]:
    """Continue from a file, if it exists and has got to this phase; returns all epochs recorded so far.

    Raises:
        CheckpointError: a file of another run.
    """
    if path is None or not Path(path).exists():
        return []
    stored = disk.load(path, _description(phase), phase.loaders)
    state = stored.get(phase.name)
    if state is None:
        return []
    phase.model.train()
    phase.model.load_state_dict(state["model"])
    phase.descent.load_state_dict(state["descent"])
    if phase.architect is not None:
        phase.architect.load_state_dict(state["architect"])
    if phase.evidence is not None:
        phase.evidence.load_state_dict(state["evidence"])
    phase.step, phase.steps, phase.constant = state["step"], list(state["steps"]), state["constant"]
    phase.shares = {n: [tuple(s) for s in of] for n, of in state["shares"].items()}
    disk.restore_random_numbers(stored, phase.device, phase.loaders)
    return [SearchEpoch(**entry) for entry in stored["records"]]


def _description(phase: Phase) -> dict[str, Any]:
    """All that decides about the result, as plain values."""
    origin = phase if phase.before is None else phase.before
    described = {
        **asdict(phase.settings),
        "parameters": {n: [str(p.dtype), *p.shape] for n, p in origin.model.named_parameters()},
        "groups": {n: list(of) for n, of in origin.groups.items()},
        "optimiser": type(origin.descent).__name__,
        "other data": [loader is not None for loader in phase.loaders[1:]],
    }
    return disk.plain(described)


def _state(phase: Phase) -> dict[str, Any]:
    phase.model.train()
    return {
        "model": phase.model.state_dict(),
        "descent": phase.descent.state_dict(),
        "architect": None if phase.architect is None else phase.architect.state_dict(),
        "evidence": None if phase.evidence is None else phase.evidence.state_dict(),
        "constant": phase.constant,  # stored, since finding it out again would draw from the loader's generator
        "step": phase.step,
        "steps": list(phase.steps),
        "shares": {n: [list(s) for s in of] for n, of in phase.shares.items()},
    }
