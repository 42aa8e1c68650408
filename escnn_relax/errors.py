"""Every error that escnn_relax raises on purpose.

A message names the layer, what was expected, what came, and what to do about it:

>>> from escnn_relax.errors import FieldTypeError
>>> print(FieldTypeError("conv1", expected="C4 regular", got="C8 regular", remedy="restrict the network first"))
conv1: expected C4 regular, got C8 regular; restrict the network first
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

__all__ = [
    "RelaxError",
    "NotEquivariantError",
    "InstallationError",
    "ArgumentError",
    "FieldTypeError",
    "SubgroupError",
    "EmptyBasisError",
    "NothingToRelaxError",
    "UnsupportedModuleError",
    "CoverageError",
    "DataError",
    "CurvatureError",
    "LikelihoodError",
    "CheckpointError",
    "SearchError",
    "layer_name",
    "most_like",
    "naming",
    "nearest",
]

_LAYER: ContextVar[str] = ContextVar("layer", default="")


def nearest(word: object, known: Iterable[object], most: int = 8) -> str:
    """The remedy for a name that is not known: the one most like it, and what there is besides.

    Args:
        word: what came.
        known: the names that would have been right.
        most: how many of them are listed at most.

    >>> nearest("num_date", ["num_data", "curvature", "noise"])
    "did you mean 'num_data'? There are num_data, curvature, noise"
    """
    names = [str(name) for name in known]
    if not names:
        return "there are none"
    like = most_like(word, names)
    listed = ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
    guess = f"did you mean {like!r}? " if like else ""
    return f"{guess}There {'is' if len(names) == 1 else 'are'} {listed}"


def most_like(word: object, names: Iterable[str]) -> str:
    """The name most like a word, empty if none is at all; small and capital letters are not told apart.

    >>> most_like("Date", ["num_data", "noise"])
    'num_data'
    """
    lower = {name.lower(): name for name in reversed(list(names))}
    close = difflib.get_close_matches(str(word).lower(), list(lower), 1, 0.0)
    return lower[close[0]] if close else ""


class RelaxError(Exception):
    """Base class: ``except RelaxError`` catches whatever this package raises on purpose.

    Args:
        where: the layer (or function) concerned, as the user knows it, e.g. ``"features.2"``; or, where the name is not
            known, the layer's class: :func:`naming` puts the name in its place where the error passes.
        problem: one sentence, used instead of ``expected``/``got`` where these say too little.
        expected: what would have been right.
        got: what came.
        remedy: what the user can do.

    All of it is kept as attributes:

    >>> try:
    ...     raise ArgumentError("energy", expected="a fraction in 0 ... 1", got=2, remedy="leave it out")
    ... except RelaxError as error:
    ...     print(error.where, error.got, error.remedy, sep=" | ")
    energy | 2 | leave it out
    """

    def __init__(
        self,
        where: str | type = "",
        problem: str = "",
        *,
        expected: object = None,
        got: object = None,
        remedy: str = "",
    ) -> None:
        self.problem, self.expected, self.got, self.remedy = problem, expected, got, remedy
        self.where = where if isinstance(where, str) else where.__name__
        self._nameless = not isinstance(where, str) or not where
        super().__init__(self._text())

    def _text(self) -> str:
        clauses = [self.problem] if self.problem else []
        if self.expected is not None:
            clauses.append(f"expected {self.expected}")
        if self.got is not None:
            clauses.append(f"got {self.got}")
        text = ", ".join(clauses)
        text = f"{self.where}: {text}" if self.where and text else self.where or text
        return f"{text}; {self.remedy}" if self.remedy else text

    def name_layer(self, layer: str | type) -> None:
        """Say which layer it is, unless it is known already; a class says it for the time being."""
        if self._nameless:
            self.where = layer if isinstance(layer, str) else layer.__name__
            self._nameless = not isinstance(layer, str)
            self.args = (self._text(),)

    def __reduce__(self) -> tuple[Any, ...]:
        state = {"expected": self.expected, "got": self.got, "remedy": self.remedy}
        return _rebuild, (type(self), self.where, self.problem, state)


def _rebuild(kind: type[RelaxError], where: str, problem: str, rest: dict[str, Any]) -> RelaxError:
    return kind(where, problem, **rest)


@contextmanager
def naming(layer: str | type) -> Iterator[None]:
    """Errors of ours that pass here, and warnings that are given here, are about this layer.

    Args:
        layer: its name in the model; or its class, which names it where nobody outside does.

    >>> try:
    ...     with naming("features.2"), naming(dict):
    ...         raise ArgumentError(dict, "no such key", remedy="print the keys")
    ... except RelaxError as error:
    ...     print(error)
    features.2: no such key; print the keys
    """
    token = None
    if isinstance(layer, str) or not _LAYER.get():
        token = _LAYER.set(layer if isinstance(layer, str) else layer.__name__)
    try:
        yield
    except RelaxError as error:
        error.name_layer(layer)
        raise
    finally:
        if token is not None:
            _LAYER.reset(token)


def layer_name(layer: str | type) -> str:
    """What a warning calls a layer: the name that :func:`naming` gives it here, or else this one, or its class's.

    >>> with naming("features.2"):
    ...     layer_name(dict)
    'features.2'
    """
    return _LAYER.get() or (layer if isinstance(layer, str) else layer.__name__)


class NotEquivariantError(RelaxError, AssertionError):
    """A module that was asserted to be equivariant is not; test runners report it as a failed assertion."""


class InstallationError(RelaxError, ImportError):
    """escnn or another requirement is missing or unusable; the message holds the recipe."""


class ArgumentError(RelaxError, ValueError):
    """An argument has a value that makes no sense here."""


class FieldTypeError(RelaxError, TypeError):
    """A gspace, field type or tensor is not the one that the layer works on."""


class SubgroupError(RelaxError, ValueError):
    """An id that names no (proper) subgroup of the group at hand."""


class EmptyBasisError(RelaxError, ValueError):
    """A basis has no element: nothing could be learned there."""


class NothingToRelaxError(EmptyBasisError):
    """Between these field types no kernel of the pathways asked for breaks the symmetry."""


class ReflectionAxisError(RelaxError, ValueError):
    """A layer on O(2) with the kernels of another reflection axis, which escnn gave it: it is not equivariant."""


class UnsupportedModuleError(RelaxError, TypeError):
    """A module that the function at hand does not know how to treat."""


class CoverageError(RelaxError, RuntimeError):
    """The evidence finds nothing, or not everything, that it was asked to cover."""


class DataError(RelaxError, ValueError):
    """Empty loaders, labels out of range, NaN or infinite data."""


class CurvatureError(RelaxError, RuntimeError):
    """Non-finite or indefinite factors, or an eigendecomposition that fails."""


class MemoryLimitError(RelaxError, MemoryError):
    """Less memory was allowed than the smallest step takes."""


class LikelihoodError(RelaxError, ValueError):
    """The likelihood does not fit the outputs or the targets."""


class CheckpointError(RelaxError, RuntimeError):
    """A checkpoint that cannot be read or belongs to another run."""


class SearchError(RelaxError, RuntimeError):
    """An architecture search that cannot go on: no candidate with a finite score, or a worker that keeps dying."""
