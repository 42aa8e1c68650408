"""Where random numbers come from, taken and put back: the global generators, and those that loaders have of their
own."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["generators", "random_state", "random_state_kept", "set_random_state"]


def generators(*loaders: Iterable[Any] | None) -> Iterator[torch.Generator]:
    """The loaders' own random generators, each once, always in the same order."""
    seen: list[torch.Generator] = []
    for loader in loaders:
        batch_sampler = getattr(loader, "batch_sampler", None)
        for holder in (
            loader,
            getattr(loader, "sampler", None),
            batch_sampler,
            getattr(batch_sampler, "sampler", None),
        ):
            generator = getattr(holder, "generator", None)
            if isinstance(generator, torch.Generator) and not any(generator is g for g in seen):
                seen.append(generator)
                yield generator


def random_state(device: torch.device) -> dict[str, Any]:
    """States of the global generators of torch, numpy and Python, as tensors and numbers."""
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


@contextmanager
def random_state_kept(device: torch.device, *loaders: Iterable[Any] | None) -> Iterator[None]:
    """Global generators and the loaders' own are put back in the end, so that a pass more changes nothing after it.

    >>> with random_state_kept(torch.device("cpu")):
    ...     first = torch.rand(3)
    >>> torch.equal(first, torch.rand(3))
    True
    """
    of_loaders = list(generators(*loaders))
    before = random_state(device), [g.get_state() for g in of_loaders]
    try:
        yield
    finally:
        set_random_state(before[0], device)
        for generator, state in zip(of_loaders, before[1]):
            generator.set_state(state)
