"""A relaxed network as plain escnn layers on the subgroups that its kernels keep.

Layers that stay on their own fields are in :mod:`~escnn_relax.morphism.harden.relaxed_layer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from escnn import nn as enn
from escnn.nn import EquivariantModule, FieldType
from torch import Tensor, nn

from ... import _escnn
from ...errors import ArgumentError, EmptyBasisError, UnsupportedModuleError, naming
from ...nn.measured.kernel_symmetry import KernelSymmetry
from ...nn.relaxed_convolution import RelaxedConvolution
from ...nn.strict_layer import strict_layer
from ...symmetry.groups.lattice import Subgroup
from ...symmetry.groups.restriction import restriction
from ...symmetry.kernels.linear_algebra import pseudo_inverse, singular_values
from ...symmetry.kernels.pathway import EQUIVARIANT
from ..example_inputs import fitted
from ..module_tree import replace_modules
from ..restrict.intertwiner import RANK_TOLERANCE, RESIDUAL_TOLERANCE, renamed
from ..restrict.network import restrict
from ..restrict.plan import RestrictionPlan
from ..restrict.relabel import Relabel

__all__ = ["by_depth", "by_layer"]


def by_depth(
    model: nn.Module, subgroups: Mapping[str, Subgroup], *, example: Any = None, flexible: bool = False
) -> tuple[nn.Module, dict[str, Subgroup]]:
    r"""A copy in which each relaxed layer is escnn's own of its subgroup H, with the kernel :math:`P_H K`.

    The network is restricted to the first layer's subgroup from its input on, and again before each layer that has a
    smaller one (:func:`~escnn_relax.restrict` with ``from_layer``).

    Args:
        subgroups: that of each relaxed layer by its name, in the order of the model.
        example: an input of the model or ``False``, see :func:`~escnn_relax.restrict`.
        flexible: where the network brings the outputs of a layer and of one before it together, let the step to the
            smaller subgroup begin before both: the layers between keep the smaller one, which fixes all that the larger
            one does.

    Returns:
        the copy, and the subgroup that each layer has come to.

    Raises:
        ArgumentError: a subgroup that does not lie in that of the layer before.
        UnsupportedModuleError: a network that cannot be restricted at such a step.
        EmptyBasisError: see :func:`fill`.
    """
    layers: dict[str, Any] = dict(model.named_modules())
    result = replace_modules(model, lambda name, module: _strict(module) if name in subgroups else None)
    before: Any = None
    first: Any = None
    reached: dict[str, Subgroup] = {}
    for name, demanded in subgroups.items():
        if before is None:
            result = result if demanded.index == 1 else restrict(result, demanded.id, example=example)
            first, reached = demanded, dict.fromkeys(subgroups, demanded)
        elif not demanded <= before:
            raise ArgumentError(
                name,
                expected=f"a subgroup of {before.name}, which the layers before it keep",
                got=demanded.name,
                remedy="symmetry that was given up does not return: take the stabilisers by depth, or per='layer'",
            )
        elif not reached[name] <= demanded:
            spaces = {n: _at(result, n).in_type.gspace for n in subgroups}
            result = _stepped(result, _inside(first, demanded), name, list(subgroups), example, flexible)
            reached |= {n: demanded for n in subgroups if _at(result, n).in_type.gspace != spaces[n]}
        before = demanded
    for name, demanded in reached.items():
        if demanded.index > 1:
            with naming(name or type(layers[name]).__name__):
                fill(_at(result, name), layers[name], demanded)
    return result, reached


def _at(model: nn.Module, name: str) -> Any:
    """The layer of this name; a step to a subgroup may stand before it."""
    submodule: Any = model.get_submodule(name)
    return submodule[len(submodule) - 1] if isinstance(submodule, enn.SequentialModule) else submodule


def _stepped(model: nn.Module, id: Any, name: str, names: list[str], example: Any, flexible: bool) -> nn.Module:
    """The network on a subgroup from a layer on, or from the nearest before it from which it can be."""
    starts: list[str | None] = [*reversed(names[: names.index(name) + 1]), None] if flexible else [name]
    refusals: list[UnsupportedModuleError] = []
    for start in starts:
        try:
            return restrict(model, id, from_layer=start, example=fitted(example, model))
        except UnsupportedModuleError as error:
            refusals.append(error)
    raise refusals[0]


def by_layer(model: nn.Module, subgroups: Mapping[str, Subgroup]) -> nn.Module:
    """The same with each layer by itself: the network around stays on G, a Relabel on either side of the layer."""

    def replacement(name: str, module: Any) -> nn.Module | None:
        if name not in subgroups:
            return None
        strict = _strict(module)
        if subgroups[name].index == 1:
            return strict
        with naming(name or type(module).__name__):
            on_h = restrict(strict, subgroups[name].id, example=False)
            fill(on_h, module, subgroups[name])
        steps = Relabel(module.in_type, on_h.in_type), Relabel(on_h.out_type, module.out_type)
        return enn.SequentialModule(steps[0], on_h, steps[1]).train(module.training)

    return replace_modules(model, replacement)


def _strict(layer: Any) -> EquivariantModule:
    with torch.no_grad():
        return strict_layer(layer).train(layer.training)


def _inside(first: Subgroup, demanded: Subgroup) -> Any:
    """The id of a subgroup of G within another one, which the network's input has."""
    if first.index == 1:
        return demanded.id
    outer, inner = first.gspace, restriction(first)
    scalar = FieldType(outer, [outer.trivial_repr])
    step = Relabel(scalar, inner.field_type(scalar))
    return RestrictionPlan(demanded).through(step)[1].subgroup.id


