"""A report as text."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .records import LayerReport

__all__ = ["ceiling_text", "note_lines", "number_text", "percent_text", "survivor_text", "table_cells", "table_lines"]


def table_lines(layers: Sequence[LayerReport]) -> list[str]:
    """The table, one line a pathway, and what is to be said of single layers below it."""
    width = max([5, *(len(layer.name) for layer in layers)])
    names = max([7, *(len(p.name) for layer in layers for p in layer.pathways)])
    named = any(layer.survivor for layer in layers)
    head = (
        f"{'layer':<{width}}  {'pathway':<{names}}  log prec  eff. dim      of  fraction  share   energy  eq. error"
        "   error ≤"
    )
    head += "  survivor (margin, nats)" if named else ""
    lines = [head, "-" * len(head)]
    for layer in layers:
        for index, p in enumerate(layer.pathways):
            precision = "  closed" if p.closed else number_text(p.log_precision, "8.2f")
            lines.append(
                f"{layer.name if index == 0 else '':<{width}}  {p.name:<{names}}  {precision}"
                f"  {number_text(p.effective_dimension, '8.1f')}  {p.dimension:6d}  {number_text(p.fraction, '8.1%')}"
                f"  {number_text(p.share, '5.0%')}  {percent_text(p.energy):>7}"
                + (
                    f"  {percent_text(layer.equivariance_error):>9}  {ceiling_text(layer.error_bound):>8}"
                    if index == 0
                    else ""
                )
                + (f"  {survivor_text(layer.survivor, layer.margin)}" if index == 0 and named else "")
            )
    return lines + note_lines(layers)


def table_cells(layers: Sequence[LayerReport]) -> tuple[list[str], list[list[str]]]:
    """The headings and the cells of the same table."""
    head = ["layer", "pathway", "log prec", "eff. dim", "of", "fraction", "share", "energy", "eq. error", "error ≤"]
    named = any(layer.survivor for layer in layers)
    rows = []
    for layer in layers:
        for index, p in enumerate(layer.pathways):
            precision = "closed" if p.closed else number_text(p.log_precision, "8.2f")
            numbers = [precision, number_text(p.effective_dimension, "8.1f"), f"{p.dimension}"]
            numbers += [number_text(p.fraction, "8.1%"), number_text(p.share, "5.0%"), percent_text(p.energy)]
            single = [percent_text(layer.equivariance_error), ceiling_text(layer.error_bound)]
            single += [survivor_text(layer.survivor, layer.margin)] if named else []
            cells = [layer.name if not index else "", p.name, *numbers, *(single if not index else [])]
            rows.append([cell.strip() for cell in cells])
    return head + (["survivor (margin, nats)"] if named else []), rows


def note_lines(layers: Sequence[LayerReport]) -> list[str]:
    """What is to be said of single layers below the table."""
    lines = []
    if any(layer.by_depth for layer in layers):
        steps = (survivor_text(layer.by_depth, layer.margin_by_depth) for layer in layers if layer.by_depth)
        lines.append(f"survives by depth: {' → '.join(steps)}")
    for layer in layers:
        if layer.lost > 0:
            lines.append(
                f"lost on the pixels: {layer.name}: {percent_text(layer.lost)} of what tells {layer.survivor} from less"
                " symmetry"
            )
    for layer in layers:
        if layer.empty:
            lines.append(f"without kernels: {layer.name}: {', '.join(layer.empty)}")
    return lines


def survivor_text(name: str, margin: float) -> str:
    """A subgroup with the margin of the evidence for it, where there is one."""
    return f"{name} ({margin:.1f})" if math.isfinite(margin) else name or "–"


def ceiling_text(value: float) -> str:
    """Three digits, never rounded down."""
    if not math.isfinite(value) or value <= 0:
        return "–" if math.isnan(value) else f"{value:.3g}"
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return f"{math.ceil(value / unit) * unit:.3g}"


def number_text(value: float, form: str) -> str:
    """A number of a fixed width, a dash where it is not known."""
    width = int(form.split(".")[0])
    return f"{'–':>{width}}" if math.isnan(value) else f"{value:{form}}"


def percent_text(value: float, digits: int = 2) -> str:
    """A fraction in percent, small ones by their order of magnitude."""
    if math.isnan(value):
        return "–"
    if digits == 1 and value < 0.01:
        return f"{100 * value:.1g}%"
    return f"{value:.{digits}%}" if value >= 1e-4 or value == 0 else f"{100 * value:.0e}%"
