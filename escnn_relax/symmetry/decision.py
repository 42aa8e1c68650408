"""One record of what was decided about the subgroup of each layer, by what, and for which reasons."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from ..deprecation import former_method
from ..errors import ArgumentError, nearest
from .equal_records import equal_records
from .groups.lattice import Subgroup
from .html_table import html_table

__all__ = ["Decided", "Decides", "Decision", "Decisions", "SOURCES", "check_evidence"]

#: What can decide: the symmetry test, the evidence, the energy of the kernels alone, or the user.
SOURCES = ("test", "evidence", "energy", "choice")

#: Methods of :class:`Decisions`, with their names of today.
FORMER_NAMES = (("of", "record"), ("chosen", "select"), ("beside", "annotate"))


@dataclass(frozen=True)
class Decision:
    """What one layer keeps.

    Attributes:
        layer: as in ``model.named_modules()``.
        subgroup: the subgroup H of the layer by itself.
        by_depth: that of the layer and all before it, which is never larger.
        source: what decided, one of :data:`SOURCES`.
        reasons: sentences, each with its numbers.
        remainder: share of the kernel's energy that H does not fix (fraction); NaN where no kernel was asked.
        margin: by how much the evidence prefers H to the next larger subgroup (nats); infinite for the whole group, NaN
            without an evidence.
        loss: what the next larger subgroup would cost in the data (nats); NaN without data.
        p_value: the least adjusted p-value of the layer in a symmetry test; NaN without one.
        margin_by_depth: the margin of the layer and all before it together (nats).
        lost: largest share of the energy of a smaller subgroup's own kernels that the layer's pixels attribute to H
            (fraction): 0 where H moves pixels to pixels, 1 where no kernel tells the two apart, NaN where no kernel was
            looked at. See
            :mod:`escnn_relax.symmetry.kernels.grid_loss`.

    >>> from escnn import gspaces
    >>> from escnn_relax.symmetry.groups.lattice import subgroup
    >>> c2 = subgroup(gspaces.rot2dOnR2(4), 2)
    >>> print(Decision("conv", c2, c2, "energy", ("all of the kernel is equivariant under C2",)))
    conv keeps C2, by the energy: all of the kernel is equivariant under C2
    """

    layer: str
    subgroup: Subgroup
    by_depth: Subgroup
    source: str
    reasons: tuple[str, ...] = ()
    remainder: float = math.nan
    margin: float = math.nan
    loss: float = math.nan
    p_value: float = math.nan
    margin_by_depth: float = math.nan
    lost: float = math.nan
    __eq__ = equal_records

    def __str__(self) -> str:
        depth = "" if self.same else f" ({self.by_depth.name} by depth)"
        source = {"choice": "as was asked"}.get(self.source, f"by the {self.source}")
        reasons = f": {'; '.join(self.reasons)}" if self.reasons else ""
        return f"{self.layer or 'model'} keeps {self.subgroup.name}{depth}, {source}{reasons}"

    @property
    def same(self) -> bool:
        """Whether the layers before it take nothing away."""
        return self.subgroup is self.by_depth or self.subgroup <= self.by_depth <= self.subgroup


@dataclass(frozen=True)
class Decisions(Mapping[str, Subgroup]):
    """What was decided about all relaxed layers of a model: a mapping from a layer's name to its subgroup by depth.

    :func:`~escnn_relax.report` shows it and :func:`~escnn_relax.harden` follows it (``harden(model, to=...)``); what
    :func:`~escnn_relax.survivors`, :func:`~escnn_relax.report` and :func:`~escnn_relax.symmetry_test` return has one as
    its ``decisions``.

    Attributes:
        layers: one record each, in the order of the model.
        energy: share of a kernel's energy that counted as none (fraction).
        depth: whether the network was read by depth, too; else ``by_depth`` repeats ``subgroup``.

    >>> from escnn import gspaces, nn as enn
    >>> from escnn_relax import relax, survivors
    >>> space = gspaces.rot2dOnR2(4)
    >>> fields = enn.FieldType(space, [space.regular_repr])
    >>> decisions = survivors(relax(enn.SequentialModule(enn.R2Conv(fields, fields, 3)))).decisions
    >>> decisions["0"].name, decisions.network.name, decisions.layers[0].source
    ('C4', 'C4', 'energy')
    """

    layers: tuple[Decision, ...]
    energy: float = math.nan
    depth: bool = True
    __eq__ = equal_records

    def __getitem__(self, layer: str) -> Subgroup:
        return self.record(layer).by_depth

    def __iter__(self) -> Iterator[str]:
        return iter(decision.layer for decision in self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def record(self, layer: str) -> Decision:
        """The whole record of one layer; ``KeyError`` for another name."""
        for decision in self.layers:
            if decision.layer == layer:
                return decision
        raise KeyError(layer)

    @property
    def network(self) -> Subgroup:
        """What the whole network keeps: the last subgroup by depth."""
        return self.layers[-1].by_depth

    def select(self, per: str) -> dict[str, Subgroup]:
        """The subgroup of each layer as :func:`~escnn_relax.harden` takes it: ``per="depth"``, ``"network"`` or
        ``"layer"``."""
        if per == "layer":
            return {decision.layer: decision.subgroup for decision in self.layers}
        return {decision.layer: self.network if per == "network" else decision.by_depth for decision in self.layers}

    def annotate(self, other: Decisions) -> Decisions:
        """The same decisions, with the reasons of another record, such as a symmetry test's, and a word where it
        differs.

        Raises:
            ArgumentError: records of other layers.
        """
        merged = []
        for decision in self.layers:
            if decision.layer not in other:
                remedy = nearest(decision.layer, other)
                raise ArgumentError("decisions", f"nothing is said about the layer {decision.layer!r}", remedy=remedy)
            counterpart = other.record(decision.layer)
            differs = decision.subgroup.name != counterpart.subgroup.name
            word = (f"the {counterpart.source} says {counterpart.subgroup.name}",) if differs else ()
            p = counterpart.p_value if math.isnan(decision.p_value) else decision.p_value
            merged.append(replace(decision, reasons=(*decision.reasons, *word, *counterpart.reasons), p_value=p))
        return Decisions(tuple(merged), self.energy, self.depth)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and names, for machines; ``None`` for what is not known or infinite."""
        numbers = ("remainder", "margin", "loss", "p_value", "lost")
        return {
            d.layer: {
                "subgroup": d.subgroup.name,
                "by_depth": d.by_depth.name,
                "source": d.source,
                "reasons": list(d.reasons),
            }
            | {n: getattr(d, n) if math.isfinite(getattr(d, n)) else None for n in numbers}
            for d in self.layers
        }

    def __str__(self) -> str:
        return "\n".join(map(str, self.layers))

    def _repr_html_(self) -> str:
        rows = [
            [d.layer or "model", d.subgroup.name, d.by_depth.name, d.source, "; ".join(d.reasons)] for d in self.layers
        ]
        return html_table(["layer", "keeps", "by depth", "decided by", "reasons"], rows, words=5)


