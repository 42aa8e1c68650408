r"""Keeps the shares :math:`\pi` of each mixed layer as a search moves them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...nn.mixed.convolution import MixedConvolution

__all__ = ["SharesRecorder"]

Shares = tuple[float, ...]


class SharesRecorder:
    """Shares at every so many steps, and at the end of each epoch.

    Args:
        layers: the mixed layers, by name.
        every: steps between two records; ``None`` keeps those at the start alone.

    Attributes:
        groups: for each layer the names of the groups in its mixture.
        steps: those after which shares were recorded.
    """

    def __init__(self, layers: Mapping[str, MixedConvolution], every: int | None) -> None:
        self._layers, self._every, self._step = dict(layers), every, 0
        self.groups = {name: tuple(layer.group_names.values()) for name, layer in self._layers.items()}
        self.steps = [0]
        self._shares: dict[str, list[Shares]] = {name: [self._now(name)] for name in self._layers}

    def step(self) -> None:
        """One more step of the weights was taken."""
        self._step += 1
        if self._every is not None and self._step % self._every == 0:
            self.record()

    def record(self) -> None:
        """Keep the present shares; of several at one step the last."""
        if self._every is None:
            return
        if self.steps[-1] == self._step:
            self.steps.pop()
            for recorded in self._shares.values():
                recorded.pop()
        self.steps.append(self._step)
        for name, recorded in self._shares.items():
            recorded.append(self._now(name))

    def recorded(self) -> dict[str, tuple[Shares, ...]]:
        """Shares of each layer at :attr:`steps`."""
        return {name: tuple(recorded) for name, recorded in self._shares.items()}

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        shares = {name: [list(row) for row in recorded] for name, recorded in self._shares.items()}
        return {"step": self._step, "steps": list(self.steps), "shares": shares}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The way back."""
        self._step, self.steps = state["step"], list(state["steps"])
        self._shares = {name: [tuple(row) for row in rows] for name, rows in state["shares"].items()}

    def _now(self, name: str) -> Shares:
        return tuple(self._layers[name].shares.values())
