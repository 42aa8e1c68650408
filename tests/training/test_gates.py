"""Closed pathways: exactly zero, frozen, free of charge, the limit of an infinite precision; and training that opens
them."""

import copy
import importlib
import io
import json
import math
import pickle

import pytest
import torch
from escnn import gspaces
from escnn import nn as enn
from evidence_cases import loader, network
from fields import ROUNDING
from nonempty import each
from torch.utils.data import DataLoader, TensorDataset

from escnn_relax import Evidence, EvidenceCallback, fit, harden, relax, report, survivors, symmetry_test
from escnn_relax.errors import ArgumentError, CoverageError, DataError
from escnn_relax.evidence import CurvatureSettings, PriorSettings
from escnn_relax.evidence.closed_pathways import opening_precisions
from escnn_relax.evidence.verdicts.subgroup_cost import gain_of_demanding
from escnn_relax.training.gate_policy import GAIN, PATIENCE, UNTESTED, Gates
from escnn_relax.nn import RelaxedR2Conv
from escnn_relax.nn.measured.kernel_symmetry import KernelSymmetry
from escnn_relax.symmetry.groups.lattice import subgroups

#: A log precision at which what it holds down, exp(-60) = 1e-26, is below every rounding.
LIMIT = 60.0
D4 = gspaces.flipRot2dOnR2(4)
C4 = gspaces.rot2dOnR2(4)
SHUT = ("first.weights.irrep_1", "second.weights.irrep_2")


def layer(size=3):
    fields = enn.FieldType(D4, [D4.regular_repr])
    made = RelaxedR2Conv(fields, fields, size).double()
    with torch.no_grad():
        for p in made.parameters():
            p.normal_()
    return made


def test_closed_is_exactly_the_layer_without_it():
    strict = layer()
    x = strict.in_type(torch.randn(2, 8, 5, 5).double())
    names = [p.name for p in strict.pathways if p.breaks]
    assert len(names) == 4
    with torch.no_grad():
        for name in names:
            strict.weights[name].zero_()
    opened, closed = strict(x).tensor, None
    strict.close(*names)
    closed = strict(x).tensor
    # the sum over pathways has fewer terms, all the others are zero
    assert torch.allclose(opened, closed, rtol=ROUNDING, atol=ROUNDING)
    assert list(strict.open_weights()) == ["equivariant"]
    broken = layer()
    before = broken(x).tensor
    broken.close(*names)
    assert not torch.allclose(before, broken(x).tensor, rtol=0.01), "what was alive is gone"


def test_an_eval_cache_does_not_outlive_the_gate():
    one = layer().eval()
    x = one.in_type(torch.randn(1, 8, 5, 5).double())
    with torch.no_grad():
        before = one(x).tensor
        one.close("irrep_0,2")
        after = one(x).tensor
    assert not torch.allclose(before, after)


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "state dict", "torch.save"])
def test_copies_have_the_same_gates(way):
    one = layer()
    one.close("irrep_1,1")
    if way == "deepcopy":
        other = copy.deepcopy(one)
    elif way == "pickle":
        other = pickle.loads(pickle.dumps(one))
    elif way == "state dict":
        other = layer()
        other.load_state_dict(one.state_dict())
    else:
        file = io.BytesIO()
        torch.save(one, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    assert other.closed == {"irrep_1,1"} and not other.weights["irrep_1,1"].requires_grad
    assert not other.weights["irrep_1,1"].any() and other.weights["irrep_0,2"].requires_grad
    other.load_state_dict(layer().state_dict())
    assert not other.closed and other.weights["irrep_1,1"].requires_grad, "the gates are those of the state"


@pytest.mark.parametrize(
    "make", [lambda p: torch.optim.AdamW(p, 0.1), lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=0.1)]
)
def test_no_optimiser_moves_what_is_closed(make):
    """Though it holds momenta of it, and a decay."""
    one = layer()
    x = one.in_type(torch.randn(2, 8, 5, 5).double())
    descent = make(one.parameters())

    def step():
        descent.zero_grad()
        one(x).tensor.square().sum().backward()
        descent.step()

    step()
    one.close("irrep_0,2")
    step()
    assert not one.weights["irrep_0,2"].any()
    one.open("irrep_0,2")
    step()
    assert one.weights["irrep_0,2"].any()


