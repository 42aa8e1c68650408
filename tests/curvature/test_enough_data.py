"""When a part of the data is enough for a refresh, when training refreshes at all, and that cheap refreshes decide
as costly ones do."""

import math

import pytest
import torch
from escnn import gspaces
from escnn import nn as enn
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset
from nonempty import each

from escnn_relax import Evidence, EvidenceCallback, fit, relax
from escnn_relax.curvature.curvature import Curvature
from escnn_relax.curvature.enough_data import PLENTY, ROWS, SAMPLES, Enough
from escnn_relax.curvature.factors import KroneckerFactor
from escnn_relax.training.loaders import Onward
from escnn_relax.training.schedule import LAST, Schedule, first

C4 = gspaces.rot2dOnR2(4)


class Net(nn.Module):
    def __init__(self, fields=2, classes=3):
        super().__init__()
        self.gray = enn.FieldType(C4, [C4.trivial_repr])
        hidden = enn.FieldType(C4, fields * [C4.regular_repr])
        self.conv, self.act, self.pool = (
            enn.R2Conv(self.gray, hidden, 3, padding=1),
            enn.ReLU(hidden),
            enn.GroupPooling(hidden),
        )
        self.linear = nn.Linear(fields, classes)

    def forward(self, x):
        return self.linear(self.pool(self.act(self.conv(self.gray(x)))).tensor.mean((-2, -1)))


class Watched:
    """A loader that counts the batches that are taken from it."""

    def __init__(self, batches):
        self.batches, self.read = batches, 0

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        for batch in self.batches:
            self.read += 1
            yield batch


def data(count=1000, size=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 1, 5, 5, generator=generator)
    y = torch.bucketize(x[:, 0].square().mean((1, 2)), torch.tensor([0.88, 1.08]))  # three classes of about one size
    return [(x[k : k + size], y[k : k + size]) for k in range(0, count, size)]


def test_the_effective_number_is_that_of_the_formula():
    torch.manual_seed(0)
    weights = torch.rand(50).double() ** 6
    columns = weights.sqrt()[:, None, None] * torch.ones(50, 2, 3).double() / 6**0.5
    enough = Enough()
    passed = [c for part in columns.split(7) for c in enough.watch([part])]
    assert torch.equal(torch.cat(passed), columns), "what is watched goes on as it is"
    assert enough.effective == pytest.approx(float(weights.sum() ** 2 / weights.square().sum()), rel=1e-12)
    assert enough.effective < 25


class Certain(nn.Module):
    """Logits so large for most samples that their Hessian vanishes: all but each twentieth is certain."""

    def __init__(self, sizes=(1e3, 1.0)):
        super().__init__()
        self.linear, self.sizes = nn.Linear(4, 3), sizes

    def forward(self, x):
        rare = (x[:, :1] * 1e4).long() % 20 == 0
        return self.linear(x) * torch.where(rare, self.sizes[1], self.sizes[0])


@pytest.mark.parametrize(
    "sizes, least, most", [((1.0, 1.0), SAMPLES, 3 * SAMPLES), ((1e3, 1.0), 10 * SAMPLES, 60 * SAMPLES)]
)
def test_a_pass_ends_when_enough_samples_count(sizes, least, most):
    torch.manual_seed(0)
    x = torch.rand(8000, 4)
    loader = Watched([(x[k : k + 10], torch.randint(3, (10,))) for k in range(0, 8000, 10)])
    curvature = Curvature(Certain(sizes))
    estimate = curvature(loader, enough=Enough())
    assert least <= estimate.num_data <= most and loader.read == estimate.num_data / 10
    assert curvature(loader).num_data == 8000


def test_a_wide_layer_reads_more_rows_than_it_has_directions():
    torch.manual_seed(0)
    read = {}
    for width in (10, 300):
        x = torch.randn(4000, width)
        loader = [(x[k : k + 20], torch.randint(3, (20,))) for k in range(0, 4000, 20)]
        read[width] = Curvature(nn.Sequential(nn.Linear(width, 3)))(loader, enough=Enough()).num_data
    assert read[10] < 4 * SAMPLES and ROWS * 300 <= read[300] <= ROWS * 300 + 20


def test_enough_never_comes_at_the_end():
    loader = data(200)
    enough = Enough(math.inf, 2)
    assert Curvature(Net())(loader, enough=enough).num_data == 200 and enough.effective > 0


