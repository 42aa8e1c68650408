"""The affine layer that a network ends in."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from ..curvature.checked_batches import answer

__all__ = ["last_layer"]

#: Layers that end in a constant for each output.
AFFINE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def last_layer(model: nn.Module, input: Any) -> str | None:
    """Name of the affine layer whose output is what the model puts out for this input; ``None`` if it does more, if the
    layer's weights are another layer's too or come from a parametrisation, or if its outputs are not dimension 1.

    >>> last_layer(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.ones(1, 3))
    '2'
    """
    outputs: list[tuple[str, Any]] = []
    used = Counter(id(p) for m in model.modules() for p in m._parameters.values())
    layers = {
        n: [m._parameters.get(key) for key in ("weight", "bias")]
        for n, m in model.named_modules()
        if isinstance(m, AFFINE)
    }
    names = {
        id(model.get_submodule(n)): n
        for n, weights in layers.items()
        if all(p is not None and used[id(p)] == 1 for p in weights)
    }
    hooks = [
        m.register_forward_hook(lambda m, _, out: outputs.append((names[id(m)], out)))
        for m in model.modules()
        if id(m) in names
    ]
    mode = model.training
    try:
        with torch.no_grad():
            output = answer(model.eval(), input)
    finally:
        model.train(mode)
        for hook in hooks:
            hook.remove()
    users = [name for name, value in outputs if value is output and _ends(model.get_submodule(name), output)]
    again = [name for name, _ in outputs if users and name == users[0]]
    if len(users) != 1 or len(again) != 1:
        return None
    frozen = not all(p.requires_grad for p in model.get_submodule(users[0]).parameters())
    return None if frozen else users[0]


def _ends(layer: nn.Module, output: Tensor) -> bool:
    """Whether the outputs of a layer are dimension 1; those of a Linear are the last one."""
    return not isinstance(layer, nn.Linear) or output.dim() == 2