def test_names_that_no_gate_has():
    with pytest.raises(ArgumentError, match="irrep_1,0.*equivariant|equivariant.*irrep_1,0"):
        layer().close("equivariant")
    with pytest.raises(ArgumentError, match="irrep_7"):
        layer().open("irrep_7")
    evidence = Evidence(network(), num_data=12)
    with pytest.raises(CoverageError, match="linear.weight"):
        evidence.close(["linear.weight"])


def pair(**options):
    """One network, closed and with the same pathways under a precision that is all but infinite."""
    torch.manual_seed(0)
    shut = network()
    with torch.no_grad():
        for name in SHUT:
            shut.get_parameter(name).zero_()
    held = copy.deepcopy(shut)
    data = loader()
    evidences = [Evidence(model, num_data=12, **options) for model in (shut, held)]
    evidences[0].close(list(SHUT))
    evidences[1].log_precision |= {name: LIMIT for name in SHUT}
    for evidence in evidences:
        evidence.refresh(data)
    return evidences


@pytest.mark.parametrize("curvature", ["expand", "exact", "reduce"])
def test_evidence_is_that_of_an_infinite_precision(curvature):
    closed, held = pair(curvature=curvature)
    a, b = closed.terms(), held.terms()
    assert closed.closed == SHUT and SHUT[0] in held.estimate.factors and SHUT[0] not in closed.estimate.factors
    assert a.data_fit == pytest.approx(b.data_fit, rel=ROUNDING)
    assert a.complexity == pytest.approx(b.complexity, rel=ROUNDING) and a.prior == pytest.approx(b.prior, rel=ROUNDING)
    held.log_precision |= {name: -10.0 for name in SHUT}
    assert held.terms().complexity > a.complexity + 0.1, "open pathways cost something"


def test_steps_leave_closed_ones_alone():
    closed, held = pair()
    closed.step(5)
    held.step(5)
    assert all(closed.log_precision[name] == math.inf for name in SHUT)
    others = [n for n in closed.log_precision if n not in SHUT]
    assert len(others) > 3
    assert [closed.log_precision[n] for n in others] == pytest.approx([held.log_precision[n] for n in others], rel=1e-8)
    gammas = closed.effective_dimension()
    assert all(gammas.get(name, 0.0) == 0.0 for name in SHUT)


def test_posterior_and_laplace_leave_them_out():
    closed, held = pair(relaxed_only=False)
    for evidence in (closed, held):
        evidence.model.norm.requires_grad_(False)
    x = torch.randn(3, 1, 6, 6).double()
    for a, b in each(zip(closed.posterior().outputs(x), held.posterior().outputs(x), strict=True)):
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-12)
    other = closed.to_laplace()
    assert float(other.log_marginal_likelihood()) == pytest.approx(closed.log_marginal_likelihood(), rel=1e-8)


def test_open_again_from_zero():
    closed, _ = pair()
    closed.open({SHUT[0]: 1.5})
    assert closed.closed == SHUT[1:] and closed.log_precision[SHUT[0]] == 1.5
    layer = closed.model.first
    assert layer.weights["irrep_1"].requires_grad and not layer.weights["irrep_1"].any()
    assert closed.terms().complexity > 0, "before the next refresh, too"
    closed.refresh(loader())
    assert SHUT[0] in closed.estimate.factors


def test_a_state_dict_carries_the_gates():
    closed, held = pair()
    state = closed.state_dict()
    held.load_state_dict(state)
    assert held.closed == SHUT and held.log_marginal_likelihood() == pytest.approx(
        closed.log_marginal_likelihood(), rel=ROUNDING
    )


