"""A printed table as HTML, for notebooks: escaped, and in the notebook's own colours, light or dark."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["html_table"]

#: A number, an arrow between two, or the want of one.
NUMBER = re.compile(r"[-+–]?\d[^ ]*( → .*)?$|[-–]?inf$|closed$|–?$")
#: Lines in a part of the text's own colour, so that they are seen on every background.
LINE = "border-bottom:1px solid color-mix(in srgb, currentColor 25%, transparent)"
TABLE = "border-collapse:collapse;font:inherit;font-variant-numeric:tabular-nums;color:inherit"
CELL = "padding:0.15em 0.7em;background:transparent;color:inherit"


def html_table(head: Sequence[str], rows: Iterable[Sequence[str]], notes: Iterable[str] = (), words: int = 2) -> str:
    """One row of headings, the rows, and sentences below them.

    Args:
        head: what the columns are called.
        rows: cells as text, as many as headings or fewer.
        notes: one paragraph each.
        words: so many columns at the start hold words; of the others those are aligned at their right that hold nothing
            but numbers.

    >>> html = html_table(["layer", "gain"], [["conv<1>", "3.2"]], ["a & b"], words=1)
    >>> "conv&lt;1&gt;" in html, "a &amp; b" in html, html.count("<tr"), html.count("<td")
    (True, True, 2, 2)
    """
    lines = [list(row) for row in rows]
    numbers = {n for n in range(words, len(head)) if all(NUMBER.match(row[n]) for row in lines if n < len(row))}

    def row(cells: Sequence[str], tag: str) -> str:
        sides = ["right" if n in numbers else "left" for n in range(len(cells))]
        made = (
            f'<{tag} style="text-align:{side};{CELL};{LINE if tag == "th" else "border:0"}">{escape(cell)}</{tag}>'
            for side, cell in zip(sides, cells)
        )
        return f'<tr style="background:transparent">{"".join(made)}</tr>'

    body = "".join(row(cells, "td") for cells in lines)
    below = "".join(f'<p style="margin:0.3em 0">{escape(note)}</p>' for note in notes if note)
    table = f'<table style="{TABLE}"><thead>{row(head, "th")}</thead><tbody>{body}</tbody></table>'
    return f'<div style="overflow-x:auto">{table}{below}</div>'
