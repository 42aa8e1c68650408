"""Re-expressing a network on a subgroup: same function, fewer symmetries to keep."""

from __future__ import annotations

import warnings
from typing import Any

from escnn.gspaces import GSpace
from escnn.nn import FieldType
from torch import nn

from ...deprecation import former_where
from ...errors import ArgumentError, FieldTypeError, SubgroupError, UnsupportedModuleError, layer_name, naming
from ...symmetry.groups.lattice import subgroup
from ..example_inputs import first_type
from ..isolated_run import apart, run_once
from ..module_tree import holds
from ..trial_run import Trial
from .call_order import Flow, flow
from .tree import restrict_tree

__all__ = ["restrict"]


@former_where
def restrict(module: nn.Module, subgroup_id: Any, from_layer: str | None = None, *, example: Any = None) -> nn.Module:
    """A new module on the subgroup's G-space, computing the same function; the given one is left alone.

    Convolutions and Linear are rebuilt as escnn layers of H with H's own, more numerous coefficients: whatever these
    become, the layer stays H-equivariant. A sparse convolution keeps its anchors, and of H what it kept of G. All other
    escnn modules keep their parameters and statistics and get the
    restricted field types. Train and eval mode, precision, device and ``requires_grad`` are those of the original.

    Args:
        module: an EquivariantModule, or any module that contains some.
        subgroup_id: escnn's id of H in G, the group of the module's first field type; see
            :mod:`escnn_relax.symmetry.groups.subgroup_ids`.
        from_layer: dotted name of a submodule; only it and the modules called after it are restricted, and a
            :class:`~escnn_relax.morphism.restrict.relabel.Relabel` is put before it and before every other layer that
            is fed from the other side. What the network's own code brings together (sums, ``tensor_directsum``,
            ``torch.cat``) must come from one side, and a module that serves both sides, as one ReLU for all layers,
            needs a copy for each: both are refused by name.
        example: an input of the module, or a tuple of arguments: a tensor or a GeometricTensor. The order of the layers
            is that in which this run calls them, and the result is tried on it before it is returned. Without one an
            input is made of the first field type; where the module does not run on that, and for ``False``, nothing is
            tried and the order of registration counts.

    Raises:
        SubgroupError: the id has the wrong form, names no subgroup, or names G itself.
        ReflectionAxisError: a layer on O(2) that escnn built with the kernels of another reflection axis.
        EmptyBasisError: a layer's basis filter keeps H's kernels from containing G's.
        ArgumentError: ``from_layer`` names no module with an input type, or the module does not run on the example.
        UnsupportedModuleError: a module unknown to us, with its name and what to do; nothing could be restricted, a
            module on both sides of the step, fields of both sides that meet, or a result that does not run.

    >>> import torch
    >>> from escnn import gspaces, nn
    >>> space = gspaces.rot2dOnR2(8)
    >>> scalar, regular = nn.FieldType(space, [space.trivial_repr]), nn.FieldType(space, 2 * [space.regular_repr])
    >>> net = nn.SequentialModule(nn.R2Conv(scalar, regular, 5), nn.InnerBatchNorm(regular), nn.ReLU(regular))
    >>> on_c4 = restrict(net, 4)
    >>> x = torch.randn(1, 1, 9, 9)
    >>> torch.allclose(net(scalar(x)).tensor, on_c4(on_c4.in_type(x)).tensor, atol=1e-5)
    True
    >>> net[0].weights.numel(), on_c4[0].weights.numel()
    (22, 44)
    """
    root = first_type(module)
    if root is None:
        remedy = "pass a module with an in_type, or one that contains some"
        raise FieldTypeError(
            type(module), "the module has no field type, so there is no group to restrict", remedy=remedy
        )
    with naming(type(module)):
        chosen = subgroup(root.gspace, subgroup_id)
    if chosen.index == 1:
        raise SubgroupError(
            type(module),
            f"{subgroup_id!r} names the whole group {root.gspace.fibergroup.name}",
            remedy="name a proper subgroup; print(subgroups(gspace)) lists them",
        )
    _check_boundary(module, from_layer)
    trial = Trial.prepare(module, example)
    seen = None
    if from_layer is not None and trial is not None:
        seen = _seen(trial, from_layer)
        _refuse_both_sides(seen, module, from_layer)
    elif from_layer is not None:
        warnings.warn(
            f"{layer_name(type(module))}: the order of its layers is taken from their registration, and the result was"
            " not tried; pass example=",
            stacklevel=2,
        )
    result = restrict_tree(module, chosen, from_layer, type(module), seen)
    if trial is not None:
        cause, remedy = _hint(seen)
        trial.check(result, "restricted", cause=cause, remedy=remedy)
    return result


def _check_boundary(module: nn.Module, from_layer: str | None) -> None:
    if from_layer is None:
        return
    order = dict(module.named_modules())
    if not isinstance(from_layer, str) or from_layer not in order or not from_layer:
        raise ArgumentError(
            type(module),
            expected="from_layer to be the dotted name of a submodule",
            got=repr(from_layer),
            remedy=f"e.g. {', '.join([n for n in order if n][:6])}",
        )
    if not isinstance(getattr(order[from_layer], "in_type", None), FieldType):
        raise ArgumentError(
            f"{type(module).__name__}.{from_layer}",
            "from_layer must name a module with an in_type, since the step to the subgroup goes before it",
            remedy="name an escnn layer of the model, the first that is to be on the subgroup",
        )


def _seen(trial: Trial, from_layer: str) -> Flow:
    """A run in the network's own mode, or in eval mode where it does not run in its own on so small a batch."""
    original, in_eval = (apart(trial.model, eval=eval, hooks=trial.hooks) for eval in (False, True))
    try:
        return flow(original, from_layer, lambda: run_once(original, trial.example))
    except Exception:
        return flow(in_eval, from_layer, lambda: run_once(in_eval, trial.example))


def _refuse_both_sides(seen: Flow, module: nn.Module, from_layer: str) -> None:
    if not seen.after:
        raise ArgumentError(
            type(module), f"from_layer={from_layer!r} is never called", remedy="name a layer that the example reaches"
        )
    submodules = dict(module.named_modules())
    for name in seen.on_both_sides:
        if holds(submodules[name], (FieldType, GSpace)):
            raise UnsupportedModuleError(
                f"{type(module).__name__}.{name}",
                f"this {type(submodules[name]).__name__} is called before {from_layer!r} and again after it, so it"
                " would have to live on both groups",
                remedy="give each side a module of its own, or restrict from an earlier layer",
            )


def _hint(seen: Flow | None) -> tuple[str, str]:
    """What may keep the result from running, and what to do."""
    if seen is not None and seen.meetings:
        early, late, how = seen.meetings[0]
        cause = (
            f", for the network brings the output of {early!r}, which keeps the group, together with that of {late!r},"
            f" which does not ({how})"
        )
        return cause, f"choose a from_layer at or before {early!r}, or after they have met"
    remedy = (
        "code of the network's own that names a field type or a representation has to be given that of the subgroup,"
        " e.g. by taking it from a layer's out_type"
    )
    return "", remedy
