"""A loop of the user's own beside an ``EvidenceCallback``: the numbers are those of ``fit``."""

import copy
import math
import sys
import warnings

import pytest
import torch
from nonempty import each
from test_fit import loader, net
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from escnn_relax import Evidence, EvidenceCallback, fit
from escnn_relax.errors import ArgumentError, CheckpointError
from escnn_relax.evidence import CurvatureSettings, NoiseSettings, PriorSettings, evidence_scalars

SHORT = {"epochs": 6, "burn_in": 1, "refresh_every": 2, "hypersteps": 2}


def adam(parameters):
    return torch.optim.Adam(parameters, lr=5e-3)


def constant(optimizer):
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


def train(model, data, callback, optimizer, stop=None, accumulate=1, scale=1.0):
    """A loop as users write them; ends before epoch ``stop``."""
    callback.begin(optimizer)
    while callback.epoch < callback.policy.epochs:
        if callback.epoch == stop:
            return
        callback.begin_epoch()
        model.train()
        for index, (x, y) in enumerate(data):
            if index % accumulate == 0:
                optimizer.zero_grad()
            (scale * callback.loss(model(x), y) / accumulate).backward()
            if scale != 1:
                for p in model.parameters():
                    p.grad = None if p.grad is None else p.grad / scale
            if (index + 1) % accumulate == 0:
                optimizer.step()
        callback.end_epoch()
    callback.end()


def asking(count=48):
    """Data that ask for less symmetry: whether a corner is upright."""
    generator = torch.Generator().manual_seed(5)
    y = torch.randint(2, (count,), generator=generator)
    x = 0.2 * torch.randn(count, 1, 5, 5, generator=generator)
    x[y == 0, :, 2, :] += 1.0
    x[y == 1, :, :, 2] += 1.0
    return DataLoader(TensorDataset(x, y), 8, shuffle=True, generator=torch.Generator().manual_seed(1))


CASES = {
    "gates": ({}, loader),
    "pathways that open": ({"epochs": 20, "burn_in": None, "refresh_every": None}, asking),
    "all open": ({"gates": False}, loader),
    "sampled, in parts": ({"share": 0.5, "keep": 0.3, "curvature": CurvatureSettings(samples=1)}, loader),
    "one precision a layer": ({"prior": PriorSettings(ties="layer")}, loader),
}


@pytest.mark.parametrize("case", CASES)
def test_numbers_are_those_of_fit(case):
    options, data = CASES[case]
    options = {**SHORT, **options}
    there, here = net(2 if data is asking else 3), net(2 if data is asking else 3)
    torch.manual_seed(3)
    expected = fit(there, data(), optimizer=adam, scheduler=constant, progress=False, **options)
    torch.manual_seed(3)
    own = data()
    callback = EvidenceCallback(here, own, **options)
    train(here, own, callback, adam(callback.parameters()))
    assert callback.history.to_dict() == expected.to_dict()
    assert callback.evidence.log_precision == expected.evidence.log_precision
    for a, b in each(zip(there.parameters(), here.parameters(), strict=True)):
        assert torch.equal(a, b)
    if case == "pathways that open":
        assert any("opened" in record.note for record in expected.records)
    slopes = expected.evidence.slopes.read()
    for name, slope in each(callback.evidence.slopes.read().items()):
        assert torch.equal(slope, slopes[name]), name


def test_another_optimizer_ends_elsewhere():
    """The twin: the comparison above can fail."""
    ends = []
    for rate in (5e-3, 6e-3):
        model, data = net(), loader()
        callback = EvidenceCallback(model, data, **SHORT)
        train(model, data, callback, torch.optim.Adam(callback.parameters(), rate))
        ends.append(callback.history.to_dict())
    assert ends[0] != ends[1]


def test_epochs_begin_and_end_by_themselves():
    runs = []
    for by_hand in (True, False):
        model, data = net(), loader()
        callback = EvidenceCallback(model, data, **SHORT)
        optimizer = adam(callback.parameters())
        if by_hand:
            train(model, data, callback, optimizer)
        else:
            for _ in callback.epochs(optimizer):
                for x, y in data:
                    loss = callback.loss(model(x), y)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
        runs.append(callback.history.to_dict())
    assert runs[0] == runs[1] and len(runs[0]["records"]) == 6


