"""Loops that assert something must have something to assert it of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def each(values: Iterable[T], number: int | None = None) -> Iterator[T]:
    """The values one by one, of which there must be some, or as many as said."""
    passed = 0
    for value in values:
        yield value
        passed += 1
    assert passed, "the loop asserted nothing"
    assert number is None or passed == number, f"{passed} instead of {number}"
