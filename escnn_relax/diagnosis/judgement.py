"""From sums of gradients to verdicts: p-values, effects, gains, and what is left of the group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..symmetry.kernels.pathway import Pathway
from .action import LayerAction
from .effect import Moments, directions, gain, moments, start
from .exact_group import ExactGroup
from .features import Collected
from .notes import notes
from .randomisation import Randomisation, factor, randomise
from .result import EFFECT_ONLY, PathwayTest, SymmetryTest

__all__ = ["Question", "judge"]

#: Beyond this departure from the law of the gradients a network counts as not strict: a hundred float32 roundings and
#: more.
STRICT = 1e-2
#: A pathway whose gradients are a smaller share of the layer's (squared) has no way to the output (float32 roundings).
SILENT = 1e-11
#: Exact elements move all of a pathway if they leave a smaller share of its features' square in place (float32
#: kernels).
LEFT = 1e-4


@dataclass(frozen=True)
class Question:
    """What is asked of the sums.

    Attributes:
        pathways: of each layer.
        dimensions: numbers of weights, by layer and pathway.
        opened: whether open pathways have made the group smaller.
        draws, gains, inputs, level: as of :func:`.symmetry_test`.
    """

    pathways: dict[str, dict[str, Pathway]]
    dimensions: dict[str, dict[str, int]]
    opened: bool
    draws: int
    gains: bool
    inputs: bool
    level: float


class _Sums:
    """All that the records are made of, by ``(layer, pathway)``."""

    def __init__(self, found: Collected, actions: dict[str, LayerAction], group: ExactGroup) -> None:
        self.found, self.actions, self.group = found, actions, group
        self.keys = [(layer, name) for layer, action in actions.items() for name in action.names]
        self.tables = {key: self.table(found.gradients, key) for key in self.keys}
        self.coordinates = [factor(self.tables[key], group.quotients) for key in self.keys]
        self.silent = {key: self._silent(key) for key in self.keys}

    def table(self, features: Any, key: tuple[str, str]) -> Tensor:
        """Of one pathway; of several initialisations the mean of the studentised ones, by what the draws cannot
        change."""
        layer, name = key
        tables = [self.actions[layer].table(name, [g[layer][name] for g in of]) for of in features]
        if len(tables) == 1:
            return tables[0]
        traces = [float(t[0].trace()) for t in tables]
        return torch.stack([t / trace if trace > 0 else t for t, trace in zip(tables, traces)]).mean(0)

    def _silent(self, key: tuple[str, str]) -> bool:
        """Relative to the layer's whole gradient; a dead layer has none."""
        layer, name = key
        pairs = zip(self.found.gradients, self.found.squares)
        return all(
            sum(float(f.square().sum()) for g in of for f in g[layer][name]) <= SILENT * squares[layer]
            for of, squares in pairs
        )

    def split(self, features: Any, key: tuple[str, str]) -> tuple[Tensor, Tensor]:
        """Inner products of groups in the part of a pathway that exact elements move, and in the part that they
        leave."""
        table = self.table(features, key)
        still = table.mean(0)
        return table[0] - still, still


def judge(
    found: Collected, actions: dict[str, LayerAction], group: ExactGroup, question: Question, generator: torch.Generator
) -> SymmetryTest:
    """The records of a pass."""
    sums = _Sums(found, actions, group)
    keys, level, draws = sums.keys, question.level, question.draws
    worst = max(found.errors.values()) if found.errors else math.nan
    loose = not math.isnan(worst) and worst > STRICT
    everything = list(range(group.order))
    first = randomise(sums.coordinates, everything, draws, generator)
    live = [n for n, key in enumerate(keys) if not sums.silent[key] and float(first.moved[n]) > 0 and not loose]
    adjusted, verdicts = _closure(group, sums.coordinates, live, first, draws, level, generator)
    blind: dict[int, tuple[float, float]] = {}
    if question.inputs and live:
        tables = [sums.table(found.unlabelled, keys[n]) for n in live]
        unlabelled = randomise([factor(table, group.quotients) for table in tables], everything, draws, generator)
        blind = {n: (float(unlabelled.p_values[i]), float(unlabelled.adjusted[i])) for i, n in enumerate(live)}
    tests = []
    for n, (layer, name) in enumerate(keys):
        pathway, moved = question.pathways[layer][name], float(first.moved[n])
        testable, exact = n in live, moved > 1 - LEFT
        own = _Measured(sums, (layer, name), moved, found)
        departure = found.errors[layer] if found.errors else 0.0
        small = testable and adjusted[n] <= level and not own.of.effect > departure**2
        broken = testable and adjusted[n] <= level and not small
        if sums.silent[layer, name]:
            reason = "no first-order path to the output"
        elif loose:
            reason = f"the network itself is not equivariant (gradients off by {worst:.0%})"
        elif not moved > 0:
            reason = EFFECT_ONLY
            reason = "open pathways keep only elements that do not move it" if question.opened else reason
        elif small:
            reason = "no more than the network's own departure from equivariance"
        else:
            reason = "" if exact else "tested in the part that exact elements move"
        p, adjusted_p = (float(first.p_values[n]), adjusted[n]) if testable else (math.nan, math.nan)
        input_p, input_adjusted = blind.get(n, (math.nan, math.nan))
        cause = ""
        if broken and question.inputs:
            cause = "inputs or question" if input_adjusted <= level else "question"
        tests.append(
            PathwayTest(
                layer=layer,
                pathway=name,
                irrep=pathway.irrep,
                subgroup=pathway.subgroup,
                dimension=question.dimensions[layer][name],
                statistic=own.statistic,
                ratio=own.ratio,
                largest_null=float(first.largest[n]) if testable else math.nan,
                effect=own.of.effect,
                p_value=p,
                adjusted_p_value=adjusted_p,
                gain=own.gain if question.gains else math.nan,
                log_precision=own.log_precision,
                over_dispersion=own.over_dispersion,
                testable=testable,
                reason=reason,
                exact=exact,
                broken=broken,
                input_p_value=input_p,
                cause=cause,
                inexact_effect=math.nan if exact else own.inexact,
                explained_effect=math.nan if exact else own.explained,
            )
        )
    network = _largest(group, verdicts, live, level)
    kept = {layer: _largest(group, verdicts, [n for n in live if keys[n][0] == layer], level) for layer in actions}
    converged = _strict_gradient(found)
    said = notes(tests, found, group, question.opened, question.inputs, worst, loose, converged)
    name, count = group.gspace.fibergroup.name, len(found.gradients[0])
    numbers = (group.order, found.num_data, count, found.repeated)
    return SymmetryTest(tuple(tests), kept, network, name, *numbers, worst, level, said)


