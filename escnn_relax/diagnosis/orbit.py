"""Whether all samples are one sample and its images under the group: then there is nothing to tell apart."""

from __future__ import annotations

from typing import Any

import torch
from escnn.group import GroupElement
from escnn.gspaces import GSpace
from torch import Tensor

from ..curvature.batch_format import input_tensors, select_samples
from ..errors import naming
from .exact_group import ExactGroup
from .strictness import Motion

__all__ = ["Orbit"]

#: Largest distance of members that count as equal, relative to their norm (float32 roundings of pixels).
EQUAL = 1e-5


class Orbit:
    """The orbit of the first sample under exact elements; where these are not known to act, whatever has the same
    values.

    Attributes:
        single: whether no other sample has come.
    """

    def __init__(self, input: Any, samples: int, group: ExactGroup, motion: Motion | None) -> None:
        self.single = True
        self.sorted = motion is None
        first = select_samples(input, slice(1), samples)
        members = [first]
        if motion is not None:
            members = []
            for n in range(group.order):

                def element(gspace: GSpace) -> GroupElement:
                    with naming("input"):
                        return group.counterparts(gspace)[n]

                members.append(motion.input(first, element))
        self.members = torch.cat([self._flat(member, 1) for member in members])

    def add(self, input: Any, samples: int) -> None:
        """Look at one batch; the rest need not be looked at once another sample has come."""
        if not self.single:
            return
        flat = self._flat(input, samples)
        if flat.shape[1] != self.members.shape[1]:
            self.single = False
            return
        nearest = torch.stack([(flat - member).norm(dim=1) for member in self.members]).min(0).values
        self.single = bool((nearest <= EQUAL * self.members[0].norm()).all())

    def _flat(self, input: Any, samples: int) -> Tensor:
        parts = [
            p.detach().to("cpu", torch.float64).flatten(1)
            for p in input_tensors(input)
            if p.dim() and len(p) == samples
        ]
        flat = torch.cat(parts, 1) if parts else torch.zeros(samples, 0, dtype=torch.float64)
        return flat.sort(1).values if self.sorted else flat
