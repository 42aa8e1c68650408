"""Re-expressing a network on a subgroup: same function, fewer symmetries to keep."""

from __future__ import annotations

import warnings
from typing import Any

from escnn import nn as enn
from escnn.gspaces import GSpace
from escnn.nn import EquivariantModule, FieldType
from torch import nn

from ...errors import ArgumentError, FieldTypeError, SubgroupError, UnsupportedModuleError
from ...nn.mixed.convolution import MixedConvolution
from ...nn.translation.layer import RelaxedTranslation
from ...symmetry.groups.lattice import Subgroup, subgroup
from ..isolated_run import apart, run_once
from ..module_tree import holds, map_values, replace_modules
from ..trial_run import Trial, first_type
from .call_order import Flow, flow, layers
from .layer import CONTAINERS, RETYPED, SPARSE, STEERABLE, restrict_sparse, restrict_steerable, restricted_value, retype
from .plan import RestrictionPlan
from .relabel import Relabel

__all__ = ["restrict"]

#: Modules that hand a tensor from one group to a smaller one.
STEPS = (enn.RestrictionModule, Relabel)


def restrict(
    module: nn.Module, subgroup_id: Any, from_layer: str | None = None, where: str = "", *, example: Any = None
) -> nn.Module:
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
        where: name of the module for error messages.
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
    where = where or type(module).__name__
    root = first_type(module)
    if root is None:
        remedy = "pass a module with an in_type, or one that contains some"
        raise FieldTypeError(where, "the module has no field type, so there is no group to restrict", remedy=remedy)
    chosen = subgroup(root.gspace, subgroup_id, where)
    if chosen.index == 1:
        raise SubgroupError(
            where,
            f"{subgroup_id!r} names the whole group {root.gspace.fibergroup.name}",
            remedy="name a proper subgroup; print(subgroups(gspace)) lists them",
        )
    _check_boundary(module, from_layer, where)
    trial = Trial.of(module, example, where)
    seen = None
    if from_layer is not None and trial is not None:
        seen = _seen(trial, from_layer)
        _refuse_both_sides(seen, module, from_layer, where)
    elif from_layer is not None:
        warnings.warn(
            f"{where}: the order of its layers is taken from their registration, and the result was not tried; pass"
            " example=",
            stacklevel=2,
        )
    result = _restricted(module, chosen, from_layer, where, seen)
    if trial is not None:
        cause, remedy = _hint(seen)
        trial.check(result, "restricted", cause=cause, remedy=remedy)
    return result


def _check_boundary(module: nn.Module, from_layer: str | None, where: str) -> None:
    if from_layer is None:
        return
    order = dict(module.named_modules())
    if not isinstance(from_layer, str) or from_layer not in order or not from_layer:
        raise ArgumentError(
            where,
            expected="from_layer to be the dotted name of a submodule",
            got=repr(from_layer),
            remedy=f"e.g. {', '.join([n for n in order if n][:6])}",
        )
    if not isinstance(getattr(order[from_layer], "in_type", None), FieldType):
        raise ArgumentError(
            f"{where}.{from_layer}",
            "from_layer must name a module with an in_type, since the step to the subgroup goes before it",
            remedy="name an escnn layer of the model, the first that is to be on the subgroup",
        )


def _seen(trial: Trial, from_layer: str) -> Flow:
    """A run in the network's own mode, or in eval mode where it does not run in its own on so small a batch."""
    own, other = (apart(trial.model, eval=eval, hooks=trial.hooks) for eval in (False, True))
    try:
        return flow(own, from_layer, lambda: run_once(own, trial.example))
    except Exception:
        return flow(other, from_layer, lambda: run_once(other, trial.example))


