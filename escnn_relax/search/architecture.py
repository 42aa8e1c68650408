"""Reading an architecture off the shares of a mixed network: which group each layer keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from escnn.gspaces import GSpace
from torch import Tensor, nn

from ..errors import ArgumentError, DataError, naming
from ..morphism.mix import mixed_layers
from ..morphism.module_tree import replace_modules
from ..nn.mixed.convolution import MixedConvolution
from ..symmetry.groups.lattice import Subgroup, subgroup
from ..symmetry.kernels.pathway import EQUIVARIANT

__all__ = ["architecture_penalty", "chosen_summands", "degree_penalty", "discretise", "group_chain", "keep_summands"]


def discretise(model: nn.Module, by: str | float = "argmax", *, monotone: bool = False) -> nn.Module:
    """A copy of a mixed model in which each layer keeps only its chosen summands, as mixed layers that go on training.

    Kernels and biases become the closest to the mixture's that the chosen groups can make (:meth:`nearest
    <escnn_relax.nn.mixed.convolution.MixedConvolution.nearest>`): what summands of larger groups did is kept, what
    chosen groups cannot do is lost.

    Args:
        by: ``"argmax"``: one group for each layer, that of the largest share; or a threshold (fraction): all groups
            with at least that share, the largest always.
        monotone: choose (``"argmax"`` only) the chain of groups, each contained in the one before it, with the largest
            product of shares: symmetry never increases with depth, in the order in which the model registers its
            layers.

    Raises:
        ArgumentError: an unknown rule, a threshold outside (0, 1], or layers of different groups for a monotone choice.
        UnsupportedModuleError: no mixed layer in the model.

    >>> from escnn import gspaces, nn as enn
    >>> from escnn_relax import mix
    >>> space = gspaces.rot2dOnR2(4)
    >>> fields = enn.FieldType(space, [space.regular_repr])
    >>> mixed = mix(enn.SequentialModule(enn.R2Conv(fields, fields, 3), enn.R2Conv(fields, fields, 3)), [2, 1])
    >>> mixed[0].alpha.data[1], mixed[1].alpha.data[0] = 2.0, 1.0
    >>> [tuple(layer.shares) for layer in discretise(mixed)]
    [('C2',), ('equivariant',)]
    >>> [tuple(layer.shares) for layer in discretise(mixed, monotone=True)]
    [('C2',), ('C2',)]
    """
    return keep_summands(model, chosen_summands(model, by, monotone))


def keep_summands(model: nn.Module, chosen: Mapping[str, tuple[str, ...]], nearest: bool = True) -> nn.Module:
    """A copy of a mixed model in which each layer keeps the named summands only.

    Args:
        nearest: let them take over what they can of the others, which are dropped otherwise.
    """
    layers = {id(layer): name for name, layer in mixed_layers(model).items()}

    def replacement(_: str, module: Any) -> nn.Module | None:
        if id(module) not in layers:
            return None
        names = chosen[layers[id(module)]]
        return module.nearest(*names) if nearest else module.without(*(n for n in module.shares if n not in names))

    return replace_modules(model, replacement)


def chosen_summands(model: nn.Module, by: str | float, monotone: bool) -> dict[str, tuple[str, ...]]:
    """For each mixed layer the names of the summands that :func:`discretise` keeps."""
    with naming("discretise"):
        layers = mixed_layers(model)
    for name, layer in layers.items():
        if not all(map(math.isfinite, layer.shares.values())):
            raise DataError(
                name, "its shares are not finite", got=layer.shares, remedy="go back to a checkpoint before that"
            )
    if by == "argmax":
        if monotone:
            return {name: (summand,) for name, summand in zip(layers, _best_chain(layers))}
        return {name: (max(layer.shares, key=layer.shares.__getitem__),) for name, layer in layers.items()}
    if isinstance(by, str) or not 0 < by <= 1:
        remedy = "leave it out for 'argmax'"
        raise ArgumentError("discretise", expected="'argmax', or a threshold in (0, 1]", got=repr(by), remedy=remedy)
    if monotone:
        raise ArgumentError("discretise", "a monotone choice is one group for each layer", remedy="use by='argmax'")
    chosen = {}
    for name, layer in layers.items():
        top = max(layer.shares.values())
        chosen[name] = tuple(n for n, share in layer.shares.items() if share >= by or share == top)
    return chosen


def _groups(layer: MixedConvolution, like: GSpace) -> dict[str, Subgroup]:
    """The groups of a layer's summands, as subgroups of one and the same G-space for all layers."""
    whole = [h for h in (subgroup(like, p.subgroup) for p in layer.pathways if p != EQUIVARIANT)]
    names = [p.name for p in layer.pathways if p != EQUIVARIANT]
    return dict(zip(names, whole))


def _best_chain(layers: Mapping[str, MixedConvolution]) -> list[str]:
    """The non-increasing chain of groups with the largest product of shares (Viterbi's algorithm)."""
    members = list(layers.values())
    first = members[0].space
    for name, layer in layers.items():
        if layer.space.fibergroup != first.fibergroup:
            problem = f"its group is {layer.space.fibergroup.name}, that of the first layer {first.fibergroup.name}"
            raise ArgumentError(name, problem, remedy="a monotone choice needs one group for all mixed layers")
    groups = [_groups(layer, first) for layer in members]

    def contains(l: int, upper: str, lower: str) -> bool:
        if upper == EQUIVARIANT.name:
            return True
        return lower != EQUIVARIANT.name and groups[l + 1][lower] <= groups[l][upper]

    scores = [{name: math.log(max(share, 1e-300)) for name, share in layer.shares.items()} for layer in members]
    best, back = dict(scores[0]), []
    for l in range(len(members) - 1):
        step, after = {}, {}
        for lower in scores[l + 1]:
            allowed = [upper for upper in best if contains(l, upper, lower)]
            if allowed:
                step[lower] = max(allowed, key=best.__getitem__)
                after[lower] = best[step[lower]] + scores[l + 1][lower]
        if not after:
            remedy = "search with monotone=0, or offer each layer the smaller groups as well"
            raise ArgumentError(
                list(layers)[l + 1], "no group of this layer is contained in one of the layer before it", remedy=remedy
            )
        back.append(step)
        best = after
    chain = [max(best, key=best.__getitem__)]
    for step in reversed(back):
        chain.append(step[chain[-1]])
    return chain[::-1]


def degree_penalty(layers: Mapping[str, MixedConvolution]) -> Tensor:
    r"""How much symmetry increases with depth: :math:`\sum_l \max(0, d_{l+1} - d_l)`.

    :math:`d_l = \sum_H \pi_H \log|H| / \log|G|` is the mean degree of symmetry of a layer, 1 for G and 0 for none.
    """
    degrees = []
    for name, layer in layers.items():
        whole = layer.space.fibergroup.order()
        if whole < 2:
            raise ArgumentError(name, "a degree of symmetry needs a finite group", remedy="set monotone=0")
        orders = [whole if p == EQUIVARIANT else subgroup(layer.space, p.subgroup).order for p in layer.pathways]
        shares = layer.kernel.shares
        logs = torch.tensor([math.log(order) / math.log(whole) for order in orders]).to(shares)
        degrees.append(shares @ logs)
    rises = [(after - before).clamp(min=0) for before, after in zip(degrees, degrees[1:])]
    return torch.stack(rises).sum() if rises else degrees[0] * 0


def architecture_penalty(layers: Mapping[str, MixedConvolution], entropy: float, monotone: float) -> Tensor:
    """The terms of the architecture loss that no data have a say in: the shares' mean entropy, 1 for uniform ones, and
    :func:`degree_penalty`, each with its weight; on the CPU."""
    total = torch.zeros(())
    if entropy:
        entropies = []
        for layer in layers.values():
            shares = layer.kernel.shares
            most = math.log(max(len(shares), 2))
            entropies.append(-(shares * shares.clamp(min=1e-12).log()).sum() / most)
        total = total + entropy * torch.stack(entropies).mean().cpu()
    if monotone:
        total = total + monotone * degree_penalty(layers).cpu()
    return total


def group_chain(model: nn.Module) -> dict[str, str]:
    """The group that each mixed layer keeps, in readable form; several are joined by ``+``."""
    return {name: "+".join(layer.group_names.values()) for name, layer in mixed_layers(model).items()}
