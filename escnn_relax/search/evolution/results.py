"""What an evolutionary search did: its individuals, their family tree, the front, and the winner."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from .genome import Genome

__all__ = ["Individual", "EvolutionResult", "pareto_front"]


@dataclass(frozen=True)
class Individual:
    """One network of a search.

    Attributes:
        id: in the order of creation.
        parent: id of the one it comes from, ``None`` for the first.
        generation: counted from 0, the initial network.
        genome: its group at each stage.
        change: the move that made it.
        parameters: number of trainable weights.
        loss: mean training loss in its generation (NaN without training).
        score: of the user's function (NaN if it failed or there is none).
        log_evidence: log evidence / N (nats a sample; NaN unless selected by it).
        survived: whether it was selected.
        note: what went wrong.

    >>> one = Individual(1, 0, 1, ("D4", "D4", "C4"), "2: D4 → C4", 120, 0.3, 0.9, math.nan, True)
    >>> one.groups
    'D4² C4'
    """

    id: int
    parent: int | None
    generation: int
    genome: Genome
    change: str
    parameters: int
    loss: float
    score: float
    log_evidence: float
    survived: bool
    note: str = ""

    @property
    def groups(self) -> str:
        """The genome in short, e.g. ``"D4³ C4 C1²"``."""
        runs: list[list[Any]] = []
        for name in self.genome:
            if runs and runs[-1][0] == name:
                runs[-1][1] += 1
            else:
                runs.append([name, 1])
        return " ".join(
            n if k == 1 else n + str(k).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")) for n, k in runs
        )


def pareto_front(candidates: Iterable[tuple[int, float, float]]) -> list[int]:
    """Ids of the candidates ``(id, value, cost)`` that none other beats: as good and cheaper, or better and as cheap.

    >>> pareto_front([(0, 0.9, 10), (1, 0.8, 5), (2, 0.8, 7), (3, 0.7, 5)])
    [0, 1]
    """
    candidates = [c for c in candidates if math.isfinite(c[1])]
    return [
        id
        for id, value, cost in candidates
        if not any(v >= value and c <= cost and (v > value or c < cost) for _, v, c in candidates)
    ]


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
        known = {one.id: one for one in self.individuals}
        line = [known[self.winner.id if id is None else id]]
        while line[-1].parent is not None:
            line.append(known[line[-1].parent])
        return line[::-1]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for machines."""
        rest = {"winner": self.winner.id, "front": self.front, "stages": self.stages, "criterion": self.criterion}
        return {"individuals": [asdict(one) for one in self.individuals], **rest}

    def table(self) -> str:
        """All individuals, one a line: ``*`` survived, ``W`` won; and the last front."""
        groups = max([6, *(len(one.groups) for one in self.individuals)])
        change = max([6, *(len(one.change) for one in self.individuals)])
        head = (
            f"gen    id  from  {'groups':<{groups}}  {'change':<{change}}  parameters     loss     score  log ev. / N"
        )
        lines = [head, "-" * len(head)]
        for one in self.individuals:
            mark = "W" if one.id == self.winner.id else "*" if one.survived else " "
            parent = "–" if one.parent is None else one.parent
            line = (
                f"{one.generation:3d} {one.id:4d}{mark} {parent!s:>4}  {one.groups:<{groups}}  {one.change:<{change}}"
            )
            line += (
                f"  {one.parameters:10d}  {_number(one.loss)}  {_number(one.score)}  {_number(one.log_evidence):>11}"
            )
            lines.append(f"{line}  {one.note}".rstrip())
        known = {one.id: one for one in self.individuals}
        best = sorted((known[id] for id in self.front), key=lambda one: one.parameters)
        shown = [f"{one.id} ({one.groups}, {one.parameters}, {getattr(one, self.criterion):.4f})" for one in best]
        lines.append(
            f"front of the last generation (groups, parameters, {_LABELS[self.criterion]}): {', '.join(shown)}"
        )
        return "\n".join(lines)

    __str__ = table

    def plot(self, axes: Any = None) -> Any:
        """The family tree, generations downwards, and the last front; returns the two matplotlib axes."""
        import matplotlib.pyplot as plt

        if axes is None:
            _, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained", width_ratios=(3, 2))
        tree, front = axes
        places, line = {}, {one.id for one in self.lineage()}
        for generation in range(self.individuals[-1].generation + 1):
            row = [one for one in self.individuals if one.generation == generation]
            for n, one in enumerate(row):
                places[one.id] = ((n + 0.5) / len(row), generation)
        for one in self.individuals:
            if one.parent is not None:
                (x, y), (u, v) = places[one.parent], places[one.id]
                on = one.id in line
                style = {"color": "black", "linewidth": 1.6} if on else {"color": "0.8", "linewidth": 0.6}
                tree.plot([x, u], [y, v], **style, zorder=2 if on else 1)
        values = [getattr(one, self.criterion) for one in self.individuals]
        finite = [v for v in values if math.isfinite(v)]
        kept = [one.survived for one in self.individuals]
        xs, ys = zip(*(places[one.id] for one in self.individuals))
        dots = tree.scatter(
            xs, ys, c=values, cmap="cividis", s=[70 if k else 18 for k in kept], zorder=3,
            edgecolors=["black" if k else "none" for k in kept], vmin=min(finite), vmax=max(finite), plotnonfinite=True,
        )  # fmt: skip
        for one in self.lineage():
            if one.change != "clone":
                box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}
                offset = {"xytext": (7, 6), "textcoords": "offset points"}
                tree.annotate(one.groups, places[one.id], **offset, fontsize=8, bbox=box, zorder=4)
        tree.figure.colorbar(dots, ax=tree, label=_LABELS[self.criterion])
        tree.set(xticks=[], ylabel="generation", title="family tree (outlined: selected; black: the winner's line)")
        tree.set_yticks(range(self.individuals[-1].generation + 1))
        tree.invert_yaxis()
        last = [one for one in self.individuals if one.generation == self.individuals[-1].generation]
        front.scatter(
            [one.parameters for one in last], [getattr(one, self.criterion) for one in last], color="0.7", s=25
        )
        best = sorted((one for one in last if one.id in self.front), key=lambda one: one.parameters)
        front.plot(
            [one.parameters for one in best], [getattr(one, self.criterion) for one in best], "o-", color="black"
        )
        for one in best:
            place = one.parameters, getattr(one, self.criterion)
            front.annotate(one.groups, place, xytext=(5, -11), textcoords="offset points", fontsize=8)
        front.set(xlabel="parameters", ylabel=_LABELS[self.criterion], title="last generation and its front")
        front.margins(x=0.25, y=0.15)
        return axes


_LABELS = {"score": "score", "log_evidence": "log evidence / N (nats)"}


def _number(value: float) -> str:
    return f"{'–':>8}" if math.isnan(value) else f"{value:8.4f}"
