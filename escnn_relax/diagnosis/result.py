"""What the symmetry test found in a network."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..symmetry.decision import Decision, Decisions
from ..symmetry.groups.lattice import Subgroup, common_subgroup
from ..symmetry.html_table import html_table
from .heat_map import heat_map
from .pathway_test import PathwayTest
from .table import HEAD, cells, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["PathwayTest", "SymmetryTest"]


@dataclass(frozen=True)
class SymmetryTest:
    """All tests of one call; ``print`` it, :meth:`plot` it, or take :meth:`to_dict`.

    Attributes:
        tests: one record for each layer and pathway.
        subgroups: for each layer the largest subgroup that nothing in it contradicts.
        network: the largest subgroup that nothing contradicts in any layer. If the data have the symmetry H, it is at
            least as large as H, but for an error of probability ``level``.
        group: name of the group that the network starts with.
        exact_order: number of elements by which it was randomised.
        num_data, groups, repeated: different samples, groups of them that share a random element, repetitions left out
            of the count.
        equivariance_error: largest departure of a layer's gradients from the law that the test presupposes (fraction);
            NaN if the type of the input is not known.
        level: family-wise error.
        notes: what the reader should know.

    Made by :func:`escnn_relax.symmetry_test`:

    >>> from escnn import gspaces, nn as enn
    >>> from torch import nn, randn
    >>> from escnn_relax import symmetry_test
    >>> space = gspaces.rot2dOnR2(4)
    >>> scalar = enn.FieldType(space, [space.trivial_repr])
    >>> class Net(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.convolution = enn.R2Conv(scalar, scalar, 3, padding=1)
    ...     def forward(self, x):
    ...         return self.convolution(scalar(x)).tensor
    >>> data = [(x, x) for x in randn(20, 4, 1, 5, 5)]  # each pixel is its own target
    >>> test = symmetry_test(Net(), data, likelihood="gaussian", progress=False)
    >>> test.network.name, test.num_data, test.group
    ('C4', 80, 'C4')
    """

    tests: tuple[PathwayTest, ...]
    subgroups: dict[str, Subgroup]
    network: Subgroup
    group: str
    exact_order: int
    num_data: int
    groups: int
    repeated: int
    equivariance_error: float
    level: float
    notes: tuple[str, ...]

    @property
    def decisions(self) -> Decisions:
        """What nothing contradicts, as a record for :func:`~escnn_relax.harden` and :func:`~escnn_relax.report`: of
        each layer, and by depth what is left in common."""
        records: list[Decision] = []
        for layer, subgroup in self.subgroups.items():
            by_depth = common_subgroup(records[-1].by_depth, subgroup) if records else subgroup
            layer_tests = [t for t in self.tests if t.layer == layer]
            least = min((t.adjusted_p_value for t in layer_tests if t.testable), default=math.nan)
            broken = [f"{t.pathway} (p = {t.adjusted_p_value:.3f})" for t in layer_tests if t.broken]
            reasons = [
                f"the symmetry test found broken: {', '.join(broken)}"
                if broken
                else "the symmetry test found nothing broken"
            ]
            unknown = [f"{t.pathway} ({t.reason})" for t in layer_tests if not t.testable]
            reasons += [f"it could not test {', '.join(unknown)}"] if unknown else []
            records.append(Decision(layer, subgroup, by_depth, "test", tuple(reasons), p_value=least))
        return Decisions(tuple(records))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for machines; ``None`` for what is not known or infinite."""
        tests = [{k: _plain(v) for k, v in asdict(test).items()} for test in self.tests]
        subgroups = {layer: subgroup.name for layer, subgroup in self.subgroups.items()}
        rest = {"group": self.group, "exact_order": self.exact_order, "num_data": self.num_data, "groups": self.groups}
        rest |= {"repeated": self.repeated, "equivariance_error": _plain(self.equivariance_error), "level": self.level}
        return {"tests": tests, "subgroups": subgroups, "network": self.network.name, **rest, "notes": list(self.notes)}

    def __str__(self) -> str:
        return "\n".join([*table(self.tests), *self._ends(), *self.notes])

    def _repr_html_(self) -> str:
        return html_table(HEAD, cells(self.tests), [*self._ends(), *self.notes])

    def _ends(self) -> tuple[str, str]:
        by_layer = ", ".join(f"{n} {s.name}" for n, s in self.subgroups.items())
        whole = f"of the whole network: {self.network.name}, out of {self.group} (level {self.level:.0%})"
        return f"nothing contradicts, by layer: {by_layer}", whole

    def plot(self, ax: Axes | None = None) -> Axes:
        """A heat map, layers x pathways: the statistic in units of its mean under the hypothesis, a star where broken.

        Hatched squares could not be tested; crossed ones break only under elements that are not exact on the grid.
        """
        return heat_map(self.tests, f"Symmetry test: {self.network.name} is left of {self.group} (* broken)", ax)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
