"""Training by the evidence: resumption, waiting, errors that leave everything as it was."""

import copy
import math

import numpy as np
import pytest
import torch
from escnn import gspaces
from escnn import nn as enn
from nonempty import each
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, SubsetRandomSampler, TensorDataset

from escnn_relax import Evidence, fit, harden, relax, report, survivors
from escnn_relax.errors import ArgumentError, CheckpointError, CoverageError, DataError, LikelihoodError
from escnn_relax.evidence import CurvatureSettings, NoiseSettings, PriorSettings
from escnn_relax.curvature.likelihood import likelihood
from escnn_relax.curvature.sums.accumulation import Expand
from escnn_relax.training.evidence_policy import EvidencePolicy
from escnn_relax.training.gate_policy import Gates
from escnn_relax.training.history import EpochRecord
from escnn_relax.training.loaders import LoaderPart, data_size
from escnn_relax.training.regression_units import settle_units
from escnn_relax.training.has_learned import has_learned

SHORT = {"epochs": 6, "burn_in": 1, "refresh_every": 2, "hypersteps": 2, "progress": False}


class Net(nn.Module):
    def __init__(self, outputs=3):
        super().__init__()
        space = gspaces.rot2dOnR2(4)
        self.gray = enn.FieldType(space, [space.trivial_repr])
        hidden = enn.FieldType(space, 2 * [space.regular_repr])
        self.convolution = enn.R2Conv(self.gray, hidden, 3, padding=1)
        self.activation, self.pool = enn.ReLU(hidden), enn.GroupPooling(hidden)
        self.linear = nn.Linear(2, outputs)

    def forward(self, x):
        return self.linear(self.pool(self.activation(self.convolution(self.gray(x)))).tensor.mean((-2, -1)))


def net(outputs=3):
    torch.manual_seed(0)
    return relax(Net(outputs))


def loader(count=24, classes=3, seed=0):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(count, 1, 5, 5, generator=generator)
    y = (x.mean((1, 2, 3)) * 20).long().clamp(-1, 1) + 1
    return DataLoader(
        TensorDataset(x, y.clamp(max=classes - 1)), 8, shuffle=True, generator=torch.Generator().manual_seed(seed)
    )


def test_fit_returns_history_and_moves_precisions():
    model = net()
    seen = []
    history = fit(model, loader(), callback=seen.append, **SHORT)
    assert [r.epoch for r in history.records] == list(range(6))
    assert seen == history.records and isinstance(seen[0], EpochRecord)
    assert [epoch for epoch, _ in history.evidences] == [1, 3, 5]
    assert history.records[5].log_precision != history.records[3].log_precision
    assert not torch.isnan(model.convolution.log_precision).any()
    assert "log evidence" in str(history) and len(history.to_dict()["records"]) == 6
    # the last refresh is of the trained weights
    again = Evidence(model, num_data=24)
    again.log_precision = dict(history.evidence.log_precision)
    assert again.refresh(loader()).total == pytest.approx(history.evidence.log_marginal_likelihood(), rel=1e-5)


class Stop(Exception):
    pass


@pytest.mark.parametrize("signal", [KeyboardInterrupt, Stop])
def test_interrupted_and_resumed_run_ends_the_same(tmp_path, signal):
    whole = net()
    reference = fit(whole, loader(), **SHORT)

    def interrupt(record):
        if record.epoch == 2:
            raise signal

    path = tmp_path / "run" / "checkpoint.pt"
    with pytest.raises(signal):
        fit(net(), loader(), checkpoint=path, callback=interrupt, **SHORT)
    resumed = net()
    torch.manual_seed(99)  # whatever happened in between
    resumed_loader = loader(seed=77)
    history = fit(resumed, resumed_loader, checkpoint=path, **SHORT)
    assert len(history.records) == 6
    for a, b in each(zip(whole.parameters(), resumed.parameters(), strict=True)):
        assert torch.equal(a, b)
    assert history.evidence.log_precision == reference.evidence.log_precision
    assert history.to_dict() == reference.to_dict()
    # the broken twin: a run that starts anew from the same state ends elsewhere
    other = net()
    fit(other, loader(seed=77), **SHORT)
    assert any(not torch.equal(a, b) for a, b in zip(whole.parameters(), other.parameters()))


