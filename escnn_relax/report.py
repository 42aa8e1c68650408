"""What each layer learned: records, table, heat map (layers x irreps)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from escnn.nn import FieldType
from torch import nn

from .curvature.layers.wrappers import unwrapped
from .errors import ArgumentError, UnsupportedModuleError, nearest
from .evidence import Evidence, survivors
from .evidence.evidence import CONSTANT
from .nn.evidence_record import Recorded
from .nn.last_decision import remember
from .nn.measured.certificate import certify
from .nn.mixed.convolution import MixedConvolution
from .nn.relaxed_convolution import RelaxedConvolution
from .nn.translation.layer import RelaxedTranslation
from .symmetry.decision import Decided, Decisions, check_evidence
from .symmetry.equal_records import equal_records
from .symmetry.equivariance.model_error import grid_elements, kernel_equivariance_error
from .symmetry.kernels.pathway import SWITCHED_OFF

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["LayerReport", "PathwayReport", "Report", "report"]


@dataclass(frozen=True)
class PathwayReport:
    """One pathway of one layer.

    Attributes:
        name: ``"equivariant"``, or the irrep or subgroup of the pathway.
        breaks: whether it breaks the symmetry.
        dimension: number of its weights, biases aside.
        log_precision: log prior precision, NaN where no evidence set it, infinite where closed; of a convolution beside
            other pathways the smallest of its weights'.
        effective_dimension: how many of its weights the data determine, NaN where no evidence measured it.
        fraction: ``effective_dimension / dimension``.
        share: the fraction relative to the sum of the fractions of the layer's pathways.
        energy: share of the kernel's energy; beside pathways that break translations see
            :meth:`escnn_relax.nn.RelaxedTranslation.energies`.
        closed: kept at zero, for nothing in the data asked for it (:class:`~escnn_relax.nn.gates.Gated`).

    In a pathway that breaks translations and keeps a group, fields at sites that some elements leave in place have
    weights that depend on each other (a dense scalar C4 pathway from 2 x 2 pixels to one has four, of rank 1; one of D4
    between other fields from 4 x 4 to 3 x 3, 384 of rank 216). The data can determine no more than the rank, while
    ``dimension`` counts them all: ``fraction`` and ``share`` of such a pathway come out smaller than of a free one,
    whose weights are independent.
    """

    name: str
    breaks: bool
    dimension: int
    log_precision: float
    effective_dimension: float
    fraction: float
    share: float
    energy: float
    closed: bool = False
    __eq__ = equal_records


@dataclass(frozen=True)
class LayerReport:
    """One relaxed layer.

    Attributes:
        name: as in ``model.named_modules()``.
        group: name of the layer's symmetry group; ``"translations"`` for a convolution beside pathways that break them.
        pathways: one record each.
        breaking_energy: share of the kernel's energy that breaks the symmetry (fraction).
        equivariance_error: largest relative change of the kernel under the elements of the group that map the pixel
            grid to itself; NaN if there is none but the identity.
        error_bound: no input of norm 1 has a larger error under any element of the group, interpolation aside, see
            :class:`~escnn_relax.nn.measured.certificate.Certificate`; NaN where it is not known.
        error_reached: one that some input of norm 1 has, under an element that maps the grid to itself.
        norm: of the layer's linear part: some input of norm 1 becomes as long.
        survivor: name of the largest subgroup that survives in the layer, see :func:`escnn_relax.evidence.survivors`;
            empty if it was not asked for, or of a mixed layer. Living pathways beside the layer are counted in.
        margin: by how much the evidence prefers it to the best larger subgroup (nats); infinite for the whole group,
            NaN without a refreshed evidence.
        by_depth: name of the largest subgroup that survives in the layer and all before it.
        margin_by_depth: the same for that one.
        lost: what the layer's pixels lose at most of the difference between that subgroup and a smaller one (fraction),
            see :class:`~escnn_relax.symmetry.decision.Decision`; NaN without a survivor.
        empty: names of the pathways that have no kernel between the layer's field types, so that it cannot break the
            symmetry in these ways.
    """

    name: str
    group: str
    pathways: tuple[PathwayReport, ...]
    breaking_energy: float
    equivariance_error: float
    survivor: str = ""
    margin: float = math.nan
    by_depth: str = ""
    margin_by_depth: float = math.nan
    lost: float = math.nan
    empty: tuple[str, ...] = ()
    error_bound: float = math.nan
    error_reached: float = math.nan
    norm: float = math.nan
    __eq__ = equal_records


@dataclass(frozen=True)
class Report:
    """All relaxed layers of a model; ``print`` it, :meth:`plot` it, or take :meth:`to_dict`.

    Attributes:
        layers: in the order of the model.
        uncovered: parameters without a prior, with the reason; known if an evidence was given.
        decisions: which subgroup each layer keeps and why, for :func:`~escnn_relax.harden`; ``None`` if it was not
            asked for.
        note: why no subgroup is named, empty if they are: the network is no better than a constant output.
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
        width = max([5, *(len(layer.name) for layer in self.layers)])
        names = max([7, *(len(p.name) for layer in self.layers for p in layer.pathways)])
        kept = any(layer.survivor for layer in self.layers)
        head = (
            f"{'layer':<{width}}  {'pathway':<{names}}  log prec  eff. dim      of  fraction  share   energy  eq. error"
            "   error ≤"
        )
        head += "  survivor (margin, nats)" if kept else ""
        lines = [head, "-" * len(head)]
        for layer in self.layers:
            for index, p in enumerate(layer.pathways):
                precision = "  closed" if p.closed else _number(p.log_precision, "8.2f")
                lines.append(
                    f"{layer.name if index == 0 else '':<{width}}  {p.name:<{names}}  {precision}"
                    f"  {_number(p.effective_dimension, '8.1f')}  {p.dimension:6d}  {_number(p.fraction, '8.1%')}"
                    f"  {_number(p.share, '5.0%')}  {_percent(p.energy):>7}"
                    + (
                        f"  {_percent(layer.equivariance_error):>9}  {_ceiling(layer.error_bound):>8}"
                        if index == 0
                        else ""
                    )
                    + (f"  {_kept(layer.survivor, layer.margin)}" if index == 0 and kept else "")
                )
        if any(layer.by_depth for layer in self.layers):
            steps = (_kept(layer.by_depth, layer.margin_by_depth) for layer in self.layers if layer.by_depth)
            lines.append(f"survives by depth: {' → '.join(steps)}")
        for layer in self.layers:
            if layer.lost > 0:
                lines.append(
                    f"lost on the pixels: {layer.name}: {_percent(layer.lost)} of what tells {layer.survivor} from less"
                    " symmetry"
                )
        for layer in self.layers:
            if layer.empty:
                lines.append(f"without kernels: {layer.name}: {', '.join(layer.empty)}")
        if self.note:
            lines.append(self.note)
        if self.uncovered:
            lines.append(f"without prior: {', '.join(f'{name} ({why})' for name, why in self.uncovered.items())}")
        return "\n".join(lines)

    def plot(self, axes: Axes | None = None, title: str = "", of: str = "energy") -> Axes:
        """Heat map, layers x pathways; each layer with the subgroup that survives in it. Returns the matplotlib axes.

        Args:
            axes: where to draw; a new figure by default.
            title: of the axes.
            of: ``"energy"``, the share of the kernel's energy, on a logarithmic scale; or ``"fraction"``, the effective
                dimension relative to the dimension.

        Raises:
            ArgumentError: another ``of``.
        """
        import matplotlib.pyplot as plt
        from matplotlib.colors import LogNorm, Normalize

        if of not in ("energy", "fraction"):
            raise ArgumentError(
                "of", expected="'energy' or 'fraction'", got=repr(of), remedy="leave it out for 'energy'"
            )
        label = "share of kernel energy" if of == "energy" else "effective dimension / dimension"
        names = list(dict.fromkeys(p.name for layer in self.layers for p in layer.pathways))
        if axes is None:
            size = (2.4 + 1.25 * len(names), 1.4 + 0.6 * len(self.layers))
            _, axes = plt.subplots(figsize=size, layout="constrained")
        table = [
            [{p.name: getattr(p, of) for p in layer.pathways}.get(n, math.nan) for n in names] for layer in self.layers
        ]
        norm, floor = (LogNorm(1e-6, 1), 1e-6) if of == "energy" else (Normalize(0, 1), 0.0)
        image = axes.imshow([[max(e, floor) for e in row] for row in table], norm=norm, cmap="cividis", aspect="auto")
        for y, row in enumerate(table):
            for x, value in enumerate(row):
                off = of == "energy" and value <= SWITCHED_OFF
                text = "–" if math.isnan(value) else "off" if off else _percent(value, 1)
                bright = not math.isnan(value) and float(norm(max(value, floor))) > 0.6
                axes.text(x, y, text, ha="center", va="center", color="black" if bright else "white", fontsize=9)
        axes.set_xticks(range(len(names)), names, rotation=20 if len(names) > 4 else 0)
        named = [f"{layer.name}\nkeeps {layer.survivor}" if layer.survivor else layer.name for layer in self.layers]
        axes.set_yticks(range(len(self.layers)), named)
        axes.set_xlabel("pathway")
        axes.set_ylabel("layer")
        axes.set_title(title or label)
        axes.figure.colorbar(image, ax=axes, label=label)
        return axes


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
    model = unwrapped(model)
    relaxed: dict[str, Any] = {n: m for n, m in model.named_modules() if isinstance(m, Recorded)}
    if not relaxed:
        raise UnsupportedModuleError(
            type(model).__name__, "no relaxed layer in it", remedy="pass escnn_relax.relax(model)"
        )
    check_evidence(evidence, model, "report")
    layers = {n: (_translation if isinstance(m, RelaxedTranslation) else _layer)(n, m) for n, m in relaxed.items()}
    decided = _decide(model, relaxed, evidence, data, decisions, subgroups)
    note = "" if evidence is None or evidence.learned else f"no verdict: the network is {CONSTANT}"
    for own in () if decided is None or note else decided.layers:
        known: dict[str, Any] = {"survivor": own.subgroup.name, "margin": own.margin, "lost": own.lost}
        if decided is not None and decided.depth:
            known |= {"by_depth": own.by_depth.name, "margin_by_depth": own.margin_by_depth}
        layers[own.layer] = replace(layers[own.layer], **known)
    return Report(tuple(layers.values()), {} if evidence is None else dict(evidence.uncovered), decided, note)


