"""Which subgroups survived in a network, layer by layer and by depth."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...symmetry.decision import Decisions
from ...symmetry.groups.lattice import Subgroup
from ...symmetry.html_table import html_table
from ...symmetry.kernels.pathway import SWITCHED_OFF
from .layer_survivor import LayerSurvivor

__all__ = ["Survivors"]


@dataclass(frozen=True)
class Survivors:
    """The surviving subgroups of a network.

    Attributes:
        layers: each layer by itself, in the order of the model.
        by_depth: for each layer the largest subgroup that survives in it and in all before it; ``gain`` and ``costs``
            add up those of these layers. Symmetry lost early is not found again, so it never grows.
        network: the last of these, that of the whole network.
        energy: the largest share of a layer's energy that counted as none (fraction).
        depth: whether the network was read by depth; else ``by_depth`` repeats ``layers``.
        note: why no verdict is given, empty if one is: the network is not known to be better than a constant output.
        unlisted: which subgroups were not looked for, in words; empty if all were.

    >>> from escnn import gspaces, nn as enn
    >>> from escnn_relax import relax
    >>> space = gspaces.rot2dOnR2(4)
    >>> fields = enn.FieldType(space, [space.regular_repr])
    >>> from escnn_relax import survivors
    >>> print(survivors(relax(enn.SequentialModule(enn.R2Conv(fields, fields, 3)))))
    layer  subgroup  remainder    margin  by depth    margin
    0      C4          0.0e+00         –  C4               –
    """

    layers: tuple[LayerSurvivor, ...]
    by_depth: tuple[LayerSurvivor, ...]
    energy: float = SWITCHED_OFF
    depth: bool = True
    note: str = ""
    unlisted: str = ""

    @property
    def network(self) -> LayerSurvivor:
        return self.by_depth[-1]

    @property
    def subgroups(self) -> dict[str, Subgroup]:
        """By depth, the subgroup of each layer by its name, as ``harden(model, to=...)`` takes them."""
        return {layer.name: depth.subgroup for layer, depth in zip(self.layers, self.by_depth)}

    @property
    def decisions(self) -> Decisions:
        """The record that :func:`~escnn_relax.harden` and :func:`~escnn_relax.report` take."""
        made = (layer.decision(depth) for layer, depth in zip(self.layers, self.by_depth))
        return Decisions(tuple(made), self.energy, self.depth)

    def __str__(self) -> str:
        everything = self.layers + self.by_depth
        width = max([5, *(len(s.name) for s in self.layers)])
        names = max([8, *(len(s.subgroup.name) for s in everything)])
        measured = any(s.losses for s in everything)
        nats = "    margin" + ("   in data" if measured else "")
        lines = [f"{'layer':<{width}}  {'subgroup':<{names}}  remainder{nats}  {'by depth':<{names}}{nats}"]
        for layer, depth in zip(self.layers, self.by_depth):
            first, second = ("?" if self.note else s.subgroup.name for s in (layer, depth))
            line = f"{layer.name:<{width}}  {first:<{names}}  {layer.remainder:9.1e}"
            for name, survivor in (("", layer), (f"  {second:<{names}}", depth)):
                line += f"{name}  {_nats(survivor.margin)}" + (f"  {_nats(survivor.loss)}" if measured else "")
            lines.append(line)
        return "\n".join(lines + self._notes())

    def _repr_html_(self) -> str:
        measured = any(s.losses for s in self.layers + self.by_depth)
        nats = ["margin", "in data"] if measured else ["margin"]
        rows = []
        for pair in zip(self.layers, self.by_depth):
            row = [pair[0].name or "model"]
            for survivor in pair:
                row += ["?" if self.note else survivor.subgroup.name]
                row += [f"{survivor.remainder:.1e}"] if survivor is pair[0] and len(row) == 2 else []
                row += [_nats(survivor.margin).strip()] + ([_nats(survivor.loss).strip()] if measured else [])
            rows.append(row)
        return html_table(["layer", "subgroup", "remainder", *nats, "by depth", *nats], rows, self._notes())

    def _notes(self) -> list[str]:
        lines = [f"{layer.name or 'model'}: {doubt}" for layer in self.layers for doubt in layer.doubts]
        lines += [f"not looked for: {self.unlisted}"] if self.unlisted else []
        return [*lines, self.note] if self.note else lines


def _nats(value: float) -> str:
    return f"{'–':>8}" if math.isnan(value) or math.isinf(value) else f"{value:8.1f}"
