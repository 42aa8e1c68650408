r"""Which layer breaks which symmetry, read off a strict network in one pass of gradients.

At strict weights, trained or random, the expected gradient in a pathway that breaks the symmetry is zero if the joint law
of inputs and targets has it (Palais, *The principle of symmetric criticality*, 1979; the score test: Rao, 1948).
"""

from __future__ import annotations

import math
import warnings
from typing import Any, Callable, Iterable, Optional, Union

import torch
from escnn.nn import FieldType
from torch import Tensor, nn

from ..curvature.batches import batches, check_weights
from ..curvature.likelihood import Likelihood
from ..curvature.likelihood import likelihood as likelihood_named
from ..errors import ArgumentError
from .action import LayerAction
from .collected import Collected, collect
from .exact_group import ExactGroup, exact_group
from .gradients import Probe, relaxed_copy, settle, start_anew
from .randomisation import Randomisation, factor, randomise
from .result import PathwayTest, SymmetryTest
from .strictness import kept_elements

__all__ = ["symmetry_test"]

#: Beyond this departure from the law of the gradients a network counts as not strict: a hundred float32 roundings and more.
STRICT = 1e-2
#: A pathway whose gradients are a smaller share of the layer's (squared) has no way to the output (float32 roundings).
SILENT = 1e-11
#: Batches from which running statistics that have seen nothing are taken.
SETTLING = 3