def test_each_refresh_looks_at_the_next_part():
    batches = list(loader())  # three of eight samples
    seen = []

    class Watched(list):
        def __iter__(self):
            for index, batch in enumerate(super().__iter__()):
                seen.append(index)
                yield batch

    model = net()
    history = fit(model, loader(), evidence_loader=Watched(batches), share=0.3, keep=0.5, num_data=24, **SHORT)
    # one before anything is trained; epochs 1, 3, 5, one batch more than the part is ever fetched; the last refresh is
    # of all
    assert [i for i, after in zip(seen, [*seen[1:], 0]) if after <= i] == [0, 0, 1, 2, 2]
    again = Evidence(model, num_data=24)
    again.log_precision = dict(history.evidence.log_precision)
    assert again.refresh(batches).total == pytest.approx(history.evidence.log_marginal_likelihood(), rel=1e-5)


@pytest.mark.parametrize("length, share", [(5, 0.4), (7, 0.3), (3, 0.34), (10, 0.25), (1, 0.5), (4, 1.0)])
def test_all_batches_are_looked_at_equally_often(length, share):
    seen = [batch for index in range(length) for batch in LoaderPart(range(length), share, index)]
    size = len(list(LoaderPart(range(length), share, 0)))
    assert size == math.ceil(share * length) and all(seen.count(batch) == size for batch in range(length))
    for index in each(range(length)):
        part = list(LoaderPart(range(length), share, index))
        assert len(set(part)) == size and part == sorted(part)


def test_running_average_over_parts_resumes_the_same(tmp_path):
    options = {**SHORT, "share": 0.5, "keep": 0.3, "curvature": CurvatureSettings(samples=1)}
    whole, parts = net(), net()
    torch.manual_seed(1)
    expected = fit(whole, loader(), **options)

    def stop(record):
        if record.epoch == 3:
            raise KeyboardInterrupt

    torch.manual_seed(1)
    with pytest.raises(KeyboardInterrupt):
        fit(parts, loader(), callback=stop, checkpoint=tmp_path / "run", **options)
    torch.manual_seed(2)
    resumed = fit(net(), loader(), checkpoint=tmp_path / "run", **options)
    assert resumed.evidence.log_precision == expected.evidence.log_precision
    assert resumed.records[5].log_precision != resumed.records[3].log_precision


@pytest.mark.parametrize("share", [0, -0.5, 1.5, float("nan")])
def test_share_is_a_fraction(share):
    with pytest.raises(ArgumentError, match="share"):
        fit(net(), loader(), share=share, **SHORT)


def test_share_of_an_unknown_number_of_batches():
    class Stream:
        def __iter__(self):
            return iter(loader())

    with pytest.raises(ArgumentError, match="the number of batches is not known"):
        fit(net(), loader(), evidence_loader=Stream(), share=0.5, num_data=24, **SHORT)


def test_finished_run_is_not_repeated(tmp_path):
    path = tmp_path / "checkpoint.pt"
    model = net()
    fit(model, loader(), checkpoint=path, **SHORT)
    before = [p.clone() for p in model.parameters()]
    calls = []
    fit(model, loader(), checkpoint=path, callback=calls.append, **SHORT)
    assert not calls and all(torch.equal(a, b) for a, b in zip(before, model.parameters()))


def test_a_finished_run_has_its_slopes_again(tmp_path):
    path = tmp_path / "checkpoint.pt"
    first = fit(net(), loader(), checkpoint=path, **SHORT).evidence
    again = fit(net(), loader(), checkpoint=path, **SHORT).evidence
    slopes = first.slopes.read()
    assert set(slopes) == set(again.slopes.read()) and first.slopes.left() > 0
    for name, slope in each(slopes.items()):
        assert torch.equal(slope, again.slopes.read()[name])
    state = torch.load(path, weights_only=True)
    del state["slopes"]  # as older versions wrote it
    torch.save(state, path)
    assert fit(net(), loader(), checkpoint=path, **SHORT).evidence.slopes is None


def also_tested(refreshed):
    """A refresh that is followed by a test each time."""

    def also(self, *arguments):
        record = refreshed(self, *arguments)
        self.gates._test(False)
        return record

    return also


