"""Old spellings that work for one more release: each says, where the caller stands, what to write instead."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from .errors import naming
from .former_names import FORMER_NAMES

__all__ = [
    *("former_attribute", "former_keyword", "former_method", "former_name", "former_names", "former_where"),
    "warn_former",
]

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

PACKAGE = __name__.partition(".")[0]


def warn_former(former: str, instead: str) -> None:
    """A ``DeprecationWarning`` at the line outside of this package that a call comes from.

    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     warn_former("colour=", "color=")
    >>> print(caught[0].message)
    colour= is an old spelling and goes with the next release; write color=
    """
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == PACKAGE:
        level, frame = level + 1, frame.f_back
    message = f"{former} is an old spelling and goes with the next release; write {instead}"
    warnings.warn(message, DeprecationWarning, stacklevel=level)


def former_names(module: str) -> Callable[[str], Any]:
    """A ``__getattr__`` for a module some of whose names have others now, see :data:`FORMER_NAMES`."""
    names = FORMER_NAMES[module.partition(".")[2]]

    def former(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return former_name(f"{module}.{name}", names[name])

    return former


def former_name(former: str, instead: str) -> Any:
    """What an old name, all of it with its module, stands for; warns.

    Args:
        instead: path and name of what it is now, as in :data:`FORMER_NAMES`.
    """
    path, _, name = instead.partition(":")
    home = f"{PACKAGE}.{path}".rstrip(".")
    warn_former(former, f"{home}.{name}")
    return getattr(importlib.import_module(home), name)


def former_method(former: str, instead: str) -> Callable[..., Any]:
    """A method of the former name, which warns and calls the one that it has become; of a class in ``classmethod()``.

    >>> class Layer:
    ...     def width(self):
    ...         return 3
    ...     breadth = former_method("breadth", "width")
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     width = Layer().breadth()
    >>> print(width, caught[0].message)
    3 Layer.breadth is an old spelling and goes with the next release; write Layer.width
    """

    def method(self: Any, *arguments: Any, **options: Any) -> Any:
        kind = self.__name__ if isinstance(self, type) else type(self).__name__
        warn_former(f"{kind}.{former}", f"{kind}.{instead}")
        return getattr(self, instead)(*arguments, **options)

    method.__name__, method.__doc__ = former, f"The former name of :meth:`{instead}`."
    return method


def former_attribute(former: str, instead: str) -> property:
    """An attribute of the former name, which warns and gives what has taken its place.

    >>> class Layer:
    ...     subgroup = "C4"
    ...     kept = former_attribute("kept", "subgroup")
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     value = Layer().kept
    >>> print(value, caught[0].message)
    C4 Layer.kept is an old spelling and goes with the next release; write Layer.subgroup
    """

    def read(self: Any) -> Any:
        name = type(self).__name__
        warn_former(f"{name}.{former}", f"{name}.{instead}")
        return getattr(self, instead)

    return property(read)


def former_keyword(former: str, instead: str) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """A decorator for a function one of whose arguments was called otherwise.

    Args:
        former: the old keyword, which still does.
        instead: the argument's name.
    """

    def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        @wraps(function)
        def call(*args: Arguments.args, **options: Arguments.kwargs) -> Result:
            if former in options:
                name = _called(function, args)
                warn_former(f"{name}({former}=)", f"{name}({instead}=)")
                options[instead] = options.pop(former)
            return function(*args, **options)

        return call

    return decorate


def former_where(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A decorator for a function that was told by ``where=`` which layer its errors are about.

    >>> @former_where
    ... def width():
    ...     return 3
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     _ = width(where="conv1")
    >>> print(caught[0].message)
    width(where=) is an old spelling and goes with the next release; write errors.naming(...) around
    """

    @wraps(function)
    def call(*args: Arguments.args, **options: Arguments.kwargs) -> Result:
        if "where" not in options:
            return function(*args, **options)
        warn_former(f"{_called(function, args)}(where=)", "errors.naming(...) around")
        with naming(str(options.pop("where"))):
            return function(*args, **options)

    return call


def _called(function: Callable[..., Any], args: tuple[Any, ...]) -> str:
    """How a caller writes the name of a function; of a class where the function constructs one."""
    return type(args[0]).__name__ if function.__name__ == "__init__" else function.__name__
