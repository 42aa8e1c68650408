"""Whether a network at hand is as equivariant as the test has to presuppose."""

from __future__ import annotations

from typing import Any, Optional

import torch
from escnn.group import GroupElement
from escnn.nn import FieldType, GeometricTensor
from torch import Tensor, nn

from ..curvature.reader import Weighted, mapped, of_samples, tensors
from ..nn.relaxed import RelaxedConvolution
from ..symmetry.grid import grid_permutation
from ..symmetry.grid_action import axes_matrix, fiber_matrix, move_points, transform_field
from .action import LayerAction
from .exact_group import ExactGroup
from .gradients import Probe
from .samples import raw

__all__ = ["input_type", "kept_elements", "law_errors", "movable", "TRIED"]

#: Samples and elements that the law of the gradients is checked with, at most.
TRIED = 8
#: A breaking kernel that an element moves by less than this share of its norm is left in place by it (float32 kernels).
STILL = 1e-4


def input_type(probe: Probe, input: Any) -> Optional[FieldType]:
    """The field type of the network's input: that of the first geometric tensor that has as many channels as an image in it."""
    if isinstance(input, GeometricTensor):
        return input.type
    found: list[FieldType] = []

    def look(module: nn.Module, given: tuple[Any, ...]) -> None:
        first = given[0] if given else None
        if isinstance(first, GeometricTensor) and not found:
            found.append(first.type)

    hooks = [m.register_forward_pre_hook(look) for m in probe.model.modules()]
    try:
        probe.forward(of_samples(input, slice(1), len(tensors(input)[0])))
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found and movable(input, found[0]) else None


def movable(input: Any, in_type: FieldType) -> bool:
    """Whether it is plain what an element of the group does to an input: one image of this type, other parts without pixels, and
    whatever says its own type."""
    plain = _plain(input)
    images = [part for part in plain if _image(part, in_type)]
    told = len(images) <= 1 and bool(images or len(plain) < len(tensors(input)))
    return told and all(part.dim() <= 2 or _image(part, in_type) for part in plain)


def _plain(input: Any) -> list[Tensor]:
    found: list[Any] = []
    mapped(input, found.append)
    return [part for part in found if isinstance(part, Tensor)]


def _image(part: Tensor, in_type: FieldType) -> bool:
    space = in_type.gspace.dimensionality
    return part.dim() == 2 + space and part.shape[1] == in_type.size


def kept_elements(layers: dict[str, RelaxedConvolution], group: ExactGroup) -> list[int]:
    """Positions of the elements that leave every open pathway in place: all of them for a strict network."""
    kept = list(range(group.order))
    for name, layer in layers.items():
        open_ = {p.name: layer.weights[p.name].detach() for p in layer.pathways if p.breaks}
        open_ = {n: w for n, w in open_.items() if bool(w.any())}
        if not open_:
            continue
        with torch.no_grad():
            kernel = layer.kernel(open_).double()
        ins, outs = layer._kernel_fields()
        types = FieldType(layer.space, list(ins)), FieldType(layer.space, list(outs))
        elements = group.elements_on(layer.space, name)
        for n in list(kept):
            permutation = grid_permutation(layer.space, elements[n], layer.band.points)
            left, right = fiber_matrix(types[1], elements[n], kernel), fiber_matrix(types[0], ~elements[n], kernel)
            moved = torch.einsum("po,ois,iq->pqs", left, kernel[..., torch.as_tensor(permutation)], right)
            if float((moved - kernel).norm()) > STILL * float(kernel.norm()):
                kept.remove(n)
    return kept


def law_errors(
    probe: Probe,
    actions: dict[str, LayerAction],
    group: ExactGroup,
    input: Any,
    target: Any,
    in_type: FieldType,
    out_type: Optional[FieldType],
) -> dict[str, float]:
    r"""For each layer the largest :math:`|\Gamma(gx, gy) - M(g)\Gamma(x, y)| / |\Gamma|`, on a few samples and elements."""
    input, target = of_samples(input, slice(TRIED), len(target)), target[:TRIED]
    chosen = range(1, group.order) if group.order <= TRIED else range(1, group.order, max(1, group.order // TRIED))

    def moved(n: int) -> Any:
        def of(part: Any) -> Any:
            own = part.type if isinstance(part, GeometricTensor) else in_type
            if part is not raw(part) or _image(part, in_type):
                tensor = transform_field(raw(part), own, group.elements_on(own.gspace, "input")[n])
                return GeometricTensor(tensor, own) if part is not raw(part) else tensor
            return part

        return mapped(input, of)

    output = probe.forward(input)
    if isinstance(output, GeometricTensor):
        out_type = out_type or output.type
    space = in_type.gspace.dimensionality
    gradients = probe.gradients(probe.loss(output, target))
    here = {name: actions[name].features(gradients[name])[0] for name in actions}
    errors = dict.fromkeys(actions, 0.0)
    for n in chosen:
        matrix = axes_matrix(in_type.gspace, group.elements_on(in_type.gspace, "input")[n]) if space else None

        def aimed(aim: Tensor) -> Tensor:
            if out_type is not None and aim.is_floating_point() and aim.dim() > 1 and aim.shape[1] == out_type.size:
                return transform_field(aim, out_type, _counterpart(group, out_type, n))
            if matrix is not None and probe.tensor(output).dim() == 2 + space and aim.dim() >= 1 + space:
                return move_points(aim, matrix)
            return aim

        aim = Weighted(aimed(target.target), aimed(target.weight)) if isinstance(target, Weighted) else aimed(target)
        gradients = probe.gradients(probe.loss(probe.forward(moved(n)), aim))
        for name, action in actions.items():
            expected, found = action.moved(here[name], n), action.features(gradients[name])[0]
            pairs = [(e, f) for key in expected for e, f in zip(expected[key], found[key])]
            gap = sum(float((e - f).square().sum()) for e, f in pairs) ** 0.5
            size = sum(float(e.square().sum()) for e, _ in pairs) ** 0.5
            errors[name] = max(errors[name], gap / size if size > 0 else 0.0)
    return errors


def _counterpart(group: ExactGroup, out_type: FieldType, position: int) -> GroupElement:
    return group.elements_on(out_type.gspace, "output")[position]

