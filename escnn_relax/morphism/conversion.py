"""Turning escnn layers into layers of ours, wherever they are in a model."""

from __future__ import annotations

import warnings
from typing import Any, Callable, Mapping, Optional

from torch import nn

from ..errors import NothingToRelaxError
from ..nn.relaxed import RelaxedConvolution
from .walk import replace_modules

__all__ = ["convert_layers"]


def convert_layers(
    model: nn.Module,
    kinds: Mapping[type, type[RelaxedConvolution]],
    options: Callable[[str, nn.Module], Optional[Mapping[str, Any]]],
) -> tuple[nn.Module, int]:
    """A copy of a model with some layers made into others by their ``from_strict``, and how many these are.

    Layers between whose types there is nothing to relax stay as they are, with a warning, and so do a user's subclasses of
    escnn layers.

    Args:
        kinds: our class for each class of escnn's.
        options: for a layer's name and the layer the arguments of ``from_strict``, ``None`` to leave it as it is.
    """
    count = 0

    def replacement(name: str, module: nn.Module) -> Optional[nn.Module]:
        nonlocal count
        chosen = options(name, module) if isinstance(module, tuple(kinds)) else None
        if chosen is None:
            return None
        kind = kinds.get(type(module))
        if kind is None:
            problem = f"a {type(module).__name__} may compute something else than its parent class"
            warnings.warn(f"{name or 'model'}: left as it is, since {problem}", stacklevel=2)
            return None
        try:
            new = kind.from_strict(module, **chosen, where=name or type(module).__name__)
        except NothingToRelaxError as error:
            warnings.warn(f"left as it is: {error}", stacklevel=2)
            return None
        count += 1
        return new

    return replace_modules(model, replacement), count
