"""What a question of the benchmark consists of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from benchmark.turns import Element, Moves

#: Degrees of breaking (fraction): none, three between, all.
DEGREES = (0.0, 0.25, 0.5, 0.75, 1.0)


class Pairs(NamedTuple):
    """Inputs ``(n, c, side, side)`` with labels ``(n,)`` or fields ``(n, c', side, side)``."""

    x: Tensor
    y: Tensor

    def part(self, chosen: slice) -> Pairs:
        return Pairs(self.x[chosen], self.y[chosen])


class Data(NamedTuple):
    """What a method may see, all of it, and what it is judged by."""

    train: Pairs
    test: Pairs


@dataclass(frozen=True)
class Question:
    """A question, the networks that are asked it, and what is known of its symmetry.

    Attributes:
        name, title: of the command line, and in tables.
        make: training and test data for a number of samples, a degree of breaking (fraction), a seed and a folder with
            data that are not in the repository.
        network: the strict network of the whole group with so many fields.
        plain: the ordinary convolutional network with so many channels.
        fields, channels: their width.
        statics: ids of the subgroups for which a strict network is trained, by their names; the first is the group.
        elements: the elements of these subgroups that move pixels to pixels, by the same names.
        truth: name of the largest of these that the law of the data keeps at a degree of breaking.
        passes: over the training data, by the number of samples.
        batch: samples in a step.
        moves: how elements move inputs and targets.
        classes: number of labels, ``None`` where the targets are fields.
        spoken: how the degree of breaking is made, in a few words.
        stored: file of the data folder that it needs.
    """

    name: str
    title: str
    make: Callable[[int, float, int, Path | None], Data]
    network: Callable[[int], nn.Module]
    plain: Callable[[int], nn.Module]
    fields: int
    channels: int
    statics: dict[str, Any]
    elements: dict[str, tuple[Element, ...]]
    truth: Callable[[float], str]
    passes: dict[int, int]
    batch: int
    moves: Moves
    classes: int | None
    spoken: str
    stored: str = ""

    @property
    def group(self) -> str:
        """Name of the whole group."""
        return next(iter(self.statics))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of training samples that are asked for by default."""
        return tuple(self.passes)

    @property
    def likelihood(self) -> str:
        return "gaussian" if self.classes is None else "categorical"
