"""Which rows of what a layer reads belong to which sample: an encoder may see all frames of all samples as one
batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import UnsupportedModuleError

__all__ = ["LAYOUTS", "RowLayouts", "layout", "patterns"]


def _adjacent(rows: Tensor, samples: int) -> Tensor | None:
    """Frames of a sample next to each other, ``(N T, ...)``; with T = 1 as usual."""
    return None if len(rows) % samples else rows.unflatten(0, (samples, -1)).transpose(0, 1)


def _frames(rows: Tensor, samples: int) -> Tensor | None:
    """One frame of all samples after the other, ``(T N, ...)``."""
    return None if len(rows) % samples else rows.unflatten(0, (-1, samples))


def _second(rows: Tensor, samples: int) -> Tensor | None:
    """Sequences with the batch in dimension 1, ``(T, N, ...)``."""
    return rows.transpose(0, 1).unsqueeze(0) if rows.dim() > 2 and rows.shape[1] == samples else None


#: From rows to ``(T, N, ...)``, T uses of the layer on one row of each sample.
LAYOUTS: tuple[Callable[[Tensor, int], Tensor | None], ...] = (_adjacent, _frames, _second)


def patterns(samples: int) -> Tensor:
    """Four choices among samples, ``(4, N)``: every other one, both halves, and their complements, that tell
    neighbours apart."""
    number = torch.arange(samples)
    even, first = number % 2 == 0, number < (samples + 1) // 2
    return torch.stack([even, ~even, first, ~first])


def layout(name: str, gradients: Sequence[Tensor], samples: int) -> int:
    """The number of the layout of :data:`LAYOUTS` in which no gradient of a sample's output is in rows of others.

    Args:
        name: the layer's.
        gradients: of its output, for the outputs of the samples in each of :func:`patterns`.

    Raises:
        UnsupportedModuleError: there is none.
    """
    for number, arranged in enumerate(LAYOUTS):
        rearranged = [arranged(gradient, samples) for gradient in gradients]
        if all(p is not None and not p[:, ~chosen].any() for p, chosen in zip(rearranged, patterns(samples))):
            return number
    rows = len(gradients[0])
    problem = f"the layer sees {rows} samples where the network has {samples}"
    if rows == samples:
        problem = (
            "what it makes of a sample changes the outputs of other samples of the batch, so that none has a gradient"
            " of its own"
        )
    remedy = "look for means, sorts or normalisations over dimension 0; keep the batch dimension first and to itself"
    raise UnsupportedModuleError(name, problem, remedy=remedy)


class RowLayouts:
    """The layouts of all uses of layers, once they are known; they stay as they are while a model is looked at."""

    def __init__(self) -> None:
        # by layer, number of the use, and whether it has one row for each sample, which tells less
        self._known: dict[tuple[str, int, bool], int] = {}

    def find(
        self,
        output: Tensor,
        inputs: Mapping[str, Sequence[Tensor]],
        gradients: Callable[[Tensor], Mapping[str, Sequence[Any]]],
    ) -> None:
        """Look at uses that are new, by the gradients of some samples' outputs alone.

        Args:
            output: of the network, ``(N, ...)``.
            inputs: of each layer's uses.
            gradients: from a column of the output's shape to the uses, with the ``gradient`` of their output.

        Raises:
            UnsupportedModuleError: see :func:`layout`.
        """
        samples = len(output)
        keys = [(name, index, len(rows) == samples) for name, uses in inputs.items() for index, rows in enumerate(uses)]
        new = [key for key in keys if key not in self._known]
        if not new or samples < 2:  # the rows of a single sample are its own in every layout
            return
        # of any size and sign, so that nothing cancels
        column = torch.linspace(1, 2, output.numel(), dtype=output.dtype, device=output.device).view_as(output).cos()
        shape = samples, *(1,) * (output.dim() - 1)
        recorded = [gradients(column * chosen.to(column).view(shape)) for chosen in patterns(samples)]
        for name, index, single in new:
            use_gradients = [uses[name][index].gradient for uses in recorded]
            number = layout(name, use_gradients, samples)
            plain = single and _second(inputs[name][index], samples) is None  # nothing else is possible
            if plain or any(bool(gradient.any()) for gradient in use_gradients):
                self._known[name, index, single] = number

    def apart(self, uses: Mapping[str, Sequence[Any]], samples: int) -> dict[str, list[Any]]:
        """Uses, named tuples of tensors, as ones of one row a sample each."""
        arranged: dict[str, list[Any]] = {}
        for name, layer_uses in uses.items():
            arranged[name] = []
            for index, use in enumerate(layer_uses):
                rows = len(use[0])
                number = self._known.get((name, index, rows == samples), 0)
                if not number and rows == samples:
                    arranged[name].append(use)
                    continue
                rearranged = [
                    tensor_rows
                    for tensor_rows in (LAYOUTS[number](tensor, samples) for tensor in use)
                    if tensor_rows is not None
                ]
                if len(rearranged) < len(use):
                    problem = f"the layer sees {rows} samples where the network has {samples}"
                    raise UnsupportedModuleError(name, problem, remedy="keep the batch dimension first and to itself")
                arranged[name] += map(
                    type(use), *(tensor_rows for tensor_rows in rearranged if tensor_rows is not None)
                )
        return arranged
