"""Weights that were moved before a training began, and that go back when it turns out to be one that goes on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["MovedWeights"]


class MovedWeights:
    """Lets something move the weights of a model, and can undo it as long as nothing else has moved or loaded them.

    Args:
        model: whose weights may move.
        move: moves them in place.

    >>> layer = nn.Linear(1, 1)
    >>> moved = MovedWeights(layer, lambda: nn.init.constant_(layer.bias, 290.0))
    >>> moved.undo()
    ['bias']
    >>> bool(layer.bias < 2)
    True
    """

    def __init__(self, model: nn.Module, move: Callable[[], object]) -> None:
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        move()
        self._moves: list[tuple[str, nn.Parameter, int, Tensor]] = []
        for name, p in model.named_parameters():
            if not torch.equal(p.detach(), before[name]):
                self._moves.append((name, p, p._version, before[name]))
        self._model = model

    def undo(self) -> list[str]:
        """Put back what nobody has written to since; returns the names of what was."""
        present = dict(self._model.named_parameters())
        back = []
        for name, p, version, before in self._moves:
            if present.get(name) is p and p._version == version:  # loading writes, also the same values
                with torch.no_grad():
                    p.copy_(before)
                back.append(name)
        self._moves = []
        return back
