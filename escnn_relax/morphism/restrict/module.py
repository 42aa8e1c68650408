"""One module of a network on a subgroup, whatever it is; what is unknown is refused, with the way out."""

from __future__ import annotations

from typing import Any

from escnn import nn as enn
from escnn.gspaces import GSpace
from escnn.nn import EquivariantModule, FieldType
from torch import nn

from ...errors import UnsupportedModuleError
from ...nn.mixed.convolution import MixedConvolution
from ...nn.translation.relaxed_translation import RelaxedTranslation
from ..example_inputs import first_type
from ..module_tree import holds
from .layer import CONTAINERS, RETYPED, SPARSE, STEERABLE, restrict_sparse, restrict_steerable, retype
from .plan import RestrictionPlan
from .relabel import Relabel

__all__ = ["STEPS", "restrict_module"]

#: Modules that hand a tensor from one group to a smaller one.
STEPS = (enn.RestrictionModule, Relabel)


def restrict_module(submodule: Any, plan: RestrictionPlan) -> nn.Module | None:
    """The restricted module, or None for a module that only holds others or knows nothing of fields."""
    kind = type(submodule)
    if kind in STEERABLE:
        return restrict_steerable(submodule, plan.restriction(submodule.in_type.gspace))
    if kind in SPARSE:
        return restrict_sparse(submodule, plan.restriction(submodule.in_type.gspace))
    if kind in RETYPED:
        return retype(submodule, plan.restriction(first_type(submodule).gspace))
    if kind in STEPS:
        before, after = plan.through(submodule)
        return Relabel(before.field_type(submodule.in_type), after.field_type(submodule.out_type)).train(
            submodule.training
        )
    if isinstance(submodule, CONTAINERS):
        return None
    if isinstance(submodule, MixedConvolution):
        remedy = "merge it first, or mix after restricting"
        raise UnsupportedModuleError(kind, "a mixture over the subgroups of G has no counterpart on H", remedy=remedy)
    if isinstance(submodule, RelaxedTranslation):
        remedy = "harden it first, which leaves a convolution where the pathways died, or relax after restricting"
        raise UnsupportedModuleError(kind, "pathways between whole images have no counterpart on H", remedy=remedy)
    if kind.__module__.startswith("escnn."):
        if isinstance(submodule, EquivariantModule):
            raise UnsupportedModuleError(
                kind,
                f"{kind.__name__} has no counterpart on restricted fields",
                expected=f"one of {', '.join(k.__name__ for k in STEERABLE)}, nonlinearities, norms, pools",
                remedy="replace it, or restrict the modules around it and put a Relabel on either side",
            )
        return None
    if list(submodule.parameters(recurse=False)) and holds(submodule, (FieldType, GSpace)):
        raise UnsupportedModuleError(
            kind,
            f"{kind.__name__} has weights of its own between field types, and restrict cannot know what they do",
            remedy="make it of escnn's modules, or restrict the modules around it and put a Relabel on either side",
        )
    known = (*STEERABLE, *SPARSE, *RETYPED)
    if isinstance(submodule, known) or (isinstance(submodule, EquivariantModule) and not list(submodule.children())):
        raise UnsupportedModuleError(
            kind,
            f"{kind.__name__} is not known to restrict, which rebuilds escnn's own classes and what is made of them",
            remedy="compose it of escnn modules, or (a relaxed layer) harden or project it first",
        )
    return None