def test_demanding_a_subgroup_costs_what_it_does_at_an_infinite_precision():
    """For every subgroup of D4 and sets of closed pathways, with a frequency that aliases on a grid of 3 x 3 among
    them."""

    class Map(torch.nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(self.layer.in_type(x)).tensor.flatten(1)

    for names in (["irrep_1,1"], ["irrep_1,0", "irrep_0,2"]):
        torch.manual_seed(0)
        model = Map(layer())
        data = DataLoader(TensorDataset(torch.randn(6, 8, 3, 3).double(), torch.randn(6, 8).double()), 6)
        full = [f"layer.weights.{n}" for n in names]
        with torch.no_grad():
            for n in full:
                model.get_parameter(n).zero_()
        gains = []
        for shut in (True, False):
            one = copy.deepcopy(model)
            evidence = Evidence(one, "gaussian", num_data=6)
            if shut:
                evidence.close(full)
            else:
                evidence.log_precision |= {n: LIMIT for n in full}
            evidence.refresh(data)
            symmetry = KernelSymmetry(one.layer, "layer")
            these = subgroups(D4)
            assert len(these) > 5
            gains.append(
                [
                    gain_of_demanding(h, symmetry, evidence.estimate.factors, evidence.log_precision, evidence.scale)
                    for h in these
                ]
            )
        assert max(map(abs, gains[0])) > 1 and gains[0] == pytest.approx(gains[1], rel=1e-6, abs=1e-6)


def planted(name, count=400):
    """A small network on planar digits, and the question's data."""
    from digits import DigitNet, task

    data = task(name, 0)
    torch.manual_seed(0)
    parts = [t[:count] for t in data.train]
    generator = torch.Generator().manual_seed(0)
    return relax(DigitNet(data.classes, 2)), DataLoader(TensorDataset(*parts), 30, shuffle=True, generator=generator)


SHORT = {
    "epochs": 3,
    "burn_in": 1,
    "refresh_every": 1,
    "hypersteps": 1,
    "curvature": CurvatureSettings(samples=1),
    "progress": False,
}


@pytest.mark.parametrize("name, opens", [("rot", set()), ("half-turn", {"irrep_2"})])
def test_fit_opens_what_the_data_ask_for(name, opens):
    model, data = planted(name)
    history = fit(model, data, **SHORT)
    layers = [m for m in model.modules() if isinstance(m, RelaxedR2Conv)]
    assert len(layers) == 3
    for one in layers:
        assert {p.name for p in one.pathways if p.breaks} - one.closed == opens
    if opens:
        assert "opened conv1.weights.irrep_2" in history.records[1].note, "at the first refresh"
    shown = str(report(model, history.evidence))
    assert shown.count("closed") == 6 - 3 * len(opens)
    assert "null" in json.dumps(history.to_dict(), allow_nan=False), "the precision of what is closed"
    kept = "C2" if opens else "C4"
    found = survivors(model, history.evidence)
    assert len(found.layers) == 3 and {s.subgroup.name for s in found.layers} <= {kept, "C4"}
    assert found.network.subgroup.name == kept
    x = torch.stack([data.dataset[k][0] for k in range(5)])
    hard = harden(model, to="stabiliser").eval()
    with torch.no_grad():
        turned = hard(x.rot90(2 if opens else 1, (-2, -1)))
        assert torch.allclose(turned, hard(x), atol=1e-3 * float(hard(x).abs().max()))


def test_training_continues_with_the_same_gates(tmp_path):
    def train(path, **options):
        model, data = planted("half-turn", 300)
        return model, fit(model, data, checkpoint=path, **{**SHORT, **options})

    whole, _ = train(tmp_path / "whole")

    class Stop(Exception):
        pass

    def stop(record):
        if record.epoch == 1:
            raise Stop

    with pytest.raises(Stop):
        train(tmp_path / "part", callback=stop)
    resumed, _ = train(tmp_path / "part")
    closed = [m.closed for m in whole.modules() if isinstance(m, RelaxedR2Conv)]
    assert any(closed) and closed == [m.closed for m in resumed.modules() if isinstance(m, RelaxedR2Conv)]
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.state_dict().values(), resumed.state_dict().values())
        if not a.isnan().any()
    )


