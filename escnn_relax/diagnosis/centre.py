"""Whether images sit in the centre about which the network's group turns them."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Centre"]


class Centre:
    """Where the pixels vary: the centre of mass of their variance over the samples.

    >>> images = torch.randn(100, 1, 6, 6)
    >>> centre = Centre()
    >>> centre.add(torch.nn.functional.pad(images, (0, 2, 0, 0)))
    >>> [abs(offset - expected) < 0.3 for offset, expected in zip(centre.offset(), (0, -1))]  # half of the padding
    [True, True]
    """

    def __init__(self) -> None:
        self.count = 0
        self.sums: Tensor | None = None
        self.squares: Tensor | None = None

    def add(self, images: Tensor) -> None:
        """Images ``(N, C, *space)``; of another size than before they are left out."""
        images = images.detach().double()
        sums, squares = images.sum(0), images.square().sum(0)
        if self.sums is None or self.squares is None:
            self.sums, self.squares = sums, squares
        elif sums.shape != self.sums.shape:
            return
        else:
            self.sums, self.squares = self.sums + sums, self.squares + squares
        self.count += len(images)

    def offset(self) -> list[float] | None:
        """From the middle of the grid along each of a tensor's axes of space (pixels); ``None`` without any
        variance."""
        if self.sums is None or self.squares is None:
            return None
        variance = (self.squares / self.count - (self.sums / self.count).square()).clamp(min=0).sum(0).cpu()
        if not float(variance.sum()) > 0:
            return None
        places = [torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in variance.shape]
        axes = range(variance.dim())
        profiles = [variance.sum([b for b in axes if b != a]) if variance.dim() > 1 else variance for a in axes]
        return [float((p * v).sum() / v.sum()) for p, v in zip(places, profiles)]
