"""What the symmetry test found: records, table, heat map."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..symmetry.decision import Decision, Decisions
from ..symmetry.groups.lattice import Subgroup, common_subgroup

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["PathwayTest", "SymmetryTest"]


#: Why the symmetries that a pixel grid lacks have no p-value.
EFFECT_ONLY = "no element that is exact on the grid moves it: an effect only"


@dataclass(frozen=True)
class PathwayTest:
    r"""One way to break the symmetry in one layer.

    Attributes:
        layer: as in ``model.named_modules()``.
        pathway: the name of the pathway in the relaxed layer.
        irrep: id of its irrep, ``None`` for a pathway of a subgroup.
        subgroup: id of its subgroup, ``None`` for one of an irrep.
        dimension: number of its weights.
        statistic: :math:`T = |\sum_b \Gamma_b|^2`, the part that exact elements move ((nats / unit of weight) squared).
        ratio: T over its mean under the hypothesis.
        largest_null: the largest of the draws over the same mean.
        effect: the squared mean of one sample's gradient over its mean square (fraction), free of bias, so that it may
            be negative; of the part that exact elements move, and of all of it where they move nothing.
        p_value: exact, by draws from the group that acts exactly; NaN where nothing can be tested.
        adjusted_p_value: for all tests of the call: the largest over all subgroups that move the pathway of the
            p-values adjusted by the largest statistic. So it holds whichever of them is the symmetry of the data.
        gain: estimate of the evidence gained by letting the pathway in (nats), see :func:`.symmetry_test`; NaN if not
            asked.
        log_precision: log prior precision to start it with; infinite where nothing speaks for it.
        over_dispersion: mean square of one sample's gradient over its curvature: how far the likelihood is from well
            specified; 1 where the curvature is not known.
        testable: whether a p-value could be had.
        reason: why not; or what to bear in mind.
        exact: whether elements that act exactly on the grid move all of the pathway.
        broken: testable, and the adjusted p-value at most the level.
        input_p_value: the same test of a function that knows no targets: small where the inputs alone lack the
            symmetry; NaN if not asked.
        cause: of what is broken, if asked: "question" where the inputs alone are not contradicted, else "inputs or
            question".
        inexact_effect: effect in the part that no exact element moves, over the mean square of all (fraction); NaN if
            ``exact``.
        explained_effect: the same after each sample has been turned by a random element of the whole group, with
            interpolation: what the network's own discretisation explains, since data like these have the symmetry; NaN
            where not measured.

    >>> p_values = [name for name in PathwayTest.__dataclass_fields__ if name.endswith("p_value")]
    >>> p_values
    ['p_value', 'adjusted_p_value', 'input_p_value']
    """

    layer: str
    pathway: str
    irrep: Any
    subgroup: Any
    dimension: int
    statistic: float
    ratio: float
    largest_null: float
    effect: float
    p_value: float
    adjusted_p_value: float
    gain: float
    log_precision: float
    over_dispersion: float
    testable: bool
    reason: str
    exact: bool
    broken: bool
    input_p_value: float = math.nan
    cause: str = ""
    inexact_effect: float = math.nan
    explained_effect: float = math.nan

    @property
    def untold(self) -> bool:
        """Whether nothing but an effect can be known of it, because no element that is exact on the grid moves it."""
        return self.reason == EFFECT_ONLY


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
        head = (
            "layer",
            "pathway",
            "ratio",
            "largest null",
            "p",
            "adjusted",
            "effect",
            "inputs p",
            "gain",
            "log prec",
            "verdict",
        )
        rows = [head]
        for t in self.tests:
            values = (
                f"{t.ratio:.2f}",
                f"{t.largest_null:.2f}",
                _p(t.p_value),
                _p(t.adjusted_p_value),
                f"{t.effect:.1e}",
            )
            more = (_p(t.input_p_value), "" if math.isnan(t.gain) else f"{t.gain:.1f}", f"{t.log_precision:.1f}")
            rows.append((t.layer, t.pathway, *values, *more, self._verdict(t)))
        widths = [max(len(row[n]) for row in rows) for n in range(len(head))]
        lines = [
            "  ".join(c.ljust(w) if n in (0, 1, 10) else c.rjust(w) for n, (c, w) in enumerate(zip(r, widths)))
            for r in rows
        ]
        lines.insert(1, "-" * len(lines[0]))
        lines = [line.rstrip() for line in lines]
        lines.append("nothing contradicts, by layer: " + ", ".join(f"{n} {s.name}" for n, s in self.subgroups.items()))
        lines.append(f"of the whole network: {self.network.name}, out of {self.group} (level {self.level:.0%})")
        return "\n".join([*lines, *self.notes])

    @staticmethod
    def _verdict(test: PathwayTest) -> str:
        if not test.testable:
            return f"not testable: {test.reason}"
        if test.broken:
            return "broken" + (f" ({test.cause})" if test.cause else "")
        return "not contradicted" + (f" ({test.reason})" if test.reason else "")

    def plot(self, ax: Axes | None = None) -> Axes:
        """A heat map, layers x pathways: the statistic in units of its mean under the hypothesis, a star where broken.

        Hatched squares could not be tested; crossed ones break only under elements that are not exact on the grid.
        """
        import matplotlib.pyplot as plt
        from matplotlib.colors import LogNorm
        from matplotlib.patches import Rectangle

        layers = list(dict.fromkeys(t.layer for t in self.tests))
        pathways = list(dict.fromkeys(t.pathway for t in self.tests))
        if ax is None:
            size = (2.5 + 1.1 * len(pathways), 1.8 + 0.5 * len(layers))
            ax = plt.subplots(figsize=size, layout="constrained")[1]
        values = [[math.nan] * len(pathways) for _ in layers]
        for t in self.tests:
            x, y = pathways.index(t.pathway), layers.index(t.layer)
            if t.testable:
                values[y][x] = min(max(t.ratio, 1.0), 100.0)
                text = f"{t.ratio:.1f}{' *' if t.broken else ''}"
                ax.text(x, y, text, ha="center", va="center", color="white" if t.ratio < 6 else "black", fontsize=9)
            else:
                hatch = "xx" if t.exact is False else "///"
                box = Rectangle(
                    (x - 0.5, y - 0.5), 1, 1, facecolor="#eeeeee", edgecolor="#888888", hatch=hatch, linewidth=0
                )
                ax.add_patch(box)
        image = ax.imshow(values, cmap="cividis", norm=LogNorm(1, 100), aspect="auto")
        ax.figure.colorbar(image, ax=ax, label="statistic / mean under symmetry")
        ax.set_xticks(range(len(pathways)), pathways)
        ax.set_yticks(range(len(layers)), layers)
        ax.set_title(f"Symmetry test: {self.network.name} is left of {self.group} (* broken)", fontsize=10)
        return ax


def _p(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
