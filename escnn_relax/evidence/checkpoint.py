"""Training runs on disk: written whole or not at all, read without executing anything."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any, Union

import numpy as np
import torch

from ..errors import CheckpointError

__all__ = ["save", "load", "settings", "plain", "random_state", "set_random_state"]


def save(path: Union[str, Path], state: dict[str, Any]) -> None:
    """Write ``state`` beside ``path``, then move it there, so that a kill leaves the previous file intact."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = plain(state)
    partial = path.with_name(path.name + f".{os.getpid()}.partial")
    torch.save(state, partial)
    os.replace(partial, path)


def plain(value: Any) -> Any:
    """The same value without numpy's scalars, which the safe reader refuses."""
    if isinstance(value, np.generic):
        return value.item()
    if type(value) is dict:
        return {plain(k): plain(v) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(plain(v) for v in value)
    return value


def load(path: Union[str, Path], run: dict[str, Any]) -> dict[str, Any]:
    """Read a checkpoint of the run described by ``run``.

    Raises:
        CheckpointError: a file that is no checkpoint, or one of another run.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).split("\n")[0].split(". ")[0]  # torch goes on for a page
        raise CheckpointError(str(path), f"cannot be read ({reason})", remedy="delete it to start anew") from error
    found = state.get("run") if isinstance(state, dict) else None
    if found != run:
        differ = sorted(k for k in run if not isinstance(found, dict) or found.get(k) != run[k])
        raise CheckpointError(
            str(path), f"belongs to a run with other {', '.join(differ)}", remedy="delete it, or name another file"
        )
    return state


def settings(path: Union[str, Path]) -> dict[str, Any]:
    """What a checkpoint says of its run; nothing if it cannot be read, which :func:`load` will complain of."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return dict(state["run"])
    except Exception:
        return {}


def random_state(device: torch.device) -> dict[str, Any]:
    """States of the global generators of torch, numpy and Python."""
    legacy: Any = np.random.get_state()
    kind, keys, position, has_gauss, gauss = legacy
    state = {
        "torch": torch.get_rng_state(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss),
        "python": random.getstate(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Put them back."""
    torch.set_rng_state(state["torch"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
