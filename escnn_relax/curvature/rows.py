"""Which rows of what a layer reads belong to which sample: an encoder may see all frames of all samples as one batch."""

from __future__ import annotations

from typing import Callable, Optional, Sequence

import torch
from torch import Tensor

from ..errors import UnsupportedModuleError

__all__ = ["LAYOUTS", "layout", "patterns"]


def _adjacent(rows: Tensor, samples: int) -> Optional[Tensor]:
    """Frames of a sample next to each other, ``(N T, ...)``; with T = 1 as usual."""
    return None if not samples or len(rows) % samples else rows.unflatten(0, (samples, -1)).transpose(0, 1)


def _frames(rows: Tensor, samples: int) -> Optional[Tensor]:
    """One frame of all samples after the other, ``(T N, ...)``."""
    return None if not samples or len(rows) % samples else rows.unflatten(0, (-1, samples))


def _second(rows: Tensor, samples: int) -> Optional[Tensor]:
    """Sequences with the batch in dimension 1, ``(T, N, ...)``."""
    return rows.transpose(0, 1).unsqueeze(0) if rows.dim() > 2 and rows.shape[1] == samples else None


#: From rows to ``(T, N, ...)``, T uses of the layer on one row of each sample.
LAYOUTS: tuple[Callable[[Tensor, int], Optional[Tensor]], ...] = (_adjacent, _frames, _second)


def patterns(samples: int) -> Tensor:
    """Two choices among samples, ``(2, N)``, that tell neighbours and halves apart."""
    number = torch.arange(samples)
    return torch.stack([number % 2 == 0, number < (samples + 1) // 2])


def layout(name: str, gradients: Sequence[Tensor], samples: int) -> int:
    """The number of the layout of :data:`LAYOUTS` in which no gradient of a sample's output is in rows of others.

    Args:
        name: the layer's.
        gradients: of its output, for the outputs of the samples in each of :func:`patterns`.

    Raises:
        UnsupportedModuleError: there is none.
    """
    for number, arranged in enumerate(LAYOUTS):
        parts = [arranged(gradient, samples) for gradient in gradients]
        if all(p is not None and not p[:, ~chosen].any() for p, chosen in zip(parts, patterns(samples))):
            return number
    rows = len(gradients[0])
    problem = f"the layer sees {rows} samples where the network has {samples}"
    if rows == samples:
        problem = "what it makes of a sample changes the outputs of other samples of the batch, so that none has a gradient of its own"
    remedy = "look for means, sorts or normalisations over dimension 0; keep the batch dimension first and to itself"
    raise UnsupportedModuleError(name, problem, remedy=remedy)
