"""Length scales that fit moves by the evidence, and not by the loss."""

import copy
import math

import pytest
import torch
from escnn import gspaces
from escnn import nn as enn
from nonempty import each
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from escnn_relax import Evidence, fit, relax_translation
from escnn_relax.errors import ArgumentError, CheckpointError, CurvatureError
from escnn_relax.evidence import CurvatureSettings, PriorSettings
from escnn_relax.training.loaders import LoaderPart, Replayed
from escnn_relax.training.length_scales import BOUNDS, LengthScales
from escnn_relax.nn import DensePathway
from escnn_relax.nn.translation.anchors import length_scales
from escnn_relax.symmetry.groups.lattice import subgroup

PLANE, C4 = gspaces.trivialOnR2(), gspaces.rot2dOnR2(4)
#: Of the signals' weights; where the scale starts; the width of the signals (pixels).
TRUE, START, WIDTH = 0.25, 0.8, 24


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def smooth_data(count=100):
    """Signals, and their products with one draw from a Gaussian process, with noise of standard deviation 1."""
    generator = torch.Generator().manual_seed(3)
    grid = torch.arange(WIDTH, dtype=torch.float64)
    covariance = torch.exp(-0.5 * TRUE**2 * (grid[:, None] - grid) ** 2) + 1e-8 * torch.eye(WIDTH)
    weights = torch.linalg.cholesky(covariance) @ torch.randn(WIDTH, generator=generator)
    x = torch.randn(count, 1, 1, WIDTH, generator=generator)
    y = x.flatten(1) @ weights + torch.randn(count, generator=generator)
    return TensorDataset(x, y[:, None])


def linear(omega=START):
    """As many anchors as pixels: every scale can express every function."""
    torch.manual_seed(1)
    one = enn.FieldType(PLANE, [PLANE.trivial_repr])
    shapes, options = ((1, WIDTH), (1, 1)), {"bias": False, "fraction": 1.0, "learn_omega": True}
    layer = DensePathway(one, one, *shapes, subgroup(PLANE, 1), omega=omega, **options)
    layer.target.anchors.log_omega.requires_grad_(False)
    layer.reset_parameters(False)
    return nn.Sequential(layer, nn.Flatten())


def highest_evidence(omega, data):
    """Of the linear model, in closed form: weights and precision in turn. The noise is known."""
    x, y = data.tensors
    model = linear(omega)
    with torch.no_grad():
        units = torch.eye(model[0].linear.weight.numel())
        columns = []
        for unit in units:
            model[0].linear.weight.view(-1).copy_(unit)
            columns.append(model(x)[:, 0])
        design = torch.stack(columns, 1)

    def total(log_precision):
        covariance = design @ design.T / math.exp(log_precision) + torch.eye(len(y))
        normal = torch.distributions.MultivariateNormal(torch.zeros(len(y)), covariance)
        return float(normal.log_prob(y[:, 0]))

    return max(total(k / 4) for k in range(-24, 17))


def test_the_evidence_has_its_maximum_at_the_true_scale():
    """What the rest of the file relies on, without any code of ours but the model."""
    data = smooth_data()
    found = {omega: highest_evidence(omega, data) for omega in (0.08, 0.25, 0.5, START)}
    assert max(found, key=found.get) == 0.25
    assert found[0.5] > found[START] + 1


@pytest.mark.slow
def test_the_evidence_moves_the_scale_to_the_truth_and_the_loss_does_not():
    data = smooth_data()
    options = {"likelihood": "gaussian", "relaxed_only": False, "curvature": "exact", "progress": False}
    model = linear()
    loader = DataLoader(data, 10, shuffle=True, generator=torch.Generator().manual_seed(0))
    history = fit(model, loader, epochs=100, refresh_every=3, lr=3e-2, **options)
    (name,) = length_scales(model)
    moved = [record.omega[name] for record in history.records if record.evidence is not None]
    assert moved[-1] == pytest.approx(float(model[0].source.anchors.log_omega.exp()))
    assert abs(math.log(moved[-1] / TRUE)) < 0.5 * abs(math.log(START / TRUE))
    # the broken twin: all parameters down the loss
    model, generator = linear(), torch.Generator().manual_seed(0)
    evidence = Evidence(model, "gaussian", "exact", num_data=len(data), relaxed_only=False)
    descent = torch.optim.Adam(model.parameters(), 3e-2)
    for _ in range(100):
        for x, y in DataLoader(data, 10, shuffle=True, generator=generator):
            descent.zero_grad()
            evidence.loss(model(x), y).backward()
            descent.step()
    assert float(model[0].source.anchors.log_omega.exp()) > START


