"""Strides that leave pixels over on one side: what is sampled there does not turn with the image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from escnn.nn import GeometricTensor
from torch import Tensor, nn

__all__ = ["watch_strides"]


def _tuple(value: Any, length: int) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,) * length


def _excess(module: nn.Module, sides: tuple[int, ...]) -> str:
    """A message where the kernel's positions are not placed evenly about the middle, else empty.

    They are if, and only if, (n + 2 padding - reach) is a multiple of the stride.
    """
    kernel, stride = (getattr(module, name, None) for name in ("kernel_size", "stride"))
    if (
        kernel is None
        or stride is None
        or "Transposed" in type(module).__name__
        or "Transpose" in type(module).__name__
    ):
        return ""
    padding = getattr(module, "padding", 0)
    fields = (kernel, stride, 0 if isinstance(padding, str) else padding, getattr(module, "dilation", 1))
    for n, k, s, p, d in zip(sides, *(_tuple(value, len(sides)) for value in fields)):
        if not all(isinstance(value, int) for value in (k, s, p, d)) or s < 2:
            continue
        excess = (n + 2 * p - d * (k - 1) - 1) % s
        if excess:
            right = f"{n + s - excess} or {n - excess}" if n > excess else f"{n + s - excess}"
            return f"stride {s} on {n} pixels leaves {excess} over on one side (even on {right})"
    return ""


@contextmanager
def watch_strides(module: Any) -> Iterator[dict[str, str]]:
    """While it is open, collects by module name the strides that are not even on the images they get.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3, stride=2, padding=1))
    >>> with watch_strides(net) as uneven:
    ...     _ = net(torch.randn(1, 1, 8, 8))
    >>> uneven
    {'1': 'stride 2 on 8 pixels leaves 1 over on one side (even on 9 or 7)'}
    """
    uneven: dict[str, str] = {}
    hooks = []

    def look(name: str) -> Any:
        def hook(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
            first = arguments[0] if arguments else None
            tensor = first.tensor if isinstance(first, GeometricTensor) else first
            if isinstance(tensor, Tensor) and tensor.dim() > 2:
                message = _excess(layer, tuple(tensor.shape[2:]))
                if message:
                    uneven[name] = message

        return hook

    for name, layer in module.named_modules() if isinstance(module, nn.Module) else ():
        if hasattr(layer, "stride"):
            hooks.append(layer.register_forward_pre_hook(look(name)))
    try:
        yield uneven
    finally:
        for hook in hooks:
            hook.remove()