def test_without_a_test_everything_is_open():
    model, data = planted("half-turn", 12)
    history = fit(model, data, **{**SHORT, "epochs": 3})
    notes = " ".join(record.note for record in history.records)
    assert "no symmetry test" in notes and "all pathways are open" in notes
    assert not history.evidence.closed


def test_living_pathways_stay_open():
    model, data = planted("rot", 200)
    torch.nn.init.normal_(model.conv2.weights["irrep_1"], std=0.1)
    evidence = Evidence(model, num_data=400)
    Gates(evidence, data).start()
    assert "irrep_1" not in model.conv2.closed and "irrep_1" in model.conv1.closed


def test_what_has_died_is_closed_after_some_patience():
    model, data = planted("rot", 300)
    evidence = Evidence(model, num_data=300)
    gates = Gates(evidence, data)
    gates.start()
    name = "conv2.weights.irrep_2"
    evidence.open({name: 25.0})
    with torch.no_grad():
        model.conv2.weights["irrep_2"].fill_(1e-7)
    descent = torch.optim.Adam(model.parameters())
    evidence.refresh(data)
    for _ in each(range(PATIENCE - 1)):
        assert gates.prune(descent) == "" and name not in evidence.closed
    assert gates.prune(descent) == f"closed {name}" and name in evidence.closed
    # what holds energy is left alone
    alive = next(n for n in evidence.gates)
    evidence.open({alive: 0.0})
    with torch.no_grad():
        evidence.model.get_parameter(alive).fill_(1.0)
    evidence.refresh(data)
    assert [gates.prune(descent) for _ in range(PATIENCE + 1)] == [""] * (PATIENCE + 1)


def test_a_failed_first_epoch_puts_the_gates_back():
    model, data = planted("half-turn", 300)
    before = copy.deepcopy(model.state_dict())
    x, y = (t.clone() for t in data.dataset.tensors)
    calls = []

    class Turning(TensorDataset):
        def __getitem__(self, index):
            calls.append(index)
            image, label = super().__getitem__(index)
            return (image * math.nan if len(calls) > 150 else image), label  # in the first epoch

    with pytest.raises(DataError):
        fit(model, DataLoader(Turning(x, y), 30), **SHORT)
    assert not any(m.closed for m in model.modules() if isinstance(m, RelaxedR2Conv))
    after = model.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before if not before[n].isnan().any())


def test_without_gates_a_second_training_opens_what_the_first_closed():
    """And what is closed in an evidence of one's own stays closed, unless one asks."""
    model, data = planted("half-turn")
    evidence = Evidence(model, num_data=len(data.dataset))
    evidence.close()
    names = evidence.closed
    assert len(names) > 1
    fit(model, data, evidence=evidence, epochs=1, progress=False)
    assert evidence.closed == names
    started = []

    def look(record):
        started.append(any(m.closed for m in model.modules() if isinstance(m, RelaxedR2Conv)))

    open_again = fit(model, data, gates=False, callback=look, **{**SHORT, "epochs": 1}).evidence
    assert started == [False] and not open_again.closed
    for name in each(names):
        assert model.get_parameter(name).any(), "they were trained"
    evidence.close()
    assert fit(model, data, evidence=evidence, gates=False, epochs=1, progress=False).evidence.closed == ()
    evidence.close()
    residuals = PriorSettings(residual_log_precision=5.0)
    precise = fit(model, data, prior=residuals, callback=look, **{**SHORT, "epochs": 1})
    assert started[-1] is False and not precise.evidence.closed


def test_it_opens_from_a_test_of_the_users_own():
    model, data = planted("half-turn")
    evidence = Evidence(model, num_data=400)
    evidence.close()
    assert len(evidence.closed) == 6
    opened = evidence.open(symmetry_test(model, data, progress=False))
    assert set(opened) == {f"conv{k}.weights.irrep_2" for k in (1, 2, 3)}
    assert all(math.isfinite(evidence.log_precision[name]) for name in opened)


