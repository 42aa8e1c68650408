"""One pass over the data: features of every group of samples, for every layer, pathway and initialisation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Callable, Iterable, Optional, Sequence

import torch
from escnn.nn import FieldType, GeometricTensor
from torch import Tensor

from ..curvature.batches import batches
from ..curvature.reader import Weighted, mapped
from ..errors import DataError
from .action import LayerAction
from .exact_group import ExactGroup
from .gradients import Probe
from .samples import Grouping, group_size, length, raw
from .strictness import input_type, law_errors, movable

__all__ = ["Collected", "collect"]

#: Standard deviation of the noise on the inputs, relative to theirs: ties in pooling (a black background) are broken evenly,
#: where the first of equal values would be preferred always. Noise of equal variance everywhere keeps every symmetry.
JITTER = 1e-4
#: One minibatch out of so many is asked for the curvature's trace.
EVERY = 16

Features = list[list[dict[str, dict[str, list[Tensor]]]]]


@dataclass
class Collected:
    """Sums over the samples of each group; indices: initialisation, group, layer, pathway, pair of representations.

    Attributes:
        gradients, unlabelled: features of the loss, and of a function of the outputs alone.
        squares: of the whole kernel gradients, by initialisation and layer, summed over groups.
        traces: of the curvature of one sample, by initialisation, layer and pathway; empty for a loss of the user's.
        errors: of the law that gradients follow, by layer; empty where the input's type is not known.
    """

    gradients: Features = field(default_factory=list)
    unlabelled: Features = field(default_factory=list)
    squares: list[dict[str, float]] = field(default_factory=list)
    traces: list[dict[str, dict[str, float]]] = field(default_factory=list)
    errors: Optional[dict[str, float]] = None
    num_data: int = 0
    repeated: int = 0


def collect(
    probes: Sequence[Probe],
    actions: dict[str, LayerAction],
    group: ExactGroup,
    loader: Iterable[Any],
    groups: int,
    in_type: Optional[FieldType],
    out_type: Optional[FieldType],
    inputs: bool,
    generator: torch.Generator,
    progress: Optional[Callable[[Iterable[Any]], Iterable[Any]]] = None,
) -> Collected:
    """Go through the data once.

    Raises:
        DataError: an empty loader, fewer than 20 different samples, targets that are all the same, samples of one orbit.
    """
    device = next(iter(probes[0].kernels.values())).device
    grouping = Grouping(groups, group_size(loader, groups))
    found = Collected()
    filled: set[int] = set()
    for _ in probes:
        found.gradients.append([{} for _ in range(groups)])
        found.unlabelled.append([{} for _ in range(groups)])
        found.squares.append(dict.fromkeys(actions, 0.0))
        found.traces.append({})
    count, traced, constant, first_target = 0, 0, True, None
    norms: list[Tensor] = []

    def take(member: int, input: Any, target: Any) -> None:
        nonlocal count, traced
        with torch.no_grad():
            input = _jittered(input, generator)
        filled.add(member)
        for n, probe in enumerate(probes):
            output = probe.forward(input)
            asked = count % EVERY == 0
            scalar = probe.columns(output, target) if asked else None
            rest = inputs or scalar is not None
            gradients = probe.gradients(probe.loss(output, target), again=rest)
            for name, action in actions.items():
                features, square = action.features(gradients[name])
                found.squares[n][name] += square
                _add(found.gradients[n][member], name, features)
            if inputs:
                gradients = probe.gradients(0.5 * probe.tensor(output).square().sum(), again=scalar is not None)
                for name, action in actions.items():
                    _add(found.unlabelled[n][member], name, action.features(gradients[name])[0])
            if scalar is not None:
                gradients = probe.gradients(scalar)
                for name, action in actions.items():
                    sums = found.traces[n].setdefault(name, {})
                    for key, of in action.features(gradients[name])[0].items():
                        sums[key] = sums.get(key, 0.0) + sum(float(f.square().sum()) for f in of)
        traced += len(target) if count % EVERY == 0 else 0
        count += 1

    for input, target in batches(loader, device, progress):
        if found.errors is None:
            in_type = in_type or input_type(probes[0], input)
            if in_type is not None and movable(input, in_type):
                shaken = _jittered(input, generator)
                found.errors = law_errors(probes[0], actions, group, shaken, target, in_type, out_type)
        first_target = target[:1] if first_target is None else first_target
        aims, first = (aim.target if isinstance(aim, Weighted) else aim for aim in (target, first_target))
        constant = constant and aims.shape[1:] == first.shape[1:] and bool((aims == first).all())
        norms.append(length(input, len(target)))
        for ready in grouping.add(input, target):
            take(*ready)
    for ready in grouping.rest():
        take(*ready)
    found.num_data, found.repeated = len(grouping.known), grouping.repeated
    if not grouping.seen:
        raise DataError("loader", "it yields no batch", remedy="pass a non-empty loader, not an exhausted iterator")
    if constant:
        raise DataError("targets", "they are all the same", remedy="nothing can be learned from them: check the labels")
    lengths = torch.cat(norms)
    if float(lengths.max() - lengths.min()) <= 1e-6 * float(lengths.max()):
        problem = "all inputs have the same norm, as the members of one orbit have"
        raise DataError("loader", problem, remedy="pass different samples; normalise them by a common factor only")
    if len(filled) < 20:
        problem = f"{found.num_data} different samples make {len(filled)} groups, too few for a test"
        raise DataError("loader", problem, expected="at least 20", remedy="pass more data, or groups= of 20 or more")
    for n in range(len(probes)):
        found.gradients[n] = [g for m, g in enumerate(found.gradients[n]) if m in filled]
        found.unlabelled[n] = [g for m, g in enumerate(found.unlabelled[n]) if m in filled]
        for sums in found.traces[n].values():
            for key in sums:
                sums[key] /= traced
    return found


def _jittered(input: Any, generator: torch.Generator) -> Any:
    def shaken(part: Any) -> Any:
        tensor = raw(part)
        if not tensor.is_floating_point():
            return part
        scale = JITTER * float(tensor.double().std()) if tensor.numel() > 1 else 0.0
        if not scale:
            return part
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32).to(tensor)
        moved = tensor.detach() + scale * noise
        return GeometricTensor(moved, part.type) if isinstance(part, GeometricTensor) else moved

    return mapped(input, shaken)


def _add(sums: dict[str, dict[str, list[Tensor]]], layer: str, features: dict[str, list[Tensor]]) -> None:
    if layer not in sums:
        sums[layer] = features
        return
    for name, of in features.items():
        sums[layer][name] = [a + b for a, b in zip(sums[layer][name], of)]
