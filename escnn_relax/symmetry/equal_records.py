"""Equality of records in which NaN stands for what is not known."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

__all__ = ["equal_records"]


def equal_records(record: Any, other: object) -> bool:
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
    if not isinstance(other, type(record)) or not isinstance(record, type(other)):
        return NotImplemented
    return all(_equal_values(getattr(record, f.name), getattr(other, f.name)) for f in fields(record) if f.compare)


def _equal_values(first: Any, second: Any) -> bool:
    if isinstance(first, float) and isinstance(second, float) and math.isnan(first) and math.isnan(second):
        return True
    return bool(first == second)
