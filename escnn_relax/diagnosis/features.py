"""One pass over the data: features of every group of samples, for every layer, pathway and initialisation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from escnn.group import GroupElement
from escnn.gspaces import GSpace
from escnn.nn import GeometricTensor
from torch import Tensor

from ..curvature.batch_format import Weighted, input_tensors, map_tensors, select_samples
from ..curvature.checked_batches import batches
from ..errors import DataError
from .action import LayerAction
from .centre import Centre
from .effect import Sizes
from .exact_group import ExactGroup, random_elements
from .gradient_sums import GradientSums, Plan
from .gradients import Gradients, Probe
from .orbit import Orbit
from .sample_numbers import number_samples
from .samples import Grouping, concatenate, group_size, raw
from .strictness import Motion, input_type, law_errors, movable

__all__ = ["collect"]

#: Standard deviation of the noise on the inputs, relative to theirs: ties in pooling (a black background) are broken
#: evenly, where the first of equal values would be preferred always. Noise of equal variance everywhere keeps every
#: symmetry.
JITTER = 1e-4
#: One minibatch out of so many is asked for the curvature, unless gains are wanted: then each.
CURVATURE_INTERVAL = 16
#: Share of the samples, and number of them in all, that are turned by elements that are not exact on the grid.
SHARE, TURN_LIMIT = 0.25, 2048
#: Parts of a minibatch that are turned by an element each.
PARTS = 8


class _Pass:
    """One pass over the data, minibatch by minibatch."""

    def __init__(
        self,
        probes: Sequence[Probe],
        actions: dict[str, LayerAction],
        group: ExactGroup,
        plan: Plan,
        generator: torch.Generator,
    ) -> None:
        self.probes, self.actions, self.group, self.plan, self.generator = probes, actions, group, plan, generator
        self.sums = GradientSums()
        self.sums.squares = [dict.fromkeys(actions, 0.0) for _ in probes]
        self.gradients: list[dict[int, Any]] = [{} for _ in probes]
        self.unlabelled: list[dict[int, Any]] = [{} for _ in probes]
        self.turned: dict[int, Any] = {}
        self.curvature: dict[int, Any] = {}
        self.strict: dict[int, dict[str, list[Tensor]]] = {}
        self.turns: dict[int, int] = {}
        self.motion: Motion | None = None
        self.batch_count = self.sample_count = 0

    def check(self, input: Any, target: Any) -> None:
        """See on a first batch whether the network is strict."""
        in_type = self.plan.in_type or input_type(self.probes[0], input)
        if in_type is not None and movable(input, in_type):
            self.motion = Motion(self.probes[0], in_type, self.plan.out_type, input)
            self.sums.uneven = self.motion.uneven
            shaken = _jitter(input, self.generator)
            self.sums.errors = law_errors(self.probes[0], self.actions, self.group, shaken, target, self.motion)

    def take(self, member: int, input: Any, target: Any) -> None:
        """A minibatch of one group."""
        input = _jitter(input, self.generator)
        with_curvature = self.plan.curvature or self.batch_count % CURVATURE_INTERVAL == 0
        for n, probe in enumerate(self.probes):
            output = probe.forward(input)
            scalar = probe.columns(output, target) if with_curvature and not n else None
            gradients = probe.gradients(probe.loss(output, target), retain_graph=self.plan.inputs or scalar is not None)
            self._add(self.gradients[n], member, gradients, self.sums.squares[n])
            if self.plan.inputs:
                if not n:
                    for name, action in self.actions.items():
                        member_sums = self.strict.setdefault(member, {})
                        new = action.strict(gradients[name])
                        member_sums[name] = (
                            [a + b for a, b in zip(member_sums[name], new)] if name in member_sums else new
                        )
                gradients = probe.gradients(0.5 * probe.tensor(output).square().sum(), retain_graph=scalar is not None)
                self._add(self.unlabelled[n], member, gradients)
            if scalar is not None:
                self._add(self.curvature, member, probe.gradients(scalar))
                self.sums.curvature_samples += len(target)
        self.sample_count += len(target)
        section = slice(max(PARTS, round(SHARE * len(target))))
        turned_count = sum(self.turns.values())
        if self.motion is not None and self.plan.turned and turned_count < min(TURN_LIMIT, SHARE * self.sample_count):
            whole_group = self.motion.in_type.gspace.fibergroup == self.group.gspace.fibergroup
            if whole_group and self.motion.smooth(target):
                self._turn(self.motion, member, select_samples(input, section, len(target)), target[section])
        self.batch_count += 1

    def _turn(self, motion: Motion, member: int, input: Any, target: Any) -> None:
        inputs, targets = [], []
        parts = torch.arange(len(target)).tensor_split(min(PARTS, len(target)))
        for part, element in zip(parts, random_elements(self.group.gspace, len(parts), self.generator)):

            def alike(gspace: GSpace, element: GroupElement = element) -> GroupElement:
                return element

            section = slice(int(part[0]), int(part[-1]) + 1)
            inputs.append(motion.input(select_samples(input, section, len(target)), alike))
            targets.append(motion.target(target[section], alike))
        probe, (input, target) = self.probes[0], concatenate(inputs, targets)
        self._add(self.turned, member, probe.gradients(probe.loss(probe.forward(input), target)))
        self.turns[member] = self.turns.get(member, 0) + len(target)

    def _add(
        self, sums: dict[int, Any], member: int, gradients: Gradients, squares: dict[str, float] | None = None
    ) -> None:
        member_sums = sums.setdefault(member, {})
        for layer, action in self.actions.items():
            features = action.features(gradients[layer])
            if squares is not None:
                squares[layer] += gradients.squares[layer]
            if layer in member_sums:
                features = {
                    name: [a + b for a, b in zip(member_sums[layer][name], tensors)]
                    for name, tensors in features.items()
                }
            member_sums[layer] = features

    def result(self, grouping: Grouping) -> GradientSums:
        """What was found, of groups in one order."""
        members = sorted(self.gradients[0])
        self.sums.gradients = [[table[m] for m in members] for table in self.gradients]
        self.sums.unlabelled = [[table[m] for m in members] for table in self.unlabelled] if self.plan.inputs else []
        self.sums.turned = [[self.turned[m] for m in sorted(self.turned)]] if len(self.turned) > 1 else []
        self.sums.curvature = [[self.curvature[m] for m in sorted(self.curvature)]] if self.curvature else []
        self.sums.strict = [self.strict[m] for m in sorted(self.strict)]
        self.sums.num_data, self.sums.repeated = grouping.distinct, grouping.repeated
        self.sums.sizes = grouping.sizes(members)
        turns = torch.tensor([self.turns[m] for m in sorted(self.turns)], dtype=torch.float64)
        self.sums.turned_sizes = Sizes(turns, turns)
        return self.sums


def collect(
    probes: Sequence[Probe],
    actions: dict[str, LayerAction],
    group: ExactGroup,
    loader: Iterable[Any],
    plan: Plan,
    generator: torch.Generator,
    progress: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
) -> GradientSums:
    """Go through the data once.

    Raises:
        DataError: an empty loader, samples for fewer than 20 groups, targets that are all the same, samples of one
            orbit.
    """
    device = next(iter(probes[0].kernels.values())).device
    grouping = Grouping(plan.groups, group_size(loader, plan.groups, plan.units), plan.units)
    data_pass = _Pass(probes, actions, group, plan, generator)
    constant, first_target, orbit, centre = True, None, None, Centre()
    batch_source, numbers = number_samples(loader)
    for input, target in batches(batch_source, device, progress):
        if orbit is None:
            data_pass.check(input, target)
            orbit = Orbit(input, len(target), group, data_pass.motion)
        first_target = target[:1] if first_target is None else first_target
        aims, first = (aim.target if isinstance(aim, Weighted) else aim for aim in (target, first_target))
        constant = constant and aims.shape[1:] == first.shape[1:] and bool((aims == first).all())
        orbit.add(input, len(target))
        images = [
            part for part in input_tensors(input) if data_pass.motion is not None and data_pass.motion.image(part)
        ]
        if images:
            centre.add(images[0])
        for ready in grouping.add(input, target, numbers.last if numbers is not None else None):
            data_pass.take(*ready)
    for ready in grouping.rest():
        data_pass.take(*ready)
    if not grouping.sample_count or orbit is None:
        raise DataError("loader", "it yields no batch", remedy="pass a non-empty loader, not an exhausted iterator")
    if constant:
        raise DataError("targets", "they are all the same", remedy="nothing can be learned from them: check the labels")
    if orbit.single:
        raise DataError("loader", "all inputs are members of one orbit", remedy="pass different samples")
    sums = data_pass.result(grouping)
    group_count = len(sums.gradients[0])
    if group_count < 20:
        unit = "units of samples" if plan.units is not None else "different samples"
        problem = f"{grouping.opened} {unit} make {group_count} groups, too few for a test"
        smaller = "pass a DataLoader or a list, which tells its length, or a larger groups=, which makes groups smaller"
        remedy = "pass more data" if grouping.opened < 20 else smaller
        raise DataError("loader", problem, expected="at least 20", remedy=remedy)
    sums.offset = centre.offset()
    return sums


def _jitter(input: Any, generator: torch.Generator) -> Any:
    def shaken(leaf: Any) -> Any:
        tensor = raw(leaf)
        if not tensor.is_floating_point():
            return leaf
        deviation = JITTER * float(tensor.double().std()) if tensor.numel() > 1 else 0.0
        if not deviation:
            return leaf
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32).to(tensor)
        noisy = tensor.detach() + deviation * noise
        return GeometricTensor(noisy, leaf.type) if isinstance(leaf, GeometricTensor) else noisy

    return map_tensors(input, shaken)
