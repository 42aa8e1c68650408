r"""Carrying an optimizer over to a morphed model, so that training goes on where it was.

Momenta are displacements of the coefficients, so they go the way the coefficients go: :math:`m_H = m_G T` moves the
kernel by exactly what :math:`m_G` would have moved it. Adam's second moments are variances, which propagate as
:math:`v_H = v_G (T \circ T)` when coefficients are independent; a coefficient of H that none of G's reaches gets the
mean of its layer, since a zero there would make its first step arbitrarily large.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from escnn.nn import EquivariantModule
from torch import Tensor, nn
from torch.optim import Optimizer

from ..deprecation import former_keyword
from ..errors import ArgumentError, UnsupportedModuleError, naming
from .restrict.intertwiner import bias_map, block_maps, carry_weights
from .restrict.layer import STEERABLE

__all__ = ["carry_optimizer"]

#: State that transforms as the coefficients do, and state that holds squares.
LINEAR = ("momentum_buffer", "exp_avg")
SQUARED = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum")

Carry = Callable[[Tensor, bool], Tensor]


@former_keyword("optimiser", "optimizer")
def carry_optimizer(optimizer: Optimizer, old: nn.Module, new: nn.Module) -> Optimizer:
    """The optimizer of ``old`` as one of ``new``, a model that ``restrict`` or ``relax`` made of it.

    Args:
        optimizer: any of torch's whose state are momenta and squares (SGD, Adam, AdamW, RMSprop, Adagrad, NAdam,
            RAdam); it is left alone.
        old: the model that it has trained.
        new: the morphed model, trained no further yet.

    Returns:
        an optimizer of the same class, with the groups' settings, over the parameters of ``new`` that stand for those
        of ``old``; new parameters without a counterpart join the group of their layer with fresh state.

    Raises:
        ArgumentError: the optimizer holds parameters that are not in ``old``, or the models do not correspond.
        UnsupportedModuleError: state of a kind unknown to us.

    >>> import torch
    >>> from escnn import gspaces, nn
    >>> from escnn_relax.morphism.restrict.network import restrict
    >>> space = gspaces.rot2dOnR2(4)
    >>> type = nn.FieldType(space, [space.regular_repr])
    >>> net = nn.R2Conv(type, type, 3)
    >>> sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    >>> net(type(torch.randn(1, 4, 5, 5))).tensor.square().mean().backward()
    >>> sgd.step()
    >>> on_c2 = restrict(net, 2)
    >>> carry_optimizer(sgd, net, on_c2).state[on_c2.weights]["momentum_buffer"].shape == on_c2.weights.shape
    True
    """
    counterparts = _counterparts(old, new)
    assigned: set[int] = set()
    groups = []
    for group in optimizer.param_groups:
        params: list[Tensor] = []
        for p in group["params"]:
            if id(p) not in counterparts:
                remedy = "pass the model that the optimizer was made for, then the new one"
                raise ArgumentError(
                    "carry_optimizer", "the optimizer holds a parameter that the old model has not", remedy=remedy
                )
            params += [q for q, _ in counterparts[id(p)] if id(q) not in assigned]
            assigned |= {id(q) for q, _ in counterparts[id(p)]}
        groups.append({**{k: v for k, v in group.items() if k != "params"}, "params": params})
    accepted = inspect.signature(type(optimizer)).parameters  # AdamW's defaults hold more than it takes
    carried = type(optimizer)(groups, **{k: v for k, v in optimizer.defaults.items() if k in accepted})
    for group in optimizer.param_groups:
        for p in group["params"]:
            for q, carry in counterparts[id(p)]:
                if p in optimizer.state and carry is not None:
                    carried.state[q] = _carried(optimizer.state[p], p, carry)
                elif p in optimizer.state:
                    carried.state[q] = _fresh(optimizer.state[p], p, q)
    return carried


def _carried(state: dict[Any, Any], parameter: Tensor, carry: Carry) -> dict[Any, Any]:
    result = {}
    for name, value in state.items():
        if name in LINEAR and value is not None:
            result[name] = carry(value, False).to(parameter)
        elif name in SQUARED and value is not None:
            squares = carry(value, True).to(parameter)
            positive = squares[squares > 0]
            result[name] = torch.where(squares > 0, squares, positive.mean()) if len(positive) else squares
        elif isinstance(value, Tensor) and value.ndim == 0 or not isinstance(value, Tensor):
            result[name] = value.clone() if isinstance(value, Tensor) else value
        else:
            raise UnsupportedModuleError(
                "carry_optimizer", f"optimizer state {name!r} has no known law of transformation", remedy="start anew"
            )
    return result


def _fresh(state: dict[Any, Any], parameter: Tensor, new: Tensor) -> dict[Any, Any]:
    """State of a parameter that starts at zero: no momentum, the layer's mean square, the same count of steps."""
    result = {}
    for name, value in state.items():
        if name in LINEAR and value is not None:
            result[name] = torch.zeros_like(new)
        elif name in SQUARED and value is not None:
            result[name] = torch.full_like(new, float(value.mean()))
        else:
            result[name] = value.clone() if isinstance(value, Tensor) else value
    return result


