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


def _left_over(module: nn.Module, sides: tuple[int, ...]) -> str:
    """What one call leaves over: positions are placed evenly about the middle if, and only if, (n + 2 padding - reach)
    is a multiple of the stride."""
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
    for n, k, s, p, d in zip(sides, *(_tuple(of, len(sides)) for of in fields)):
        if not all(isinstance(of, int) for of in (k, s, p, d)) or s < 2:
            continue
        over = (n + 2 * p - d * (k - 1) - 1) % s
        if over:
            right = f"{n + s - over} or {n - over}" if n > over else f"{n + s - over}"
            return f"stride {s} on {n} pixels leaves {over} over on one side (even on {right})"
    return ""


@contextmanager
def watch_strides(module: Any) -> Iterator[dict[str, str]]:
    """While it is open, collects by module name the strides that are not even on the images they get.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3, stride=2, padding=1))
    >>> with watch_strides(net) as found:
    ...     _ = net(torch.randn(1, 1, 8, 8))
    >>> found
    {'1': 'stride 2 on 8 pixels leaves 1 over on one side (even on 9 or 7)'}
    """
    found: dict[str, str] = {}
    hooks = []

    def look(name: str) -> Any:
        def hook(layer: nn.Module, given: tuple[Any, ...]) -> None:
            first = given[0] if given else None
            tensor = first.tensor if isinstance(first, GeometricTensor) else first
            if isinstance(tensor, Tensor) and tensor.dim() > 2:
                said = _left_over(layer, tuple(tensor.shape[2:]))
                if said:
                    found[name] = said

        return hook

    for name, layer in module.named_modules() if isinstance(module, nn.Module) else ():
        if hasattr(layer, "stride"):
            hooks.append(layer.register_forward_pre_hook(look(name)))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
