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
from .gradient_sums import GradientSums
from .notes import notes
from .pathway_test import EFFECT_ONLY, LEFT_BEHIND, PathwayTest
from .randomisation import Randomisation, factor, randomise
from .result import SymmetryTest

__all__ = ["Question", "judge"]

#: Beyond this departure from the law of the gradients a network counts as not strict: a hundred float32 roundings and
#: more.
STRICT = 1e-2
#: A pathway whose gradients are a smaller share of the layer's (squared) has no way to the output (float32 roundings).
SILENT = 1e-11
#: Exact elements move all of a pathway if they leave a smaller share of its features' square in place (float32
#: kernels).
INEXACT_SHARE = 1e-4


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

    def __init__(self, gradient_sums: GradientSums, actions: dict[str, LayerAction], group: ExactGroup) -> None:
        self.gradient_sums, self.actions, self.group = gradient_sums, actions, group
        self.keys = [(layer, name) for layer, action in actions.items() for name in action.names]
        self.tables = {key: self.table(gradient_sums.gradients, key) for key in self.keys}
        self.coordinates = [factor(self.tables[key], group.quotients) for key in self.keys]
        self.silent = {key: self._silent(key) for key in self.keys}

    def table(self, features: Any, key: tuple[str, str]) -> Tensor:
        """Inner products of one pathway's features.

        Of several initialisations the mean, each divided by its trace, which no draw changes.
        """
        layer, name = key
        tables = [self.actions[layer].table(name, [g[layer][name] for g in groups]) for groups in features]
        if len(tables) == 1:
            return tables[0]
        traces = [float(t[0].trace()) for t in tables]
        return torch.stack([t / trace if trace > 0 else t for t, trace in zip(tables, traces)]).mean(0)

    def _silent(self, key: tuple[str, str]) -> bool:
        """Relative to the layer's whole gradient; a dead layer has none."""
        layer, name = key
        pairs = zip(self.gradient_sums.gradients, self.gradient_sums.squares)
        return all(
            sum(float(f.square().sum()) for g in groups for f in g[layer][name]) <= SILENT * squares[layer]
            for groups, squares in pairs
        )

    def split(self, features: Any, key: tuple[str, str]) -> tuple[Tensor, Tensor]:
        """Inner products of groups in two parts of a pathway: what exact elements move, and what they fix."""
        table = self.table(features, key)
        fixed_part = table.mean(0)
        return table[0] - fixed_part, fixed_part


def judge(
    gradient_sums: GradientSums,
    actions: dict[str, LayerAction],
    group: ExactGroup,
    question: Question,
    generator: torch.Generator,
) -> SymmetryTest:
    """The records of a pass."""
    sums = _Sums(gradient_sums, actions, group)
    keys, level, draws = sums.keys, question.level, question.draws
    worst = max(gradient_sums.errors.values()) if gradient_sums.errors else math.nan
    loose = not math.isnan(worst) and worst > STRICT
    positions = list(range(group.order))
    first = randomise(sums.coordinates, positions, draws, generator)
    live = [n for n, key in enumerate(keys) if not sums.silent[key] and float(first.moved_share[n]) > 0 and not loose]
    adjusted, verdicts = _closure(group, sums.coordinates, live, first, draws, level, generator)
    blind: dict[int, tuple[float, float]] = {}
    if question.inputs and live:
        tables = [sums.table(gradient_sums.unlabelled, keys[n]) for n in live]
        unlabelled = randomise([factor(table, group.quotients) for table in tables], positions, draws, generator)
        blind = {n: (float(unlabelled.p_values[i]), float(unlabelled.adjusted[i])) for i, n in enumerate(live)}
    tests = []
    for n, (layer, name) in enumerate(keys):
        pathway, moved_share = question.pathways[layer][name], float(first.moved_share[n])
        testable, exact = n in live, moved_share > 1 - INEXACT_SHARE
        measurement = _Measurement(sums, (layer, name), moved_share, gradient_sums)
        departure = gradient_sums.errors[layer] if gradient_sums.errors else 0.0
        small = testable and adjusted[n] <= level and not measurement.moments.effect > departure**2
        broken = testable and adjusted[n] <= level and not small
        if sums.silent[layer, name]:
            reason = "no first-order path to the output"
        elif loose:
            reason = f"the network itself is not equivariant (gradients off by {worst:.0%})"
        elif not moved_share > 0:
            reason = EFFECT_ONLY
            reason = LEFT_BEHIND if question.opened else reason
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
                statistic=measurement.statistic,
                ratio=measurement.ratio,
                largest_null=float(first.largest[n]) if testable else math.nan,
                effect=measurement.moments.effect,
                p_value=p,
                adjusted_p_value=adjusted_p,
                gain=measurement.gain if question.gains else math.nan,
                log_precision=measurement.log_precision,
                over_dispersion=measurement.over_dispersion,
                testable=testable,
                reason=reason,
                exact=exact,
                broken=broken,
                input_p_value=input_p,
                cause=cause,
                inexact_effect=math.nan if exact else measurement.inexact,
                explained_effect=math.nan if exact else measurement.explained,
            )
        )
    network = _largest(group, verdicts, live, level)
    subgroups = {layer: _largest(group, verdicts, [n for n in live if keys[n][0] == layer], level) for layer in actions}
    converged = _strict_gradient(gradient_sums)
    sentences = notes(tests, gradient_sums, group, question.opened, question.inputs, worst, loose, converged)
    name, count = group.gspace.fibergroup.name, len(gradient_sums.gradients[0])
    numbers = (group.order, gradient_sums.num_data, count, gradient_sums.repeated)
    return SymmetryTest(tuple(tests), subgroups, network, name, *numbers, worst, level, sentences)