def test_a_weight_average_that_was_copied_before_an_opening():
    model = network()
    evidence = Evidence(model, num_data=12)
    evidence.close(list(SHUT))
    average = torch.optim.swa_utils.AveragedModel(model)
    evidence.open({SHUT[0]: 3.0})
    with torch.no_grad():
        model.get_parameter(SHUT[0]).normal_()
    average.update_parameters(model)
    x, _ = next(iter(loader()))
    with torch.no_grad():
        assert torch.equal(average(x), model(x))
        model.get_parameter(SHUT[0]).zero_()
        assert not torch.allclose(average(x), model(x)), "what was written says something"


def test_the_evidence_follows_the_gates_of_a_state_that_was_loaded():
    model = network()
    evidence = Evidence(model, num_data=12)
    before = copy.deepcopy(model.state_dict())
    x, _ = next(iter(loader()))
    with torch.no_grad():
        wanted = model(x)
    evidence.close(list(SHUT))
    model.load_state_dict(before)
    assert float(evidence.penalty().detach()) == pytest.approx(
        float(Evidence(model, num_data=12).penalty().detach()), rel=1e-12
    )
    evidence.refresh(loader())
    assert not evidence.closed and set(SHUT) <= set(evidence.effective_dimension())
    other = network()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(other(x), wanted)


def test_what_opens_has_the_precision_that_is_fixed_or_tied():
    evidence = Evidence(network(), num_data=12, prior=PriorSettings(fixed={SHUT[0]: 20.0}))
    evidence.close(list(SHUT))
    evidence.open({SHUT[0]: 3.0, SHUT[1]: 3.0})
    assert evidence.log_precision[SHUT[0]] == 20.0 and evidence.log_precision[SHUT[1]] == 3.0
    tied = Evidence(network(), num_data=12, prior=PriorSettings(ties="layer"))
    tied.close(list(SHUT))
    tied.open(dict.fromkeys(SHUT, 9.0))
    assert len(tied.prior.groups) > 1
    for members in each(tied.prior.groups.values()):
        assert len({tied.log_precision[n] for n in members}) == 1


def test_a_fixed_pathway_is_nothing_for_the_gates():
    model, data = planted("rot", 60)
    held = "conv2.weights.irrep_1"
    evidence = Evidence(model, num_data=60, prior=PriorSettings(fixed={held: 2.0}))
    Gates(evidence, data).start()
    assert held not in evidence.closed and evidence.log_precision[held] == 2.0


def test_what_was_opened_after_a_refresh_needs_another_one():
    evidence = Evidence(network(), num_data=12)
    evidence.close(list(SHUT))
    evidence.refresh(loader())
    evidence.open({SHUT[0]: 3.0})
    with pytest.raises(CoverageError, match=f"{SHUT[0]}, opened since.*refresh"):
        evidence.posterior().outputs(next(iter(loader()))[0])


def test_patience_outlives_a_stop(tmp_path, monkeypatch):
    """Everything counts as dead at each refresh, so it is closed at the second one: also if the run stopped after
    the first."""
    from escnn_relax.training import gate_policy as module

    monkeypatch.setattr(module, "SWITCHED_OFF", 1.0)
    monkeypatch.setattr(module, "DETERMINED", 1.0)

    class Stop(Exception):
        pass

    def stop(record):
        if record.epoch == 2:
            raise Stop

    def train(path, callback=None):
        model, data = planted("half-turn", 200)
        with torch.no_grad():
            model.conv2.weights["irrep_1"].fill_(0.01)
        options = {**SHORT, "epochs": 5, "burn_in": 2, "prior": PriorSettings(log_precision=0.0)}
        return fit(model, data, checkpoint=path, callback=callback, gates=True, **options)

    whole = [r.note for r in train(tmp_path / "whole").records]
    with pytest.raises(Stop):
        train(tmp_path / "part", stop)
    resumed = [r.note for r in train(tmp_path / "part").records]
    assert any("closed" in note for note in whole) and whole == resumed


