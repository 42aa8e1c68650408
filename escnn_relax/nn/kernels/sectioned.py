r"""Kernels kept by the input irreps that they read.

In the coordinates of the input's irreps each kernel of a grading is zero on all irreps but one. So a stack of them is
kept, and multiplied, as one smaller matrix for each irrep, followed by one turn back to channels. For regular fields of
a group with irreps of sizes :math:`d` this takes :math:`\sum d^2 / |G|^2` of the numbers of the dense stack, summed
over the irreps with multiplicity: 0.22 for C8, 0.11 for D8 and the octahedral group.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from escnn.group import Representation
from torch import Tensor, nn

from ..buffer_dict import BufferDict, rename_entries

__all__ = ["SectionedBasis", "WORTHWHILE"]

#: From so many entries of the dense stack on, and only where no more than half of them are kept.
WORTHWHILE = 2**16

#: A row whose norm on an irrep is a smaller share of the whole is taken to vanish there: a few float32 roundings.
VANISHING = 1e-6


class SectionedBasis(nn.Module):
    """A stack of kernels, sorted by the input irreps on which they live; made by :meth:`from_dense`.

    Args:
        shape: ``(K, out size, in size, S)`` of the dense stack.
        change: orthogonal change to the coordinates of the irreps, ``(in size, in size)``, columns sorted by section.
        sections: for each section its kernels, ``(K_s, out size * S, columns)``.
        order: which rows of the dense stack they are, ``(K,)``.
    """

    change: Tensor
    order: Tensor

    def __init__(self, shape: tuple[int, ...], change: Tensor, sections: list[Tensor], order: Tensor) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.counts = tuple(len(s) for s in sections)
        self.widths = tuple(s.shape[2] for s in sections)
        self.register_buffer("change", change)
        self.register_buffer("order", order)
        self.sections = BufferDict({str(n): section.contiguous() for n, section in enumerate(sections)})
        # rows of one section follow each other within a pathway, so that few stretches are to be cut and sorted
        row_sections = torch.repeat_interleave(torch.arange(len(sections)), torch.tensor(self.counts))[order.argsort()]
        labels, lengths = torch.unique_consecutive(row_sections, return_counts=True)
        self._stretches = tuple(zip(labels.tolist(), lengths.tolist()))
        self._plans: dict[tuple[tuple[int, int], ...], tuple[list[int], list[list[tuple[int, int, int]]]]] = {}

    @classmethod
    def from_dense(cls, kernels: Tensor, in_repr: Representation) -> SectionedBasis | None:
        """From dense kernels ``(K, out size, in size, S)``; ``None`` where they are few or read all irreps at once."""
        change = torch.as_tensor(np.asarray(in_repr.change_of_basis), dtype=torch.float64)
        orthogonal = torch.allclose(change.T @ change, torch.eye(len(change), dtype=torch.float64), atol=1e-6)
        if kernels.numel() < WORTHWHILE or not orthogonal or len(in_repr.irreps) < 2:
            return None
        sizes = [in_repr.group.irrep(*id).size for id in in_repr.irreps]
        turned = kernels.to("cpu", torch.float64).transpose(2, 3) @ change  # (K, o, S, i)
        norms = torch.stack([section.flatten(1).norm(dim=1) for section in turned.split(sizes, dim=3)], dim=1)
        lives = (norms > VANISHING * norms.norm(dim=1, keepdim=True)).double()
        joined = torch.eye(len(sizes), dtype=torch.float64) + lives.T @ lives
        joined = torch.linalg.matrix_power((joined > 0).double(), len(sizes)) > 0
        ends = np.cumsum([0, *sizes])
        columns, rows, sections = [], [], []
        for group in torch.unique(joined, dim=0):
            members = [c for n, inside in enumerate(group.tolist()) if inside for c in range(ends[n], ends[n + 1])]
            living = lives[:, group].any(1).nonzero().flatten()
            columns.extend(members)
            rows.append(living)
            sections.append(turned[living][..., members].flatten(1, 2))
        if 2 * sum(s.numel() for s in sections) > kernels.numel() or sum(map(len, rows)) < len(kernels):
            return None
        dtype = kernels.dtype
        return cls(kernels.shape, change[:, columns].to(dtype), [s.to(dtype) for s in sections], torch.cat(rows))

    def expand(
        self,
        coefficients: Tensor,
        beside: tuple[Tensor, Tensor] | None = None,
        rows: tuple[tuple[int, int], ...] | None = None,
    ) -> Tensor:
        """``(F, K)`` to the sum of the kernels, ``(F, out size, in size, S)``.

        Args:
            beside: coefficients ``(F, L)`` and dense kernels ``(L, out size, in size, S)`` to be added.
            rows: ranges of the kernels that the coefficients are of, in order; by default all. The others cost nothing.
        """
        count, out, size, sites = self.shape
        lengths, cuts = self._plan(((0, count),) if rows is None else rows)
        pieces = coefficients.split(lengths, 1)
        sums, change, column = [], [], 0
        for n, (cut, width) in enumerate(zip(cuts, self.widths)):
            if cut:
                section = self.sections[str(n)]
                if sum(stop - start for _, start, stop in cut) < len(section):
                    section = torch.cat([section[start:stop] for _, start, stop in cut])
                sums.append((torch.cat([pieces[index] for index, _, _ in cut], 1) @ section.flatten(1)).view(-1, width))
                change.append(self.change[:, column : column + width])
            column += width
        turned = torch.cat(sums, dim=1)
        change = [self.change] if len(change) == len(self.widths) else change
        total = (turned @ torch.cat(change, 1).T).view(len(coefficients), out * sites * size)
        if beside is not None:
            total = torch.addmm(total, beside[0], beside[1].transpose(2, 3).flatten(1))
        return total.view(-1, out, sites, size).transpose(2, 3)

    def _plan(self, rows: tuple[tuple[int, int], ...]) -> tuple[list[int], list[list[tuple[int, int, int]]]]:
        """Lengths of the stretches of these rows that lie in one section; and for each section which of them, with
        its own rows."""
        if rows not in self._plans:
            lengths: list[int] = []
            cuts: list[list[tuple[int, int, int]]] = [[] for _ in self.counts]
            begun = [0] * len(self.counts)
            stretches, row = [], 0
            for n, length in self._stretches:
                stretches.append((n, row, row + length, begun[n]))
                row, begun[n] = row + length, begun[n] + length
            for start, stop in rows:
                for n, first, last, offset in stretches:
                    low, high = max(start, first), min(stop, last)
                    if low < high:
                        cuts[n].append((len(lengths), offset + low - first, offset + high - first))
                        lengths.append(high - low)
            self._plans[rows] = lengths, cuts
        return self._plans[rows]

    def rows(self, start: int, stop: int) -> Tensor:
        """Kernels ``start`` to ``stop`` of the dense stack, ``(stop - start, out size, in size, S)``."""
        _, out, size, sites = self.shape
        turned = self.change.new_zeros(stop - start, out * sites, size)
        column = 0
        for n, (order, width) in enumerate(zip(self.order.split(self.counts), self.widths)):
            inside = (order >= start) & (order < stop)
            turned[order[inside] - start, :, column : column + width] = self.sections[str(n)][inside]
            column += width
        return (turned @ self.change.T).view(-1, out, sites, size).transpose(2, 3)

    def _load_from_state_dict(
        self,
        state: dict[str, Any],
        prefix: str,
        metadata: dict[str, Any],
        strict: bool,
        missing: list[str],
        unexpected: list[str],
        errors: list[str],
    ) -> None:
        rename_entries(state, prefix, r"section_(\d+)$", r"sections.\1")  # as in layout 1
        order = state.get(f"{prefix}order")
        if order is not None and not torch.equal(order.to(self.order), self.order):
            errors.append(f"{prefix}order: the kernels of this layer are in another order than those of the checkpoint")
            return
        super()._load_from_state_dict(state, prefix, metadata, strict, missing, unexpected, errors)

    def extra_repr(self) -> str:
        numbers = sum(section.numel() for section in self.sections.values())
        return f"{self.shape[0]} kernels in {len(self.counts)} sections, {numbers} numbers"