class _Measurement:
    """What one pathway's sums say about one sample."""

    def __init__(self, sums: _Sums, key: tuple[str, str], moved_share: float, gradient_sums: GradientSums) -> None:
        table, many = sums.tables[key], len(gradient_sums.gradients) > 1
        tested, fixed_part = sums.split(gradient_sums.gradients, key)
        whole = moments(float(table[0].sum()), float(table[0].trace()), gradient_sums.sizes)
        tested_part = tested if moved_share > 0 else table[0]
        self.statistic, trace = float(tested_part.sum()), float(tested_part.trace())
        self.ratio = self.statistic / trace if trace > 0 else math.nan
        self.moments = moments(self.statistic, trace, gradient_sums.sizes)
        inexact_moments = moments(float(fixed_part.sum()), float(fixed_part.trace()), gradient_sums.sizes)
        self.inexact = Moments(inexact_moments.mean, whole.second - max(inexact_moments.mean, 0.0)).effect
        self.explained = math.nan
        if gradient_sums.turned and not many:
            _, turned_part = sums.split(gradient_sums.turned, key)
            turned_moments = moments(float(turned_part.sum()), float(turned_part.trace()), gradient_sums.turned_sizes)
            self.explained = Moments(turned_moments.mean, whole.second - max(turned_moments.mean, 0.0)).effect
        curvature, count = math.nan, math.nan
        if gradient_sums.curvature:
            features = [g[key[0]][key[1]] for g in gradient_sums.curvature[0]]
            curvature_table = sums.actions[key[0]].table(key[1], features)
            curvature = float(curvature_table[0].trace()) / max(gradient_sums.curvature_samples, 1)
            if len(features) >= 20:
                count = directions(curvature_table)
        if math.isnan(count):
            count = directions(table)
        sample_moments = whole
        if many:
            first = sums.table(gradient_sums.gradients[:1], key)
            sample_moments = moments(float(first[0].sum()), float(first[0].trace()), gradient_sums.sizes)
        has_curvature = curvature > 0
        self.over_dispersion = sample_moments.second / curvature if has_curvature else 1.0
        surplus = (gradient_sums.num_data - 1) * self.moments.effect
        if not moved_share > 0 and not math.isnan(self.explained):
            surplus -= (gradient_sums.num_data - 1) * max(self.explained, 0.0)
        surplus = 0.0 if math.isnan(surplus) else max(surplus, 0.0)
        self.gain = gain(count, surplus)
        self.log_precision = start(
            (curvature if has_curvature else sample_moments.second) * gradient_sums.num_data / count, surplus
        )


def _strict_gradient(gradient_sums: GradientSums) -> float:
    """Squared gradient of the whole in strict kernels over its mean if samples' gradients were independent and of
    mean zero."""
    if not gradient_sums.strict:
        return math.nan
    total = trace = 0.0
    for layer in gradient_sums.strict[0]:
        for columns in zip(*(group[layer] for group in gradient_sums.strict)):
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
                randomisation = randomise(coordinates, inside, draws, generator)
                verdicts.append((h, randomisation))
                for n in live:
                    if float(randomisation.moved_share[n]) > 1 - INEXACT_SHARE:
                        adjusted[n] = max(adjusted[n], float(randomisation.adjusted[n]))
    return adjusted, verdicts


def _largest(group: ExactGroup, verdicts: list[tuple[Any, Randomisation]], live: list[int], level: float) -> Any:
    """The largest subgroup of which no test is rejected; of equally large ones that which is least contradicted."""
    best: Any = None
    for h, randomisation in verdicts:
        values = [float(randomisation.adjusted[n]) for n in live if float(randomisation.moved_share[n]) > 0]
        least = min(values, default=1.0)
        if least > level and (best is None or (h.order, least) > (best[0].order, best[1])):
            best = (h, least)
    return best[0] if best else group.subgroups[-1][0]
