"""What hardening did, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ...symmetry.equal_records import equal_records
from ...symmetry.html_table import html_table

__all__ = ["HardenedLayer", "HardeningReport"]


@dataclass(frozen=True)
class HardenedLayer:
    """What :func:`~escnn_relax.harden` did to one layer.

    Attributes:
        name: the layer's name in the model.
        removed: pathways that were switched off.
        merged: residual pathways that stayed, now part of one kernel; of a layer that breaks translations the pathways
            that are still beside the convolution, too.
        removed_energy: share of the kernel's energy in the removed pathways (fraction); of a layer that breaks
            translations of the energy of the whole map, see :meth:`escnn_relax.nn.RelaxedTranslation.energies`,
            constants of the removed pathways included unless the convolution's bias says them now.
        kind: class of the new layer.
        subgroup: name of the subgroup that the new layer is equivariant under; empty if it is none of escnn's.
        error: no input of norm 1 has a larger equivariance error under the whole group of the field types that the
            layer came with, see :class:`~escnn_relax.nn.measured.certificate.Certificate`; NaN beside pathways that
            break translations.
        change: no input of norm 1 changes the layer's output by more than this; NaN likewise.
        lost: what the layer's pixels lose at most of the difference between that subgroup and a smaller one (fraction),
            see :class:`~escnn_relax.symmetry.decision.Decision`; NaN where you named the subgroup.
        reasons: why that one, with ``to`` or ``evidence``, see :class:`~escnn_relax.symmetry.decision.Decision`.
    """

    name: str
    removed: tuple[str, ...]
    merged: tuple[str, ...]
    removed_energy: float
    kind: str
    subgroup: str = ""
    reasons: tuple[str, ...] = ()
    error: float = math.nan
    change: float = math.nan
    lost: float = math.nan
    __eq__ = equal_records

    def __str__(self) -> str:
        group = f" of {self.subgroup}" if self.subgroup else ""
        gone = f"without {', '.join(self.removed)}" if self.removed else "nothing removed"
        return f"{self.name or 'model'}: {self.kind}{group}, {gone} ({self.removed_energy:.1e} of the energy)"


@dataclass(frozen=True)
class HardeningReport:
    """What :func:`~escnn_relax.harden` did: a sequence of :class:`HardenedLayer`, one a line when printed.

    Attributes:
        layers: in the order of the model.
    """

    layers: tuple[HardenedLayer, ...]

    def __iter__(self) -> Iterator[HardenedLayer]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: int) -> HardenedLayer:
        return self.layers[index]

    def __str__(self) -> str:
        return "\n".join(map(str, self.layers))

    def _repr_html_(self) -> str:
        head = ["layer", "is now", "removed", "subgroup", "removed energy", "error ≤", "change ≤", "reasons"]
        rows = []
        for layer in self.layers:
            words = [layer.name or "model", layer.kind, ", ".join(layer.removed) or "nothing", layer.subgroup]
            numbers = (layer.removed_energy, layer.error, layer.change)
            rows.append([*words, *("–" if math.isnan(n) else f"{n:.1e}" for n in numbers), "; ".join(layer.reasons)])
        return html_table(head, rows, words=4)