def test_where_all_is_read_plenty_of_rows_of_evenly_spaced_samples_do():
    """Not of the first: a loader may be sorted. A layer that has no more than plenty reads all."""
    torch.manual_seed(0)
    loader = data(3000)
    ordered = [(x + 3 * (k > len(loader) // 2), y) for k, (x, y) in enumerate(loader)]
    model = Net()
    every, some = (Curvature(model)(ordered, enough=Enough(math.inf, total=n)) for n in (None, 3000))
    assert every.num_data == some.num_data == 3000 and some.loss == every.loss
    pairs = [pair for name in every.factors for pair in zip(every.factors[name], some.factors[name])]
    kronecker = [(whole, thinned) for whole, thinned in pairs if isinstance(whole, KroneckerFactor)]
    for whole, thinned in each(kronecker):
        assert min(whole.rows, 0.9 * PLENTY * len(thinned.A)) <= thinned.rows <= whole.rows
        assert (thinned.A - whole.A).norm() < 0.15 * whole.A.norm()
    assert any(thinned.rows < whole.rows / 2 for whole, thinned in kronecker), "something was left out"
    few, whole = (Curvature(model)(ordered[:1], enough=Enough(math.inf, total=n)) for n in (20, None))
    for name in each(few.factors):
        assert [getattr(f, "rows", 1) for f in few.factors[name]] == [
            getattr(f, "rows", 1) for f in whole.factors[name]
        ]


@pytest.mark.parametrize("epochs", [1, 2, 3, 8, 20, 40, 100, 1000])
def test_refreshes_are_spaced_wider_and_wider(epochs):
    at = Schedule.plan([], epochs).epochs
    gaps = [b - a for a, b in zip(at[:-1], at[1:-1])]  # the last one comes near the end
    assert at == () or at[-1] == math.floor(0.9 * epochs)
    assert gaps == sorted(gaps) or 1 >= max(a - b for a, b in zip(gaps, gaps[1:]))  # roundings
    assert all(gap >= 1 for gap in gaps) and all(first(epochs) <= e < epochs for e in at)
    assert len(at) <= 3 + 3.2 * math.log(1 + epochs / 10), "as the logarithm of the training"
    if epochs >= 8:
        assert len(at) >= 3
    every = Schedule.plan([], epochs, burn_in=0, every=3).epochs
    assert every == tuple(range(0, epochs, 3))


def test_passes_that_end_early_look_at_all_batches():
    seen = [next(iter(Onward(range(20), index))) for index in range(40)]
    assert set(seen) == set(range(20))
    dataset = TensorDataset(torch.arange(20.0), torch.arange(20))
    in_order, shuffled = DataLoader(dataset, 2), DataLoader(dataset, 2, sampler=RandomSampler(dataset))
    assert Onward(in_order, 1).start > 0 == Onward(shuffled, 1).start
    for loader in (in_order, shuffled):
        assert sorted(int(y) for _, target in Onward(loader, 1) for y in target) == list(range(20))


def test_fit_looks_at_a_part_and_at_all_in_the_end():
    torch.manual_seed(0)
    batches, looks = data(), {}
    model = relax(Net())
    evidence = Evidence(model, num_data=1000)
    at = Schedule.plan(batches, 12).epochs

    def look(record):
        if record.evidence is not None:
            looks[record.epoch] = evidence.estimate.num_data

    history = fit(model, batches, epochs=12, evidence=evidence, callback=look, progress=False)
    assert list(looks) == [e for e, _ in history.evidences] == list(at) and len(at) >= 3
    assert all(SAMPLES <= samples < 600 for samples in looks.values()) and evidence.estimate.num_data == 1000
    looks.clear()
    fit(model, batches, epochs=3, evidence=evidence, callback=look, share=1, progress=False)
    assert looks and set(looks.values()) == {1000}


def test_a_default_run_resumes_the_same(tmp_path):
    def run(path, **options):
        torch.manual_seed(0)
        model = relax(Net())
        loader = DataLoader(
            TensorDataset(*map(torch.cat, zip(*data(300)))),
            20,
            shuffle=True,
            generator=torch.Generator().manual_seed(0),
        )
        return fit(model, loader, epochs=8, checkpoint=path, progress=False, **options), model

    expected, whole = run(tmp_path / "whole")

    def stop(record):
        if record.epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "part", callback=stop)
    resumed, model = run(tmp_path / "part")
    assert resumed.evidence.log_precision == expected.evidence.log_precision
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), model.parameters()))