def net(learn=True):
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32)  # escnn builds in no other
    gray, fields = enn.FieldType(C4, [C4.trivial_repr]), enn.FieldType(C4, [C4.regular_repr])
    strict = enn.SequentialModule(enn.R2Conv(gray, fields, 3), enn.ReLU(fields), enn.R2Conv(fields, gray, 3))
    relaxed = relax_translation(
        strict, gray(torch.zeros(1, 1, 6, 6)), "sparse", learn_omega=learn, silent=False, layers="0"
    )
    model = Net(relaxed).double()
    torch.set_default_dtype(torch.float64)
    return model


class Net(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body, self.linear = body, nn.Linear(4, 3)

    def forward(self, x):
        return self.linear(self.body(self.body[0].in_type(x)).tensor.flatten(1))


def loader(seed=0, count=24, **options):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(count, 1, 6, 6, generator=generator)
    y = (x[:, 0, :3].mean((1, 2)) * 8).long().clamp(-1, 1) + 1
    options = {"shuffle": True, "generator": torch.Generator().manual_seed(seed), **options}
    return DataLoader(TensorDataset(x, y), 8, **options)


SHORT = {"epochs": 6, "burn_in": 1, "refresh_every": 2, "hypersteps": 2, "progress": False, "lr": 2e-2}


def names(model):
    return list(length_scales(model))


def test_only_the_evidence_moves_them(monkeypatch):
    model = net()
    start = {n: float(p.detach()) for n, p in length_scales(model).items()}
    found, seen = [], []
    whole = Evidence.hypergradient

    def watched(evidence, data, parameters, **options):
        slopes = whole(evidence, data, parameters, **options)
        found.append([float(s) for s in slopes])
        return slopes

    monkeypatch.setattr(Evidence, "hypergradient", watched)
    logs = lambda: {n: float(p.detach()) for n, p in length_scales(model).items()}
    history = fit(model, loader(), callback=lambda _: seen.append(logs()), **SHORT)
    waited = [bool(r.note) for r in history.records if r.evidence is not None]
    assert len(found) == 3 - sum(waited) and len(found) >= 1, "one step for each refresh that does not wait"
    assert seen[0] == start
    steps = [r.epoch for r in history.records if r.evidence is not None and not r.note]
    for epoch, (before, after) in enumerate(each(zip(seen, seen[1:])), start=1):
        assert (before != after) == (epoch in steps)
    first = next(k for k, v in enumerate(seen) if v != start)
    for name, slope in each(zip(start, found[0], strict=True)):  # Adam's first step
        moved = 0.1 * slope / (abs(slope) + 0.01)
        assert seen[first][name] - start[name] == pytest.approx(moved, rel=1e-6)
    record = history.records[first]
    assert record.omega == pytest.approx({n: math.exp(v) for n, v in seen[first].items()})
    assert all(p.requires_grad and p.grad is None for p in length_scales(model).values())


def test_the_direction_is_that_of_the_evidence():
    model = net()
    evidence = Evidence(model, num_data=48, prior=PriorSettings(residual_log_precision=0.0))
    data = list(loader())[:2]  # a part, scaled up
    evidence.refresh(data)
    evidence.step(3)
    scales = LengthScales(evidence)
    slopes = {}
    for name, p in scales.parameters.items():
        values = []
        for by in (1e-4, -1e-4):
            with torch.no_grad():
                p.add_(by)
            values.append(evidence.refresh(data).total)
            with torch.no_grad():
                p.sub_(by)
        slopes[name] = (values[0] - values[1]) / 2e-4
    before = {n: float(p.detach()) for n, p in scales.parameters.items()}
    evidence.refresh(data)
    scales.step(data)
    for name, p in each(scales.parameters.items()):
        assert abs(slopes[name]) > 0.1
        expected = 0.1 * slopes[name] / (abs(slopes[name]) + 0.01)
        assert float(p.detach()) - before[name] == pytest.approx(expected, rel=1e-4)


class Stop(Exception):
    pass


@pytest.mark.parametrize("options", [{}, {"share": 0.5, "keep": 0.3}], ids=["all", "parts"])
def test_resumed_run_ends_the_same(tmp_path, options):
    options = {**SHORT, **options}
    whole, resumed, path = net(), net(), tmp_path / "run.pt"
    reference = fit(whole, loader(), **options)

    def interrupt(record):
        if record.epoch == 4:
            raise Stop

    with pytest.raises(Stop):
        fit(net(), loader(), checkpoint=path, callback=interrupt, **options)
    torch.manual_seed(99)
    history = fit(resumed, loader(seed=7), checkpoint=path, **options)
    for (name, a), b in each(zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True)):
        assert torch.equal(a, b), name
    assert history.to_dict() == reference.to_dict()
    moved = [r.omega for r in reference.records if r.omega]
    assert moved[-1] != moved[-2], "the step after the interruption needs Adam's memory"
    with pytest.raises(CheckpointError, match="other scales"):
        fit(net(), loader(), checkpoint=path, omega_rate=0.2, **options)