def test_projection_loss_is_that_of_the_subgroups_kernels_whatever_is_closed():
    """Those of C3 on 3x3 pixels have a part in the irreps 1 and 3 of C6."""
    from escnn_relax.evidence.verdicts.projection_loss import ProjectionLoss

    c6 = gspaces.rot2dOnR2(6)
    fields = enn.FieldType(c6, [c6.regular_repr])

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = RelaxedR2Conv(fields, fields, 3)

        def forward(self, x):
            return self.layer(fields(x)).tensor.mean((-2, -1))[:, :2]

    torch.manual_seed(0)
    model = Net().double()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_()
    data = [(torch.randn(6, 6, 5, 5).double(), torch.tensor([0, 1, 1, 0, 1, 0]))]
    evidence = Evidence(model, num_data=6)
    evidence.close(["layer.weights.irrep_1"])
    evidence.refresh(data)
    symmetry = KernelSymmetry(model.layer, "layer")
    (c3,) = [h for h in subgroups(c6) if h.order == 3]
    projected = copy.deepcopy(model)
    projected.layer.open("irrep_1")
    with torch.no_grad():
        for name, value in symmetry.projected_weights(c3).items():
            projected.layer.weights[name].copy_(value)
        assert projected.layer.weights["irrep_1"].norm() > 0.1
        losses = [float(evidence.likelihood.loss(m(data[0][0]), data[0][1])) for m in (projected, model)]
    assert ProjectionLoss(evidence, data)([symmetry], c3) == pytest.approx(losses[0] - losses[1], rel=1e-9)


def test_processes_that_do_not_add_up_what_is_closed(tmp_path):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'together'}", rank=0, world_size=1)
    try:
        model, data = planted("rot", 60)
        model.conv2.close("irrep_1")
        late = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
        evidence = Evidence(model, num_data=60)
        with pytest.raises(ArgumentError, match="conv2.weights.irrep_1.*before the model is wrapped"):
            Gates(evidence, data, late)
        with pytest.raises(ArgumentError, match="conv2.weights.irrep_1.*before the model is wrapped"):
            EvidenceCallback(late, data, epochs=3, burn_in=1, gates=False)  # which opens them
        model.conv2.open("irrep_1")
        early = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
        model.conv2.close("irrep_1")
        Gates(evidence, data, early)
        opening = EvidenceCallback(early, data, epochs=3, burn_in=1, gates=False)
        assert opening.evidence.closed == ("conv2.weights.irrep_1",)
    finally:
        dist.destroy_process_group()


def test_what_no_test_can_clear_is_open():
    """Irrep 4 of C8, which every quarter turn leaves alone: labels that tell eighths of a turn apart, and no others,
    need it."""
    from digits import DigitNet

    torch.manual_seed(0)
    model = relax(DigitNet(2, 1, gspaces.rot2dOnR2(8)))
    data = DataLoader(TensorDataset(torch.randn(120, 1, 8, 8), torch.randint(2, (120,))), 20)
    evidence = Evidence(model, num_data=120)
    gates = Gates(evidence, data)
    gates.start()
    gates.test()
    layers = {n: m for n, m in model.named_modules() if isinstance(m, RelaxedR2Conv)}
    assert len(layers) == 3
    for one in each(layers.values()):
        assert "irrep_4" in {p.name for p in one.pathways} and "irrep_4" not in one.closed and "irrep_2" in one.closed
    evidence.close([f"{name}.weights.irrep_4" for name in layers])
    assert gates.test() == "", "what the evidence has closed stays closed"


