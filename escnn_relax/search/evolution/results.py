"""What an evolutionary search did: its individuals, the front, and the winner."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from ...deprecation import former_keyword
from ...symmetry.html_table import html_table
from .family_tree import LABELS, plot_family_tree
from .individual import Individual

__all__ = ["EvolutionResult"]


@dataclass(frozen=True)
class EvolutionResult:
    """Returned by :func:`~escnn_relax.search.evolution.evolve`.

    Attributes:
        model: the winner, in evaluation mode: plain escnn modules, and a
            :class:`~escnn_relax.morphism.restrict.relabel.Relabel` where its group changes.
        winner: its record.
        individuals: all records, in the order of creation.
        front: ids of the last generation's Pareto front of criterion and number of parameters.
        stages: names of the layers at which the group may change.
        criterion: what the individuals were ordered by: ``"score"`` or ``"log_evidence"``.

    >>> first = Individual(0, None, 0, ("C4", "C4"), "", 90, 0.4, 0.8, math.nan, True)
    >>> second = Individual(1, 0, 1, ("C4", "C2"), "1: C4 → C2", 120, 0.3, 0.9, math.nan, True)
    >>> found = EvolutionResult(nn.Identity(), second, (first, second), (1,), ("first", "second"), "score")
    >>> [one.groups for one in found.lineage()]
    ['C4²', 'C4 C2']
    """

    model: nn.Module
    winner: Individual
    individuals: tuple[Individual, ...]
    front: tuple[int, ...]
    stages: tuple[str, ...]
    criterion: str

    def lineage(self, id: int | None = None) -> list[Individual]:
        """An individual's ancestors, the first first, and itself; the winner's by default."""
        known = {individual.id: individual for individual in self.individuals}
        line = [known[self.winner.id if id is None else id]]
        while line[-1].parent is not None:
            line.append(known[line[-1].parent])
        return line[::-1]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for machines."""
        rest = {"winner": self.winner.id, "front": self.front, "stages": self.stages, "criterion": self.criterion}
        return {"individuals": [asdict(individual) for individual in self.individuals], **rest}

    def table(self) -> str:
        """All individuals, one a line: ``*`` survived, ``W`` won; and the last front."""
        groups = max([6, *(len(individual.groups) for individual in self.individuals)])
        change = max([6, *(len(individual.change) for individual in self.individuals)])
        head = (
            f"gen    id  from  {'groups':<{groups}}  {'change':<{change}}  parameters     loss     score  log ev. / N"
        )
        lines = [head, "-" * len(head)]
        for each in self.individuals:
            mark = "W" if each.id == self.winner.id else "*" if each.survived else " "
            parent = "–" if each.parent is None else each.parent
            line = f"{each.generation:3d} {each.id:4d}{mark} {parent!s:>4}  {each.groups:<{groups}}"
            line += f"  {each.change:<{change}}  {each.parameters:10d}  {_number(each.loss)}  {_number(each.score)}"
            lines.append(f"{line}  {_number(each.log_evidence):>11}  {each.note}".rstrip())
        return "\n".join([*lines, self._end()])

    def _repr_html_(self) -> str:
        head = ["id", "groups", "change", "gen", "from", "parameters", "loss", "score", "log ev. / N", "note"]
        rows = []
        for one in self.individuals:
            mark = "W" if one.id == self.winner.id else "*" if one.survived else ""
            parent = "–" if one.parent is None else str(one.parent)
            numbers = [_number(value).strip() for value in (one.loss, one.score, one.log_evidence)]
            row = [f"{one.id}{mark}", one.groups, one.change, str(one.generation), parent, str(one.parameters)]
            rows.append([*row, *numbers, one.note])
        return html_table(head, rows, ["* survived, W won", self._end()], words=3)

    def _end(self) -> str:
        known = {individual.id: individual for individual in self.individuals}
        best = sorted((known[id] for id in self.front), key=lambda individual: individual.parameters)
        shown = [
            f"{individual.id} ({individual.groups}, {individual.parameters}, {getattr(individual, self.criterion):.4f})"
            for individual in best
        ]
        return f"front of the last generation (groups, parameters, {LABELS[self.criterion]}): {', '.join(shown)}"

    __str__ = table

    @former_keyword("axes", "ax")
    def plot(self, ax: Any = None) -> Any:
        """The family tree, generations downwards, and the last front; returns the two matplotlib axes.

        Args:
            ax: two axes; a new figure by default.
        """
        return plot_family_tree(self.individuals, self.lineage(), self.front, self.criterion, ax)


def _number(value: float) -> str:
    return f"{'–':>8}" if math.isnan(value) else f"{value:8.4f}"
