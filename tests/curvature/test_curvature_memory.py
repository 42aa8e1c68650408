"""A refresh keeps to the memory that it is given, whatever the curvature and the loader, or says by name that it
cannot.

The oracle is torch's profiler, which sees every allocation, also those within an operation.
"""

import re

import pytest
import torch
from curvature_oracles import Tensors, own_filters  # noqa: F401  # a fixture for all tests here
from escnn import gspaces
from escnn import nn as enn
from torch import nn
from torch.autograd.profiler import profile

from escnn_relax import Evidence, relax
from escnn_relax.curvature import data_pass
from escnn_relax.curvature.memory_budget import MIB, Budget, cut
from escnn_relax.curvature.curvature import Curvature
from escnn_relax.curvature.data_pass import DataPass
from escnn_relax.curvature.batch_format import Weighted
from escnn_relax.errors import ArgumentError, MemoryLimitError
from escnn_relax.evidence import CurvatureSettings

C4 = gspaces.rot2dOnR2(4)
#: Float32 columns summed in another order.
ORDER = 1e-4
KINDS = ["expand", "reduce", "exact", "diagonal", "eigenvalue-corrected", "sketched", "auto"]


class Net(nn.Module):
    def __init__(self, space=False):
        super().__init__()
        self.gray, fields = enn.FieldType(C4, [C4.trivial_repr]), enn.FieldType(C4, 2 * [C4.regular_repr])
        self.body = enn.SequentialModule(
            *(enn.R2Conv(self.gray, fields, 3, padding=1), enn.ReLU(fields)),
            *(enn.R2Conv(fields, fields, 3, padding=1), enn.ReLU(fields)),
        )
        self.linear, self.space = nn.Linear(fields.size, 4), space

    def forward(self, x):
        x = self.body(self.gray(x)).tensor
        return x[:, :4] if self.space else self.linear(x.mean((-2, -1)))


def case(samples=16, size=24, batch=16, space=False):
    torch.manual_seed(0)
    model = relax(Net(space))
    model.linear.requires_grad_(not space)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    x, y = torch.randn(samples, 1, size, size), torch.arange(samples) % 4
    y = y.view(-1, 1, 1).expand(-1, size, size).contiguous() if space else y
    return model, list(zip(x.split(batch), y.split(batch)))


def allocated(run):
    """Most bytes at a time that were allocated by a run and not freed yet."""
    with profile(profile_memory=True) as record:
        run()
    now = peak = 0
    for event in record.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


def enough(make, loader):
    """What the errors say is enough, in MiB; those from within a sample cannot know yet, and are answered with half
    as much more."""
    limit = 0.5
    for _ in range(30):
        try:
            make(limit)(loader)
            return limit
        except MemoryLimitError as error:
            said = re.search(r"(at least|more than) ([\d.]+) MiB", str(error))
            limit = float(said[2]) * 1.02 if said[1] == "at least" else 1.5 * limit
    raise AssertionError(f"not even {limit} MiB are enough")


def parts(monkeypatch):
    """The sizes of the chunks in which samples come."""
    sizes, take = [], DataPass.add

    def noted(self, input, target, *others):
        sizes.append(len(target))
        return take(self, input, target, *others)

    monkeypatch.setattr(DataPass, "add", noted)
    return sizes


@pytest.mark.parametrize("kind", KINDS)
def test_never_exceeded_and_the_same_numbers(kind, monkeypatch):
    model, loader = case()
    free = Curvature(model, "categorical", kind, samples=None)
    recipe, found = free.recipe, {}

    def make(limit):
        made = Curvature(model, "categorical", kind, samples=None, memory=limit)
        made.recipe = recipe  # under "auto" it depends on the memory
        return made

    whole = allocated(lambda: found.update(free=free(loader)))
    sizes = parts(monkeypatch)
    for times in (1.0, 1.4):
        limit = enough(make, loader) * times
        sizes.clear()
        assert allocated(lambda: found.update(cut=make(limit)(loader))) < limit * MIB
        assert sizes[0] == 1 and sum(sizes) == (32 if kind == "eigenvalue-corrected" else 16)
        assert 1 < len(sizes)
        assert found["free"].factors and set(found["free"].factors) == set(found["cut"].factors)
        for name in found["free"].factors:
            one, other = (found[which].eigenvalues(name).sort().values for which in ("free", "cut"))
            assert float((one - other).abs().max()) <= ORDER * float(one.max()), name
    if kind in ("expand", "reduce", "diagonal", "eigenvalue-corrected"):  # of the others the sums are the most
        assert whole > limit * MIB / 1.4, "nothing would have had to be cut"


def test_chunks_grow_with_the_memory(monkeypatch):
    model, loader = case()
    sizes, counts = parts(monkeypatch), []
    least = enough(lambda m: Curvature(model, memory=m), loader)
    for limit in (least, 1.5 * least, 400.0):
        sizes.clear()
        Curvature(model, memory=limit)(loader)
        counts.append(len(sizes))
    assert counts[0] > counts[1] > counts[2] == 3  # one sample and two to learn from, then all


