"""A uniform sample of the rows that a layer reads, whatever their number, and the exact second moment of its single
fields."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..distributed import gather_processes, rank, sum_processes
from ..layers.linear_map import LinearMap
from .moments import number, weigh_samples

__all__ = ["RowReservoir"]


#: Times as many as wanted are kept before the surplus is thrown out.
SPARE = 1.5


class RowReservoir:
    """Patches at places drawn from all places of all samples, each as likely as the other.

    Every place draws a number, and the places with the smallest are kept (a reservoir): so the sample depends neither
    on how the data are cut into minibatches nor on how many there will be.

    Args:
        layer: whose rows.
        size: how many places are kept.
        seed: of the draws.
    """

    def __init__(self, layer: LinearMap, size: int, seed: int) -> None:
        self._layer, self.size = layer, size
        self.rows, self._drawn = 0.0, 0  # as often as they count, and each once
        self._generator = torch.Generator().manual_seed(seed + (rank() << 32))  # each process draws its own
        self._keys = torch.zeros(0, dtype=torch.float64)
        self._patches: list[Tensor] = []
        self._patch_keys: list[Tensor] = []

    def add(self, inputs: Sequence[Tensor], counts: Tensor | None = None) -> None:
        """Add one minibatch: the inputs of all uses of the layer; see :func:`~.moments.weigh_samples`."""
        for input in inputs:
            places = self._layer.places
            table = places.table(places.shape(input))
            count = table.shape[1]
            keys = torch.rand(len(input), count, dtype=torch.float64, generator=self._generator)
            self.rows, self._drawn = self.rows + number(input, counts) * count, self._drawn + keys.numel()
            least = torch.cat([self._keys, keys.flatten()])
            limit = float(least.kthvalue(self.size).values) if len(least) > self.size else float("inf")
            sample, place = (keys <= limit).nonzero(as_tuple=True)
            if not len(sample):
                continue
            flat = F.pad(places.flatten(weigh_samples(input, counts)), (0, 1)).transpose(1, 2)
            patches = flat[sample.to(flat.device).unsqueeze(1), table.T[place].to(flat.device)]  # (rows, S, channels)
            self._keep(
                keys[sample, place], patches.transpose(1, 2).unflatten(1, (self._layer.groups, -1)).flatten(2), limit
            )

    @property
    def item_size(self) -> int:
        """Bytes of a number in them."""
        return self._patches[0].element_size() if self._patches else torch.finfo(torch.get_default_dtype()).bits // 8

    def growth(self) -> tuple[int, int]:
        """Bytes by which what is kept may still grow, and bytes more that sorting it takes for a while."""
        if not self._patches:
            return 0, 0
        each = self._patches[0][0].numel() * self._patches[0].element_size()
        most = int(SPARE * self.size) * each
        return max(most - sum(map(len, self._patches)) * each, 0), most + self.size * each

    def _keep(self, keys: Tensor, patches: Tensor, limit: float) -> None:
        self._patches.append(patches)
        self._patch_keys.append(keys)
        self._keys = torch.cat([self._keys[self._keys <= limit], keys])
        if sum(map(len, self._patch_keys)) > SPARE * self.size:
            self._compact()

    def _compact(self) -> None:
        if not self._patches:
            return
        keys, patches = torch.cat(self._patch_keys), torch.cat(self._patches)
        order = keys.argsort()[: self.size]
        self._keys, self._patch_keys, self._patches = keys[order], [keys[order]], [patches[order.to(patches.device)]]

    def gather(self) -> None:
        """The sample of the rows of all processes."""
        self._compact()
        keys, patches = zip(*gather_processes((self._keys, self._patches[0].cpu())))
        like = self._patches[0]
        self._patch_keys, self._patches = [torch.cat(keys)], [torch.cat(patches).to(like)]
        self._keys = self._patch_keys[0]
        total = sum_processes(torch.tensor([self.rows, self._drawn], dtype=torch.float64))
        self.rows, self._drawn = float(total[0]), int(total[1])
        self._compact()

    def group(self, index: int) -> Tensor:
        """The sampled rows of one convolution group, ``(rows, C S)``, whose plain mean is the weighted one of all in
        expectation."""
        self._compact()
        rows = self._patches[0][:, index]
        return rows if self._drawn == self.rows else rows * (self._drawn / (self.rows or 1.0)) ** 0.5