@pytest.mark.parametrize("place", ["refresh", "step", "_test"])
def test_an_epoch_is_undone_wherever_it_fails(monkeypatch, tmp_path, place):
    """After the error it goes on as if nothing had been: in memory as it was before the epoch, from the file as a run
    that never failed."""
    if place == "_test":
        monkeypatch.setattr(EvidencePolicy, "_refreshed", also_tested(EvidencePolicy._refreshed))
    whole, model = net(), net()
    schedulers, kept, failed = [], [], []
    owner = Gates if place == "_test" else Evidence
    inner = getattr(owner, place)

    def fails(self, *arguments, **options):
        found = inner(self, *arguments, **options)  # has changed what it changes
        if getattr(self, "evidence", self).model is model and len(kept) == 3 and not failed:
            failed.append(copy.deepcopy(model.state_dict()))
            raise DataError("planted", "a fault", remedy="none")
        return found

    monkeypatch.setattr(owner, place, fails)

    def scheduler(optimizer):
        schedulers.append(torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6, eta_min=1e-4))
        return schedulers[-1]

    def keep(record):
        kept.append((copy.deepcopy(model.state_dict()), copy.deepcopy(schedulers[-1].state_dict())))

    options = {**SHORT, "gates": True, "scheduler": scheduler}
    torch.manual_seed(1)
    expected = fit(whole, loader(), **options)
    options |= {"checkpoint": tmp_path / "checkpoint.pt", "callback": keep}
    torch.manual_seed(1)
    with pytest.raises(DataError, match="planted"):
        fit(model, loader(), **options)
    (weights, annealed), (during,) = kept[-1], failed
    assert any(not torch.equal(during[n], weights[n]) for n in weights if "weight" in n), "the descent had moved them"
    assert schedulers[-1].state_dict() == annealed
    for name, value in each(model.state_dict().items()):
        assert torch.equal(value.nan_to_num(-7.0), weights[name].nan_to_num(-7.0)), name
    resumed = fit(model, loader(), **options)
    assert resumed.evidence.log_precision == expected.evidence.log_precision
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), whole.parameters(), strict=True))


def test_a_state_that_could_not_be_read_again_is_refused_by_name(tmp_path):
    class Odd(torch.optim.lr_scheduler.LambdaLR):
        def state_dict(self):
            return {**super().state_dict(), "odd": [1, {"inside": object()}]}

    path = tmp_path / "checkpoint.pt"
    options = {**SHORT, "scheduler": lambda o: Odd(o, lambda epoch: 1.0), "checkpoint": path}
    with pytest.raises(CheckpointError, match=r"scheduler.odd\[1\].inside could not be read again.*object"):
        fit(net(), loader(), **options)
    assert not path.exists() and not list(tmp_path.iterdir())


def test_an_approximation_of_ones_own_resumes(tmp_path):
    """Its factors are in the file, where a running average is kept; what its class puts there has to be readable."""

    class Name(str):
        pass

    class Own(Expand):
        name = "own"

    class Odd(Own):
        name = Name("odd")

    options = {**SHORT, "keep": 0.5, "share": 0.5, "checkpoint": tmp_path / "own.pt"}
    whole = fit(net(), loader(), curvature=Own(), **{**options, "checkpoint": None}).evidence

    def stop(record):
        if record.epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(net(), loader(), curvature=Own(), callback=stop, **options)
    assert fit(net(), loader(), curvature=Own(), **options).evidence.log_precision == whole.log_precision
    with pytest.raises(CheckpointError, match="run.curvature.*Name"):
        fit(net(), loader(), curvature=Odd(), **{**options, "checkpoint": tmp_path / "odd.pt"})


def test_what_auto_chose_is_said_once(caplog, monkeypatch):
    monkeypatch.setattr("escnn_relax.curvature.approximation_choice.LARGEST_PATCH", 8)
    with caplog.at_level("WARNING"):
        fit(net(), loader(), curvature="auto", **SHORT)
    assert sum("curvature='auto'" in record.message for record in caplog.records) == 1