class _Measured:
    """What one pathway's sums say about one sample."""

    def __init__(self, sums: _Sums, key: tuple[str, str], moved: float, found: Collected) -> None:
        table, many = sums.tables[key], len(found.gradients) > 1
        part, still = sums.split(found.gradients, key)
        whole = moments(float(table[0].sum()), float(table[0].trace()), found.sizes)
        chosen = part if moved > 0 else table[0]
        self.statistic, trace = float(chosen.sum()), float(chosen.trace())
        self.ratio = self.statistic / trace if trace > 0 else math.nan
        self.of = moments(self.statistic, trace, found.sizes)
        beyond = moments(float(still.sum()), float(still.trace()), found.sizes)
        self.inexact = Moments(beyond.mean, whole.second - max(beyond.mean, 0.0)).effect
        self.explained = math.nan
        if found.turned and not many:
            _, turned = sums.split(found.turned, key)
            again = moments(float(turned.sum()), float(turned.trace()), found.turned_sizes)
            self.explained = Moments(again.mean, whole.second - max(again.mean, 0.0)).effect
        curvature, count = math.nan, math.nan
        if found.curvature:
            features = [g[key[0]][key[1]] for g in found.curvature[0]]
            asked = sums.actions[key[0]].table(key[1], features)
            curvature = float(asked[0].trace()) / max(found.asked, 1)
            if len(features) >= 20:
                count = directions(asked)
        if math.isnan(count):
            count = directions(table)
        own = whole
        if many:
            first = sums.table(found.gradients[:1], key)
            own = moments(float(first[0].sum()), float(first[0].trace()), found.sizes)
        known = curvature > 0
        self.over_dispersion = own.second / curvature if known else 1.0
        surplus = (found.num_data - 1) * self.of.effect
        if not moved > 0 and not math.isnan(self.explained):
            surplus -= (found.num_data - 1) * max(self.explained, 0.0)
        surplus = 0.0 if math.isnan(surplus) else max(surplus, 0.0)
        self.gain = gain(count, surplus)
        self.log_precision = start((curvature if known else own.second) * found.num_data / count, surplus)


def _strict_gradient(found: Collected) -> float:
    """Squared gradient of the whole in strict kernels over its mean if samples' gradients were independent and of
    mean zero."""
    if not found.strict:
        return math.nan
    total = trace = 0.0
    for layer in found.strict[0]:
        for columns in zip(*(group[layer] for group in found.strict)):
            total += float(torch.stack(columns).sum(0).square().sum())
            trace += float(torch.stack(columns).square().sum())
    return total / trace if trace > 0 else math.nan


def _closure(
    group: ExactGroup,
    coordinates: Sequence[Tensor],
    live: list[int],
    first: Randomisation,
    draws: int,
    level: float,
    generator: torch.Generator,
) -> tuple[dict[int, float], list[tuple[Any, Randomisation]]]:
    """Adjusted p-values that hold whichever subgroup is the data's, and what each subgroup's own draws say."""
    adjusted = {n: float(first.adjusted[n]) for n in live}
    subgroups = group.subgroups
    verdicts: list[tuple[Any, Randomisation]] = [(h, first) for h, inside in subgroups if len(inside) == group.order]
    if any(a <= level for a in adjusted.values()):
        for h, inside in subgroups:
            if 1 < len(inside) < group.order:
                found = randomise(coordinates, inside, draws, generator)
                verdicts.append((h, found))
                for n in live:
                    if float(found.moved[n]) > 1 - LEFT:
                        adjusted[n] = max(adjusted[n], float(found.adjusted[n]))
    return adjusted, verdicts


def _largest(group: ExactGroup, verdicts: list[tuple[Any, Randomisation]], live: list[int], level: float) -> Any:
    """The largest subgroup of which no test is rejected; of equally large ones that which is least contradicted."""
    best: Any = None
    for h, found in verdicts:
        values = [float(found.adjusted[n]) for n in live if float(found.moved[n]) > 0]
        least = min(values, default=1.0)
        if least > level and (best is None or (h.order, least) > (best[0].order, best[1])):
            best = (h, least)
    return best[0] if best else group.subgroups[-1][0]
