"""Turning escnn layers into layers of ours, wherever they are in a model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ..errors import NothingToRelaxError, UnsupportedModuleError, naming
from ..nn.steerable import SteerableConvolution
from ..nn.translation.kernel_pathway import KernelPathway
from ..nn.translation.sparse_convolution import SparseConvolution
from .module_tree import replace_modules

__all__ = ["convert_layers"]


def convert_layers(
    model: nn.Module,
    kinds: Mapping[type, type[SteerableConvolution]],
    options: Callable[[str, nn.Module], Mapping[str, Any] | None],
) -> tuple[nn.Module, list[str]]:
    """A copy of a model with some layers made into others by their ``from_strict``, and the names of these.

    Layers between whose types there is nothing to relax stay as they are, with a warning, and so do a user's subclasses
    of escnn layers.

    Args:
        kinds: our class for each class of escnn's.
        options: for a layer's name and the layer the arguments of ``from_strict``, ``None`` to leave it as it is.

    Raises:
        UnsupportedModuleError: ``options`` for a sparse convolution that has a symmetry, or for a layer on the meta
            device.
    """
    converted: list[str] = []
    beside = {id(submodule.convolution) for submodule in model.modules() if isinstance(submodule, KernelPathway)}

    def replacement(name: str, module: nn.Module) -> nn.Module | None:
        if isinstance(module, SparseConvolution) and id(module) not in beside and module.subgroup.order != 1:
            if options(name, module) is not None:
                problem = f"a kernel interpolated from anchors has no pathways; it keeps {module.subgroup.name}"
                remedy = "leave the layer out by layers=; to let it break its symmetry build it with subgroup='free', "
                remedy += "or put a pathway beside it: relax_translation(model, example, [('sparse-kernel', 'free')])"
                raise UnsupportedModuleError(name or type(module).__name__, problem, remedy=remedy)
        chosen = options(name, module) if isinstance(module, tuple(kinds)) else None
        if chosen is None:
            return None
        kind = kinds.get(type(module))
        if kind is None:
            problem = f"a {type(module).__name__} may compute something else than its parent class"
            warnings.warn(f"{name or 'model'}: left as it is, since {problem}", stacklevel=2)
            return None
        if any(p.is_meta for p in module.parameters()):
            problem = "its kernels and weights are on the meta device, without values"
            raise UnsupportedModuleError(
                name or type(module).__name__, problem, remedy="load the model on another device first"
            )
        try:
            with naming(name or type(module).__name__):
                new = kind.from_strict(module, **chosen)
        except NothingToRelaxError as error:
            warnings.warn(f"left as it is: {error}", stacklevel=2)
            return None
        converted.append(name)
        return new

    return replace_modules(model, replacement), converted