def test_regression_begins_in_the_units_of_its_targets():
    torch.manual_seed(0)
    x = torch.randn(64, 1, 5, 5)
    data = DataLoader(TensorDataset(x, 290 + 15 * x.mean((1, 2, 3)).unsqueeze(1)), 16)
    there, here, options = net(1), net(1), {**SHORT, "likelihood": "gaussian"}
    expected = fit(there, data, scheduler=constant, progress=False, lr=5e-3, **options)
    callback = EvidenceCallback(here, data, **options)
    train(here, data, callback, torch.optim.Adam(callback.parameter_groups(5e-3), fused=True))
    assert callback.policy.units is not None
    assert callback.history.to_dict() == expected.to_dict()


@pytest.mark.parametrize("data", [loader, asking])
@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_run_that_goes_on_ends_the_same(tmp_path, stop, data):
    whole, known = net(), data()
    callback = EvidenceCallback(whole, known, **SHORT)
    train(whole, known, callback, adam(callback.parameters()))

    part, again = net(), data()
    first = EvidenceCallback(part, again, **SHORT)
    optimizer = adam(first.parameters())
    train(part, again, first, optimizer, stop=stop)
    state = {"model": part.state_dict(), "optimizer": optimizer.state_dict(), "evidence": first.state_dict()}
    torch.save(state, tmp_path / "run.pt")

    torch.manual_seed(99)  # whatever happened in between
    model, other = net(), data()
    for _ in other:
        pass
    second = EvidenceCallback(model, other, **SHORT)
    optimizer = adam(second.parameters())
    state = torch.load(tmp_path / "run.pt", weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    second.load_state_dict(state["evidence"])
    assert second.epoch == stop
    train(model, other, second, optimizer)
    assert second.history.to_dict() == callback.history.to_dict()
    assert second.evidence.log_precision == callback.evidence.log_precision
    for a, b in each(zip(whole.parameters(), model.parameters(), strict=True)):
        assert torch.equal(a, b)


def far(count=64):
    """Targets in units of their own, too far for two epochs."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 1, 5, 5, generator=generator)
    return DataLoader(TensorDataset(x, 290 + 5 * torch.randn(count, 1, generator=generator)), 16)


ORDERS = {
    "callback made first": ("callback", "load model", "optimizer", "load callback"),
    "model loaded first": ("load model", "callback", "load callback", "optimizer"),
    "callback loaded first": ("callback", "load callback", "optimizer", "load model"),
    "optimizer made first": ("callback", "optimizer", "load callback", "load model"),
}


@pytest.mark.parametrize("stop", [0, 2, 4])
@pytest.mark.parametrize("order", ORDERS)
def test_a_regression_goes_on_in_any_order(order, stop):
    """The last layer is moved to the targets' units once, and the groups of the optimizer are those of then."""
    options, data = {**SHORT, "likelihood": "gaussian"}, far()
    whole = net(1)
    callback = EvidenceCallback(whole, data, **options)
    optimizer = torch.optim.Adam(callback.parameter_groups(1e-3))
    train(whole, data, callback, optimizer, stop=stop)
    assert callback.policy.units is not None and len(optimizer.param_groups) == 2
    state = copy.deepcopy((whole.state_dict(), optimizer.state_dict(), callback.state_dict()))
    train(whole, data, callback, optimizer)

    model = net(1)
    steps = {
        "load model": lambda: model.load_state_dict(state[0]),
        "callback": lambda: EvidenceCallback(model, data, **options),
        "load callback": lambda: again["callback"].load_state_dict(state[2]),
        "optimizer": lambda: torch.optim.Adam(again["callback"].parameter_groups(1e-3)),
    }
    again = {}
    for step in each(ORDERS[order]):
        again[step] = steps[step]()
    again["optimizer"].load_state_dict(state[1])
    for name, p in each(model.named_parameters()):
        assert torch.equal(p, state[0][name]), name
    train(model, data, again["callback"], again["optimizer"])
    assert again["callback"].history.to_dict() == callback.history.to_dict()
    for a, b in each(zip(whole.parameters(), model.parameters(), strict=True)):
        assert torch.equal(a, b)


def test_a_regression_begins_when_its_callback_is_made():
    model = net(1)
    start = model.linear.bias.item()
    callback = EvidenceCallback(model, far(), **SHORT, likelihood="gaussian")
    assert abs(start) < 2 and model.linear.bias.item() == pytest.approx(290, abs=5)
    callback.load_state_dict(callback.state_dict())
    assert model.linear.bias.item() == start, "of a run that goes on the weights are loaded"


@pytest.mark.parametrize("fails", [False, True])
def test_a_loop_that_is_left(fails):
    """By ``break`` or an exception: the epoch is abandoned; the training can end, or go on."""

    def run(stop):
        for epoch in callback.epochs(optimizer):
            for x, y in data:
                if epoch == stop and fails:
                    raise KeyboardInterrupt
                optimizer.zero_grad()
                callback.loss(model(x), y).backward()
                if epoch == stop:
                    return
                optimizer.step()

    model, data = net(), loader()
    callback = EvidenceCallback(model, data, **SHORT)
    optimizer = adam(callback.parameters())
    for stop in each((2, 5)):
        if fails:
            with pytest.raises(KeyboardInterrupt):
                run(stop)
        else:
            run(stop)
        assert not callback.inside and not callback.noted and callback.epoch == stop
        assert callback.end() is callback.history and callback.evidence.has_curvature
        assert callback.evidence.slopes is None, "a part of the last epoch has none"
    run(None)
    assert callback.epoch == 6 and callback.evidence.slopes.read()


def test_a_state_within_an_epoch():
    """Half an epoch before, half after; the last one with its slopes."""
    ends = []
    for halves in (False, True):
        model, data = net(), list(loader())
        callback = EvidenceCallback(model, data, num_data=24, **{**SHORT, "epochs": 1, "burn_in": 0})
        optimizer = adam(callback.parameters())
        callback.begin(optimizer)
        callback.begin_epoch()
        for index, (x, y) in enumerate(data):
            if halves and index == 1:
                state = callback.state_dict()
                callback.abandon()
                callback = EvidenceCallback(model, data, num_data=24, **{**SHORT, "epochs": 1, "burn_in": 0})
                callback.load_state_dict(state)
                callback.begin(optimizer)
                callback.begin_epoch()
            optimizer.zero_grad()
            callback.loss(model(x), y).backward()
            optimizer.step()
        ends.append(callback.end_epoch())
        callback.end()
        ends.append(callback.evidence.slopes.read())
    assert ends[0] == ends[2]
    for name, slope in each(ends[1].items()):
        assert torch.equal(slope, ends[3][name]), name


@pytest.mark.parametrize("accumulate, scale", [(3, 1.0), (1, 1024.0)])
def test_slopes_know_how_losses_were_scaled(accumulate, scale):
    """Batches that are accumulated, and a loss as a gradient scaler has it; powers of two are exact."""
    model, data = net(), list(loader())
    callback = EvidenceCallback(model, data, num_data=24, **{**SHORT, "epochs": 4})
    slow = torch.optim.SGD(callback.parameters(), 1e-12)  # so that nothing moves
    train(model, data, callback, slow, accumulate=accumulate, scale=scale)
    evidence, total = callback.evidence, 0
    for x, y in data:
        total = total + len(y) * evidence.loss(model(x), y)
    wanted = torch.autograd.grad(total, list(evidence.parameters.values()))
    found = evidence.slopes.read()
    for name, gradient in each(zip(evidence.parameters, wanted)):
        assert torch.allclose(found[name], gradient.double(), atol=1e-4 * float(gradient.abs().max()) + 1e-6), name


def test_an_optimizer_without_pathways_that_may_open_is_refused():
    model, data = net(), loader()
    callback = EvidenceCallback(model, data, **SHORT)
    with pytest.raises(ArgumentError, match=r"convolution\.weights\.irrep_1.*all of model\.parameters"):
        callback.begin(adam(model.linear.parameters()))
    with pytest.raises(ArgumentError, match=r"convolution\.weights\.irrep_1"):
        fit(net(), data, optimizer=lambda p: adam(p[-2:]), progress=False, **SHORT)
    one, two = adam(model.linear.parameters()), adam(model.convolution.parameters())
    callback.begin(one, two)  # together they hold all


def test_an_optimizer_made_while_pathways_are_closed():
    """The usual filter by ``requires_grad`` leaves closed pathways out; ``parameters`` has them."""
    model, data = net(), loader()
    model.convolution.close("irrep_1", "irrep_2")
    callback = EvidenceCallback(model, data, gates=True, **SHORT)
    with pytest.raises(ArgumentError, match="2 pathways that may open"):
        callback.begin(adam([p for p in model.parameters() if p.requires_grad]))
    callback.begin(adam(callback.parameters()))


def test_weights_that_nothing_moves_are_warned_of():
    model, data = net(), loader()
    callback = EvidenceCallback(model, data, **SHORT)
    with pytest.warns(UserWarning, match=r"2 weights that have a prior \(linear\.weight"):
        callback.begin(adam(model.convolution.parameters()))
    with pytest.warns(UserWarning, match="counts twice"):
        callback.begin(torch.optim.AdamW(callback.parameters()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        callback.begin(adam(callback.parameters()))


def test_what_is_called_out_of_turn():
    model, data = net(), loader()
    callback = EvidenceCallback(model, data, **SHORT)
    with pytest.raises(ArgumentError, match="begin_epoch: called out of turn; call begin"):
        callback.begin_epoch()
    with pytest.raises(ArgumentError, match="end_epoch.*begin_epoch"):
        callback.end_epoch()
    with pytest.raises(ArgumentError, match="expected an optimizer of torch's, got Linear"):
        callback.begin(model.linear)
    optimizer = adam(callback.parameters())
    callback.begin(optimizer)
    callback.begin_epoch()
    with pytest.raises(ArgumentError, match="no loss was noted in epoch 0; compute it by callback.loss"):
        callback.end_epoch()
    with pytest.raises(ArgumentError, match="out of turn"):
        callback.begin_epoch()
    callback.abandon()
    train(model, data, callback, optimizer)
    with pytest.raises(ArgumentError, match="expected 6 epochs, got one more"):
        callback.begin_epoch()


def test_an_epoch_that_failed_can_begin_again():
    ends = []
    for fails in (False, True):
        model, data = net(), list(loader())
        callback = EvidenceCallback(model, data, num_data=24, **SHORT)
        optimizer = adam(callback.parameters())
        if fails:
            callback.begin(optimizer)
            callback.begin_epoch()
            callback.loss(model(data[0][0]), data[0][1])
            callback.abandon()
        train(model, data, callback, optimizer)
        ends.append((callback.history.to_dict(), callback.policy.gates.state_dict()))
    assert ends[0] == ends[1]


def test_losses_of_ones_own_get_the_penalty():
    model, data = net(), loader()
    callback = EvidenceCallback(model, data, **SHORT)
    callback.begin(adam(callback.parameters()))
    callback.begin_epoch()
    x, y = next(iter(data))
    plain = nn.functional.cross_entropy(model(x), y)
    assert callback.penalised(plain, y) == plain, "all is closed, as it began, and the rest feels no prior"
    callback.evidence.open({"convolution.weights.irrep_1": 2.0})
    with torch.no_grad():
        model.convolution.weights["irrep_1"].fill_(0.3)
    plain = nn.functional.cross_entropy(model(x), y)
    own = callback.penalised(plain, y)
    assert torch.allclose(own, callback.evidence.loss(model(x), y))
    assert own > plain and callback.noted == 2
    with torch.no_grad():
        callback.loss(model(x), y)
    assert callback.noted == 2, "what is evaluated is not noted"
    gaussian = EvidenceCallback(net(1), [(x, torch.randn(len(x), 1))], likelihood="gaussian", **SHORT)
    with pytest.raises(ArgumentError, match="has a noise.*callback.loss"):
        gaussian.penalised(torch.ones(()), torch.zeros(8, 1))
    cold = EvidenceCallback(net(), data, evidence=None, noise=NoiseSettings(temperature=0.5), **SHORT)
    with pytest.raises(ArgumentError, match="temperature 0.5"):
        cold.penalised(torch.ones(()), y)


def test_states_of_other_trainings_are_refused():
    callback = EvidenceCallback(net(), loader(), **SHORT)
    other = EvidenceCallback(net(), loader(), **{**SHORT, "epochs": 7, "hypersteps": 3})
    with pytest.raises(CheckpointError, match="other epochs, hypersteps; make the callback"):
        other.load_state_dict(callback.state_dict())
    with pytest.raises(CheckpointError, match="of something else"):
        other.load_state_dict({"weights": 3})


def test_arguments_are_looked_over():
    with pytest.raises(ArgumentError, match="did you mean 'num_data'"):
        EvidenceCallback(net(), loader(), num_date=3, **SHORT)
    model = net()
    with pytest.raises(ArgumentError, match="another model"):
        EvidenceCallback(net(), loader(), evidence=Evidence(model, num_data=24), **SHORT)
    with pytest.raises(ArgumentError, match="SummaryWriter"):
        EvidenceCallback(model, loader(), log=3, **SHORT)
    with pytest.warns(UserWarning, match="burn_in=6 leaves none of 6 epochs"):
        EvidenceCallback(model, loader(), **{**SHORT, "burn_in": 6})


class Summary:
    """As TensorBoard's ``SummaryWriter``."""

    def __init__(self):
        self.seen = {}

    def add_scalar(self, name, value, step):
        self.seen[name, step] = value


def test_numbers_reach_every_kind_of_writer():
    summary, seen = Summary(), {}

    class Run:
        def log(self, numbers, step):
            seen["run", step] = numbers

    class Metrics:
        def log_metrics(self, numbers, step):
            seen["metrics", step] = numbers

    model, data = net(), loader()
    writers = [summary, Run(), Metrics(), lambda numbers, step: seen.__setitem__(("function", step), numbers)]
    callback = EvidenceCallback(model, data, log=writers, verdicts=True, **SHORT)
    train(model, data, callback, adam(callback.parameters()))
    steps = sorted({step for _, step in seen})
    assert steps == [1, 3, 5, 6], "after each refresh, and after the training"
    for step in each(steps):
        by_scalar = {name: value for (name, at), value in summary.seen.items() if at == step}
        assert by_scalar == seen["run", step] == seen["metrics", step] == seen["function", step]
    last = seen["run", 6]
    assert last == evidence_scalars(callback.evidence, verdicts=True)
    terms = callback.evidence.terms()
    assert last["evidence/log_evidence"] == terms.total
    assert last["evidence/log_evidence_per_sample"] == terms.total / 24
    assert [last[f"evidence/{n}"] for n in ("data_fit", "complexity", "prior")] == [
        *(terms.data_fit, terms.complexity, terms.prior)
    ]
    assert (
        last["convolution/equivariant/log_precision"]
        == callback.evidence.log_precision["convolution.weights.equivariant"]
    )
    assert last["convolution/equivariant/energy"] == pytest.approx(1.0) and last["convolution/irrep_1/open"] == 0
    assert "convolution/irrep_1/log_precision" not in last and all(map(math.isfinite, last.values()))
    gammas = callback.evidence.effective_dimension()
    assert last["linear/weight/effective_dimension"] == gammas["linear.weight"]


def test_a_layer_that_is_called_evidence():
    """Its numbers stand apart from those of the whole network."""
    other, plain = nn.Module(), net()
    other.evidence, other.pool, other.linear = plain.convolution, plain.pool, plain.linear
    numbers, wanted = (evidence_scalars(Evidence(m, num_data=24), verdicts=True) for m in (other, plain))
    assert len(numbers) == len(wanted) and numbers["model.evidence/equivariant/energy"] == pytest.approx(1.0)
    assert not any(name.startswith("evidence/") for name in numbers)
    named = nn.Sequential()
    named.evidence = nn.Linear(2, 2)
    found = evidence_scalars(Evidence(named, num_data=24, relaxed_only=False))
    assert sorted(found) == ["model.evidence/bias/log_precision", "model.evidence/weight/log_precision"]


def test_long_refreshes_show_how_far_they_are(capsys, monkeypatch):
    """A symmetry test likewise, which is a pass of its own."""
    from escnn_relax.training import evidence_policy

    monkeypatch.setattr(evidence_policy, "PATIENCE", 0)
    monkeypatch.setattr(sys.modules["escnn_relax.diagnosis.symmetry_test"], "PATIENCE", 0)
    for progress in (True, False):
        model, data = net(), loader()
        callback = EvidenceCallback(model, data, progress=progress, **SHORT)
        train(model, data, callback, adam(callback.parameters()))
        shown = capsys.readouterr().err
        assert all((word in shown) == progress for word in ("refresh:", "last refresh, on all data", "symmetry test:"))