def symmetry_test(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    likelihood: Union[str, Likelihood, Callable[..., Any]] = "categorical",
    loss: Optional[Callable[[Any, Tensor], Tensor]] = None,
    draws: int = 999,
    initialisations: int = 1,
    gains: bool = False,
    inputs: bool = False,
    level: float = 0.05,
    seed: int = 0,
    groups: int = 64,
    in_type: Optional[FieldType] = None,
    out_type: Optional[FieldType] = None,
    progress: bool = True,
    **relaxation: Any,
) -> SymmetryTest:
    r"""Test, for each layer and each way to break its symmetry, whether the data ask for it.

    The gradient of the loss in a residual pathway, summed over the data, is compared with what it would be had each sample
    been moved by a random element of the group: a randomisation test, exact for finite data and any strict weights, even
    those trained on the same data. The null hypothesis is that (x, y) and (gx, gy) have one law.

    Args:
        model: a strict escnn network, random or trained, or a relaxed one; left alone. Where pathways are open, the test is
            one of the subgroup that these still keep.
        loader: yields ``(input, target)``; gone through once. Samples that come again count once as far as independence
            goes: they share one element with their first appearance.
        likelihood: as of :class:`~escnn_relax.Evidence`.
        loss: instead, a function of output and target that stays the same if both are moved.
        draws: of the null distribution; the smallest p-value is ``1 / (1 + draws)``.
        initialisations: 1 takes the weights as they are; more take so many random ones, and add the studentised statistics.
        gains: estimate what each pathway would gain in evidence: :math:`\tfrac d2 (r - 1 - \log r)` nats with r the ratio of
            the statistic to its mean under the hypothesis and d the number of directions that the gradients of the groups
            take (participation ratio): the largest value over the prior precision of
            :math:`\tfrac12 \sum_i [\log \tfrac{\delta}{\delta + \lambda_i} + \tfrac{q_i^2}{c (\delta + \lambda_i)}]` for d
            equal eigenvalues, over-dispersion c divided out. It needs no curvature.
        inputs: test the law of the inputs too, by a function of the outputs that knows no targets (half a squared norm).
        level: family-wise error.
        seed: of the draws, of random combinations in wide layers, and of initialisations.
        groups: of samples, which share a random element each; more have more power.
        in_type, out_type: types of input and output where the network does not tell. Floating targets with as many
            components as ``out_type`` are taken to move with the input.
        progress: show a progress bar.
        relaxation: ``subgroups=``, ``frequencies=``, ... of :func:`~escnn_relax.relax`, for a strict network.

    Raises:
        DataError: fewer than 20 different samples, constant targets, one orbit, NaN in data, weights or gradients.
        ArgumentError: numbers that make no sense.
        UnsupportedModuleError: nothing that can be relaxed; layers of groups that do not fit together.

    The elements that move pixels onto pixels are the group of the test: C4 of C8 or SO(2), D4 of O(2), the octahedral group of
    SO(3). What they leave in place is reported as an effect, without a p-value. The state of torch's global generator and of
    the loader's own are put back.

    >>> from escnn import gspaces, nn as enn
    >>> space = gspaces.rot2dOnR2(4)
    >>> gray, out = enn.FieldType(space, [space.trivial_repr]), enn.FieldType(space, 2 * [space.regular_repr])
    >>> class Net(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.convolution, self.pool = enn.R2Conv(gray, out, 3), enn.GroupPooling(out)
    ...         self.linear = nn.Linear(2, 2)
    ...     def forward(self, x):
    ...         return self.linear(self.pool(self.convolution(gray(x))).tensor.mean((-2, -1)))
    >>> x, side = torch.randn(400, 1, 5, 5), torch.arange(400) % 2
    >>> x[:, :, 2, 3] += 3  # to the right, or above the centre
    >>> x[side == 1] = x[side == 1].rot90(1, (-2, -1))
    >>> data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, side), 50)
    >>> test = symmetry_test(Net(), data, progress=False)
    >>> [(t.pathway, t.broken) for t in test.tests], test.network.name
    ([('irrep_1', True), ('irrep_2', True)], 'trivial')
    """
    _check(draws, initialisations, groups, level)
    check_weights(model)
    objective = likelihood_named(likelihood) if loss is None else loss
    devices = [torch.device("cuda", torch.cuda.current_device())] if torch.cuda.is_available() else []
    generator = torch.Generator().manual_seed(seed)
    own = [g for g in (getattr(loader, "generator", None), getattr(getattr(loader, "sampler", None), "generator", None))]
    states = [(g, g.get_state()) for g in own if isinstance(g, torch.Generator)]
    bar = _bar if progress else None
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        probes = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            copies = [relaxed_copy(model, **relaxation) for _ in range(initialisations)]
        for copied in copies:
            if initialisations > 1:
                start_anew(copied)
            device = next(copied.parameters()).device
            settle(copied, (b for b, _ in zip(batches(loader, device), range(SETTLING))))
            probes.append(Probe(copied, objective))
        layers = probes[0].layers
        whole = exact_group(*(layer.space for layer in layers.values()))
        kept = kept_elements(layers, whole)
        group = whole
        if len(kept) < whole.order:
            index = torch.tensor(kept)
            quotients = whole.quotients[index][:, index]
            quotients = torch.tensor([[kept.index(int(q)) for q in row] for row in quotients])
            group = ExactGroup(whole.gspace, tuple(whole.elements[k] for k in kept), quotients)
        actions = {n: LayerAction(layer, group.elements_on(layer.space, n), generator, n) for n, layer in layers.items()}
        found = collect(probes, actions, group, loader, groups, in_type, out_type, inputs, generator, bar)
    for g, state in states:
        g.set_state(state)
    opened = len(kept) < whole.order
    return _judged(found, probes[0], actions, group, opened, draws, gains, inputs, level, generator)


