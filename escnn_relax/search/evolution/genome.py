"""Genomes: one group for each stage of a network, never larger behind than before; and the moves between them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from escnn.gspaces import GSpace

from ...errors import ArgumentError, SubgroupError, naming
from ...symmetry.groups.lattice import Subgroup, subgroup, subgroups
from ...symmetry.groups.subgroup import group_size

__all__ = ["Genome", "Ladder"]

#: Names of groups, first stage first.
Genome = tuple[str, ...]


class Ladder:
    """The groups that a search may use, ordered by containment.

    Args:
        gspace: of the network's input.
        ids: subgroup ids as ``gspace.restrict`` takes them; the whole lattice by default. G itself is always in.

    Raises:
        SubgroupError: an id that names no subgroup of G, or one named twice.
        ArgumentError: a group without proper subgroups, or a continuous one without ``ids``.

    >>> from escnn import gspaces
    >>> ladder = Ladder(gspaces.rot2dOnR2(4))
    >>> ladder.whole, ladder.below("C4"), ladder.children(("C4", "C2"))
    ('C4', ('C2',), [(('C4', 'C2'), 'clone'), (('C4', 'trivial'), 'stage 2 to trivial'), (('C2', 'C2'), 'stage 1 to
    C2')])
    """

    def __init__(self, gspace: GSpace, ids: Iterable[Any] | None = None) -> None:
        self._gspace = gspace
        if ids is None:
            if gspace.fibergroup.order() < 0:
                remedy = "name the groups to search: groups=[...]"
                raise ArgumentError("groups", f"{gspace.fibergroup.name} has infinitely many subgroups", remedy=remedy)
            members = list(subgroups(gspace))
        else:
            if isinstance(ids, str):
                remedy = "pass a list such as [4, 2, 1]"
                raise SubgroupError("groups", expected="a list of subgroup ids", got=repr(ids), remedy=remedy)
            with naming("groups"):
                members = [subgroup(gspace, id) for id in ids]
            for n, h in enumerate(members):
                if any(h <= k and k <= h for k in members[:n]):
                    raise SubgroupError("groups", f"the subgroup {h.id!r} is named twice", remedy="name each once")
            if not any(h.index == 1 for h in members):
                members += [h for h in subgroups(gspace) if h.index == 1]
        members.sort(key=lambda h: group_size(h.group), reverse=True)
        self.members: dict[str, Subgroup] = {h.name: h for h in members}
        self.whole = members[0].name
        if len(self.members) < len(members) or len(members) < 2:
            problem = f"{gspace.fibergroup.name} has no two groups that a search could choose from"
            raise ArgumentError("groups", problem, got=list(self.members), remedy="name proper subgroups: groups=[...]")

    def __reduce__(self) -> tuple[Any, ...]:  # subgroups hold local functions; their ids say it all
        return Ladder, (self._gspace, [h.id for h in self.members.values()])

    def below(self, name: str) -> tuple[str, ...]:
        """The maximal proper subgroups of a group, among those allowed: one step of symmetry breaking."""
        proper = [n for n, h in self.members.items() if h < self.members[name]]
        return tuple(n for n in proper if not any(self.members[n] < self.members[m] for m in proper))

    def children(self, genome: Genome) -> list[tuple[Genome, str]]:
        """The genome itself, and every one that a single move reaches: the last stage one step down, or a stage to the
        smaller group of the one behind it. Symmetry never increases with depth."""
        reached = [(genome, "clone")]
        last = len(genome)
        for name in self.below(genome[-1]):
            reached.append(((*genome[:-1], name), f"stage {last} to {name}"))
        for stage in range(last - 1):
            if genome[stage] != genome[stage + 1]:
                child = (*genome[:stage], genome[stage + 1], *genome[stage + 1 :])
                reached.append((child, f"stage {stage + 1} to {genome[stage + 1]}"))
        return reached

    def check(self, genome: Sequence[str], stages: int) -> Genome:
        """A genome as given by a user; ``ArgumentError`` if it is none."""
        genome = tuple(genome)
        unknown = [name for name in genome if name not in self.members]
        if unknown or len(genome) != stages:
            expected = f"{stages} names out of {list(self.members)}"
            raise ArgumentError("genome", expected=expected, got=genome, remedy="pass one name for each stage")
        for before, after in zip(genome, genome[1:]):
            if not self.members[after] <= self.members[before]:
                remedy = "let the groups never grow with depth"
                raise ArgumentError(
                    "genome", f"{after} is no subgroup of {before} before it", got=genome, remedy=remedy
                )
        return genome

    def random(self, stages: int, draw: random.Random) -> Genome:
        """One of all genomes of so many stages, each with the same probability."""

        @cache
        def count(stage: int, name: str) -> int:
            return 1 if stage == stages else sum(count(stage + 1, n) for n in self._within(name))

        chain: list[str] = []
        for stage in range(stages):
            choices = self._within(chain[-1] if chain else self.whole)
            chain += draw.choices(choices, [count(stage + 1, n) for n in choices])
        return tuple(chain)

    def _within(self, name: str) -> list[str]:
        return [n for n, h in self.members.items() if h <= self.members[name]]
