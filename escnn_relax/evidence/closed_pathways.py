"""What closing and opening pathways means for an evidence: what is closed has no prior, no curvature and no share in
it.

These are functions of plain data; :class:`~escnn_relax.Evidence` calls them where it closes and opens.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import nn

from ..curvature.layers.coverage import join
from ..diagnosis import SymmetryTest
from ..diagnosis.judgement import STRICT
from ..errors import ArgumentError, CoverageError
from ..nn.gates import Gated
from .prior import Prior

__all__ = [
    "Gate",
    "check_log_precisions",
    "closed_weights",
    "gated_precisions",
    "gates_of",
    "move_gates",
    "opening_precisions",
    "unfollowed",
    "weights_open",
]

#: A layer, and the name of a pathway of it that can be closed.
Gate = tuple[Gated, str]


def closed_weights(layers: Mapping[str, object]) -> list[str]:
    """Names of the weights of all closed pathways."""
    return [
        join(n, f"weights.{p}") for n, layer in layers.items() if isinstance(layer, Gated) for p in sorted(layer.closed)
    ]


def gates_of(layers: Mapping[str, object], covered: Collection[str]) -> dict[str, Gate]:
    """What can be closed, by the name of the weights, in the order of the model.

    Args:
        layers: by name.
        covered: names of the weights that have a prior.
    """
    gates: dict[str, Gate] = {}
    for layer, module in layers.items():
        if isinstance(module, Gated):
            for pathway in module.pathways:
                name = join(layer, f"weights.{pathway.name}")
                if pathway.breaks and name in covered:
                    gates[name] = module, pathway.name
    return gates


@contextmanager
def weights_open(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Meanwhile closed weights count as any others, so that they are among what the evidence can cover."""
    parameters = [model.get_parameter(name) for name in names]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)


def check_log_precisions(precisions: Mapping[str, float]) -> None:
    """Each is a number or infinite.

    Raises:
        ArgumentError: a log precision that is no number, or that of no prior at all.
    """
    for name, value in precisions.items():
        if isinstance(value, str) or not float(value) > -math.inf:
            remedy = "3 is what pathways start from by default, infinity closes them"
            raise ArgumentError(name, expected="a log precision, a number", got=repr(value), remedy=remedy)


def move_gates(gates: Mapping[str, Gate], precisions: Mapping[str, float]) -> None:
    """Close what is given an infinite log precision, open the rest.

    Raises:
        ArgumentError: a log precision that is no number, or that of no prior at all; nothing is moved then.
        CoverageError: a name that is not of a covered pathway that breaks a symmetry; nothing is moved then.
    """
    unknown = [name for name in precisions if name not in gates]
    if unknown:
        remedy = f"name one of {', '.join(list(gates)[:4])}, ..." if gates else "only relaxed layers have them"
        raise CoverageError(unknown[0], "no covered pathway that breaks a symmetry", remedy=remedy)
    check_log_precisions(precisions)
    for name, value in precisions.items():
        layer, pathway = gates[name]
        layer.close(pathway) if value == math.inf else layer.open(pathway)


def gated_precisions(
    precisions: Mapping[str, float], log_precision: Mapping[str, float], initial: Mapping[str, float], prior: Prior
) -> dict[str, float]:
    """All log precisions once gates have moved: what opens has the wanted one, unless it is fixed, or that of the open
    ones that it is tied to.

    Args:
        precisions: the wanted log precisions of what moves; infinite for what closes.
        initial: what the evidence was made with.
    """
    logs = dict(log_precision)
    for name, precision in precisions.items():
        group, members = next((g, tied) for g, tied in prior.groups.items() if name in tied)
        if precision == math.inf:
            logs[name] = precision
        elif group in prior.fixed:
            logs[name] = initial[name]
        else:
            others = (logs[n] for n in members if n != name)
            logs[name] = next((value for value in others if value != math.inf), prior.clip(precision))
    return logs


def unfollowed(
    gates: Mapping[str, Gate], log_precision: Mapping[str, float], initial: Mapping[str, float]
) -> dict[str, float]:
    """Log precisions of gates that other hands moved, as by loading a state dict, so that an evidence can move them,
    too."""
    moved = {}
    for name, (layer, pathway) in gates.items():
        if (pathway in layer.closed) != (log_precision[name] == math.inf):
            moved[name] = math.inf if pathway in layer.closed else initial[name]
    return moved


def opening_precisions(
    test: SymmetryTest,
    initial: Mapping[str, float],
    untold: bool = True,
    gain: float = -math.inf,
    gains: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Log precisions to start from of what a symmetry test found broken, by the names of the weights.

    Where the test knows no precision, the one that the evidence was made with. What no test can clear has to be open,
    too: the pathways that no element moves which is exact on the grid, such as irrep 4 of C8 on pixels, and all those
    of a network that is not invariant, such as one whose outputs are fields that turn with the inputs.

    A pathway that opened ones have left without a test has the estimate of its gain only. Its gradient is not zero by
    any symmetry now, and need not be: the question is whether the evidence is higher with it. By chance a gradient of
    mean zero gains half a nat in d directions, whatever d is, so that ten are no accident.

    Args:
        initial: what the evidence was made with, by the names of all weights that have a prior.
        untold: open the pathways that no exact element moves, too.
        gain: what is broken has to gain so many nats; for tests that were asked for gains.
        gains: what else opens, tested or not, by the names of its weights, and the nats that it has to gain.
    """
    gains = gains or {}
    nothing = not any(record.testable for record in test.tests) and test.equivariance_error > STRICT
    starts = {}
    for record in test.tests:
        name = join(record.layer, f"weights.{record.pathway}")
        broken = record.broken and (gain == -math.inf or record.gain >= gain)
        worth = record.gain >= gains.get(name, math.inf)
        if (broken or worth or (untold and record.untold) or nothing) and name in initial:
            known = (record.broken or worth) and math.isfinite(record.log_precision)
            starts[name] = record.log_precision if known else initial[name]
    return starts
