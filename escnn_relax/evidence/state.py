"""What an evidence must remember to go on as if it had never stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Mapping

from ..errors import CoverageError

if TYPE_CHECKING:
    from .evidence import Evidence

__all__ = ["pack", "unpack"]

#: Attributes that are stored as they are.
_PLAIN = ("log_noise", "num_data", "_num_outputs", "_loss", "_previous")


def pack(evidence: "Evidence") -> dict[str, Any]:
    """Tensors and numbers only, readable by ``torch.load(weights_only=True)``."""
    state = {name.lstrip("_"): getattr(evidence, name) for name in _PLAIN}
    state["log_precision"] = dict(evidence.log_precision)
    state["eigenvalues"] = {name: values.clone() for name, values in evidence._eigenvalues.items()}
    return state


def unpack(evidence: "Evidence", state: Mapping[str, Any]) -> None:
    """The way back; ``CoverageError`` for the state of another model."""
    if set(state["log_precision"]) != set(evidence.log_precision):
        odd = sorted(set(state["log_precision"]) ^ set(evidence.log_precision))
        raise CoverageError("state_dict", f"it belongs to another model; they differ in {odd[:3]}")
    for name in _PLAIN:
        setattr(evidence, name, state[name.lstrip("_")])
    evidence.log_precision = dict(state["log_precision"])
    evidence._eigenvalues, evidence.estimate = dict(state["eigenvalues"]), None
    evidence.publish()