def _counterparts(old: nn.Module, new: nn.Module) -> dict[int, list[tuple[Tensor, Carry | None]]]:
    """For each old parameter the new ones, and how what belongs to it is carried (None: starts anew)."""
    counterparts: dict[int, list[tuple[Tensor, Carry | None]]] = {}
    theirs = dict(new.named_modules())
    for name, a in old.named_modules():
        b = theirs.get(name)
        if not any(True for _ in a.parameters(recurse=False)):
            continue
        if b is None:
            raise ArgumentError(
                "carry_optimizer", f"the new model has no module {name!r}", remedy="carry it over first"
            )
        if type(a) in STEERABLE:
            if type(b) is type(a) and a.in_type != b.in_type:
                counterparts.update(_restricted(a, b, name))
                continue
            if hasattr(b, "pathways") and not isinstance(b.weights, Tensor):
                counterparts.update(_relaxed(a, b))
                continue
        for key, p in a.named_parameters(recurse=False):
            q = b._parameters.get(key)
            if q is None or q.shape != p.shape:
                remedy = "pass the module that came of restrict, relax or harden"
                raise ArgumentError(
                    f"{name}.{key}".strip("."), "the new model has no such parameter of this shape", remedy=remedy
                )
            counterparts.setdefault(id(p), []).append((q, lambda value, squared: value.clone()))
    return counterparts


def _restricted(a: EquivariantModule, b: EquivariantModule, name: str) -> dict[int, list[tuple[Tensor, Carry | None]]]:
    with naming(name or type(a).__name__):
        maps = block_maps(a, b, polish=False)
    result: dict[int, list[tuple[Tensor, Carry | None]]] = {}
    result[id(a.weights)] = [(b.weights, lambda v, squared: carry_weights(v, a, b, maps, squared))]
    if a.bias is not None:
        transfer, _ = bias_map(a, b)
        move = lambda v, squared: v.double().cpu() @ (transfer**2 if squared else transfer)
        result[id(a.bias)] = [(b.bias, move)]
    return result


def _relaxed(a: EquivariantModule, b: EquivariantModule) -> dict[int, list[tuple[Tensor, Carry | None]]]:
    """A relaxed layer's equivariant pathway has the strict layer's coefficients; the others start at zero."""
    strict, *residual = b.pathways
    pairs: list[tuple[Tensor, Carry | None]] = [(b.weights[strict.name], lambda v, squared: v.clone())]
    pairs += [(b.weights[p.name], None) for p in residual]
    result = {id(a.weights): pairs}
    if a.bias is not None:
        same = b.bias.shape == a.bias.shape  # a mixed layer's holds the biases of all its groups
        result[id(a.bias)] = [(b.bias, (lambda v, squared: v.clone()) if same else None)]
    return result
