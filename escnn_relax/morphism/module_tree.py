"""Copying a tree of modules while some of them are replaced."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from types import MethodType
from typing import Any, TypeVar, cast

import torch
from escnn.group import Group, GroupElement, Representation
from escnn.gspaces import GSpace
from escnn.kernels import KernelBasis
from escnn.nn import FieldType
from torch.nn import Module

from ..errors import UnsupportedModuleError

__all__ = ["copy_module", "holds", "map_values", "replace_modules"]

M = TypeVar("M", bound=Module)

#: Values that a copy shares with its original: escnn compares some of them by identity and caches bases on others.
SHARED = (FieldType, GSpace, Group, GroupElement, Representation, KernelBasis)


def replace_modules(
    model: Module, replacement: Callable[[str, Module], Module | None], *, shared: Iterable[Any] = ()
) -> Module:
    """A copy of ``model`` with modules exchanged; ``model`` itself is left alone.

    Args:
        model: any module.
        replacement: called once for each module, parents before children, with its dotted name (``""`` for ``model``)
            and the module. A returned module takes its place, wherever the original is referred to, and is not
            descended into; ``None`` keeps (a copy of) the module.
        shared: modules and tensors that the copy is to have in common with the model.

    Returns:
        the copy, with all hooks; methods that are compiled run as they are written in it. Field types, G-spaces, groups
        and representations are shared with the original, and so are modules that ``replacement`` returned; all
        parameters and buffers are copied. Tensors that still hold a graph, such as the filters that escnn keeps in eval
        mode, are detached.

    Raises:
        UnsupportedModuleError: something in the tree cannot be copied.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh())
    >>> replace_modules(net, lambda name, m: torch.nn.ReLU() if isinstance(m, torch.nn.Tanh) else None)
    Sequential(
      (0): Linear(in_features=2, out_features=2, bias=True)
      (1): ReLU()
    )
    """
    memo: dict[int, Any] = {id(value): value for value in shared}
    originals: list[Module] = []
    _decide("", model, replacement, memo, originals)
    if id(model) in memo:
        return memo[id(model)]
    for module in originals:
        for value in _values(vars(module)):
            if isinstance(value, SHARED):
                memo[id(value)] = value
            elif value.grad_fn is not None and id(value) not in memo:
                memo[id(value)] = value.detach().clone()
    # whatever memo keeps must stay alive during the copy: the originals are held by the model itself
    try:
        copied = copy.deepcopy(model, memo)
    except (TypeError, RuntimeError, AttributeError) as error:
        raise UnsupportedModuleError(
            type(model).__name__,
            f"a part of the model cannot be copied ({type(error).__name__}: {error})",
            remedy="keep what cannot be copied (open files, generators, tensors with a graph) out of the modules",
        ) from error
    for module in originals:
        if "_orig_mod" not in module._modules:  # torch.compile's own module compiles its copy by itself
            _uncompile(module, memo)
    return copied


def copy_module(model: M, *, shared: Iterable[Any] = ()) -> M:
    """A copy of ``model``, as :func:`replace_modules` makes it where nothing is exchanged, with the same arguments and
    errors.

    >>> import torch
    >>> layer = torch.nn.Linear(2, 2)
    >>> copied = copy_module(layer)
    >>> copied.weight is layer.weight, torch.equal(copied.weight, layer.weight)
    (False, True)
    """
    return cast(M, replace_modules(model, lambda name, module: None, shared=shared))


def _uncompile(module: Module, memo: dict[int, Any]) -> None:
    """Give a copy the methods that are compiled in the original, as they are written: compiled ones would run the
    original."""
    for name, value in list(vars(module).items()):
        method = value
        while hasattr(method, "_torchdynamo_orig_callable"):
            method = method._torchdynamo_orig_callable
        if method is value:
            continue
        if not isinstance(method, MethodType) or id(method.__self__) not in memo:
            remedy = "compile methods of the module itself, or the copy"
            raise UnsupportedModuleError(
                type(module).__name__, f"{name} is compiled and may run the original", remedy=remedy
            )
        setattr(memo[id(module)], name, MethodType(method.__func__, memo[id(method.__self__)]))


def _decide(
    name: str, module: Module, replacement: Callable[..., Any], memo: dict[int, Any], originals: list[Module]
) -> None:
    if id(module) in memo or any(module is k for k in originals):
        return
    new = replacement(name, module)
    if new is not None:
        for hooks in _HOOKS:  # what the user hung on the module is hung on what takes its place
            getattr(new, hooks).update(getattr(module, hooks))
        memo[id(module)] = new
        return
    originals.append(module)
    for child_name, child in module.named_children():
        _decide(f"{name}.{child_name}" if name else child_name, child, replacement, memo, originals)


def _values(value: Any, seen: set[int] | None = None) -> Iterator[Any]:
    """The shared values and tensors inside nested dictionaries, lists, tuples and sets; modules are not entered."""
    seen = set() if seen is None else seen
    if isinstance(value, (*SHARED, torch.Tensor)):
        yield value
    elif isinstance(value, dict | list | tuple | set | frozenset) and id(value) not in seen:
        seen.add(id(value))
        for item in [*value.keys(), *value.values()] if isinstance(value, dict) else value:
            yield from _values(item, seen)


def map_values(module: Module, kinds: tuple[type, ...], change: Callable[[str, Any], Any]) -> None:
    """Exchange, in place, the attributes of one module that are, or contain, values of the given kinds.

    Args:
        change: called with the attribute's name and the value found.
    """

    def mapped(name: str, value: Any) -> Any:
        if isinstance(value, kinds):
            return change(name, value)
        if isinstance(value, dict):
            return type(value)((mapped(name, k), mapped(name, v)) for k, v in value.items())
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*(mapped(name, v) for v in value))
        if isinstance(value, list | tuple | set | frozenset):
            return type(value)(mapped(name, v) for v in value)
        return value

    for name, value in list(vars(module).items()):
        if name.startswith("_") and name in _TORCH:
            continue
        if any(isinstance(v, kinds) for v in _values(value)):
            vars(module)[name] = mapped(name, value)


def holds(module: Module, kinds: tuple[type, ...]) -> bool:
    """Whether an attribute of the module is, or contains, a value of the given kinds; its children are not entered."""
    values = [value for name, value in vars(module).items() if name not in _TORCH]
    return any(isinstance(value, kinds) for value in _values(values))


_TORCH = frozenset(vars(Module()))
_HOOKS = tuple(name for name in _TORCH if name.startswith(("_forward_", "_backward_")))