def carried(fibres, seed, opened=("irrep_1",)):
    """A C4 layer that has learned which way something is carried; what spreads along one axis only it cannot yet."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(400, 1, 7, 7, generator=generator)
    kernel = torch.zeros(1, 1, 3, 3)
    kernel[0, 0, 1] = torch.tensor([0.1 + fibres, 1.0, fibres - 0.1])
    kernel[0, 0, 0, 1] = kernel[0, 0, 2, 1] = -fibres
    y = torch.nn.functional.conv2d(x, kernel, padding=1)
    y = y + 0.5 * torch.randn(y.shape, generator=generator)
    scalar = enn.FieldType(C4, [C4.trivial_repr])

    class Filter(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = enn.R2Conv(scalar, scalar, 3, padding=1, bias=False)

        def forward(self, x):
            return self.layer(scalar(x)).tensor

    torch.manual_seed(seed)
    model, data = relax(Filter()), DataLoader(TensorDataset(x, y), 20)
    evidence = Evidence(model, "gaussian", num_data=400)
    evidence.close()
    evidence.open({f"layer.weights.{name}": 0.0 for name in opened})
    fit(model, data, evidence=evidence, epochs=6, lr=5e-2, progress=False)
    return evidence, data


def test_what_opened_pathways_left_without_a_test_opens_by_its_gain():
    """Something is carried to the right: no element of C4 keeps that, so nothing can be tested afterwards. What the
    fibres need opens all the same, and only for a network that learns; without fibres it stays closed."""
    evidence, data = carried(0.1, 0)
    (name,) = evidence.closed
    test = symmetry_test(evidence.model, data, likelihood="gaussian", gains=True, progress=False)
    (record,) = [t for t in test.tests if t.pathway == "irrep_2"]
    assert record.left_behind and not record.testable and not record.broken and record.gain > UNTESTED
    gates = Gates(evidence, data)
    gates.tested = True
    assert gates.test(False) == "" and evidence.closed == (name,)
    assert gates.test(True) == f"opened {name}"
    assert evidence.log_precision[name] == pytest.approx(record.log_precision, abs=1.0)  # of other groups of samples
    before = evidence.refresh(data).total
    assert (
        fit(evidence.model, data, evidence=evidence, epochs=4, lr=1e-2, progress=False).evidence.terms().total > before
    )
    gained = []
    for seed in range(4):
        evidence, data = carried(0.0, seed)
        gates = Gates(evidence, data)
        gates.tested = True
        assert gates.test(True) == "" and evidence.closed == (name,)
        test = symmetry_test(evidence.model, data, likelihood="gaussian", gains=True, progress=False)
        gained += [t.gain for t in test.tests if t.left_behind and t.pathway == "irrep_2"]
    assert len(gained) == 4 and max(gained) < UNTESTED / 2


def test_a_group_without_exact_elements_opens_at_the_first_test():
    """No turn of C3 moves pixels to pixels: nothing can be tested; what no test can clear is open, and it is said."""
    space = gspaces.rot2dOnR2(3)
    gray, fields = enn.FieldType(space, [space.trivial_repr]), enn.FieldType(space, 2 * [space.regular_repr])

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.relu, self.pool = enn.R2Conv(gray, fields, 5), enn.ReLU(fields), enn.GroupPooling(fields)
            self.linear = torch.nn.Linear(2, 2)

        def forward(self, x):
            return self.linear(self.pool(self.relu(self.conv(gray(x)))).tensor.mean((-2, -1)))

    y = torch.arange(160) % 2
    x = torch.randn(160, 1, 7, 7) + 2 * y[:, None, None, None]
    data = DataLoader(list(zip(x, y, strict=True)), 16, shuffle=True)
    model = relax(Net())
    assert "irrep_1" in model.conv.weights
    history = fit(model, data, epochs=12, progress=False)
    assert not model.conv.closed
    notes = [record.note for record in history.records]
    assert any("no element is left that is exact on the grid" in note for note in notes)
    twin = fit(relax(Net()), data, epochs=1, progress=False)
    assert not any(record.note for record in twin.records), (
        "what opens has to be trained, so nothing does in a last epoch"
    )


@pytest.mark.parametrize("learned", [True, False])
def test_what_opens_keeps_the_precision_of_the_test_where_the_network_had_learned(learned, monkeypatch):
    """Of a classifier; the noise of a regression says how well samples are known, so there the evidence moves all."""
    policy = importlib.import_module("escnn_relax.training.evidence_policy")
    monkeypatch.setattr(policy, "has_learned", lambda *_: learned)
    monkeypatch.setattr(policy, "was_learned", lambda *_: learned)
    monkeypatch.setattr(policy, "must_wait", lambda *_: False)
    model, data = planted("half-turn")
    history = fit(model, data, **{**SHORT, "epochs": 12})
    records = [r.log_precision for r in history.records if r.log_precision is not None]
    name = "conv1.weights.irrep_2"
    values = [v for logs in records if (v := logs.get(name, math.inf)) < math.inf]
    assert len(values) > 3 and all(map(math.isfinite, values))
    assert (len(set(values)) == 1) == learned, "from one refresh to the next it stays"
    assert records[1]["linear.weight"] != records[-1]["linear.weight"], "what no gate opened moves"
    assert history.evidence.learned
    assert history.evidence.log_precision[name] not in values, "in the end it is the evidence's"


def test_with_a_noise_the_evidence_moves_what_the_test_sized():
    evidence, data = carried(0.1, 0)
    gates = Gates(evidence, data)
    gates.tested = True
    assert gates.test(True) and gates.sized == {"layer.weights.irrep_2"} and not gates.unmoved
    assert evidence.likelihood.noisy


def test_an_irrep_that_is_broken_somewhere_follows_elsewhere():
    """In another layer of the group it need not be found broken there, and not gain as much."""
    model, data = planted("half-turn", 300)
    evidence = Evidence(model, num_data=300)
    gates = Gates(evidence, data)
    gates.start()
    evidence.refresh(data)
    test = symmetry_test(model, data, gains=True, draws=99, groups=32, progress=False)
    assert len(test.tests) == 6
    for broken in (set(), {"C4 irrep_2"}):
        gates.broken = broken
        following = {record.layer for record in test.tests if record.pathway == "irrep_2"} if broken else set()
        wanted = {f"{layer}.weights.irrep_2": GAIN for layer in following}
        assert gates._gains(test) == wanted
    initial = evidence.initial
    gains = {record.gain for record in test.tests if f"{record.layer}.weights.{record.pathway}" in wanted}
    assert len(gains) == 3
    none = opening_precisions(test, initial, False, math.inf, {name: max(gains) + 1 for name in wanted})
    everything = opening_precisions(test, initial, False, math.inf, {name: min(gains) for name in wanted})
    assert none == {} and set(everything) == set(wanted)
    gates.sized = {"conv1.weights.irrep_2"}
    other = Gates(evidence, data)
    other.load_state_dict(json.loads(json.dumps(gates.state_dict())))
    assert other.broken == {"C4 irrep_2"} and other.unmoved == {"conv1.weights.irrep_2"}


@pytest.mark.parametrize("penalty", [None, "all"])
def test_where_nothing_opens_it_is_the_training_of_the_strict_network(penalty):
    """Step by step, by default; the twin, in which all weights feel a prior, goes elsewhere."""
    relaxed, data = planted("rot")
    strict, data = harden(relaxed), DataLoader(data.dataset, 30)
    fit(relaxed, data, prior=PriorSettings(penalty=penalty), **SHORT)
    assert all(len(m.closed) == 2 for m in relaxed.modules() if isinstance(m, RelaxedR2Conv))
    descent = torch.optim.Adam(strict.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(descent, SHORT["epochs"], eta_min=1e-4)
    strict.train()
    for _ in range(SHORT["epochs"]):
        for x, y in data:
            descent.zero_grad()
            torch.nn.functional.cross_entropy(strict(x), y).backward()
            descent.step()
        schedule.step()
    x = data.dataset.tensors[0][:20]
    with torch.no_grad():
        off = float((strict.eval()(x) - relaxed.eval()(x)).abs().max())
    assert off < 1e-4 if penalty is None else off > 1e-3
