"""What an evidence must remember to go on as if it had never stopped."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import CoverageError
from .closed_pathways import move_gates
from .spectrum import Spectrum

if TYPE_CHECKING:
    from .evidence import Evidence

__all__ = ["pack", "unpack"]


def pack(evidence: Evidence) -> dict[str, Any]:
    """Tensors and numbers only, readable by ``torch.load(weights_only=True)``."""
    spectrum = None
    if evidence._spectrum is not None:
        spectrum = dict(vars(evidence._spectrum))
        spectrum["values"] = {name: values.clone() for name, values in spectrum["values"].items()}
    return {
        "log_precision": dict(evidence.log_precision),
        "log_noise": evidence.log_noise,
        "num_data": evidence.num_data,
        "spectrum": spectrum,
        "previous": evidence._previous,
    }


def unpack(evidence: Evidence, state: Mapping[str, Any]) -> None:
    """The way back; ``CoverageError`` for the state of another model or kind of noise."""
    if set(state["log_precision"]) != set(evidence.log_precision):
        odd = sorted(set(state["log_precision"]) ^ set(evidence.log_precision))
        remedy = "load it into an evidence of the model that it was saved with"
        raise CoverageError("state_dict", f"it belongs to another model; they differ in {odd[:3]}", remedy=remedy)
    spectrum = None if state["spectrum"] is None else Spectrum(**state["spectrum"])
    if spectrum is not None and (spectrum.losses.dim() == 1) != evidence.noise.each:
        raise CoverageError("state_dict", "it has another kind of noise", remedy="pass the same noise= to Evidence")
    shut = {name for name, value in state["log_precision"].items() if value == math.inf}
    for name, p in evidence.model.named_parameters():
        if spectrum is None or name not in evidence.log_precision or name in shut:
            continue
        if name not in spectrum.values or spectrum.values[name].shape[-1] != p.numel():
            there = spectrum.values[name].shape[-1] if name in spectrum.values else "no"
            remedy = "load it into an evidence of the model that it was saved with"
            raise CoverageError(
                "state_dict",
                f"it is another model's: {name} has {there} weights there, {p.numel()} here",
                remedy=remedy,
            )
    gates = {name: state["log_precision"][name] for name in shut | set(evidence.closed)}
    move_gates(evidence, gates)
    evidence.log_precision, evidence.num_data = dict(state["log_precision"]), state["num_data"]
    evidence.noise.log = state["log_noise"]
    evidence.estimate, evidence._previous, evidence._spectrum = None, state["previous"], spectrum
    evidence.publish()
