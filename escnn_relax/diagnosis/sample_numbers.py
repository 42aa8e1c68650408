"""Which sample of a data set comes when: augmentation changes a sample's pixels, not its number."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any

from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset

from ..curvature.batch_format import Batches

__all__ = ["NumberedLoader", "number_samples", "sample_identity"]


class _Indexed:
    """A data set whose items say their index."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> tuple[Any, Any]:
        return index, self.dataset[index]

    def __getitems__(self, indices: Sequence[Any]) -> list[tuple[Any, Any]]:
        several = getattr(self.dataset, "__getitems__", None)
        items = several(indices) if callable(several) else [self.dataset[index] for index in indices]
        return list(zip(indices, items))


class _Collated:
    """Collates items beside their indices."""

    def __init__(self, collate: Any) -> None:
        self.collate = collate

    def __call__(self, pairs: Sequence[tuple[Any, Any]]) -> tuple[list[Any], Any]:
        return [index for index, _ in pairs], self.collate([item for _, item in pairs])


class NumberedLoader:
    """A loader's batches, with the samples that are in them.

    The batches and their order are the loader's own, whose sampler and random generator are used.

    Attributes:
        last: the samples of the batch that was yielded last, each with its index and its :func:`sample_identity`.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.dataset = loader.dataset
        self.last: list[tuple[Any, Hashable]] | None = None
        indexed: Any = _Indexed(loader.dataset)
        self._loader: DataLoader[Any] = DataLoader(
            indexed,
            batch_sampler=loader.batch_sampler,
            collate_fn=_Collated(loader.collate_fn),
            num_workers=loader.num_workers,
            pin_memory=loader.pin_memory,
            timeout=loader.timeout,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            generator=loader.generator,
            prefetch_factor=loader.prefetch_factor,
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        for indices, batch in self._loader:
            self.last = [(index, sample_identity(self.dataset, index)) for index in indices]
            yield batch


def number_samples(loader: Iterable[Any]) -> tuple[Iterable[Any], NumberedLoader | None]:
    """A loader of the same batches, and what tells their samples: itself, or ``None`` where nothing can.

    >>> data = DataLoader(range(4), 2)
    >>> loader, numbers = number_samples(data)
    >>> [(batch.tolist(), [index for index, _ in numbers.last]) for batch in loader]
    [([0, 1], [0, 1]), ([2, 3], [2, 3])]
    """
    inner: Any = loader.loader if isinstance(loader, Batches) else loader
    plain = type(inner) is DataLoader and inner.batch_sampler is not None
    if plain and inner.num_workers and inner.worker_init_fn is not None:
        return loader, None  # it may look for its own data set
    if not plain or isinstance(inner.dataset, IterableDataset) or not hasattr(inner.dataset, "__getitem__"):
        return loader, None
    result = NumberedLoader(inner)
    return (Batches(result, loader.read) if isinstance(loader, Batches) else result), result


def sample_identity(dataset: Any, index: Any) -> Hashable:
    """The same for a sample wherever it comes from, whatever subset or concatenation.

    >>> from torch.utils.data import Subset
    >>> data = range(5)
    >>> sample_identity(Subset(data, [3, 4]), 1) == sample_identity(data, 4)
    True
    """
    if type(dataset) is Subset:
        return sample_identity(dataset.dataset, dataset.indices[index])
    if type(dataset) is ConcatDataset:
        index = index + len(dataset) if index < 0 else index
        number = bisect_right(dataset.cumulative_sizes, index)
        return sample_identity(
            dataset.datasets[number], index - (dataset.cumulative_sizes[number - 1] if number else 0)
        )
    return id(dataset), int(index) if hasattr(index, "__index__") else index