def test_an_optimizer_without_what_may_open_is_refused_before_anything_is_trained():
    model = net()
    model.convolution.close("irrep_1", "irrep_2")
    before = copy.deepcopy(model.state_dict())
    own = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    with pytest.raises(ArgumentError, match="no optimizer holds the weights of 2 pathways that may open"):
        fit(model, loader(), optimizer=own, **SHORT)
    assert all(torch.equal(value.nan_to_num(), before[n].nan_to_num()) for n, value in model.state_dict().items())


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_whether_a_density_has_learned_is_the_same_in_any_units(scale):
    """The loss of a density moves by the logarithm of the unit, and so does the constant's: their ratio says nothing.
    Networks that explain 80 % and nothing of the variance, in three units."""
    torch.manual_seed(0)
    clear, noise, of = torch.randn(200, 1), torch.randn(200, 1), likelihood("heteroscedastic")
    for share, learned in ((0.8, True), (0.0, False)):
        y = scale * (share**0.5 * clear + (1 - share) ** 0.5 * noise)
        width = torch.full_like(y, math.log(scale**2 * (1 - share)))
        loss = float(of.loss(torch.cat([scale * share**0.5 * clear, width], 1), y)) / 200
        assert has_learned(loss, of.constant_loss(y), 1.0) == learned
    ratio = [has_learned(-1.0 + shift, -0.98 + shift) for shift in (0.0, 2.0, 20.0)]
    assert ratio == [True, False, False], "what the ratio says of one network in three units"


def test_a_density_of_large_targets_waits_as_one_of_small():
    notes = []
    for scale in (1e-3, 1.0, 1e3):
        torch.manual_seed(0)
        x = torch.randn(240, 1, 5, 5)
        y = scale * x.square().mean((1, 2, 3)).unsqueeze(1)
        model = relax(Net(2))
        with torch.no_grad():
            model.linear.weight.zero_()
            model.linear.bias.copy_(torch.tensor([float(y.mean()), 2 * math.log(float(y.std()))]))
        still = lambda p: torch.optim.SGD(p, 0.0)
        options = {**SHORT, "likelihood": "heteroscedastic", "gates": False, "optimizer": still}
        with pytest.warns(UserWarning, match="no better than a constant"):
            history = fit(model, DataLoader(TensorDataset(x, y), 40), **options)
        notes.append([record.note for record in history.records])
    assert notes[0] == notes[1] == notes[2] and "wait" in notes[0][1]


def test_checkpoint_of_another_run(tmp_path):
    path = tmp_path / "checkpoint.pt"
    fit(net(), loader(), checkpoint=path, **SHORT)
    with pytest.raises(CheckpointError, match="epochs.*delete it"):
        fit(net(), loader(), checkpoint=path, **{**SHORT, "epochs": 7})
    path.write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="cannot be read"):
        fit(net(), loader(), checkpoint=path, **SHORT)


def test_precisions_wait_while_nothing_is_learned():
    """Labels that are noise: in the first half no precision moves, later they do."""
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(32, 1, 5, 5, generator=generator), torch.randint(3, (32,), generator=generator))
    model = net()
    history = fit(model, DataLoader(data, 8), lr=1e-5, gates=False, **SHORT)
    assert history.records[1].note and not history.records[3].note
    start = Evidence(net()).log_precision
    assert history.records[1].log_precision == start
    assert history.records[3].log_precision != start


def test_regression_learns_the_noise():
    torch.manual_seed(0)
    x = torch.randn(64, 1, 5, 5)
    y = 3 * x.mean((1, 2, 3)).unsqueeze(1) + 0.1 * torch.randn(64, 1)
    history = fit(net(1), DataLoader(TensorDataset(x, y), 16), likelihood="gaussian", **{**SHORT, "epochs": 20})
    assert history.evidence.log_noise < -0.5


def test_bad_arguments():
    with pytest.raises(ArgumentError, match="refresh_every"):
        fit(net(), loader(), **{**SHORT, "refresh_every": 0})
    model = net()
    with pytest.raises(ArgumentError, match="both evidence and options"):
        fit(model, loader(), evidence=Evidence(model, num_data=24), curvature="reduce", **SHORT)
    with pytest.raises(ArgumentError, match="another model"):
        fit(net(), loader(), evidence=Evidence(model, num_data=24), **SHORT)
    with pytest.raises(CoverageError, match="relax"):
        fit(Net(), loader(), **SHORT)
    with pytest.raises(LikelihoodError, match="categorical"):
        fit(net(), loader(), likelihood="poisson", **SHORT)


