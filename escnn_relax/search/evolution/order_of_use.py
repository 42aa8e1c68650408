"""Whether a network uses its modules in the order in which it registers them, as a change of group on the way needs
it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from escnn.nn import EquivariantModule
from torch import nn

from ...curvature.checked_batches import batches, call
from ...errors import DataError, UnsupportedModuleError
from ...evidence.random_state import random_state_kept
from ...morphism.module_tree import copy_module

__all__ = ["check_order", "calls"]


def check_order(model: nn.Module, boundaries: Sequence[str], loader: Iterable[Any]) -> None:
    """Run one batch and see that at each boundary everything registered before it is done, and nothing behind it begun.

    The model, the loader's random generators and the global ones are left as they were.

    Args:
        boundaries: names of modules before which the group changes.

    Raises:
        UnsupportedModuleError: a module used on the wrong side of a boundary.
        DataError: a loader without a batch.
    """
    names = list(dict(model.named_modules()))
    sequence = calls(model, loader)
    for boundary in boundaries:
        start = next((n for n, name in enumerate(sequence) if f"{name}.".startswith(f"{boundary}.")), None)
        if start is None:  # called in some other way than as a module
            continue
        position = names.index(boundary)
        for n, name in enumerate(sequence):
            behind = names.index(name) >= position
            if behind == (n >= start):
                continue
            used, registered = ("before", "behind") if behind else ("after", "before")
            raise UnsupportedModuleError(
                name,
                f"it is used {used} {boundary} but registered {registered} it, so a change of group there would"
                " not fit",
                remedy=(
                    "register modules in the order of their use, one for each use, or leave such layers out of stages"
                ),
            )


def calls(model: nn.Module, loader: Iterable[Any]) -> list[str]:
    """Names of the smallest equivariant modules in the order in which a forward pass calls them.

    Raises:
        DataError: a loader that is empty or can be gone through only once.
    """
    if hasattr(loader, "__next__"):
        remedy = "pass a DataLoader or a list, something that can be gone through again"
        raise DataError("train_loader", "an iterator can be gone through only once", remedy=remedy)
    copied = copy_module(model)
    sequence: list[str] = []
    for name, module in copied.named_modules():
        if isinstance(module, EquivariantModule) and not any(
            isinstance(submodule, EquivariantModule) for submodule in module.modules() if submodule is not module
        ):
            module.register_forward_pre_hook(lambda module, args, name=name: sequence.append(name))
    device = next(model.parameters()).device
    with torch.no_grad(), random_state_kept(device, loader):
        for input, _ in batches(loader, device):
            call(copied.eval(), input)
            return sequence
    raise DataError("train_loader", "it yields no batch", remedy="pass a non-empty, re-iterable loader")