def _decide(
    model: nn.Module,
    relaxed: dict[str, Any],
    evidence: Evidence | None,
    data: Iterable[Any] | None,
    decisions: None | Decisions | Decided,
    subgroups: bool,
) -> Decisions | None:
    found = {n: m for n, m in relaxed.items() if isinstance(m, RelaxedConvolution)}
    readable = {n: m for n, m in found.items() if hasattr(m, "relaxation")}  # a mixture's summands overlap
    given = decisions.decisions if isinstance(decisions, Decided) else decisions
    for name in given or ():
        if name not in readable:
            raise ArgumentError("decisions", f"no relaxed layer {name!r} in the model", remedy=nearest(name, readable))
    if given is not None and any(d.source != "test" for d in given.layers):
        return remember(readable, given) if set(given) == set(readable) else given
    if not subgroups or not readable:
        return given
    groups = {m.space.fibergroup.name for m in readable.values()}
    own = survivors(model, evidence, data=data, depth=len(groups) == 1).decisions
    return own if given is None else remember(readable, own.annotate(given))


def _layer(name: str, layer: RelaxedConvolution) -> LayerReport:
    energies = layer.energies(name)
    sizes = [layer.kernel.dimensions[p.name] for p in layer.pathways]
    gammas = layer.effective_dimension.tolist()
    fractions = [gamma / size for gamma, size in zip(gammas, sizes)]
    total = sum(fractions)
    shut: frozenset[str] = getattr(layer, "closed", frozenset())
    pathways = tuple(
        PathwayReport(
            p.name,
            p.breaks,
            size,
            delta,
            gamma,
            f,
            f / total if total else math.nan,
            energies[p.name],
            closed=p.name in shut,
        )
        for p, size, delta, gamma, f in zip(layer.pathways, sizes, layer.log_precision.tolist(), gammas, fractions)
    )
    elements = [g for g in grid_elements(layer.space) if g != layer.space.fibergroup.identity]
    error = math.nan
    if elements:
        # in a grouped convolution the kernel maps from one group's fields, and all groups have the same
        in_type, out_type = (FieldType(layer.space, list(reprs)) for reprs in layer._kernel_fields())
        with torch.no_grad():
            kernel = layer.kernel(layer.weights)
        kernel = kernel.view(*kernel.shape[:2], *(layer.kernel_size,) * layer.d) if layer.d else kernel.squeeze(-1)
        error = kernel_equivariance_error(kernel, in_type, out_type, elements=elements, where=name).max
    empty = () if isinstance(layer, MixedConvolution) else tuple(p.name for p in layer.empty_pathways)
    certified = certify(layer, name)
    return LayerReport(
        name or "model",
        layer.space.fibergroup.name,
        pathways,
        layer.breaking_energy,
        error,
        empty=empty,
        error_bound=certified.bound,
        error_reached=certified.reached,
        norm=certified.norm.reached,
    )


