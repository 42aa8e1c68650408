"""The records of a symmetry test as lines of text."""

from __future__ import annotations

import math
from collections.abc import Iterable

from .pathway_test import PathwayTest

__all__ = ["HEAD", "cells", "table"]

#: What the columns are called.
HEAD = (
    *("layer", "pathway", "ratio", "largest null", "p", "adjusted", "effect", "inputs p", "gain", "log prec"),
    "verdict",
)


def cells(tests: Iterable[PathwayTest]) -> list[tuple[str, ...]]:
    """A row for each record."""
    rows: list[tuple[str, ...]] = []
    for t in tests:
        values = (
            f"{t.ratio:.2f}",
            f"{t.largest_null:.2f}",
            _p(t.p_value),
            _p(t.adjusted_p_value),
            f"{t.effect:.1e}",
        )
        more = (_p(t.input_p_value), "" if math.isnan(t.gain) else f"{t.gain:.1f}", f"{t.log_precision:.1f}")
        rows.append((t.layer, t.pathway, *values, *more, _verdict(t)))
    return rows


def table(tests: Iterable[PathwayTest]) -> list[str]:
    """A head, a rule, and a line for each record."""
    rows = [HEAD, *cells(tests)]
    widths = [max(len(row[n]) for row in rows) for n in range(len(HEAD))]
    lines = [
        "  ".join(c.ljust(w) if n in (0, 1, 10) else c.rjust(w) for n, (c, w) in enumerate(zip(r, widths)))
        for r in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    return [line.rstrip() for line in lines]


def _verdict(test: PathwayTest) -> str:
    if not test.testable:
        return f"not testable: {test.reason}"
    if test.broken:
        return "broken" + (f" ({test.cause})" if test.cause else "")
    return "not contradicted" + (f" ({test.reason})" if test.reason else "")


def _p(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"
