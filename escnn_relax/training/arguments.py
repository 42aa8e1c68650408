"""Arguments of ``fit`` that make no sense are refused before anything is done."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..curvature.layers.wrappers import unwrap
from ..errors import ArgumentError
from ..evidence.evidence import Evidence
from ..evidence.settings import FormerKeywords, nearest_argument
from .schedule import first

__all__ = ["check_evidence_options", "check_numbers", "has_residual_precision", "warn_of_burn_in"]


def check_numbers(
    epochs: int, burn_in: int | None, refresh_every: int | None, hypersteps: int, share: float | None
) -> None:
    """Raise ``ArgumentError`` for numbers of epochs and a share out of their range."""
    if epochs < 0 or (burn_in or 0) < 0 or (refresh_every is not None and refresh_every < 1) or hypersteps < 0:
        got = {"epochs": epochs, "burn_in": burn_in, "refresh_every": refresh_every, "hypersteps": hypersteps}
        expected = "epochs, burn_in, hypersteps >= 0 and refresh_every >= 1"
        raise ArgumentError("fit", expected=expected, got=got, remedy="leave out what should have its default")
    if share is not None and not 0 < share <= 1:
        remedy = "leave it out for as many as it takes, or 1 to look at all batches"
        raise ArgumentError("share", expected="a fraction above 0 and at most 1", got=share, remedy=remedy)


def check_evidence_options(
    evidence: Evidence | None, model: nn.Module, options: Mapping[str, Any], signature: inspect.Signature
) -> None:
    """Raise ``ArgumentError`` for an evidence of another model, or one beside options for one, and for unknown options.

    Args:
        signature: of ``fit``, whose arguments are suggested, too.
    """
    if evidence is not None and (options or evidence.model is not unwrap(model)):
        another = evidence.model is not unwrap(model)
        problem = "an evidence of another model" if another else "both evidence and options for one"
        raise ArgumentError("fit", problem, got=sorted(options) or None, remedy="pass Evidence(model, ...) alone")
    taken = ("self", "model", "likelihood", "former")
    known = [name for name in inspect.signature(Evidence.__init__).parameters if name not in taken]
    keywords = [name for name, p in signature.parameters.items() if p.kind is p.KEYWORD_ONLY]
    for name in options:
        if name not in known and name not in FormerKeywords.__annotations__:
            remedy = nearest_argument(name, [*known, *keywords])
            raise ArgumentError("fit", f"it has no argument {name!r}", remedy=remedy)


def has_residual_precision(options: Mapping[str, Any]) -> bool:
    """Whether residual pathways are to start at a precision of the user's."""
    prior = options.get("prior")
    precision = options.get("residual_log_precision")
    return precision is not None or getattr(prior, "residual_log_precision", None) is not None


def warn_of_burn_in(epochs: int, burn_in: int | None, stacklevel: int = 3) -> None:
    """A ``UserWarning`` where no epoch is left for a refresh."""
    burn_in = first(epochs) if burn_in is None else burn_in
    if epochs and epochs <= burn_in:
        warnings.warn(
            f"burn_in={burn_in} leaves none of {epochs} epochs: precisions move once, after the last",
            stacklevel=stacklevel,
        )
