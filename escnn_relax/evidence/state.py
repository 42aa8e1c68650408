"""What an evidence must remember to go on as if it had never stopped, as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..errors import CoverageError
from .spectrum import Spectrum

__all__ = ["check_state", "spectrum_state"]


def spectrum_state(spectrum: Spectrum | None) -> dict[str, Any] | None:
    """Tensors and numbers only, readable by ``torch.load(weights_only=True)``: the fields of a spectrum."""
    if spectrum is None:
        return None
    return {**vars(spectrum), "values": {name: values.clone() for name, values in spectrum.values.items()}}


def check_state(state: Mapping[str, Any], sizes: Mapping[str, int], each: bool) -> Spectrum | None:
    """The spectrum of a stored state.

    Args:
        state: of :meth:`Evidence.state_dict <escnn_relax.Evidence.state_dict>`.
        sizes: number of weights of each covered parameter of the model, closed ones too.
        each: whether each output has a noise of its own.

    Raises:
        CoverageError: the state of another model or kind of noise.
    """
    logs = state["log_precision"]
    remedy = "load it into an evidence of the model that it was saved with"
    if set(logs) != set(sizes):
        odd = sorted(set(logs) ^ set(sizes))
        raise CoverageError("state_dict", f"it belongs to another model; they differ in {odd[:3]}", remedy=remedy)
    if state["spectrum"] is None:
        return None
    spectrum = Spectrum(**state["spectrum"])
    if (spectrum.losses.dim() == 1) != each:
        raise CoverageError("state_dict", "it has another kind of noise", remedy="pass the same noise= to Evidence")
    for name, size in sizes.items():
        if logs[name] == math.inf:
            continue
        there = spectrum.values[name].shape[-1] if name in spectrum.values else "no"
        if there != size:
            raise CoverageError(
                "state_dict", f"it is another model's: {name} has {there} weights there, {size} here", remedy=remedy
            )
    return spectrum