def fill(target: EquivariantModule, layer: RelaxedConvolution, subgroup: Subgroup) -> None:
    r"""Give an escnn layer of H, in place, the kernel :math:`P_H K` of a relaxed layer of G.

    H's sampled basis is polished as in :func:`~escnn_relax.morphism.restrict.intertwiner.block_maps`: changed by the
    rounding of escnn's samples (:math:`10^{-7}`), so that the kernel lies in its span exactly.

    Raises:
        EmptyBasisError: the kernel is not in the span of escnn's kernels of H, as of a layer with ``basis="pixel"``.
    """
    symmetry = KernelSymmetry(layer)
    weights = symmetry.projected_weights(subgroup)
    blocks = dict(_escnn.block_modules(target.basisexpansion))
    # by position: a network restricted twice names its representations after both steps
    ins, outs = renamed(layer.in_type, target.in_type), renamed(layer.out_type, target.out_type)
    size = sum(float(w.square().sum()) for n, w in weights.items() if n != EQUIVARIANT.name)
    vector = torch.zeros(target.weights.shape, dtype=torch.float64)
    with torch.no_grad():
        size += float(layer.pathway_kernel(EQUIVARIANT.name).double().square().sum())
        for pair in layer.kernel.pairs:
            rows = _pieces(layer, weights, pair)
            block = blocks.get((ins[pair[0]], outs[pair[1]]))
            basis = rows[:0] if block is None else _escnn.kernels(block).flatten(1)
            solution, basis = _polished(rows, basis)
            lost = float((rows - solution @ basis).norm())
            if lost > RESIDUAL_TOLERANCE * size**0.5:
                raise EmptyBasisError(
                    type(layer),
                    f"escnn's kernels of {subgroup.name} lack a part of the learned one, of norm {lost / size**0.5:.1e}"
                    " of 1",
                    remedy="relax with basis='band-limited', or harden without to=",
                )
            if block is not None:
                block.sampled_basis = basis.view(block.sampled_basis.shape).to(block.sampled_basis)
                start, stop = _escnn.weight_range(target.basisexpansion, (ins[pair[0]], outs[pair[1]]))
                vector[start:stop] = solution.flatten()
        target.weights.copy_(vector)
        mode = target.training
        target.train().train(mode)  # drops the filter that escnn keeps in eval mode, which is of other weights


def _pieces(layer: RelaxedConvolution, weights: Mapping[str, Tensor], pair: tuple[str, str]) -> Tensor:
    """The kernels between all fields of one pair of representations, ``(out fields * in fields, numbers)``, float64."""
    summands: list[Tensor] = []
    for name in layer.kernel.pathways:
        for block in layer.kernel.blocks[name]:
            if (block.in_name, block.out_name) == pair:
                coefficients = (
                    weights[name]
                    .to("cpu", torch.float64)[block.start : block.stop]
                    .view(block.outputs * block.inputs, -1)
                )
                summands.append(coefficients @ layer.kernel.basis(block).detach().to("cpu", torch.float64).flatten(1))
    return sum(summands[1:], summands[0])


def _polished(rows: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients of the rows, and the basis, changed as little as it takes for them to be exact."""

    def solve(vectors: Tensor) -> Tensor:
        return vectors @ pseudo_inverse(basis, RANK_TOLERANCE)

    _, values, span = singular_values(rows)
    span = span[values > RANK_TOLERANCE * values.max().clamp(min=torch.finfo(torch.float64).tiny)]
    if len(basis) and len(span):
        for _ in range(2):  # the second pass removes the rounding of the first
            transfer = solve(span)
            residual = span - transfer @ basis
            if float(residual.norm()) > RESIDUAL_TOLERANCE:
                break
            basis = basis + pseudo_inverse(transfer, 1e-9) @ residual
    return solve(rows), basis
