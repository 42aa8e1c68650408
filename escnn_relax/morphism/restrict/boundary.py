"""Where a network gives up symmetry: which modules stay on G, and the step to H in its place."""

from __future__ import annotations

from escnn import nn as enn
from torch import nn

from .call_order import Flow, layers

__all__ = ["Boundary", "modules_on_group", "unfold"]


class Boundary(enn.SequentialModule):
    """The step to H and the first module on H, until they find their place in the parent."""

    def within(self, submodule: nn.Module) -> Boundary:
        """In the mode of the part whose place they take."""
        self.training = self[0].training = submodule.training
        return self


def unfold(model: nn.Module) -> nn.Module:
    """Within a sequence the step becomes a member of its own, so that the others keep their names."""
    for parent in list(model.modules()):
        for key, child in list(parent._modules.items()):
            if not isinstance(child, Boundary):
                continue
            step, layer = child
            if isinstance(parent, enn.SequentialModule | nn.Sequential) and not isinstance(parent, Boundary):
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


def modules_on_group(module: nn.Module, from_layer: str | None, seen: Flow | None) -> dict[int, str]:
    """The modules that keep G: those before the boundary, and those with layers on both sides ("across")."""
    if from_layer is None:
        return {}
    early: dict[int, str] = {}
    order = dict(module.named_modules())
    for name, submodule in order.items():
        if name == from_layer:
            break
        early[id(submodule)] = "across" if not name or from_layer.startswith(name + ".") else "before"
    if seen is None:
        return early
    inside = {name for name, _ in layers(order[from_layer])}
    late = {*seen.after, from_layer, *(f"{from_layer}.{name}" for name in inside if name)}
    called = {name: name in late for name in (*seen.before, *seen.after)}  # what is never called goes by registration
    for name, submodule in order.items():
        below = [
            beyond for layer, beyond in called.items() if not name or layer == name or layer.startswith(name + ".")
        ]
        if not below or name == from_layer or name.startswith(from_layer + "."):
            continue
        early.pop(id(submodule), None)
        if not all(below):
            early[id(submodule)] = "across" if any(below) or not name or from_layer.startswith(name + ".") else "before"
        elif not name or from_layer.startswith(name + "."):
            early[id(submodule)] = "across"
    return early