def test_a_part_of_a_shuffled_loader_comes_again():
    """Without it the two passes of a hypergradient would see different samples."""
    for options in ({}, {"generator": None}):
        data = loader(**options)
        replayed = Replayed(LoaderPart(data, 0.4, 0), data)
        first, second = ([x for x, _ in replayed] for _ in range(2))
        assert len(first) == 2 and all(torch.equal(a, b) for a, b in zip(first, second))
        third = [x for x, _ in LoaderPart(data, 0.4, 0)]
        assert not torch.equal(first[0], third[0])


def test_averages_over_parts_are_not_lost():
    model = net()
    evidence = Evidence(model, num_data=24)
    data = list(loader())
    evidence.refresh(data[:1], keep=0.5)
    terms = evidence.refresh(data[1:2], keep=0.5)
    scales = LengthScales(evidence)
    scales.step(data[1:2], keep=0.5)
    assert evidence.terms() == terms and evidence.state_dict()["previous"] is not None
    assert evidence.refresh(data[1:2]).total != terms.total


def test_optimisers_do_not_hold_them():
    model = net()
    with pytest.raises(ArgumentError, match=f"optimizer.*{names(model)[0]}.*down the loss.*log_omega"):
        fit(model, loader(), optimizer=torch.optim.Adam(model.parameters()), **SHORT)
    with pytest.raises(ArgumentError, match="down the loss"):
        fit(model, loader(), optimizer=lambda _: torch.optim.Adam(model.parameters()), **SHORT)
    given = []

    def make(parameters):
        given.extend(parameters)
        return torch.optim.SGD(parameters, 0.01)

    fit(model, loader(), optimizer=make, **SHORT)
    own = {id(p) for p in length_scales(model).values()}
    assert given and not own & {id(p) for p in given}
    assert len(given) == len(list(model.parameters())) - len(own)
    rest = [p for n, p in net().named_parameters() if not n.endswith("log_omega")]
    assert len(rest) == len(given)


def test_curvatures_that_cannot_be_differentiated():
    for options in ({"curvature": CurvatureSettings(samples=1)}, {"curvature": "eigenvalue-corrected"}):
        with pytest.raises(
            ArgumentError, match="fit: the evidence moves 2 length scales.*leave samples out.*requires_grad_"
        ):
            fit(net(), loader(), **options, **SHORT)
    frozen = net()
    for p in length_scales(frozen).values():
        p.requires_grad_(False)
    state = copy.deepcopy(frozen.state_dict())
    fit(frozen, loader(), curvature=CurvatureSettings(samples=1), **SHORT)
    scales = [n for n in state if n.endswith("log_omega")]
    assert len(scales) == 2 and all(torch.equal(frozen.state_dict()[n], state[n]) for n in scales)


def test_a_frozen_scale_has_no_hypergradient():
    model = net()
    name, scale = next(iter(length_scales(model).items()))
    scale.requires_grad_(False)
    with pytest.raises(ArgumentError, match=f"hypergradient: {name} is frozen; call requires_grad_"):
        Evidence(model, num_data=24).hypergradient(loader(), [scale])


def test_bounds_and_bad_slopes(monkeypatch):
    model = net()
    evidence = Evidence(model, num_data=24)
    data = list(loader())
    evidence.refresh(data)
    scales = LengthScales(evidence, rate=50.0)
    scales.step(data)
    logs = [math.log(b) for b in BOUNDS]
    assert all(min(abs(float(p.detach()) - b) for b in logs) < 1e-12 for p in scales.parameters.values())
    before = [float(p.detach()) for p in scales.parameters.values()]
    monkeypatch.setattr(Evidence, "hypergradient", lambda *_, **__: [torch.tensor(1.0), torch.tensor(math.nan)])
    with pytest.raises(CurvatureError, match=f"{names(model)[1]}: the slope of the evidence is not finite"):
        scales.step(data)
    assert [float(p.detach()) for p in scales.parameters.values()] == before
    with pytest.raises(ArgumentError, match="omega_rate"):
        fit(net(), loader(), omega_rate=0.0, **SHORT)


def test_no_scales_no_change():
    """A model without them trains as before: no memory, no replay, no key in the checkpoint's description."""
    evidence = Evidence(net(learn=False), num_data=24)
    scales = LengthScales(evidence)
    scales.step([])
    assert not scales and scales.values() == {} and scales.state_dict() == {}
