"""Small stacks of kernels that are kept by irrep, as one dense matrix beside it: fewer and larger products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .sectioned import SectionedBasis

__all__ = ["DENSE", "DenseCopy"]

#: Up to so many multiplications an expansion is one dense product: then the number of operations counts, not their
#: size.
DENSE = 1 << 22


class DenseCopy:
    """Equivariant kernels and those of a :class:`SectionedBasis` in one matrix ``(K, out size * in size * S)``.

    It is no part of the state: it is made when it is first wanted, and anew when a buffer is another one or has been
    written to. Nothing is kept of what ``vmap`` and ``functional_call`` put in the place of buffers.
    """

    def __init__(self) -> None:
        self._made: tuple[list[Tensor], list[int | None], tuple[Any, ...], Tensor] | None = None

    def rows(
        self, strict: Tensor, graded: SectionedBasis, ranges: tuple[tuple[int, int], ...], fields: int
    ) -> Tensor | None:
        """Kernels of these ranges, in order; ``None`` where one product of so many fields is no gain."""
        if fields * (len(strict) + graded.shape[0]) * strict[0:1].numel() > DENSE or _transformed():
            return None
        buffers = [strict, *graded.buffers()]
        versions = [None if b.is_inference() else b._version for b in buffers]
        if self._made is not None:
            before, known, chosen, kernels = self._made
            if known == versions and chosen == ranges and all(a is b for a, b in zip(before, buffers)):
                return kernels
        device = strict.device.type
        with torch.no_grad(), torch.inference_mode(False), torch.autocast(device, enabled=False):
            whole = torch.cat([strict, graded.rows(0, graded.shape[0])]).flatten(1)
            kernels = torch.cat([whole[start:stop] for start, stop in ranges])
        if type(kernels) is not Tensor:  # of a mode without numbers
            return None
        self._made = buffers, versions, ranges, kernels
        return kernels


def _transformed() -> bool:
    """Whether what is computed now is compiled, or batched by ``vmap``."""
    level = getattr(torch._C._functorch, "maybe_current_level", None)
    return torch.compiler.is_compiling() or level is None or level() is not None
