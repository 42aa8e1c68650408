"""All modules of a network on a subgroup, or those from a layer on."""

from __future__ import annotations

from typing import Any

from escnn.gspaces import GSpace
from escnn.nn import FieldType
from torch import nn

from ...errors import UnsupportedModuleError, naming
from ...symmetry.groups.lattice import Subgroup, subgroup
from ..module_tree import map_values, replace_modules
from .boundary import Boundary, modules_on_group, unfold
from .call_order import Flow
from .layer import restricted_value
from .module import STEPS, restrict_module
from .plan import RestrictionPlan
from .relabel import Relabel

__all__ = ["restrict_tree"]


def restrict_tree(
    module: nn.Module, chosen: Subgroup, from_layer: str | None, root: str | type, seen: Flow | None = None
) -> nn.Module:
    """A copy of a network on a subgroup; see :func:`~escnn_relax.restrict` for errors.

    Args:
        module: the network.
        chosen: the subgroup of the group of its input, or of its first layer.
        from_layer: the name of the module before which the step is; ``None`` for the whole network.
        root: what errors call the network: its name, or its class.
        seen: a run of the network; without one the order of registration counts.
    """
    plan = RestrictionPlan(chosen)
    for name, submodule in module.named_modules():  # steps that the network takes itself
        if type(submodule) in STEPS:
            with naming(_title(root, name)):
                plan.through(submodule)
    early = modules_on_group(module, from_layer, seen)
    replaced: list[nn.Module] = []
    sides: dict[str, str] = {}
    boundary = dict(module.named_modules()).get(from_layer) if from_layer is not None else None
    fed = {} if seen is None else seen.fed

    def replacement(name: str, submodule: nn.Module) -> nn.Module | None:
        title = _title(root, name)
        if submodule is boundary:
            with naming(title):
                inner = subgroup(submodule.in_type.gspace, plan.restriction(submodule.in_type.gspace).subgroup.id)
                on_h = restrict_tree(submodule, inner, None, title)
            new: nn.Module | None = Boundary(Relabel(submodule.in_type, on_h.in_type), on_h).within(submodule)
        elif id(submodule) in early:
            sides[name] = early[id(submodule)]
            return None
        else:
            with naming(title):
                new = restrict_module(submodule, plan)
        if new is None:
            sides[name] = "after"
            return None
        if name in fed and submodule is not boundary and isinstance(getattr(submodule, "in_type", None), FieldType):
            new = Boundary(Relabel(submodule.in_type, new.in_type), new).within(submodule)
        replaced.append(new)
        return new

    result = replace_modules(module, replacement)
    if not replaced:
        raise UnsupportedModuleError(
            root,
            "nothing in it could be restricted: no module of it is one that restrict rebuilds",
            remedy="restrict rebuilds escnn's own classes; compose the network of these",
        )
    skip = {id(m) for new in replaced for m in new.modules()}
    for name, submodule in list(result.named_modules()):
        if id(submodule) in skip or sides.get(name, "after") == "before":
            continue
        across = sides.get(name) == "across"

        def change(attribute: str, value: Any, across: bool = across, name: str = name) -> Any:
            if across and attribute != "out_type":
                return value
            with naming(name or type(module).__name__):
                return restricted_value(value, plan.restriction(value if isinstance(value, GSpace) else value.gspace))

        map_values(submodule, (FieldType, GSpace), change)
    return unfold(result)


def _title(root: str | type, name: str) -> str | type:
    """What errors call a part of this name."""
    return f"{root if isinstance(root, str) else root.__name__}.{name}" if name else root
