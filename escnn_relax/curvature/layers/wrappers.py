"""What people wrap around a model, taken off: the layers inside are what has a curvature."""

from __future__ import annotations

import torch
from torch import fx, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ...errors import UnsupportedModuleError

__all__ = ["unwrap"]


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside ``DistributedDataParallel`` and ``torch.compile``, in whichever order.

    Raises:
        UnsupportedModuleError: what splits each batch by itself, and graphs that hide the layers they were made of.

    >>> unwrap(torch.compile(nn.Linear(2, 3)))
    Linear(in_features=2, out_features=3, bias=True)
    """
    while True:
        if isinstance(model, DataParallel):
            remedy = "use DistributedDataParallel, or pass the model inside"
            raise UnsupportedModuleError("model", "a DataParallel runs copies that cannot be followed", remedy=remedy)
        inside = model.module if isinstance(model, DistributedDataParallel) else getattr(model, "_orig_mod", None)
        if not isinstance(inside, nn.Module):
            break
        model = inside
    if isinstance(model, torch.jit.ScriptModule):
        problem = "TorchScript hides the layers that a module was made of"
        raise UnsupportedModuleError("model", problem, remedy="pass the model that was scripted or traced")
    if isinstance(model, fx.GraphModule) and not _calls_layers(model):
        problem = "a graph of single operations hides the layers that it was made of"
        raise UnsupportedModuleError("model", problem, remedy="pass the model that was exported")
    return model


def _calls_layers(model: fx.GraphModule) -> bool:
    called = [model.get_submodule(str(node.target)) for node in model.graph.nodes if node.op == "call_module"]
    return any(True for module in called for _ in module.parameters())
