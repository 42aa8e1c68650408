"""Which layers of a model a morphism changes, as its caller says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from ..errors import ArgumentError, nearest

__all__ = ["LayerPredicate", "LayerSelection", "check_names", "layer_predicate"]

#: A layer's name, several names (as in ``model.named_modules()``), a function of name and module, or ``None`` for all.
LayerSelection = str | Iterable[str] | Callable[[str, nn.Module], bool] | None

#: Whether a layer is meant, from its name and itself.
LayerPredicate = Callable[[str, Any], bool]


def layer_predicate(
    selection: LayerSelection, known: Mapping[str, Any], kind: str, default: LayerPredicate | None = None
) -> LayerPredicate:
    """A selection as a function of name and module.

    Args:
        known: the layers that may be named, by name.
        kind: what these are, for error messages.
        default: what is meant by ``None``; all layers where it is left out.

    Raises:
        ArgumentError: a name that none of them has.

    >>> chosen = layer_predicate(["first"], {"first": None, "last": None}, "layer that can be relaxed")
    >>> chosen("first", None), chosen("last", None)
    (True, False)
    """
    if selection is None:
        return default or (lambda name, module: True)
    if callable(selection):
        return selection
    names = [selection] if isinstance(selection, str) else list(selection)
    check_names(names, known, kind)
    return lambda name, module: name in names


def check_names(names: Iterable[str], known: Mapping[str, Any], kind: str) -> None:
    """Raise ``ArgumentError`` for a name that is none of the known ones, with the nearest that is."""
    for name in names:
        if name not in known:
            raise ArgumentError("layers", f"no {kind} is named {name!r}", remedy=nearest(name, known))