def test_bound_of_growing_sums_is_needed(monkeypatch):
    """The broken twin: with nothing kept free for what follows, the limit is met in the middle of a pass."""
    model, loader = case()
    limit = enough(lambda m: Curvature(model, memory=m), loader)
    monkeypatch.setattr(Budget, "_fitting", lambda self, key, reserve: 16 if self._taken.get(key) else 1)
    with pytest.raises(MemoryLimitError):
        Curvature(model, memory=limit)(loader)


def test_outputs_at_every_pixel_and_outputs_apart():
    model, loader = case(4, 12, 4, space=True)
    limit = enough(lambda m: Curvature(model, memory=m), loader)
    assert allocated(lambda: Curvature(model, memory=limit)(loader)) < limit * MIB
    model, loader = case(8, 12, 8)
    loader = [(x, torch.randn(len(x), 4)) for x, _ in loader]
    make = lambda m: Curvature(model, "gaussian", "expand", apart=True, memory=m)
    limit = enough(make, loader)
    assert allocated(lambda: make(limit)(loader)) < limit * MIB


def test_spectra_of_an_evidence_are_within():
    model, loader = case()
    limit = enough(lambda m: Evidence(model, num_data=16, curvature=CurvatureSettings(memory=m)).refresh, loader)
    evidence = Evidence(model, num_data=16, curvature=CurvatureSettings(memory=limit))
    assert allocated(lambda: evidence.refresh(loader)) < limit * MIB


def test_too_little_is_named_and_leaves_all_as_it_was():
    model, loader = case()
    model.train()
    evidence = Evidence(model, num_data=16)
    before = evidence.refresh(loader)
    small = Evidence(model, num_data=16, curvature=CurvatureSettings(memory=0.1))
    with pytest.raises(
        MemoryLimitError, match=r"memory: a refresh cannot do with 0\.1 MiB, expected more than .* MiB"
    ) as caught:
        small.refresh(loader)
    assert isinstance(caught.value, MemoryError)
    assert all(p.requires_grad for p in model.parameters()) and model.training
    assert not any("forward" in vars(module) for module in model.modules())
    assert small.estimate is None
    assert evidence.refresh(loader).total == before.total
    for bad in (0, -1, float("nan")):
        with pytest.raises(ArgumentError, match="memory"):
            Evidence(model, num_data=16, curvature=CurvatureSettings(memory=bad))


class Shifted(nn.Module):
    """Reads a table that has no sample in it."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x, table):
        return self.linear(x + table)


def test_what_cannot_be_cut_comes_whole(monkeypatch):
    torch.manual_seed(0)
    model, sizes = Shifted(), parts(monkeypatch)
    loader = [(((torch.randn(8, 3)), torch.randn(3)), torch.arange(8) % 2)]
    Curvature(model, memory=4.0)(loader)
    assert sizes == [8]
    with pytest.raises(MemoryLimitError):
        Curvature(model, memory=1e-4)(loader)


def test_weights_of_samples_are_cut_along():
    model, loader = case()
    (x, y), weight = loader[0], torch.linspace(0, 2, 16)
    free = Curvature(model)([_weighted(x, y, weight)])
    cut_up = Curvature(model, memory=4.0)([_weighted(x, y, weight)])
    assert cut_up.loss == pytest.approx(free.loss, rel=1e-5)
    input, target = cut(x, Weighted(y, weight), 3, 5)
    assert torch.equal(input, x[3:5]) and torch.equal(target.target, y[3:5]) and torch.equal(target.weight, weight[3:5])


def _weighted(x, y, weight):
    return {"x": x, "target": y, "weight": weight}


def test_counted_are_storages_while_they_live():
    with Budget(10.0) as budget:
        x = torch.zeros(1000)
        y = x.view(10, 100)[1:]
        assert budget.now == 4000
        y = y + 1
        assert budget.now == 4000 + 3600 and budget.mark() == 7600
        del x, y
        assert budget.now == 0 and budget.peak == 7600
        with pytest.raises(MemoryLimitError):
            torch.zeros(4 * MIB)


def test_sums_in_bands_are_those_of_the_whole():
    from escnn_relax.curvature.sums.moments import BAND, Moments

    columns = torch.randn(2, 2 * BAND + 3, 5)
    banded, whole = Moments(), Moments()
    for _ in range(3):
        banded.add(columns)
        banded._flush()
        whole.add(columns)
    assert torch.allclose(banded.total, 3 * (columns @ columns.mT).double(), rtol=1e-6)
    assert torch.allclose(banded.total, whole.total, rtol=1e-5, atol=1e-4)
    assert data_pass.SPECTRA == 24


class Frames(nn.Module):
    """All first frames, then all second ones, through one layer."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x):
        rows = self.linear(x.transpose(0, 1).flatten(0, 1)).tanh()
        return rows.view(x.shape[1], len(x), 2).sum(0)


@pytest.mark.parametrize("memory", [None, 0.5])
def test_a_first_batch_of_one_sample_says_nothing_of_the_order_of_rows(memory):
    torch.manual_seed(0)
    model, x, y = Frames().double(), torch.randn(9, 4, 3).double(), torch.arange(9) % 2
    whole = Curvature(model, "categorical", "exact")([(x, y)])
    parted = Curvature(model, "categorical", "exact", memory=memory)([(x[:1], y[:1]), (x[1:], y[1:])])
    assert torch.allclose(whole.eigenvalues("linear.weight"), parted.eigenvalues("linear.weight"), rtol=1e-9)
