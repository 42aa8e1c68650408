"""Pathways that are closed: exactly zero, frozen, left out of the kernel's sum, until something opens them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from ..symmetry.kernels.pathway import Pathway

__all__ = ["Gated"]


class Gated:
    """A layer whose breaking pathways can be closed and opened; a base class before ``Recorded`` and ``nn.Module``.

    A closed pathway is the limit of an infinite prior precision, and that is how it is kept: ``log_precision`` is
    infinite, in the state dict too. Its weights are zero and need no gradient, so that no optimiser moves them,
    whenever it was made.
    """

    pathways: tuple[Pathway, ...]
    weights: Any  # a dictionary of parameters, by pathway
    log_precision: Tensor
    effective_dimension: Tensor
    _closed: frozenset[str] = frozenset()
    _silent: dict[str, tuple[int, int]]

    @property
    def closed(self) -> frozenset[str]:
        """Names of the closed pathways.

        >>> from escnn import gspaces, nn as enn
        >>> from escnn_relax.nn import RelaxedR2Conv
        >>> space = gspaces.rot2dOnR2(4)
        >>> one = enn.FieldType(space, [space.regular_repr])
        >>> layer = RelaxedR2Conv(one, one, 3)
        >>> layer.close("irrep_1", "irrep_2")
        >>> layer.open("irrep_2")
        >>> sorted(layer.closed), layer.weights["irrep_1"].requires_grad
        (['irrep_1'], False)
        """
        return self._closed

    def close(self, *names: str) -> None:
        """Set pathways to zero and keep them there; ``ArgumentError`` for one that does not exist or breaks nothing."""
        self._check(names)
        for name in names:
            parameter = self.weights[name]
            with torch.no_grad():
                parameter.zero_()
            parameter.requires_grad_(False)
            parameter.grad = None
            self._write(name, math.inf, 0.0)
        self._closed = self._closed | frozenset(names)
        self._gates_moved()

    def open(self, *names: str) -> None:
        """Let closed pathways move again, from zero; ``ArgumentError`` as for :meth:`close`."""
        self._check(names)
        for name in self._closed.intersection(names):
            self.weights[name].requires_grad_(True)
            self._write(name, math.nan, math.nan)
        self._closed = self._closed - frozenset(names)
        self._gates_moved()

    def open_weights(self) -> Mapping[str, Tensor]:
        """The weights of the pathways that are not closed, by name; always with the equivariant ones.

        With closed ones that something has written to all the same, such as an average of the weights of a model whose
        pathways have been opened since it was copied: what a layer computes is what its weights say.
        """
        if not self._closed:
            weights: Mapping[str, Tensor] = self.weights
            return weights
        return {name: w for name, w in self.weights.items() if name not in self._closed or self._written(name, w)}

    def _written(self, name: str, weight: Tensor) -> bool:
        """Whether a closed pathway holds anything; looked at only when its weights have been written to."""
        if torch.compiler.is_compiling() or not isinstance(weight, nn.Parameter) or weight.is_inference():
            return False
        silent: dict[str, tuple[int, int]] = self.__dict__.setdefault("_silent", {})
        version = id(weight), weight._version
        if silent.get(name) == version:
            return False
        if bool(weight.detach().any()):
            return True
        silent[name] = version
        return False

    def _check(self, names: tuple[str, ...]) -> None:
        breaking = [p.name for p in self.pathways if p.breaks]
        for name in names:
            if name not in breaking:
                expected = f"a pathway that breaks the symmetry: {', '.join(breaking) or 'this layer has none'}"
                raise ArgumentError(type(self), expected=expected, got=repr(name), remedy="name one of these")

    def _write(self, name: str, log_precision: float, effective_dimension: float) -> None:
        index = [p.name for p in self.pathways].index(name)
        self.log_precision[index], self.effective_dimension[index] = log_precision, effective_dimension

    def _gates_moved(self) -> None:
        """What was computed with other gates is forgotten."""
        self._cache: Any = None

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        """The gates of a state dict are those of its precisions."""
        module: Any = super()
        module._load_from_state_dict(state_dict, prefix, *arguments)
        recorded = state_dict.get(f"{prefix}log_precision")
        if recorded is None or recorded.shape != self.log_precision.shape:
            return
        closed = {p.name for p, log in zip(self.pathways, recorded.tolist()) if log == math.inf and p.breaks}
        for name in closed | self._closed:
            parameter: nn.Parameter = self.weights[name]
            parameter.requires_grad_(name not in closed)
        self._closed = frozenset(closed)
        self._gates_moved()
