"""Equality of records in which NaN stands for what is not known."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

__all__ = ["equal_records"]


def equal_records(one: Any, other: object) -> bool:
    """``__eq__`` of a data class by its fields, where NaN is NaN: a record is equal to its copy.

    (Python compares numbers before it asks whether they are the same object, from 3.13 on also in data classes.)

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Record:
    ...     margin: float
    ...     __eq__ = equal_records
    >>> Record(float("nan")) == Record(float("nan")), Record(1.0) == Record(float("nan")), Record(1.0) == 1.0
    (True, False, False)
    """
    if not isinstance(other, type(one)) or not isinstance(one, type(other)):
        return NotImplemented
    return all(_same(getattr(one, f.name), getattr(other, f.name)) for f in fields(one) if f.compare)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other):
        return True
    return bool(one == other)