for _former, _name in FORMER_NAMES:
    setattr(Decisions, _former, former_method(_former, _name))


@runtime_checkable
class Decided(Protocol):
    """Whatever holds a record of decisions: survivors, a report, a symmetry test."""

    @property
    def decisions(self) -> Decisions | None: ...


@runtime_checkable
class Decides(Protocol):
    """Whatever can decide about the model that it belongs to, such as an :class:`~escnn_relax.Evidence`."""

    model: Any

    def decide(self, data: Iterable[Any] | None = None, energy: float = ...) -> Decisions: ...


def check_evidence(evidence: Any, model: Any) -> None:
    """Raise ``ArgumentError`` for what is no evidence, or one of another model; ``None`` is none.

    >>> check_evidence(3, None)
    Traceback (most recent call last):
        ...
    escnn_relax.errors.ArgumentError: expected an Evidence, got int; make one by Evidence(model), and refresh
    it
    """
    if evidence is None:
        return
    if not isinstance(evidence, Decides):
        wrapper = isinstance(getattr(evidence, "evidence", None), Decides)
        remedy = "pass its .evidence" if wrapper else "make one by Evidence(model), and refresh it"
        raise ArgumentError("", expected="an Evidence", got=type(evidence).__name__, remedy=remedy)
    if evidence.model is not model:
        raise ArgumentError("", "an evidence of another model", remedy="pass the one that this model was fitted with")