@pytest.mark.slow
@pytest.mark.parametrize(
    "count, fields, noise", [(400, 2, 0.0), (12000, 2, 0.0), (2000, 1, 0.0), (2000, 30, 0.0), (2000, 2, 0.3)]
)
def test_a_part_gives_the_precisions_of_all(count, fields, noise):
    """With numbers of samples, widths and noises that differ by a factor of thirty. What is lost of the evidence is
    what counts."""
    torch.manual_seed(0)
    batches = data(count)
    if noise:
        batches = [(x, torch.where(torch.rand(len(y)) < noise, torch.randint(3, (len(y),)), y)) for x, y in batches]
    model = relax(Net(fields))
    evidence = fit(model, batches[:100], epochs=8, gates=False, lr=1e-2, num_data=count, progress=False).evidence
    start = dict(evidence.log_precision)
    evidence.refresh(batches)
    evidence.step(20)
    best, spectrum, gammas = evidence.terms().total, evidence.spectrum, evidence.effective_dimension()
    total = lambda: spectrum.terms(evidence.noise, evidence.log_precision, evidence.squares()).total  # by all data
    wanted = dict(evidence.log_precision)
    lost, off = [], []
    for index in range(5):
        evidence.log_precision.update(start)
        evidence.refresh(Onward(batches, index), enough=Enough())
        assert evidence.estimate.num_data < count or count < 500
        evidence.step(20)
        found = dict(evidence.log_precision)
        live = [name for name in found if gammas[name] > 1]
        assert live
        off.append(sum(abs(found[n] - wanted[n]) for n in live) / len(live))
        lost.append(best - total())
    # each direction that the data determine may cost gamma / 4 times the square of what its log precision is off by
    assert max(off) < 0.3 and max(lost) < 0.005 * abs(best)
    evidence.log_precision.update({n: v + 3 for n, v in wanted.items()})
    assert best - total() > max(lost), "it does matter"
    evidence.log_precision.update(start)
    last = evidence.refresh(batches, enough=Enough(math.inf, max(1, math.ceil(LAST / count)))).total
    assert last == pytest.approx(evidence.refresh(batches).total, rel=0.005)


@pytest.mark.parametrize("samples, found, drawn", [("auto", 3, 3), ("auto", 8, 8), (None, 3, None), (2, 3, 2)])
def test_columns_are_drawn_where_that_is_less_than_all(samples, found, drawn):
    """Ten classes have nine columns, since a softmax has one direction less than outputs."""
    curvature = Curvature(relax(Net(classes=10)), "categorical", "expand", samples=samples)
    assert curvature._draws(torch.zeros(4, 10), Enough(columns=found)) == drawn
    assert curvature._draws(torch.zeros(4, 10), Enough(columns=9)) == (drawn if samples == 2 else None)
    assert curvature._draws(torch.zeros(4, 10), None) == (drawn if samples == 2 else None)


def test_places_of_one_image_are_no_rows_of_their_own():
    """Bumps: their neighbouring places are alike, so hundreds of images are read, whatever their places."""
    generator = torch.Generator().manual_seed(0)
    centre, width = 10 + 3 * torch.randn(2000, 2, 1, 1, generator=generator), 2 + 3 * torch.rand(2000, 1, 1)
    rows, columns = torch.meshgrid(torch.arange(20.0), torch.arange(20.0), indexing="ij")
    x = torch.exp(-((rows - centre[:, 0]) ** 2 + (columns - centre[:, 1]) ** 2) / (2 * width**2))[:, None]
    batches = [(x[i : i + 100], torch.arange(100) % 3) for i in range(0, 2000, 100)]
    model = relax(Net())

    def scale(total, part=slice(None)):
        curvature = Curvature(model, "categorical", "expand")
        blocks = curvature(batches[part], enough=Enough(math.inf, total=total)).factors.values()
        inputs = [block.A for factors in blocks for block in factors if isinstance(block, KroneckerFactor)]
        return torch.stack([A.trace() for A in each(inputs)])

    assert torch.equal(scale(600, slice(6)), scale(None, slice(6)))
    off = (scale(2000) / scale(None) - 1).abs()
    assert 0 < off.max() < 0.1


@pytest.mark.parametrize("option", [{}, {"num_data": 60000}, {"evidence_loader": True}, {"evidence": True}])
def test_samples_are_left_out_by_how_many_the_loader_holds(option):
    """Not by how many the evidence speaks for, which would leave one of sixty."""
    loader, model = [(torch.randn(30, 1, 6, 6), torch.arange(30) % 3) for _ in range(2)], relax(Net())
    if "evidence_loader" in option:
        option = {"evidence_loader": loader[:1]}
    if "evidence" in option:
        option = {"evidence": Evidence(model, num_data=60000)}
    policy = EvidenceCallback(model, loader, epochs=3, **option).policy
    assert policy.schedule.last.enough.total == (None if option else 60)