def _refuse_both_sides(seen: Flow, module: nn.Module, from_layer: str, where: str) -> None:
    if not seen.after:
        raise ArgumentError(
            where, f"from_layer={from_layer!r} is never called", remedy="name a layer that the example reaches"
        )
    parts = dict(module.named_modules())
    for name in seen.on_both_sides:
        if holds(parts[name], (FieldType, GSpace)):
            raise UnsupportedModuleError(
                f"{where}.{name}",
                f"this {type(parts[name]).__name__} is called before {from_layer!r} and again after it, so it would"
                " have to live on both groups",
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


def _restricted(
    module: nn.Module, chosen: Subgroup, from_layer: str | None, where: str, seen: Flow | None = None
) -> nn.Module:
    plan = RestrictionPlan(chosen)
    for name, part in module.named_modules():  # steps that the network takes itself
        if type(part) in STEPS:
            plan.through(part, f"{where}.{name}")
    early = _early(module, from_layer, seen)
    replaced: list[nn.Module] = []
    kept: dict[str, str] = {}
    boundary = dict(module.named_modules()).get(from_layer) if from_layer is not None else None
    fed = {} if seen is None else seen.fed

    def replacement(name: str, part: nn.Module) -> nn.Module | None:
        title = f"{where}.{name}" if name else where
        if part is boundary:
            inner = subgroup(part.in_type.gspace, _local_id(plan, part, title), title)
            on_h = _restricted(part, inner, None, title)
            new: nn.Module | None = _Boundary(Relabel(part.in_type, on_h.in_type), on_h).within(part)
        elif id(part) in early:
            kept[name] = early[id(part)]
            return None
        else:
            new = _leaf(part, plan, title)
        if new is None:
            kept[name] = "after"
            return None
        if name in fed and part is not boundary and isinstance(getattr(part, "in_type", None), FieldType):
            new = _Boundary(Relabel(part.in_type, new.in_type), new).within(part)
        replaced.append(new)
        return new

    result = replace_modules(module, replacement)
    if not replaced:
        raise UnsupportedModuleError(
            where,
            "nothing in it could be restricted: no module of it is one that restrict rebuilds",
            remedy="restrict rebuilds escnn's own classes; compose the network of these",
        )
    skip = {id(m) for new in replaced for m in new.modules()}
    for name, part in list(result.named_modules()):
        if id(part) in skip or kept.get(name, "after") == "before":
            continue
        across = kept.get(name) == "across"

        def change(attribute: str, value: Any, across: bool = across, name: str = name) -> Any:
            if across and attribute != "out_type":
                return value
            return restricted_value(value, plan.restriction(value if isinstance(value, GSpace) else value.gspace, name))

        map_values(part, (FieldType, GSpace), change)
    return _unfold(result)


class _Boundary(enn.SequentialModule):
    """The step to H and the first module on H, until they find their place in the parent."""

    def within(self, part: nn.Module) -> _Boundary:
        """In the mode of the part whose place they take."""
        self.training = self[0].training = part.training
        return self


def _unfold(model: nn.Module) -> nn.Module:
    """Within a sequence the step becomes a member of its own, so that the others keep their names."""
    for parent in list(model.modules()):
        for key, child in list(parent._modules.items()):
            if not isinstance(child, _Boundary):
                continue
            step, layer = child
            if isinstance(parent, enn.SequentialModule | nn.Sequential) and not isinstance(parent, _Boundary):
                members = {k: c for k, c in parent._modules.items()}
                parent._modules.clear()
                for k, c in members.items():
                    if k == key:
                        parent._modules[f"before_{key}"] = step
                        c = layer
                    parent._modules[k] = c
            else:
                pair = enn.SequentialModule(step, layer)
                pair.training = child.training
                parent._modules[key] = pair
    for parent in reversed(list(model.modules())):  # the innermost first
        if isinstance(parent, enn.SequentialModule) and len(parent):
            parent.in_type = parent[0].in_type  # where the step came first, the sequence takes G's fields
    return model


def _local_id(plan: RestrictionPlan, part: Any, title: str) -> Any:
    return plan.restriction(part.in_type.gspace, title).subgroup.id


def _early(module: nn.Module, from_layer: str | None, seen: Flow | None) -> dict[int, str]:
    """The modules that keep G: those before the boundary, and those with layers on both sides ("across")."""
    if from_layer is None:
        return {}
    early: dict[int, str] = {}
    order = dict(module.named_modules())
    for name, part in order.items():
        if name == from_layer:
            break
        early[id(part)] = "across" if not name or from_layer.startswith(name + ".") else "before"
    if seen is None:
        return early
    inside = {name for name, _ in layers(order[from_layer])}
    late = {*seen.after, from_layer, *(f"{from_layer}.{name}" for name in inside if name)}
    called = {name: name in late for name in (*seen.before, *seen.after)}  # what is never called goes by registration
    for name, part in order.items():
        below = [
            beyond for layer, beyond in called.items() if not name or layer == name or layer.startswith(name + ".")
        ]
        if not below or name == from_layer or name.startswith(from_layer + "."):
            continue
        early.pop(id(part), None)
        if not all(below):
            early[id(part)] = "across" if any(below) or not name or from_layer.startswith(name + ".") else "before"
        elif not name or from_layer.startswith(name + "."):
            early[id(part)] = "across"
    return early


def _leaf(part: Any, plan: RestrictionPlan, title: str) -> nn.Module | None:
    """The restricted module, or None for a module that only holds others or knows nothing of fields."""
    kind = type(part)
    if kind in STEERABLE:
        return restrict_steerable(part, plan.restriction(part.in_type.gspace, title), title)
    if kind in SPARSE:
        return restrict_sparse(part, plan.restriction(part.in_type.gspace, title))
    if kind in RETYPED:
        return retype(part, plan.restriction(first_type(part).gspace, title))
    if kind in STEPS:
        before, after = plan.through(part, title)
        return Relabel(before.field_type(part.in_type), after.field_type(part.out_type)).train(part.training)
    if isinstance(part, CONTAINERS):
        return None
    if isinstance(part, MixedConvolution):
        remedy = "merge it first, or mix after restricting"
        raise UnsupportedModuleError(title, "a mixture over the subgroups of G has no counterpart on H", remedy=remedy)
    if isinstance(part, RelaxedTranslation):
        remedy = "harden it first, which leaves a convolution where the pathways died, or relax after restricting"
        raise UnsupportedModuleError(title, "pathways between whole images have no counterpart on H", remedy=remedy)
    if kind.__module__.startswith("escnn."):
        if isinstance(part, EquivariantModule):
            raise UnsupportedModuleError(
                title,
                f"{kind.__name__} has no counterpart on restricted fields",
                expected=f"one of {', '.join(k.__name__ for k in STEERABLE)}, nonlinearities, norms, pools",
                remedy="replace it, or restrict the modules around it and put a Relabel on either side",
            )
        return None
    if list(part.parameters(recurse=False)) and holds(part, (FieldType, GSpace)):
        raise UnsupportedModuleError(
            title,
            f"{kind.__name__} has weights of its own between field types, and restrict cannot know what they do",
            remedy="make it of escnn's modules, or restrict the modules around it and put a Relabel on either side",
        )
    known = (*STEERABLE, *SPARSE, *RETYPED)
    if isinstance(part, known) or (isinstance(part, EquivariantModule) and not list(part.children())):
        raise UnsupportedModuleError(
            title,
            f"{kind.__name__} is not known to restrict, which rebuilds escnn's own classes and what is made of them",
            remedy="compose it of escnn modules, or (a relaxed layer) harden or project it first",
        )
    return None
