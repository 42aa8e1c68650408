"""Training runs on disk: written whole or not at all, read without executing anything.

What is written of a run says :mod:`~escnn_relax.training.run_state`.
"""

from __future__ import annotations

import os
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..evidence.random_state import generators, random_state, set_random_state

#: Types that the safe reader knows, beside collections.
_PLAIN = {type(None), bool, int, float, complex, str, bytes}
_PLAIN |= {Tensor, nn.Parameter, torch.Size, torch.dtype, torch.device}

__all__ = ["load", "plain", "random_numbers", "restore_random_numbers", "save", "settings"]


def save(path: str | Path, state: dict[str, Any]) -> None:
    """Write ``state`` beside ``path``, then move it there, so that a kill leaves the previous file intact.

    Raises:
        CheckpointError: an entry that the safe reader would refuse; the previous file is left.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = plain(state)
    for place, entry in _unreadable(state):
        remedy = "let it be numbers, strings, tensors, and lists, tuples or dictionaries of them"
        raise CheckpointError(
            str(path),
            f"{place} could not be read again",
            expected="plain values",
            got=type(entry).__qualname__,
            remedy=remedy,
        )
    partial = path.with_name(path.name + f".{os.getpid()}.partial")
    torch.save(state, partial)
    os.replace(partial, path)


def plain(value: Any) -> Any:
    """The same value without numpy's scalars and dataclasses, which the safe reader refuses."""
    if isinstance(value, np.generic):
        return value.item()
    if is_dataclass(value) and not isinstance(value, type):  # settings
        return {"kind": type(value).__name__, **{f.name: plain(getattr(value, f.name)) for f in fields(value)}}
    if type(value) is dict:
        return {plain(k): plain(v) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(plain(v) for v in value)
    return value


def _unreadable(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """What ``torch.load(weights_only=True)`` refuses, with the names that lead there."""
    kind = type(value)
    if kind in (dict, OrderedDict, defaultdict):
        for key, entry in value.items():
            yield from _unreadable(key, place)
            yield from _unreadable(entry, f"{place}.{key}" if place else str(key))
    elif kind in (list, tuple, set):
        for index, entry in enumerate(value):
            yield from _unreadable(entry, f"{place}[{index}]")
    elif kind not in _PLAIN and kind not in getattr(torch.serialization, "get_safe_globals", list)():
        yield place, value


def load(path: str | Path, run: dict[str, Any], loaders: Iterable[Iterable[Any] | None] = ()) -> dict[str, Any]:
    """Read a checkpoint of the run described by ``run``.

    Args:
        loaders: of the run, if it stored their random generators.

    Raises:
        CheckpointError: a file that is no checkpoint, or one of another run, or of loaders with other generators.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).split("\n")[0].split(". ")[0]  # torch goes on for a page
        raise CheckpointError(str(path), f"cannot be read ({reason})", remedy="delete it to start anew") from error
    stored = state.get("run") if isinstance(state, dict) else None
    if isinstance(stored, dict) and "optimiser" in stored:  # as it was once spelled
        stored["optimizer"] = stored.pop("optimiser")
    if stored != run:
        differ = sorted(k for k in run if not isinstance(stored, dict) or stored.get(k) != run[k])
        raise CheckpointError(
            str(path), f"belongs to a run with other {', '.join(differ)}", remedy="delete it, or name another file"
        )
    if len(list(generators(*loaders))) != len(state.get("generators", [])):
        remedy = "start with the loaders that it was written with, or with a new checkpoint file"
        raise CheckpointError(str(path), "belongs to a run with other random generators in its loaders", remedy=remedy)
    return state


def settings(path: str | Path) -> dict[str, Any]:
    """What a checkpoint says of its run; nothing if it cannot be read, which :func:`load` will complain of."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return dict(state["run"])
    except Exception:
        return {}


def random_numbers(device: torch.device, loaders: Iterable[Iterable[Any] | None]) -> dict[str, Any]:
    """What :func:`restore_random_numbers` needs: states of the global generators and of the loaders' own."""
    return {"random": random_state(device), "generators": [g.get_state() for g in generators(*loaders)]}


def restore_random_numbers(
    state: dict[str, Any], device: torch.device, loaders: Iterable[Iterable[Any] | None]
) -> None:
    """Put all of them back."""
    set_random_state(state["random"], device)
    for generator, saved in zip(generators(*loaders), state["generators"], strict=True):
        generator.set_state(saved)
