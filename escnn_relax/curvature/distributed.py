"""Sums over the data of all processes, where ``torch.distributed`` is initialised; without it everything here does
nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.utils.data.distributed import DistributedSampler

from ..errors import DataError
from .batch_format import select_samples

__all__ = [
    "broadcast_first",
    "check_alike",
    "check_batches",
    "distributed",
    "gather_processes",
    "processes",
    "rank",
    "several",
    "sum_processes",
    "drop_padding",
]


def several() -> bool:
    """Whether there is more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def processes() -> int:
    """How many there are."""
    return dist.get_world_size() if several() else 1


def rank() -> int:
    """The number of this process."""
    return dist.get_rank() if several() else 0


def _device() -> torch.device:
    """Where the processes exchange tensors."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def sum_processes(tensor: Tensor) -> Tensor:
    """The sum over all processes, the same bits in each."""
    if not several():
        return tensor
    total = tensor.detach().to(_device(), copy=True)
    dist.all_reduce(total)
    return total.to(tensor.device)


def broadcast_first(tensor: Tensor) -> Tensor:
    """That of the first process."""
    if not several():
        return tensor
    first = tensor.detach().to(_device(), copy=True).contiguous()
    dist.broadcast(first, 0)
    return first.to(tensor.device)


def gather_processes(value: Any) -> list[Any]:
    """That of every process, in their order; tensors come on the CPU."""
    if not several():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def check_alike(model: nn.Module) -> None:
    """Raise ``DataError`` in all processes where the models differ between them, in names, shapes or weights."""
    if not several():
        return
    sums = {n: (tuple(t.shape), float(t.detach().double().sum())) for n, t in model.named_parameters()}
    others = gather_processes(sums)
    for number, other in enumerate(others):
        names = sorted(n for n in {*others[0], *other} if others[0].get(n) != other.get(n))
        if names:
            raise DataError(
                names[0],
                f"its weights in process {number} are other than in process 0",
                remedy="wrap the model in DistributedDataParallel, or broadcast its state before the first refresh",
            )


def check_batches(count: int) -> None:
    """Raise ``DataError`` in all processes where one of them had no data."""
    if not several():
        return
    empty = [number for number, amount in enumerate(gather_processes(count)) if not amount]
    if empty:
        raise DataError("loader", f"process {empty[0]} had no batch", remedy="give every process a share of the data")


def drop_padding(loader: Any, pairs: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
    """What a loader yields, read as pairs, without the samples that its ``DistributedSampler`` repeats to give all
    processes as many."""
    repeated, last = _repetitions(loader), None
    for pair in pairs:
        if last is not None:
            yield last
        last = pair
    if last is not None and repeated:
        last = _drop_last(*last, repeated)
    if last is not None:
        yield last


def distributed(loader: Any) -> bool:
    """Whether a loader's sampler gives each process a share of the data."""
    return isinstance(getattr(loader, "sampler", None), DistributedSampler)


def _repetitions(loader: Any) -> int:
    """How many of the last samples of this process another one has, too."""
    if not distributed(loader):
        return 0
    sampler: Any = loader.sampler
    size = len(sampler.dataset)
    return sum(place >= size for place in range(sampler.rank, sampler.total_size, sampler.num_replicas))


def _drop_last(input: Any, target: Any, count: int) -> tuple[Any, Any] | None:
    left = len(target) - count
    if left <= 0:
        return None
    return select_samples(input, slice(left), len(target)), target[:left]
