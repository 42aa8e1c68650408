"""Opening and closing pathways under an evidence: what is closed has no prior, no curvature and no share in it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..curvature.curvature import Curvature
from ..curvature.layers.coverage import join
from ..diagnosis import SymmetryTest
from ..diagnosis.judgement import STRICT
from ..errors import CoverageError
from ..nn.gates import Gated

if TYPE_CHECKING:
    from .evidence import Evidence

__all__ = ["closed_weights", "follow", "gateable", "move_gates", "opened", "starts"]


def closed_weights(layers: Mapping[str, object]) -> list[str]:
    """Names of the weights of all closed pathways."""
    return [
        join(n, f"weights.{p}") for n, layer in layers.items() if isinstance(layer, Gated) for p in sorted(layer.closed)
    ]


def gateable(evidence: Evidence) -> dict[str, tuple[Gated, str]]:
    """What can be closed: layer and pathway by the name of the weights, in the order of the model."""
    found: dict[str, tuple[Gated, str]] = {}
    for layer, module in evidence._layers.items():
        if isinstance(module, Gated):
            for pathway in module.pathways:
                name = join(layer, f"weights.{pathway.name}")
                if pathway.breaks and name in evidence.log_precision:
                    found[name] = module, pathway.name
    return found


@contextmanager
def opened(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Meanwhile closed weights count as any others, so that they are among what the evidence can cover."""
    parameters = [model.get_parameter(name) for name in names]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)


def move_gates(evidence: Evidence, precisions: Mapping[str, float]) -> tuple[str, ...]:
    """Close what is given an infinite log precision, open the rest; returns what was opened.

    Eigenvalues of what opens are zero until the next refresh; running averages of the curvature begin anew.

    Raises:
        CoverageError: a name that is not of a covered pathway that breaks a symmetry.
    """
    if not precisions:
        return ()
    known = gateable(evidence)
    unknown = [name for name in precisions if name not in known]
    if unknown:
        remedy = f"name one of {', '.join(list(known)[:4])}, ..." if known else "only relaxed layers have them"
        raise CoverageError(unknown[0], "no covered pathway that breaks a symmetry", remedy=remedy)
    for name, value in precisions.items():
        layer, pathway = known[name]
        layer.close(pathway) if value == math.inf else layer.open(pathway)
        evidence.log_precision[name] = value if value == math.inf else _start(evidence, name, value)
    evidence.curvature = Curvature(evidence.model, *evidence._settings)
    shut = set(evidence.closed)
    evidence.uncovered = {n: why for n, why in evidence.curvature.uncovered.items() if n not in shut}
    parameters = dict(evidence.model.named_parameters())
    evidence._parameters = {n: parameters[n] for n in evidence.log_precision if n not in shut}
    evidence._previous = None
    if evidence._spectrum is not None:
        values = evidence._spectrum.values
        some = next(iter(values.values()))
        for name in precisions:
            if name in shut:
                values.pop(name, None)
            elif name not in values:
                values[name] = torch.zeros(*some.shape[:-1], parameters[name].numel(), dtype=some.dtype)
    evidence.publish()
    return tuple(name for name, value in precisions.items() if value != math.inf)


def follow(evidence: Evidence) -> None:
    """Where gates of the model were moved by other hands, as by loading a state dict, the evidence has them, too."""
    moved = {}
    for name, (layer, pathway) in gateable(evidence).items():
        if (pathway in layer.closed) != (evidence.log_precision[name] == math.inf):
            moved[name] = math.inf if pathway in layer.closed else evidence._start[name]
    move_gates(evidence, moved)


def _start(evidence: Evidence, name: str, wanted: float) -> float:
    """The log precision of what opens: as wanted, unless it is fixed, or that of the open ones that it is tied to."""
    group, members = next((g, of) for g, of in evidence.prior.groups.items() if name in of)
    if group in evidence.prior.fixed:
        return evidence._start[name]
    others = (evidence.log_precision[n] for n in members if n != name)
    return next((value for value in others if value != math.inf), evidence.prior.clip(wanted))


def starts(evidence: Evidence, test: SymmetryTest, untold: bool = True) -> dict[str, float]:
    """Log precisions to start from of what a symmetry test found broken, by the names of the weights.

    Where the test knows no precision, the one that the evidence was made with. What no test can clear has to be open,
    too: the pathways that no element moves which is exact on the grid, such as irrep 4 of C8 on pixels, and all those
    of a network that is not invariant, such as one whose outputs are fields that turn with the inputs.
    """
    nothing = not any(record.testable for record in test.tests) and test.equivariance_error > STRICT
    found = {}
    for record in test.tests:
        name = join(record.layer, f"weights.{record.pathway}")
        if (record.broken or (untold and record.untold) or nothing) and name in evidence.log_precision:
            known = record.broken and math.isfinite(record.log_precision)
            found[name] = record.log_precision if known else evidence._start[name]
    return found