def _judged(
    found: Collected,
    probe: Probe,
    actions: dict[str, LayerAction],
    group: ExactGroup,
    opened: bool,
    draws: int,
    gains: bool,
    inputs: bool,
    level: float,
    generator: torch.Generator,
) -> SymmetryTest:
    keys = [(layer, name) for layer, action in actions.items() for name in action.names]
    count = len(found.gradients[0])
    tables = {key: _table(found.gradients, actions, *key) for key in keys}
    traces = {key: float(tables[key][0].trace()) for key in keys}
    each = range(len(found.gradients))
    silent = {}
    for key in keys:  # relative to the layer's whole gradient; a dead layer has none
        own = [sum(float(f.square().sum()) for g in found.gradients[n] for f in g[key[0]][key[1]]) for n in each]
        silent[key] = all(o <= SILENT * found.squares[n][key[0]] for n, o in zip(each, own))
    worst = max(found.errors.values()) if found.errors else math.nan
    loose = not math.isnan(worst) and worst > STRICT
    everything = list(range(group.order))
    coordinates = [factor(table, group.quotients) for table in tables.values()]
    first = randomise(coordinates, everything, draws, generator)
    live = [n for n, key in enumerate(keys) if not silent[key] and float(first.moved[n]) > 0 and not loose]
    adjusted, verdicts = _closure(group, coordinates, live, first, draws, level, generator)
    blind = None
    if inputs:
        blind_tables = [_table(found.unlabelled, actions, *key) for key in keys]
        blind = randomise([factor(table, group.quotients) for table in blind_tables], everything, draws, generator)
    tests = []
    for n, (layer, name) in enumerate(keys):
        pathway = next(p for p in probe.layers[layer].pathways if p.name == name)
        exact = float(first.moved[n]) > 1 - 1e-4
        table = tables[layer, name]
        if float(first.moved[n]) > 0:
            ratio, statistic = float(first.statistics[n]), float(first.statistics[n]) * traces[layer, name] * float(first.moved[n])
        else:
            statistic = float(table[0].sum())
            ratio = statistic / traces[layer, name] if traces[layer, name] > 0 else math.nan
        reason = ""
        if silent[layer, name]:
            reason = "no first-order path to the output"
        elif loose:
            reason = f"the network itself is not equivariant (gradients off by {worst:.0%})"
        elif not float(first.moved[n]) > 0 and opened:
            reason = "open pathways keep only elements that do not move it"
        elif not float(first.moved[n]) > 0:
            reason = "no element that is exact on the grid moves it: an effect only"
        elif not exact:
            reason = "tested in the part that exact elements move"
        testable = n in live
        directions = _directions(table)
        dimension = probe.layers[layer].kernel.dimensions[name]
        spread = traces[layer, name] if len(found.gradients) == 1 else math.nan
        measured = found.traces[0].get(layer, {}).get(name, 0.0) * found.num_data
        dispersion = spread / measured if measured > 0 else 1.0
        scale = (measured if measured > 0 else spread) / directions
        surplus = max(ratio - 1, 0.0) if not math.isnan(ratio) else 0.0
        precision = math.log(scale / surplus) if surplus > 0 and scale > 0 else math.inf
        gain = 0.5 * directions * (surplus - math.log1p(surplus)) if gains else math.nan
        p = float(first.p_values[n]) if testable else math.nan
        tests.append(
            PathwayTest(
                layer, name, pathway.irrep, pathway.subgroup, dimension, statistic, ratio,
                float(first.largest[n]) if testable else math.nan, (ratio - 1) / found.num_data, p,
                adjusted.get(n, math.nan), gain, precision, dispersion, testable, reason, exact,
                testable and adjusted[n] <= level, float(blind.p_values[n]) if blind and testable else math.nan,
            )  # fmt: skip
        )
    network = _largest(group, verdicts, live, level)
    kept = {layer: _largest(group, verdicts, [n for n in live if keys[n][0] == layer], level) for layer in actions}
    notes = _notes(tests, found, group, probe, worst, loose, opened, inputs)
    name = group.gspace.fibergroup.name
    numbers = (group.order, found.num_data, count, found.repeated)
    return SymmetryTest(tuple(tests), kept, network, name, *numbers, worst, level, notes)


def _table(features: Any, actions: dict[str, LayerAction], layer: str, name: str) -> Tensor:
    """Of one pathway; of several initialisations the sum of the studentised ones."""
    tables = [actions[layer].table(name, [g[layer][name] for g in of]) for of in features]
    if len(tables) == 1:
        return tables[0]
    traces = [float(t[0].trace()) for t in tables]
    return torch.stack([t / trace if trace > 0 else t for t, trace in zip(tables, traces)]).mean(0)


def _closure(
    group: ExactGroup,
    coordinates: list[Tensor],
    live: list[int],
    first: Randomisation,
    draws: int,
    level: float,
    generator: torch.Generator,
) -> tuple[dict[int, float], list[tuple[Any, Randomisation]]]:
    """Adjusted p-values that hold whichever subgroup is the data's, and what each subgroup's own draws say."""
    adjusted = {n: float(first.adjusted[n]) for n in live}
    subgroups = group.subgroups
    verdicts: list[tuple[Any, Randomisation]] = [(h, first) for h, inside in subgroups if len(inside) == group.order]
    if any(a <= level for a in adjusted.values()):
        for h, inside in subgroups:
            if 1 < len(inside) < group.order:
                found = randomise(coordinates, inside, draws, generator)
                verdicts.append((h, found))
                for n in live:
                    if float(found.moved[n]) > 1 - 1e-4:
                        adjusted[n] = max(adjusted[n], float(found.adjusted[n]))
    return adjusted, verdicts