def _translation(name: str, layer: RelaxedTranslation) -> LayerReport:
    energies, stationary = layer.energies(name), layer.stationary()
    sizes = {n: sum(layer.get_parameter(w).numel() for w in of) for n, of in layer.pathway_weights().items()}
    gammas = layer.effective_dimension.tolist()
    fractions = [gamma / size for gamma, size in zip(gammas, sizes.values())]
    total = sum(fractions)
    pathways = tuple(
        PathwayReport(n, n not in stationary, sizes[n], delta, gamma, f, f / total if total else math.nan, energies[n])
        for n, delta, gamma, f in zip(sizes, layer.log_precision.tolist(), gammas, fractions)
    )
    breaking = sum(p.energy for p in pathways if p.breaks)
    return LayerReport(name or "model", "translations", pathways, breaking, math.nan)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _kept(name: str, margin: float) -> str:
    return f"{name} ({margin:.1f})" if math.isfinite(margin) else name or "–"


def _ceiling(value: float) -> str:
    """Three digits, never rounded down."""
    if not math.isfinite(value) or value <= 0:
        return "–" if math.isnan(value) else f"{value:.3g}"
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return f"{math.ceil(value / unit) * unit:.3g}"


def _number(value: float, form: str) -> str:
    width = int(form.split(".")[0])
    return f"{'–':>{width}}" if math.isnan(value) else f"{value:{form}}"


def _percent(value: float, digits: int = 2) -> str:
    if math.isnan(value):
        return "–"
    if digits == 1 and value < 0.01:
        return f"{100 * value:.1g}%"
    return f"{value:.{digits}%}" if value >= 1e-4 or value == 0 else f"{100 * value:.0e}%"