def normed():
    """A relaxed convolution, a plain escnn one, batch norm and dropout."""
    torch.manual_seed(0)
    model = Net()
    hidden = model.activation.in_type
    second = enn.R2Conv(hidden, hidden, 3, padding=1)
    model.activation = enn.SequentialModule(enn.InnerBatchNorm(hidden), second, enn.PointwiseDropout(hidden, 0.2))
    return relax(model, layers=["convolution"])


@pytest.mark.parametrize("training", [True, False])
def test_resume_with_plain_layers_batch_norm_and_dropout(tmp_path, training):
    def start():
        torch.manual_seed(0)
        return normed().train(training)

    def interrupt(record):
        if record.epoch == 2:
            raise Stop

    whole, resumed, path = start(), start(), tmp_path / "checkpoint.pt"
    fit(whole, loader(), **SHORT)
    with pytest.raises(Stop):
        fit(start(), loader(), checkpoint=path, callback=interrupt, **SHORT)
    fit(resumed, loader(seed=3), checkpoint=path, **SHORT)
    for (name, a), b in each(zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True)):
        assert torch.equal(a, b), name


def test_resume_with_generators_in_samplers_and_another_optimiser(tmp_path):
    def loaders(seed):
        data = loader().dataset
        generators = [torch.Generator().manual_seed(seed + k) for k in range(2)]
        train = DataLoader(data, 8, sampler=RandomSampler(data, generator=generators[0]))
        return train, DataLoader(data, 8, shuffle=True, generator=generators[1])

    def run(model, seed, **options):
        train, evidence = loaders(seed)
        numbers = {
            "prior": PriorSettings(residual_log_precision=np.log(20.0)),
            "curvature": CurvatureSettings(samples=2),
        }  # a numpy scalar must not spoil the file
        settings = {"optimizer": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), **SHORT, **numbers, **options}
        return fit(model, train, evidence_loader=evidence, **settings)

    def interrupt(record):
        if record.epoch == 3:
            raise Stop

    whole, resumed, path = net(), net(), tmp_path / "checkpoint.pt"
    run(whole, 1)
    with pytest.raises(Stop):
        torch.manual_seed(0)
        run(net(), 1, checkpoint=path, callback=interrupt)
    run(resumed, 9, checkpoint=path)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters()))
    for other in (
        {"optimizer": None},
        {"curvature": CurvatureSettings(samples=1)},
        {"noise": NoiseSettings(temperature=2.0)},
        {"curvature": "reduce"},
    ):
        with pytest.raises(CheckpointError, match="other"):
            run(net(), 1, checkpoint=path, **other)


def test_size_of_the_data():
    data = loader().dataset
    assert data_size(loader()) == data_size(DataLoader(data, 5, drop_last=True)) == 24
    assert data_size(DataLoader(data, 4, sampler=SubsetRandomSampler(range(12)))) == 12
    assert data_size([(torch.randn(3, 1), torch.zeros(3)) for _ in range(2)]) == 6
    assert data_size([(torch.randn(3, 1), torch.zeros(3))] * 2) == 3
    with pytest.raises(DataError, match="only once"):
        data_size(iter(loader()))


def test_optimisers_and_schedulers_of_the_user():
    model = net()
    optimiser = torch.optim.SGD(model.parameters(), 0.01)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
    fit(model, loader(), optimizer=optimiser, scheduler=plateau, **SHORT)
    with pytest.warns(UserWarning, match="burn_in"):
        fit(net(), loader(), epochs=1, progress=False)


def untouched(call, error, match, make=normed):
    """The call raises, and the model is bit for bit as it was, in the same mode."""
    model = make().eval()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(error, match=match):
        call(model)
    for name, value in each(model.state_dict().items()):
        assert torch.equal(torch.nan_to_num(value), torch.nan_to_num(state[name])), name
    assert all(p.requires_grad for p in model.parameters())
    assert not any(module.training for module in model.modules())