def _largest(group: ExactGroup, verdicts: list[tuple[Any, Randomisation]], live: list[int], level: float) -> Any:
    """The largest subgroup of which no test is rejected; of equally large ones that which is least contradicted."""
    best: Any = None
    for h, found in verdicts:
        values = [float(found.adjusted[n]) for n in live if float(found.moved[n]) > 0]
        least = min(values, default=1.0)
        if least > level and (best is None or (h.order, least) > (best[0].order, best[1])):
            best = (h, least)
    return best[0] if best else group.subgroups[-1][0]


def _directions(table: Tensor) -> float:
    """Participation ratio of the gradients' covariance, from its trace and the mean square of inner products."""
    squares = table[0].diag()
    cross = table.square().mean(0)
    cross = (cross.sum() - cross.diag().sum()) / max(len(cross) * (len(cross) - 1), 1)
    return max(1.0, float(squares.mean().square() / cross)) if float(cross) > 0 else 1.0


def _notes(
    tests: list[PathwayTest],
    found: Collected,
    group: ExactGroup,
    probe: Probe,
    worst: float,
    loose: bool,
    opened: bool,
    inputs: bool,
) -> tuple[str, ...]:
    notes = []
    name = group.gspace.fibergroup.name
    if not group.whole and not opened:
        notes.append(f"{name}: only {group.order} of its elements are exact on the grid; p-values are of these.")
    if opened:
        notes.append(f"Pathways are open: the test is one of the {group.order} elements that they keep.")
    if loose:
        strided = [n for n, m in probe.layers.items() if getattr(m, "stride", 1) not in (1, (1,) * getattr(m, "d", 0))]
        likely = f"strides on sizes that they do not divide evenly ({', '.join(strided)}), " if strided else ""
        notes.append(f"Gradients depart by {worst:.1%} from the law of a strict network: {likely}one-sided padding or code of "
                     "your own; nothing was tested. Look at equivariance_error of each part.")  # fmt: skip
    if math.isnan(worst):
        notes.append("The type of the input is not known, so that the network's strictness was not checked: pass in_type=.")
    if found.repeated:
        notes.append(f"{found.repeated} samples came again; they share the random element of their first appearance.")
    broken = [t for t in tests if t.broken]
    vectors = {t.pathway for t in broken}
    if len(vectors) == 1 and broken and {t.layer for t in tests if t.testable} == {t.layer for t in broken}:
        psi = group.gspace.fibergroup.irrep(*broken[0].irrep) if broken[0].irrep is not None else None
        if psi is not None and _is_vector(group, psi):
            notes.append("Only the vectors (frequency 1) are broken, in every layer: off-centre images look like that; check "
                         "centring, one-sided padding and strides before the network.")  # fmt: skip
    if broken and not inputs:
        notes.append("Broken may be the question or the law of the inputs alone: inputs=True tells, where it can be told.")
    return tuple(notes)


def _is_vector(group: ExactGroup, psi: Any) -> bool:
    """Whether an irrep is the action on points of the plane or of space."""
    d = group.gspace.dimensionality
    if d != psi.size or not d:
        return False
    return all(abs(float(psi(g).trace()) - float(group.gspace.basespace_action(g).trace())) < 1e-6 for g in group.elements)


def _check(draws: int, initialisations: int, groups: int, level: float) -> None:
    if draws < 1 or initialisations < 1:
        got = {"draws": draws, "initialisations": initialisations}
        raise ArgumentError("symmetry_test", expected="draws and initialisations of 1 or more", got=got)
    if groups < 20:
        raise ArgumentError("groups", expected="20 or more", got=groups, remedy="with fewer there is no power; 64 is the default")
    if not 0 < level < 1:
        raise ArgumentError("level", expected="a fraction between 0 and 1", got=level)


def _bar(iterable: Iterable[Any]) -> Iterable[Any]:
    from tqdm import tqdm

    return tqdm(iterable, desc="symmetry test", unit="batch")
