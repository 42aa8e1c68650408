"""A network for each genome, and weights handed from one to another with the function kept.

Weights live in small dictionaries; networks are shells that are built once for a genome and process, and filled. So a
population shares the kernel bases of its shells instead of copying them.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from escnn import nn as enn
from escnn.nn import EquivariantModule
from torch import Tensor, nn

from ..._escnn import block_modules
from ...errors import ArgumentError, UnsupportedModuleError
from ...morphism.restrict.intertwiner import bias_map, block_maps, carry_weights
from ...morphism.restrict.layer import BETWEEN_POINTS, STEERABLE
from ...morphism.restrict.network import restrict
from .genome import Genome, Ladder

__all__ = ["Shells", "State", "stages_of", "fill", "read", "transfer", "scatter"]

#: All that training changes, by position of the module and name within it.
State = dict[str, Tensor]

#: So many networks are kept in a process.
SHELLS = 8


def stages_of(model: nn.Module, stages: Sequence[str] | None = None) -> tuple[str, ...]:
    """Names of the layers at which a network's group may change: all its steerable layers by default.

    Raises:
        UnsupportedModuleError: no steerable layer.
        ArgumentError: a name that is no module with an ``in_type``, names twice or out of order.
    """
    named = dict(model.named_modules())
    if stages is None:
        stages = [name for name, module in named.items() if type(module) in STEERABLE and name]
        if not stages:
            raise UnsupportedModuleError(
                type(model).__name__,
                "no steerable layer in it, so there is nothing to search",
                remedy="pass a network of escnn's own layers, not a relaxed or mixed one",
            )
        return tuple(stages)
    order = list(named)
    for name in stages:
        if name not in named or not hasattr(named[name], "in_type") or not name:
            remedy = "name escnn modules of the model, the first of each stage"
            raise ArgumentError("stages", expected="names of modules with an in_type", got=repr(name), remedy=remedy)
    if not stages or [order.index(n) for n in stages] != sorted({order.index(n) for n in stages}):
        remedy = "sort them as model.named_modules() has them"
        raise ArgumentError(
            "stages", expected="names in the order in which the model registers them", got=list(stages), remedy=remedy
        )
    return tuple(stages)


def parts_apart(model: nn.Module, error: Exception) -> UnsupportedModuleError:
    """What a search says of a network that does not run on different groups in different stages."""
    return UnsupportedModuleError(
        type(model).__name__,
        f"its parts do not fit together once their groups differ ({str(error) or 'escnn refused a field type'})",
        remedy="what skips over a layer must not cross a change of group: name the stages=[...] where it may change",
    )


class Shells:
    """Networks by genome, the most recently used kept.

    Args:
        template: the network of the whole group; left alone.
        stages: from :func:`stages_of`.
    """

    def __init__(self, template: nn.Module, stages: tuple[str, ...], ladder: Ladder) -> None:
        self.template, self.stages, self.ladder = template, stages, ladder
        self._kept: OrderedDict[Genome, nn.Module] = OrderedDict()

    def __call__(self, genome: Genome) -> nn.Module:
        """The network of a genome, with whatever weights it had last."""
        if genome not in self._kept:
            self._kept[genome] = self.build(genome)
        self._kept.move_to_end(genome)
        while len(self._kept) > SHELLS:
            self._kept.popitem(last=False)
        return self._kept[genome]

    def build(self, genome: Genome) -> nn.Module:
        """A new network of a genome that computes what the template does."""
        model, now = self.template, self.ladder.whole
        for name, group in zip(self.stages, genome):
            if group != now:
                model = self._step(model, name, group)
                now = group
        return copy.deepcopy(model) if model is self.template else model

    def _step(self, model: nn.Module, stage: str, group: str) -> nn.Module:
        try:
            return restrict(model, self.ladder.members[group].id, from_layer=stage)
        except UnsupportedModuleError as error:
            if "would not run" not in str(error):  # what cannot be restricted says so itself
                raise
            raise parts_apart(self.template, error) from error


def _owners(model: nn.Module) -> Iterator[Any]:
    """The modules that hold what training changes; a steerable layer's parts are its own."""
    inside: set[int] = set()
    for module in model.modules():
        if id(module) in inside:
            continue
        if type(module) in STEERABLE:
            inside.update(id(m) for m in module.modules())
            yield module
        elif any(True for _ in _entries(module)):
            yield module


def _entries(module: Any) -> Iterator[tuple[str, Tensor]]:
    if type(module) in STEERABLE:
        yield "weights", module.weights
        if module.bias is not None:
            yield "bias", module.bias
        return
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)


def read(model: nn.Module) -> State:
    """What training changes, on the CPU."""
    return {
        f"{index}.{name}": value.detach().cpu().clone()
        for index, module in enumerate(_owners(model))
        for name, value in _entries(module)
    }


def fill(model: nn.Module, state: State) -> nn.Module:
    """Write a state into a network of the same genome, in place; returns it, in training mode."""
    model.train()
    with torch.no_grad():
        for index, module in enumerate(_owners(model)):
            for name, value in _entries(module):
                value.copy_(state[f"{index}.{name}"])
    return model


def transfer(parent: nn.Module, child: nn.Module) -> nn.Module:
    """Give a network of smaller groups, in place, the function of one of larger groups; returns it, in training mode.

    Both come from one template. Steerable layers get the coefficients of the same kernels, everything else is copied.
    """
    child.train()
    with torch.no_grad():
        for a, b in zip(_owners(parent), _owners(child), strict=True):
            if type(a) not in STEERABLE or _same_kernels(a, b):
                for (_, theirs), (_, ours) in zip(_entries(a), _entries(b), strict=True):
                    ours.copy_(theirs)
                continue
            maps = block_maps(a, b, polish=False)
            b.weights.copy_(carry_weights(a.weights, a, b, maps))
            if a.bias is not None:
                b.bias.copy_(a.bias.detach().double().cpu() @ bias_map(a, b)[0])
    return child


def _same_kernels(a: EquivariantModule, b: EquivariantModule) -> bool:
    """Whether two steerable layers have one basis, so that coefficients mean the same in both: most layers of a
    child."""
    if a.in_type != b.in_type or a.out_type != b.out_type or type(a) in BETWEEN_POINTS:
        return False
    ours, theirs = (dict(block_modules(layer.basisexpansion)) for layer in (a, b))
    pairs = ((block.sampled_basis, theirs[pair].sampled_basis) for pair, block in ours.items())
    close = (float((x - y).abs().max()) <= 100 * torch.finfo(x.dtype).eps * float(x.abs().max()) for x, y in pairs)
    return ours.keys() == theirs.keys() and all(close)


def scatter(model: nn.Module) -> nn.Module:
    """Start steerable layers at random, in place, with the kernel norms that they have; biases at zero."""
    model.train()
    with torch.no_grad():
        for module in _owners(model):
            if type(module) not in STEERABLE or isinstance(module, getattr(enn, "R2PointConv", ())):
                continue
            norm = module.basisexpansion(module.weights).norm()
            module.weights.normal_()
            module.weights.mul_(norm / module.basisexpansion(module.weights).norm())
            if module.bias is not None:
                module.bias.zero_()
    return model