def test_bad_data_leaves_the_model_alone():
    x, y = torch.randn(8, 1, 5, 5), torch.randint(3, (8,))
    broken = x.clone()
    broken[3, 0, 2, 2] = float("nan")
    untouched(lambda m: fit(m, [], **SHORT), DataError, "no batch")
    untouched(lambda m: fit(m, [(broken, y)], **SHORT), DataError, "batch 0.*NaN")
    untouched(lambda m: fit(m, [(x, y + 5)], **SHORT), DataError, "labels in 0 ... 2")
    untouched(lambda m: fit(m, [(x, y.float())], **SHORT), LikelihoodError, "gaussian")
    untouched(lambda m: fit(m, [(x, y)], likelihood="gaussian", **SHORT), LikelihoodError, "real targets")
    untouched(lambda m: fit(m, [(x, y), (x, y), (broken, y)], **SHORT), DataError, "batch 2.*NaN")
    untouched(lambda m: fit(m, [(x.numpy(), y)], **SHORT), DataError, "torch.as_tensor")
    untouched(lambda m: fit(m, [{"x": x}], **SHORT), DataError, "one entry named as in .*'target'.*Batches")
    untouched(lambda m: fit(m, [(x, y)], num_data=-1, **SHORT), ArgumentError, "num_data")

    def poisoned():
        model = normed()
        with torch.no_grad():
            model.convolution.weights["irrep_1"][0] = float("inf")
        return model

    untouched(lambda m: fit(m, [(x, y)], **SHORT), DataError, "convolution.weights.irrep_1.*infinite", poisoned)
    untouched(report, DataError, "convolution.*irrep_1", poisoned)
    untouched(harden, DataError, "convolution.*irrep_1", poisoned)


def test_one_output_is_no_classification():
    x = torch.randn(8, 1, 5, 5)
    with pytest.raises(LikelihoodError, match="two outputs"):
        fit(net(1), [(x, torch.zeros(8, dtype=torch.long))], **SHORT)


def test_untouched_residual_weights_keep_their_precision():
    model = net()
    evidence = Evidence(model, num_data=24)
    evidence.refresh(loader())
    evidence.step(3)
    assert evidence.log_precision["convolution.weights.irrep_1"] == 3.0
    assert evidence.log_precision["convolution.weights.equivariant"] != 0.0


def test_what_a_refresh_cannot_do_is_said_before_anything_is_trained():
    """Data that only a refresh reads would come up at epoch 1."""
    model, epochs = net(), []
    evidence_loader = [(torch.randn(8, 1, 5, 5), torch.full((8,), 7))]  # no class 7, and only where a refresh looks
    before = [p.detach().clone() for p in model.parameters()]
    data = loader()
    with pytest.raises(DataError, match="labels"):
        fit(model, data, evidence_loader=evidence_loader, callback=epochs.append, **SHORT)
    assert not epochs and all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
    fit(model, data, callback=epochs.append, **SHORT)
    assert len(epochs) == SHORT["epochs"]


class Wide(nn.Module):
    """Two outputs of one relaxed layer, for regression."""

    def __init__(self, last=True):
        super().__init__()
        space = gspaces.rot2dOnR2(4)
        self.gray, hidden = enn.FieldType(space, [space.trivial_repr]), enn.FieldType(space, 4 * [space.regular_repr])
        self.convolution, self.activation = enn.R2Conv(self.gray, hidden, 3, padding=1), enn.ReLU(hidden)
        self.linear, self.last = nn.Linear(16, 2), last

    def forward(self, x):
        y = self.linear(self.activation(self.convolution(self.gray(x))).tensor.mean((-2, -1)))
        return y if self.last else y * 1.0


def temperatures(scale=(5.0, 5.0), mean=(290.0, 280.0), count=200):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 1, 5, 5, generator=generator)
    unit = torch.stack([x[:, 0, :, 2:].mean((1, 2)), x[:, 0].square().mean((1, 2))], 1)
    unit = (unit - unit.mean(0)) / unit.std(0, correction=0)
    return DataLoader(TensorDataset(x, unit * torch.tensor(scale) + torch.tensor(mean)), 20)


def trained(data, **options):
    torch.manual_seed(0)
    model = relax(Wide())
    options = {"epochs": 12, "burn_in": 4, "refresh_every": 4, "gates": False, "progress": False, **options}
    history = fit(model, data, likelihood="gaussian", **options)
    x, y = data.dataset.tensors
    with torch.no_grad():
        return model, history, 1 - float((model.eval()(x) - y).square().sum() / (y - y.mean(0)).square().sum())


