"""Whether a network at hand is as equivariant as the test has to presuppose."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from escnn.group import GroupElement
from escnn.gspaces import GSpace
from escnn.nn import FieldType, GeometricTensor
from torch import Tensor, nn

from ..curvature.batch_format import Weighted, input_tensors, map_tensors, select_samples
from ..deprecation import former_names
from ..errors import naming
from ..nn.steerable import SteerableConvolution
from ..symmetry.grid.field_action import axes_matrix, fiber_matrix, move_points, transform_field
from ..symmetry.grid.kernel_action import grid_permutation
from ..symmetry.grid.strides import watch_strides
from .action import LayerAction
from .exact_group import ExactGroup, products
from .gradients import Probe
from .samples import raw

__all__ = ["Motion", "input_type", "stabiliser", "law_errors", "movable", "SAMPLES"]

#: Samples that the law of the gradients is checked with, at most.
SAMPLES = 8
#: Gradients smaller than this share of the layer's whole are roundings (float32, summed over samples and places).
ROUNDING = 1e-5
#: A breaking kernel that an element moves by less than this share of its norm is left in place by it (float32 kernels).
FIXED_TOLERANCE = 1e-4


def input_type(probe: Probe, input: Any) -> FieldType | None:
    """The field type of the network's input: that of the first geometric tensor that has as many channels as an
    image in it."""
    if isinstance(input, GeometricTensor):
        return input.type
    types: list[FieldType] = []

    def look(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        first = arguments[0] if arguments else None
        if isinstance(first, GeometricTensor) and not types:
            types.append(first.type)

    hooks = [m.register_forward_pre_hook(look) for m in probe.model.modules()]
    try:
        probe.forward(select_samples(input, slice(1), len(input_tensors(input)[0])))
    finally:
        for hook in hooks:
            hook.remove()
    return types[0] if types and movable(input, types[0]) else None


def movable(input: Any, in_type: FieldType) -> bool:
    """Whether an element of the group acts on an input in one way only.

    So it does where at most one plain tensor is an image of this type and other plain tensors have no pixels; geometric
    tensors have types of their own.
    """
    plain = _plain(input)
    images = [part for part in plain if _image(part, in_type)]
    single = len(images) <= 1 and bool(images or len(plain) < len(input_tensors(input)))
    return single and all(part.dim() <= 2 or _image(part, in_type) for part in plain)


def _plain(input: Any) -> list[Tensor]:
    leaves: list[Any] = []
    map_tensors(input, leaves.append)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _image(part: Tensor, in_type: FieldType) -> bool:
    space = in_type.gspace.dimensionality
    return part.dim() == 2 + space and part.shape[1] == in_type.size


def stabiliser(layers: Mapping[str, SteerableConvolution], group: ExactGroup) -> list[int]:
    """Positions of the elements that leave every open pathway in place: all of them for a strict network."""
    positions = list(range(group.order))
    for name, layer in layers.items():
        open_ = {p.name: layer.weights[p.name].detach() for p in layer.pathways if p.breaks}
        open_ = {n: w for n, w in open_.items() if bool(w.any())}
        if not open_:
            continue
        with torch.no_grad():
            kernel = layer.kernel(open_).double()
        ins, outs = layer._kernel_fields()
        types = FieldType(layer.space, list(ins)), FieldType(layer.space, list(outs))
        with naming(name):
            elements = group.counterparts(layer.space)
        for n in list(positions):
            permutation = grid_permutation(layer.space, elements[n], layer.band.points)
            out_matrix = fiber_matrix(types[1], elements[n], kernel)
            in_matrix = fiber_matrix(types[0], ~elements[n], kernel)
            image = torch.einsum("po,ois,iq->pqs", out_matrix, kernel[..., torch.as_tensor(permutation)], in_matrix)
            if float((image - kernel).norm()) > FIXED_TOLERANCE * float(kernel.norm()):
                positions.remove(n)
    return positions


class Motion:
    """Moves inputs and targets of a network by group elements, as far as it is plain what these do to them.

    Args:
        probe: whose output tells whether targets are images.
        in_type, out_type: of input and output; floating targets with as many components as ``out_type`` move with it.
        input: one batch.

    Attributes:
        uneven: strides that leave pixels over on one side, by the name of the module.
    """

    def __init__(self, probe: Probe, in_type: FieldType, out_type: FieldType | None, input: Any) -> None:
        self.in_type = in_type
        with watch_strides(probe.model) as self.uneven:
            output = probe.forward(input)
        self.out_type = out_type or (output.type if isinstance(output, GeometricTensor) else None)
        self.space = in_type.gspace.dimensionality
        self.dense = bool(self.space) and probe.tensor(output).dim() == 2 + self.space

    def input(self, input: Any, element: Callable[[GSpace], GroupElement]) -> Any:
        """An input moved by the element that a function names in the group of each G-space."""

        def move(leaf: Any) -> Any:
            field_type = leaf.type if isinstance(leaf, GeometricTensor) else self.in_type
            if leaf is not raw(leaf) or _image(leaf, self.in_type):
                tensor = transform_field(raw(leaf), field_type, element(field_type.gspace))
                return GeometricTensor(tensor, field_type) if leaf is not raw(leaf) else tensor
            return leaf

        return map_tensors(input, move)

    def target(self, target: Any, element: Callable[[GSpace], GroupElement]) -> Any:
        """The target moved by the same element; one on which the group does not act is returned as it is."""

        def move(aim: Tensor) -> Tensor:
            if self.field(aim):
                out: Any = self.out_type
                return transform_field(aim, out, element(out.gspace))
            if self.dense and aim.dim() >= 1 + self.space:
                return move_points(aim, axes_matrix(self.in_type.gspace, element(self.in_type.gspace)))
            return aim

        return Weighted(move(target.target), move(target.weight)) if isinstance(target, Weighted) else move(target)

    def image(self, part: Any) -> bool:
        """Whether a tensor of the input lies on a grid that the group turns."""
        return bool(self.space) and _image(part, self.in_type)

    def field(self, aim: Tensor) -> bool:
        """Whether a target moves as a field."""
        components = aim.is_floating_point() and aim.dim() > 1
        return self.out_type is not None and components and bool(aim.shape[1] == self.out_type.size)

    def smooth(self, target: Any) -> bool:
        """Whether elements that are not exact on the grid can move it: not where it holds classes of pixels."""
        aim = target.target if isinstance(target, Weighted) else target
        return not (self.dense and aim.dim() >= 1 + self.space)


def law_errors(
    probe: Probe, actions: dict[str, LayerAction], group: ExactGroup, input: Any, target: Any, motion: Motion
) -> dict[str, float]:
    r"""For each layer the largest :math:`|\Gamma(gx, gy) - M(g)\Gamma(x, y)| / |\Gamma|`, on a few samples, over
    elements that generate the group: what holds for two elements holds for their product.

    A layer whose breaking kernels get no more than roundings of its whole gradient cannot depart from the law.
    """
    input, target = select_samples(input, slice(SAMPLES), len(target)), target[:SAMPLES]
    gradients = probe.gradients(probe.loss(probe.forward(input), target))
    reference = {name: (actions[name].features(gradients[name]), gradients.squares[name]) for name in actions}
    errors = dict.fromkeys(actions, 0.0)
    for n, factors in products(group.elements).items():
        if factors is not None or not n:
            continue

        def element(gspace: GSpace, n: int = n) -> GroupElement:
            with naming("input or output"):
                return group.counterparts(gspace)[n]

        loss = probe.loss(probe.forward(motion.input(input, element)), motion.target(target, element))
        gradients = probe.gradients(loss)
        for name, action in actions.items():
            expected, features = action.move(reference[name][0], n), action.features(gradients[name])
            pairs = [(e, f) for key in expected for e, f in zip(expected[key], features[key])]
            gap = sum(float((e - f).square().sum()) for e, f in pairs) ** 0.5
            size = max(sum(float(e.square().sum()) for e, _ in pairs), ROUNDING**2 * reference[name][1]) ** 0.5
            errors[name] = max(errors[name], gap / size if size > 0 else 0.0)
    return errors


__getattr__ = former_names(__name__)
