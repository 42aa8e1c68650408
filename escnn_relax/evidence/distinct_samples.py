"""How many different samples a loader draws from, which is not how many it draws."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence, Sized
from typing import Any, NamedTuple

import torch
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from ..curvature.batch_format import read
from ..diagnosis.sample_numbers import sample_identity
from ..errors import RelaxError
from .random_state import random_state_kept

__all__ = ["Draws", "draws"]

_KNOWN = (SequentialSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler, DistributedSampler)

_HERE = torch.device("cpu")


class Draws(NamedTuple):
    """Of one pass.

    Attributes:
        distinct: different samples that may come.
        drawn: how many come.
    """

    distinct: int
    drawn: int


def draws(loader: Iterable[Any]) -> Draws | None:
    r"""Number of different samples, and of draws, where a loader's sampler and data set tell; else ``None``.

    The evidence's N. Draws that repeat say nothing new: a pass over M draws of N samples sums losses and curvatures of
    M, and is scaled by N / M. With a ``WeightedRandomSampler``, whose draws have probabilities :math:`p_n`, that is the
    log-likelihood :math:`\sum_n N p_n \log p(y_n | x_n)` in expectation: the one that a descent along such draws
    climbs, so that the weights are at its mode, with the information of N samples in all. Where the :math:`p_n` differ
    much, the N samples hold less: pass Kish's number :math:`1 / \sum_n p_n^2` as ``num_data`` then.

    Known are torch's samplers, alone or in a ``BatchSampler``, distributed ones that pad (N is that of all processes
    together), ``Subset`` and ``ConcatDataset``, in which one data set may come several times, and lists of batches, in
    which one batch may. A sampler of another kind is gone through once, its random numbers put back; it warns if it
    repeats samples, for others may come the next time.

    >>> from torch.utils.data import DataLoader
    >>> draws(DataLoader(range(10), 5, sampler=RandomSampler(range(10), replacement=True, num_samples=500)))
    Draws(distinct=10, drawn=500)
    >>> draws([1, 2, 3]) is None
    True
    """
    if isinstance(loader, (list, tuple)):
        return _of_batches(loader)
    dataset, sampler = getattr(loader, "dataset", None), _sampler(loader)
    single: Any
    if sampler is None or not isinstance(dataset, Sized) or not hasattr(dataset, "__getitem__"):
        return None
    single = sampler.sampler if type(sampler) is BatchSampler else sampler
    indices = _indices(single, dataset)
    drawn = len(single) if type(single) in _KNOWN else len(indices)
    if isinstance(indices, range) and type(dataset) not in (Subset, ConcatDataset):
        return Draws(len(indices), drawn)
    return Draws(len({sample_identity(dataset, index) for index in indices}), drawn)


def _of_batches(loader: Sequence[Any]) -> Draws | None:
    """Of a list in which a batch comes several times."""
    different = {id(batch): batch for batch in loader}
    if len(different) == len(loader):
        return None
    try:
        sizes = {key: len(read(batch).target) for key, batch in different.items()}
    except (RelaxError, TypeError):  # which is said where the batch is used
        return None
    return Draws(sum(sizes.values()), sum(sizes[id(batch)] for batch in loader))


def _sampler(loader: Iterable[Any]) -> Any:
    """What yields single indices, or lists of them."""
    if getattr(loader, "batch_size", None) is not None:
        return getattr(loader, "sampler", None)
    of_batches = getattr(loader, "batch_sampler", None)
    return of_batches.sampler if type(of_batches) is BatchSampler else of_batches


def _indices(sampler: Any, dataset: Sized) -> range | list[Any]:
    if type(sampler) in (SequentialSampler, RandomSampler):
        return range(len(sampler.data_source))
    if type(sampler) is DistributedSampler:
        whole: Any = sampler.dataset
        return range(len(whole))  # all that any process sees, without what fills up its share
    if type(sampler) is SubsetRandomSampler:
        return list(sampler.indices)
    if type(sampler) is WeightedRandomSampler:
        return list(sampler.weights.nonzero().flatten().tolist())
    return _once(sampler)


def _once(sampler: Any) -> list[Any]:
    """One pass over a sampler of a kind that is not known, of indices or of batches of them."""
    with random_state_kept(_HERE, sampler):
        drawn = [i for item in sampler for i in (item if isinstance(item, (list, tuple)) else [item])]
    distinct = len(set(drawn))
    if distinct < len(drawn):
        warnings.warn(
            f"{type(sampler).__name__} draws some samples several times: the evidence counts the {distinct} different"
            " ones of one pass; pass num_data= if there are more",
            stacklevel=4,
        )
    return drawn