@pytest.mark.parametrize("scale, mean", [(5.0, 290.0), (1e-3, 0.0), (2e4, -1e5)])
def test_regression_in_any_units(scale, mean):
    """Training is the same as with standardised targets, up to single precision."""
    _, unit, explained = trained(temperatures((1.0, 1.0), (0.0, 0.0)))
    model, history, found = trained(temperatures((scale, scale), (mean, mean)))
    assert explained > 0.3 and found == pytest.approx(explained, abs=0.05)
    assert history.evidence.log_noise == pytest.approx(unit.evidence.log_noise + np.log(scale), abs=0.1)
    names = [n for n in unit.evidence.log_precision if n.startswith("convolution")]
    assert len(names) > 2
    for name in each(names):
        assert history.evidence.log_precision[name] == pytest.approx(unit.evidence.log_precision[name], abs=0.5)
    assert history.evidence.learned and "no better" not in str(history)


def test_without_the_units_nothing_is_learned_and_no_verdict_given():
    """The broken twin: an evidence of the user's own leaves the network in its units."""
    torch.manual_seed(0)
    model, data = relax(Wide()), temperatures()
    with pytest.warns(UserWarning, match="no better than a constant"):
        history = fit(model, data, evidence=Evidence(model, "gaussian", num_data=200), **{**SHORT, "epochs": 8})
    assert not history.evidence.learned and "no better than a constant" in str(history)
    table = str(report(model, history.evidence))
    assert "no verdict" in table and "survivor" not in table
    read = str(survivors(model, history.evidence))
    assert "no verdict" in read and "?" in read and "C4" not in read


def test_a_network_in_its_targets_units_is_left_there():
    model, _, _ = trained(temperatures())
    before = model.linear.bias.detach().clone()
    assert float((before - torch.tensor([290.0, 280.0])).abs().max()) < 10
    assert settle_units(Evidence(model, "gaussian", num_data=200), temperatures()) is None
    assert torch.equal(before, model.linear.bias)


def test_units_of_a_network_that_ends_in_something_else():
    model = relax(Wide(last=False))
    evidence = Evidence(model, "gaussian", num_data=200)
    with pytest.warns(UserWarning, match="train it on"):
        units = settle_units(evidence, temperatures())
    assert units.layer == "" and evidence.log_noise == pytest.approx(np.log(5.0), abs=0.1)


def test_a_frozen_last_layer_is_left_alone():
    model = relax(Wide())
    model.linear.requires_grad_(False)
    before = model.linear.bias.clone()
    with pytest.warns(UserWarning, match="to be trained"):
        settle_units(Evidence(model, "gaussian", num_data=200), temperatures())
    assert torch.equal(before, model.linear.bias)


def test_regression_in_units_resumes_the_same(tmp_path):
    whole = trained(temperatures(), checkpoint=tmp_path / "whole")[0]

    def stop(record):
        if record.epoch == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(temperatures(), checkpoint=tmp_path / "part", callback=stop)
    resumed = trained(temperatures(), checkpoint=tmp_path / "part")[0]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters()))


def test_labels_that_are_noise_give_no_verdict():
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(60, 1, 5, 5, generator=generator), torch.randint(3, (60,), generator=generator))
    model = net()
    with pytest.warns(UserWarning, match="better than a constant"):
        history = fit(model, DataLoader(data, 10), lr=1e-4, gates=False, **SHORT)
    assert not history.evidence.learned
    assert 0 < history.evidence.spectrum.gain_over_constant(history.evidence.noise) + 60, "it is nearly one"


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 3)
        self.last.weight = self.first.weight

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))


def parametrised():
    return nn.Sequential(nn.Linear(3, 3), nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)))


@pytest.mark.parametrize(
    "make, shape", [(Tied, (40, 3)), (parametrised, (40, 3)), (lambda: nn.Sequential(nn.Linear(3, 3)), (40, 7, 3))]
)
def test_a_last_layer_that_cannot_be_moved_is_left_alone(make, shape):
    """Weights that are another layer's too, or made of others, or outputs that are not its own."""
    torch.manual_seed(0)
    model, x = make(), torch.randn(shape)
    before = copy.deepcopy(model.state_dict())
    evidence = Evidence(model, "gaussian", num_data=40, relaxed_only=False)
    with pytest.warns(UserWarning, match="does not end in a Linear"):
        units = settle_units(evidence, [(x, 290 + 5 * torch.randn(shape))])
    assert units is not None and units.layer == ""
    assert before and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
