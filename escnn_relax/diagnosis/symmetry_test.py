r"""Which layer breaks which symmetry, read off a strict network in one pass of gradients.

At strict weights, trained or random, the expected gradient in a pathway that breaks the symmetry is zero if the joint
law of inputs and targets has it (Palais, *The principle of symmetric criticality*, 1979; the score test: Rao, 1948).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import torch
from escnn.nn import FieldType
from torch import Tensor, nn

from ..curvature.checked_batches import batches, check_weights
from ..curvature.layers.wrappers import unwrap
from ..curvature.likelihood import Likelihood
from ..curvature.likelihood import likelihood as likelihood_named
from ..errors import ArgumentError, naming
from .action import LayerAction
from .exact_group import ExactGroup, exact_group
from .features import collect
from .gradient_sums import Plan
from .gradients import Probe, copy_relaxed, reinitialise, settle
from .judgement import Question, judge
from .result import SymmetryTest
from .strictness import stabiliser

__all__ = ["symmetry_test"]

#: Batches from which running statistics that have seen nothing are taken.
SETTLING = 3
#: Seconds after which a progress bar appears.
PATIENCE = 5


def symmetry_test(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    likelihood: str | Likelihood | Callable[..., Any] = "categorical",
    loss: Callable[[Any, Tensor], Tensor] | None = None,
    draws: int = 999,
    initialisations: int = 1,
    gains: bool = False,
    inputs: bool = False,
    level: float = 0.05,
    seed: int = 0,
    groups: int = 64,
    units: Sequence[Hashable] | None = None,
    in_type: FieldType | None = None,
    out_type: FieldType | None = None,
    progress: bool = True,
    **relaxation: Any,
) -> SymmetryTest:
    r"""Test, for each layer and each way to break its symmetry, whether the data ask for it.

    The gradient of the loss in a residual pathway, summed over the data, is compared with what it would be had each
    sample been moved by a random element of the group: a randomisation test, exact for finite data and any strict
    weights, even those trained on the same data. The null hypothesis is that (x, y) and (gx, gy) have one law.

    Args:
        model: a strict escnn network, random or trained, or a relaxed one; left alone. Where pathways are open, the
            test is one of the subgroup that these still keep.
        loader: yields ``(input, target)``; gone through once. Samples that come again count once as far as independence
            goes: they share one element with their first appearance.
        likelihood: as of :class:`~escnn_relax.Evidence`.
        loss: instead, a function of output and target that stays the same if both are moved.
        draws: of the null distribution; the smallest p-value is ``1 / (1 + draws)``.
        initialisations: 1 takes the weights as they are; more take so many random ones, and add the studentised
            statistics.
        gains: estimate what each pathway would gain in evidence: :math:`\tfrac d2 (s - \log(1 + s))` nats, where s is
            the effect times N - 1 and d the number of directions of the pathway's curvature (participation ratio): the
            largest value over the prior precision of :math:`\tfrac12 \sum_i [\log \tfrac{\delta}{\delta + \lambda_i} +
            \tfrac{q_i^2}{c (\delta + \lambda_i)}]` for d equal eigenvalues, over-dispersion c divided out. Without it
            the curvature, which the precision to start with needs too, is looked at for one minibatch in 16 only.
        inputs: test the law of the inputs too, by a function of the outputs that knows no targets (half a squared
            norm), so that each record says as a cause whether it is the question alone.
        level: family-wise error.
        seed: of the draws, of random combinations in wide layers, and of initialisations.
        groups: of samples, which share a random element each; more have more power. Minibatches are split and joined to
            make them, so a few large minibatches do as well as many small ones; where the samples are few a group has
            one of them, and with fewer than 20 groups there is no test. A loader that does not tell its length gets
            groups of 8 samples.
        units: what samples belong together and share an element too, by their index in the loader's data set (in the
            order in which they come, where the loader is no ``DataLoader``): frames of one film, copies of one image.
            Samples that a sampler draws again are recognised without it, by their index, however they are augmented, or
            by their content.
        in_type, out_type: types of input and output where the network does not tell. Floating targets with as many
            components as ``out_type`` are taken to move with the input.
        progress: show a progress bar where a pass takes more than some seconds.
        relaxation: ``subgroups=``, ``frequencies=``, ... of :func:`~escnn_relax.relax`, for a strict network.

    Raises:
        DataError: samples for fewer than 20 groups, constant targets, one orbit, NaN in data, weights or gradients.
        ArgumentError: numbers that make no sense.
        UnsupportedModuleError: nothing that can be relaxed; layers of groups that do not fit together.

    The elements that move pixels onto pixels are the group of the test: C4 of C8 or SO(2), D4 of O(2), the octahedral
    group of SO(3). What they leave in place is reported as an effect, without a p-value. The state of torch's global
    generator and of the loader's own are put back.

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
    model = unwrap(model)
    check_weights(model)
    objective = likelihood_named(likelihood) if loss is None else loss
    devices = [torch.device("cuda", torch.cuda.current_device())] if torch.cuda.is_available() else []
    generator = torch.Generator().manual_seed(seed)
    generators = [
        g for g in (getattr(loader, "generator", None), getattr(getattr(loader, "sampler", None), "generator", None))
    ]
    states = [(g, g.get_state()) for g in generators if isinstance(g, torch.Generator)]
    bar = _bar if progress else None
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        probes = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            copies = [copy_relaxed(model, **relaxation) for _ in range(initialisations)]
        for network in copies:
            if initialisations > 1:
                reinitialise(network)
            device = next(network.parameters()).device
            settle(network, (b for b, _ in zip(batches(loader, device), range(SETTLING))))
            probes.append(Probe(network, objective))
        layers = probes[0].layers
        whole = exact_group(*(layer.space for layer in layers.values()))
        positions = stabiliser(layers, whole)
        group = whole
        if len(positions) < whole.order:
            index = torch.tensor(positions)
            quotients = whole.quotients[index][:, index]
            quotients = torch.tensor([[positions.index(int(q)) for q in row] for row in quotients])
            group = ExactGroup(whole.gspace, tuple(whole.elements[k] for k in positions), quotients)
        actions = {}
        for name, layer in layers.items():
            with naming(name or type(layer).__name__):
                actions[name] = LayerAction(layer, group.counterparts(layer.space), generator)
        opened = len(positions) < whole.order
        plan = Plan(groups, units, in_type, out_type, inputs, curvature=gains, turned=not group.whole and not opened)
        sums = collect(probes, actions, group, loader, plan, generator, bar)
    for g, state in states:
        g.set_state(state)
    pathways = {n: {p.name: p for p in layer.pathways} for n, layer in layers.items()}
    dimensions = {n: layer.kernel.dimensions for n, layer in layers.items()}
    question = Question(pathways, dimensions, opened, draws, gains, inputs, level)
    return judge(sums, actions, group, question, generator)


def _check(draws: int, initialisations: int, groups: int, level: float) -> None:
    if draws < 1 or initialisations < 1:
        got = {"draws": draws, "initialisations": initialisations}
        remedy = "999 draws and 1 initialisation are the defaults"
        raise ArgumentError("symmetry_test", expected="draws and initialisations of 1 or more", got=got, remedy=remedy)
    if groups < 20:
        raise ArgumentError(
            "groups", expected="20 or more", got=groups, remedy="with fewer there is no power; 64 is the default"
        )
    if not 0 < level < 1:
        raise ArgumentError("level", expected="a fraction between 0 and 1", got=level, remedy="0.05 is the default")


def _bar(iterable: Iterable[Any]) -> Iterable[Any]:
    from tqdm import tqdm

    return tqdm(iterable, desc="symmetry test", unit="batch", delay=PATIENCE, leave=False)
