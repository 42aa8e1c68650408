"""What a training run must know of its loaders: how many samples they hold, and where their randomness comes from."""

from __future__ import annotations

from typing import Iterable, Iterator

import torch

from ..curvature.collect import batches
from ..errors import DataError

__all__ = ["data_size", "generators"]


def data_size(loader: Iterable) -> int:
    """Number of different samples that a loader draws from.

    Its sampler's length where there is one (a subset sampler holds fewer than the data set), else by counting.
    """
    if iter(loader) is loader:
        remedy = "pass a DataLoader or a list, something that can be gone through again"
        raise DataError("train_loader", "an iterator can be gone through only once", remedy=remedy)
    sampler = getattr(loader, "sampler", None)
    if getattr(loader, "batch_size", None) is not None and hasattr(sampler, "__len__"):
        count = len(sampler)
    else:
        count = sum(len(target) for _, target in batches(loader, torch.device("cpu")))
    if not count:
        raise DataError("train_loader", "it yields no batch", remedy="pass a non-empty, re-iterable loader")
    return count


def generators(*loaders: Iterable) -> Iterator[torch.Generator]:
    """The loaders' own random generators, each once, always in the same order."""
    seen = []
    for loader in loaders:
        batch_sampler = getattr(loader, "batch_sampler", None)
        for holder in (loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)):
            generator = getattr(holder, "generator", None)
            if isinstance(generator, torch.Generator) and not any(generator is g for g in seen):
                seen.append(generator)
                yield generator
