"""Whether a shortcut of a class still says what its subclass says."""

from __future__ import annotations

from collections.abc import Collection

__all__ = ["prevails"]


def prevails(kind: type, shortcut: str, methods: Collection[str]) -> bool:
    """Whether no class between ``kind`` and the one that defines the ``shortcut`` has redefined what it stands for.

    >>> class Slow:
    ...     def each(self): ...
    >>> class Fast(Slow):
    ...     def each(self): ...
    ...     def all(self): ...
    >>> class Another(Fast):
    ...     def each(self): ...
    >>> prevails(Fast, "all", ["each"]), prevails(Another, "all", ["each"])
    (True, False)
    """
    order = kind.__mro__
    last = next(index for index, parent in enumerate(order) if shortcut in vars(parent))
    return not any(method in vars(parent) for parent in order[:last] for method in methods)
