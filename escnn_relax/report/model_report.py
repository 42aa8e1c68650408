"""``report``: what each relaxed layer of a model learned."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from ..curvature.layers.wrappers import unwrap
from ..deprecation import former_keyword
from ..errors import ArgumentError, UnsupportedModuleError, naming, nearest
from ..evidence import Evidence, survivors
from ..nn.evidence_record import Recorded
from ..nn.last_decision import remember
from ..nn.relaxed_convolution import RelaxedConvolution
from ..symmetry.decision import Decided, Decisions, check_evidence
from ..symmetry.html_table import html_table
from .heat_map import heat_map
from .layers import layer_report
from .records import LayerReport
from .table import note_lines, table_cells, table_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Report", "report"]


@dataclass(frozen=True)
class Report:
    """All relaxed layers of a model; ``print`` it, :meth:`plot` it, or take :meth:`to_dict`.

    Attributes:
        layers: in the order of the model.
        uncovered: parameters without a prior, with the reason; known if an evidence was given.
        decisions: which subgroup each layer keeps and why, for :func:`~escnn_relax.harden`; ``None`` if it was not
            asked for.
        note: why no subgroup is named, empty if they are: the network is not known to be better than a
            constant output.
    """

    layers: tuple[LayerReport, ...]
    uncovered: dict[str, str]
    decisions: Decisions | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for machines; ``None`` for what is not known, and for margins that are infinite."""
        decided = {} if self.decisions is None else self.decisions.to_dict()
        return _plain(
            {
                "layers": [asdict(layer) for layer in self.layers],
                "uncovered": self.uncovered,
                "decisions": decided,
                "note": self.note,
            }
        )

    def __str__(self) -> str:
        return "\n".join(table_lines(self.layers) + self._notes())

    def _repr_html_(self) -> str:
        head, rows = table_cells(self.layers)
        return html_table(head, rows, note_lines(self.layers) + self._notes())

    def _notes(self) -> list[str]:
        lines = [self.note] if self.note else []
        if self.uncovered:
            lines.append(f"without prior: {', '.join(f'{name} ({why})' for name, why in self.uncovered.items())}")
        return lines

    @former_keyword("axes", "ax")
    def plot(self, ax: Axes | None = None, title: str = "", quantity: str = "energy", **former: str) -> Axes:
        """Heat map, layers x pathways; each layer with the subgroup that survives in it. Returns the matplotlib axes.

        Args:
            ax: where to draw; a new figure by default.
            title: of the axes.
            quantity: ``"energy"``, the share of the kernel's energy, on a logarithmic scale; or ``"fraction"``, the
                effective dimension relative to the dimension.
            former: ``of``, which ``quantity`` was called.

        Raises:
            ArgumentError: another ``quantity``.
        """
        if set(former) == {"of"}:
            warnings.warn("plot(of=) is called plot(quantity=) now", DeprecationWarning, stacklevel=2)
            quantity = former["of"]
        elif former:
            raise ArgumentError(
                "plot", f"no argument {min(former)!r}", remedy=nearest(min(former), ["ax", "title", "quantity"])
            )
        return heat_map(self.layers, ax, title, quantity)


def report(
    model: nn.Module,
    evidence: Evidence | None = None,
    *,
    data: Iterable[Any] | None = None,
    decisions: None | Decisions | Decided = None,
    subgroups: bool = True,
) -> Report:
    """Read off what each relaxed layer of a model learned.

    Args:
        model: any model with relaxed layers. What an evidence found is kept in the layers, state dict included.
        evidence: names the parameters without a prior, too, and gives the margins of the surviving subgroups.
        data: what more symmetry would cost in these, too, see :func:`~escnn_relax.survivors`.
        decisions: show these, of :func:`~escnn_relax.survivors`, instead of deciding anew; of a
            :func:`~escnn_relax.symmetry_test` the reasons are added to the decision of this report.
        subgroups: find those. Takes seconds for groups with many subgroups.

    Raises:
        UnsupportedModuleError: no relaxed layer in the model.
        ArgumentError: an evidence of another model; data without an evidence; decisions about other layers.

    >>> from escnn import gspaces, nn as enn
    >>> from escnn_relax import relax
    >>> space = gspaces.rot2dOnR2(4)
    >>> gray, fields = enn.FieldType(space, [space.trivial_repr]), enn.FieldType(space, [space.regular_repr])
    >>> relaxed = relax(enn.SequentialModule(enn.R2Conv(gray, fields, 5), enn.ReLU(fields)))
    >>> [(p.name, p.energy) for p in report(relaxed).layers[0].pathways]
    [('equivariant', 1.0), ('irrep_1', 0.0), ('irrep_2', 0.0)]
    """
    model = unwrap(model)
    relaxed: dict[str, Any] = {n: m for n, m in model.named_modules() if isinstance(m, Recorded)}
    if not relaxed:
        raise UnsupportedModuleError(
            type(model).__name__, "no relaxed layer in it", remedy="pass escnn_relax.relax(model)"
        )
    with naming("report"):
        check_evidence(evidence, model)
    layers = {n: layer_report(n, m) for n, m in relaxed.items()}
    decided = _decide(model, relaxed, evidence, data, decisions, subgroups)
    note = "" if evidence is None or not evidence.doubt else f"no verdict: {evidence.doubt}"
    for decision in () if decided is None or note else decided.layers:
        known: dict[str, Any] = {"survivor": decision.subgroup.name, "margin": decision.margin, "lost": decision.lost}
        if decided is not None and decided.depth:
            known |= {"by_depth": decision.by_depth.name, "margin_by_depth": decision.margin_by_depth}
        layers[decision.layer] = replace(layers[decision.layer], **known)
    return Report(tuple(layers.values()), {} if evidence is None else dict(evidence.uncovered), decided, note)


def _decide(
    model: nn.Module,
    relaxed: dict[str, Any],
    evidence: Evidence | None,
    data: Iterable[Any] | None,
    decisions: None | Decisions | Decided,
    subgroups: bool,
) -> Decisions | None:
    readable = {n: m for n, m in relaxed.items() if isinstance(m, RelaxedConvolution)}  # a mixture's summands overlap
    known = decisions.decisions if isinstance(decisions, Decided) else decisions
    for name in known or ():
        if name not in readable:
            raise ArgumentError("decisions", f"no relaxed layer {name!r} in the model", remedy=nearest(name, readable))
    if known is not None and any(d.source != "test" for d in known.layers):
        return remember(readable, known) if set(known) == set(readable) else known
    if not subgroups or not readable:
        return known
    groups = {m.space.fibergroup.name for m in readable.values()}
    decided = survivors(model, evidence, data=data, depth=len(groups) == 1).decisions
    return decided if known is None else remember(readable, decided.annotate(known))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
