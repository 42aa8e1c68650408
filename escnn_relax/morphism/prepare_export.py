"""From a network of escnn modules to one that torch.export, ONNX and torch.compile can trace: the same function."""

from __future__ import annotations

from typing import Any

from escnn.nn import EquivariantModule, SequentialModule
from torch import nn

from ..nn.torch_layer import TorchLayer
from .module_tree import copy_module, replace_modules
from .trial_run import tried

__all__ = ["prepare_export"]


def prepare_export(model: nn.Module, *, example: Any = None) -> nn.Module:
    """A copy in eval mode whose escnn modules compute with plain torch ones, for ``torch.export``, ONNX and the like.

    Each module that has an ``export`` of its own (convolutions, relaxed and hardened ones, batch norms, pointwise
    nonlinearities, poolings) is exchanged for what it returns, behind the same types, so that any Python in ``forward``
    works as before, ``GeometricTensor`` s included. What has none stays as it is; most of it can be traced. A module on
    plain tensors goes on taking plain tensors. Weights are copies, and are not meant to be trained any more.

    Args:
        model: any module tree; a hardened network is smallest and fastest, a relaxed one works as well.
        example: an input of the model on which the result is tried, as for :func:`~escnn_relax.relax`; ``False`` for no
            trial.

    Raises:
        UnsupportedModuleError: the result would not compute the same on the example.

    >>> import torch
    >>> from escnn import gspaces, nn as enn
    >>> space = gspaces.rot2dOnR2(4)
    >>> gray, fields = enn.FieldType(space, [space.trivial_repr]), enn.FieldType(space, [space.regular_repr])
    >>> class Net(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.convolution, self.norm = enn.R2Conv(gray, fields, 3), enn.InnerBatchNorm(fields)
    ...         self.relu, self.pool = enn.ReLU(fields), enn.GroupPooling(fields)
    ...     def forward(self, x):
    ...         return self.pool(self.relu(self.norm(self.convolution(gray(x))))).tensor.mean((-2, -1))
    >>> net, x = Net().eval(), torch.randn(2, 1, 7, 7)
    >>> program = torch.export.export(prepare_export(net), (x,))
    >>> torch.allclose(program.module()(x), net(x), atol=1e-5)
    True
    """
    strict = copy_module(model).eval()  # escnn's export puts modules in eval mode
    result = replace_modules(strict, _replacement).eval()
    for module in result.modules():
        _fix_places(module)
    remedy = "export the modules one by one, by their method export"
    made: nn.Module = tried(strict, result, example, "prepared for export", remedy=remedy)
    return made


def _fix_places(module: nn.Module) -> None:
    """Escnn keeps first and last channel of a block of fields as a tensor, whose values a tracer does not know."""
    for name, buffer in list(module._buffers.items()):
        if isinstance(module, EquivariantModule) and buffer is not None and "indices" in name and len(buffer) == 2:
            del module._buffers[name]
            setattr(module, name, tuple(buffer.tolist()))


def _replacement(name: str, module: nn.Module) -> nn.Module | None:
    if not isinstance(module, EquivariantModule) or isinstance(module, (SequentialModule, TorchLayer)):
        return None
    try:
        inner = module.export()
    except (NotImplementedError, AttributeError):
        return None
    return TorchLayer(inner, module.in_type, module.out_type)
