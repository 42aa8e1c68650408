"""The spatial shapes that a network's convolutions map between, from one pass over an example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from escnn.nn import R2Conv, R3Conv
from torch import nn

from ..errors import ArgumentError, UnsupportedModuleError
from ..nn.geometry import Planar, Spatial
from ..nn.translation.sparse_convolution import SparseConvolution
from .isolated_run import apart, run_once
from .layer_selection import LayerPredicate

__all__ = ["CONVOLUTIONS", "layer_shapes"]

#: What has a kernel on the grid: escnn's, relaxed, mixed and sparse convolutions, no transposed ones.
CONVOLUTIONS = (R2Conv, R3Conv, Planar, Spatial, SparseConvolution)


def layer_shapes(
    model: nn.Module, example: Any, chosen: LayerPredicate
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Spatial shapes before and after each chosen convolution, from one pass through a copy of the model."""
    copied = apart(model, eval=True)
    sizes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    watched = {n: m for n, m in copied.named_modules() if isinstance(m, CONVOLUTIONS) and chosen(n, m)}
    if not watched:
        remedy = "leave layers out for all of them"
        raise UnsupportedModuleError("relax_translation", "layers= chooses no convolution", remedy=remedy)
    entered: list[tuple[str, Any]] = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            entered.clear()
            shapes = tuple(inputs[0].tensor.shape[2:]), tuple(output.tensor.shape[2:])
            if sizes.setdefault(name, shapes) != shapes:
                raise UnsupportedModuleError(
                    name,
                    f"it is used for inputs of {sizes[name][0]} and of {shapes[0]} pixels",
                    remedy="leave it out by layers=, or use two layers",
                )

        return hook

    def enter(name: str) -> Callable[[nn.Module, Any], None]:
        return lambda module, inputs: entered.append((name, getattr(inputs[0], "shape", type(inputs[0]).__name__)))

    handles = [module.register_forward_hook(watch(name)) for name, module in watched.items()]
    handles += [module.register_forward_pre_hook(enter(name)) for name, module in watched.items()]
    try:
        run_once(copied, example)
    except (RuntimeError, AssertionError) as error:
        if not entered:  # no convolution of ours was at work
            raise
        name, shape = entered[-1]
        problem = f"the example does not pass this convolution ({str(error) or type(error).__name__})"
        raise ArgumentError(name, problem, got=shape, remedy="pass a valid input of the model, large enough") from error
    finally:
        for handle in handles:
            handle.remove()
    for name in watched:
        if name not in sizes:
            remedy = "pass an example that takes every path, or leave the layer out by layers="
            raise UnsupportedModuleError(name, "the example does not reach this convolution", remedy=remedy)
    return sizes
