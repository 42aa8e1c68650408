"""Which pathways a training run opens and closes: the symmetry test opens and sizes, what has died by the evidence is
closed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sized
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import LBFGS, Optimizer

from ..curvature.distributed import gather_processes, processes
from ..curvature.layers.coverage import join
from ..diagnosis import SymmetryTest, symmetry_test
from ..diagnosis.exact_group import exact_group
from ..diagnosis.pathway_test import PathwayTest
from ..diagnosis.strictness import stabiliser
from ..errors import ArgumentError, RelaxError
from ..evidence.closed_pathways import opening_precisions
from ..evidence.evidence import Evidence
from ..evidence.precision_updates import FixedWeights, mackay_updates
from ..nn.evidence_record import DETERMINED
from ..nn.gates import Gated
from ..nn.steerable import SteerableConvolution
from ..symmetry.kernels.pathway import SWITCHED_OFF

__all__ = ["Gates", "LEVEL", "refuse_forgotten"]

#: Family-wise error of each test. What it opens wrongly holds a percent of a kernel or less, and goes in the end: the
#: evidence of the last refresh is better without it, so that ``survivors`` and ``harden`` leave it out.
LEVEL = 0.05
#: What a pathway has to gain in evidence (nats) before a network that learns without it opens it: where its irrep is
#: found broken, in its own layer or another, as little as chance gains; and where no test of it can be had.
GAIN, UNTESTED = 0.5, 10.0
#: Random elements drawn for the null distribution: the smallest p-value is a quarter of the level.
DRAWS = 399
#: Groups of samples that a test randomises: as many as the loader has batches, so that it costs about an epoch, between
#: these.
GROUPS = 32, 64
#: A pathway is closed when it was switched off at so many refreshes in a row.
PATIENCE = 2
#: MacKay's updates to the precisions at which that is judged, see :meth:`Evidence.step <escnn_relax.Evidence.step>`.
UPDATES, DAMPING = 6, 0.5


class Gates:
    """Keeps pathways closed until the data ask for them.

    A pathway opens if :func:`~escnn_relax.symmetry_test` finds its irrep broken in its layer (adjusted p-value at most
    :data:`LEVEL`), with the precision that the test suggests. A network that learns is tested after a few strict epochs
    and at the first refreshes: at random weights all that is broken gains, even what the trained network does without,
    and its evidence ended 5 to 11 % below that of the strict network on 650 upright digits. An irrep that is found
    broken in one layer is no symmetry of the data, so that for all others it is for the evidence alone to say: they
    follow where they gain :data:`GAIN` nats, as it has to in its own layer. A network that
    learns nothing while it is strict is tested at each refresh, and what is broken is opened. Once a pathway is open
    tests are by the elements that this one keeps only. What these do not move cannot be tested any more, and opens
    where a network that learns would gain :data:`UNTESTED` nats by it.

    A pathway that opens in a network that has learned keeps the precision of the test until the training ends, and only
    then gets the evidence's. The test sees what the strict network lacks; MacKay's update sees a pathway on its way.
    Samples that are known by heart have little curvature, and so precisions rose until nothing was left of the pathways
    (``tests/benchmarks/gates.md``: 350 upright digits, no batch norm, 83 % of test data right instead of 90, and twice
    the minus log evidence). There are two exceptions, in which the evidence moves the precision at each refresh: a
    likelihood with a noise, which is measured and knows how far the samples are known, and a network that had learned
    nothing when the pathway opened, whose weights say little about its size.

    The evidence closes a pathway which holds at most :data:`SWITCHED_OFF` of its layer's energy, and at most
    :data:`DETERMINED` of whose dimension the data would determine at its best precision, at :data:`PATIENCE` refreshes
    in a row; only a later test opens it again, and there are few of them, so nothing thrashes.

    In several processes each tests its share of the data at a share of the level, and what one of them finds opens in
    all.

    Pathways that hold weights already stay open, and those whose precision is fixed stay as they are. Where the test
    cannot be had, all are open: they start at the precision that the evidence was made with, and :attr:`note` says why.

    Args:
        evidence: of a relaxed model.
        loader: all the data.
        wrapped: what is trained, the model or a ``DistributedDataParallel`` of it.
        progress: show a progress bar for tests that take more than some seconds.

    Raises:
        ArgumentError: a ``DistributedDataParallel`` that would wait for the gradients of closed pathways, or that does
            not know them, since they were closed when it was made.
    """

    def __init__(
        self, evidence: Evidence, loader: Iterable[Any], wrapped: nn.Module | None = None, progress: bool = False
    ) -> None:
        if isinstance(wrapped, DistributedDataParallel) and not wrapped.find_unused_parameters and evidence.gates:
            problem = "pathways that fit closes have no gradient, for which this DistributedDataParallel would wait"
            remedy = "wrap the model with find_unused_parameters=True, or pass gates=False"
            raise ArgumentError("gates", problem, remedy=remedy)
        refuse_forgotten(wrapped, evidence)
        self.evidence, self.loader, self.progress = evidence, loader, progress
        self.note = ""
        self.tested = False
        self.idle: dict[str, int] = {}
        self.otherwise: dict[str, float] = {}
        self.broken: set[str] = set()
        self.sized: set[str] = set()  # weights whose precision is the test's, of a network that had learned

    def state_dict(self) -> dict[str, Any]:
        """What has been idle for how many refreshes, why there was no test, whether there was one, what opens how
        where it cannot be had, which irreps were found broken, and which pathways have the test's precision."""
        state = {"idle": dict(self.idle), "note": self.note, "tested": self.tested, "otherwise": dict(self.otherwise)}
        return state | {"broken": sorted(self.broken), "sized": sorted(self.sized)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The way back; of a checkpoint that has none of it, all anew."""
        self.idle, self.note = dict(state.get("idle", {})), state.get("note", "")
        self.tested = bool(state.get("tested", False))
        self.otherwise = dict(state.get("otherwise", {}))
        self.broken, self.sized = set(state.get("broken", ())), set(state.get("sized", ()))

    def start(self) -> None:
        """Close what is zero."""
        known = self.movable()
        silent = [name for name, (layer, pathway) in known.items() if not bool(layer.weights[pathway].any())]
        before = {name: self.evidence.log_precision[name] for name in silent}
        self.evidence.close(silent)
        self.otherwise |= {n: v for n, v in before.items() if v != math.inf}

    @property
    def unmoved(self) -> set[str]:
        """Names of weights whose precisions the evidence leaves as the test suggested them."""
        return set() if self.evidence.likelihood.noisy else self.sized

    def movable(self) -> dict[str, tuple[Gated, str]]:
        """What can be closed, but for what has a precision that is fixed."""
        prior = self.evidence.prior
        fixed = {name for group in prior.fixed for name in prior.groups[group]}
        return {name: gate for name, gate in self.evidence.gates.items() if name not in fixed}

    def test(self, learned: bool = False) -> str:
        """Test what is closed, open what is broken; returns what happened, in words.

        Args:
            learned: what is opened has to gain :data:`GAIN` nats, too.
        """
        if not self.evidence.closed or self.note:
            return ""
        if self._symmetric():
            return self._test(learned)
        if self.tested:  # what is open left no element to test by
            return self._test(learned) if learned else ""
        if not self.otherwise:
            return ""
        self.evidence.open(self.otherwise)
        self.note = "no symmetry test (no element is left that is exact on the grid): all pathways are open"
        return self.note

    def _symmetric(self) -> bool:
        """Whether open pathways leave any element but the identity; the same in all processes, as weights are."""
        layers = {name: m for name, m in self.evidence.layers.items() if isinstance(m, SteerableConvolution)}
        try:
            return len(stabiliser(layers, exact_group(*(layer.space for layer in layers.values())))) > 1
        except RelaxError:  # which the test itself puts into words
            return True

    def _test(self, learned: bool) -> str:
        starts: dict[str, float] = {}
        problem = ""
        try:
            test = symmetry_test(
                self.evidence.model,
                self.loader,
                likelihood=self.evidence.likelihood,
                draws=(DRAWS + 1) * processes() - 1,
                groups=_groups(self.loader),
                level=LEVEL / processes(),
                gains=learned,
                progress=self.progress,
            )
            self.broken |= {self._irrep(record) for record in test.tests if record.broken}
            gains = self._gains(test) if learned else {}
            gain = GAIN if learned else -math.inf
            # what cannot be told is opened once: later the evidence has judged it
            starts = opening_precisions(test, self.evidence.initial, not self.tested, gain, gains)
        except RelaxError as error:
            problem = f"no symmetry test ({error})"
        everywhere = gather_processes((starts, problem, self.broken))
        problem = next((p for _, p, _ in everywhere if p), "")
        starts = {name: value for precisions, *_ in reversed(everywhere) for name, value in precisions.items()}
        self.broken = {irrep for *_, broken in everywhere for irrep in broken}
        if problem:
            self.note = problem
            if not self.tested and self.otherwise:
                self.evidence.open(self.otherwise)
                self.note += ": all pathways are open"
            return self.note
        self.tested = True
        shut = set(self.evidence.closed)
        opened = self.evidence.open({n: v for n, v in starts.items() if n in shut})
        if learned:
            self.sized |= {name for name in opened if self._is_sized(name, starts[name])}
        return f"opened {', '.join(opened)}" if opened else ""

    def _is_sized(self, name: str, log_precision: float) -> bool:
        """Whether what opened has the precision of the test, and that alone: not the initial one, nor its group's."""
        group = next(members for members in self.evidence.prior.groups.values() if name in members)
        return len(group) == 1 and log_precision != self.evidence.initial[name]

    def _irrep(self, record: PathwayTest) -> str:
        """What a pathway breaks, by the same name in all layers of a group."""
        layer: Any = self.evidence.layers[record.layer]
        return f"{layer.space.fibergroup.name} {record.pathway}"

    def _gains(self, test: SymmetryTest) -> dict[str, float]:
        """What opens without being found broken in its own layer, and from how many nats on."""
        gains = {}
        for record in test.tests:
            following = self._irrep(record) in self.broken
            if following or record.left_behind:
                gains[join(record.layer, f"weights.{record.pathway}")] = GAIN if following else UNTESTED
        return gains

    def prune(self, *optimizers: Optimizer) -> str:
        """Close what the evidence switches off at the precisions that suit it best, and what optimizers remember of it;
        to be called after a refresh."""
        evidence = self.evidence
        weights = FixedWeights(evidence.spectrum, evidence.prior, evidence.squares())
        logs, noise = mackay_updates(weights, evidence.log_precision, evidence.noise, UPDATES, DAMPING)
        gammas = evidence.spectrum.effective_dimension(noise, logs)
        gone = []
        known = self.movable()
        for name, (layer, pathway) in known.items():
            if pathway in layer.closed:
                continue
            values = layer.weights[pathway]
            relaxed: Any = layer
            share = relaxed.energies().get(pathway, 0.0)
            dead = share <= SWITCHED_OFF and gammas.get(name, math.inf) <= DETERMINED * values.numel()
            self.idle[name] = self.idle.get(name, 0) + 1 if dead and bool(values.any()) else 0
            if self.idle[name] >= PATIENCE:
                gone.append(name)
        gone = list(dict.fromkeys(name for names in gather_processes(gone) for name in names))
        if gone:
            evidence.close(gone)
            for optimizer in optimizers:
                for layer, pathway in map(known.__getitem__, gone):
                    optimizer.state.pop(layer.weights[pathway], None)
                if isinstance(optimizer, LBFGS):
                    optimizer.state.clear()  # its former steps would move what has no gradient any more
            for name in gone:
                self.idle.pop(name, None)
                self.sized.discard(name)
        return f"closed {', '.join(gone)}" if gone else ""


def _groups(loader: Iterable[Any]) -> int:
    least, most = GROUPS
    return min(most, max(least, len(loader))) if isinstance(loader, Sized) else most


def refuse_forgotten(wrapped: nn.Module | None, evidence: Evidence) -> None:
    """``ArgumentError`` for a ``DistributedDataParallel`` that does not know pathways which may open."""
    if isinstance(wrapped, DistributedDataParallel) and _forgotten(wrapped, evidence):
        problem = (
            "this DistributedDataParallel was made while pathways were closed: it would not add up their gradients"
        )
        remedy = "call evidence.open(...) on them, or layer.open(*layer.closed), before the model is wrapped"
        raise ArgumentError("gates", problem, got=evidence.closed[0], remedy=remedy)


def _forgotten(wrapped: DistributedDataParallel, evidence: Evidence) -> bool:
    """Whether closed pathways are not among the parameters whose gradients it adds up."""
    shut = set(evidence.closed)
    number = sum(p.requires_grad or name in shut for name, p in evidence.model.named_parameters())
    return bool(shut) and int(wrapped._get_ddp_logging_data().get("num_parameter_tensors", number)) < number
