"""Ways in which people train: compiled, in half precision, in parts, with copies: each gives the numbers of the plain
way, or says that it cannot."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from curvature_oracles import own_filters  # noqa: F401
from escnn import gspaces
from escnn import nn as enn
from nonempty import each
from tolerances import accumulated
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from escnn_relax import Evidence, fit, harden, relax, report, survivors, symmetry_test
from escnn_relax.errors import CoverageError, LikelihoodError, RelaxError, UnsupportedModuleError

#: float64; two orders of the same sums
ROUNDING = 1e-10
C4 = gspaces.rot2dOnR2(4)
GRAY = enn.FieldType(C4, [C4.trivial_repr])
FIELDS = enn.FieldType(C4, 2 * [C4.regular_repr])


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.act = enn.R2Conv(GRAY, FIELDS, 3, padding=1), enn.ELU(FIELDS)
        self.second = enn.R2Conv(FIELDS, FIELDS, 3)
        self.head = nn.Linear(2, 3)

    def features(self, x):
        return self.second(self.act(self.first(GRAY(x)))).tensor

    def forward(self, x):
        return self.head(self.features(x).unflatten(1, (2, 4)).amax(2).mean((-2, -1)))


class Checkpointed(Net):
    """Forgets what lies between and computes it again in the backward pass."""

    reentrant = False

    def forward(self, x):
        x = x.requires_grad_() if self.reentrant else x
        features = checkpoint(self.features, x, use_reentrant=self.reentrant)
        return self.head(features.unflatten(1, (2, 4)).amax(2).mean((-2, -1)))


def network(kind=Net):
    """With residual pathways that are not zero: nothing about them can go unnoticed."""
    torch.manual_seed(1)
    model = relax(kind().double())
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model


def images(count=24):
    g = torch.Generator().manual_seed(2)
    x = torch.randn(count, 1, 5, 5, generator=g, dtype=torch.float64)
    return x * torch.rand(count, 1, 1, 1, generator=g, dtype=torch.float64), torch.arange(count).remainder(3)


def batches(size=8):
    x, y = images()
    return list(zip(x.split(size), y.split(size)))


def alike(one, other, tolerance=ROUNDING):
    return math.isclose(one.total, other.total, rel_tol=tolerance) and one.num_data == other.num_data


# --- torch.compile --------------------------------------------------------------------------------------------------


def whole(model):
    return torch.compile(model, backend="eager")


def in_place(model):
    model.compile(backend="eager")
    return model


def one_layer(model):
    model.second = torch.compile(model.second, backend="eager")
    return model


def its_forward(model):
    model.forward = torch.compile(model.forward, backend="eager")
    return model


WAYS = [whole, in_place, one_layer, its_forward]


@pytest.mark.parametrize(
    "way",
    [
        whole,
        pytest.param(in_place, marks=pytest.mark.slow),
        pytest.param(one_layer, marks=pytest.mark.slow),
        pytest.param(its_forward, marks=pytest.mark.slow),
    ],
)
def test_a_compiled_model_is_the_model(way):
    model = way(network())
    x, y = images()
    assert torch.allclose(model(x), network()(x), rtol=ROUNDING)  # it has run compiled
    found = Evidence(model)
    assert alike(found.refresh(batches()), Evidence(network()).refresh(batches()))
    wanted = Evidence(network())
    wanted.refresh(batches())
    assert (
        str(survivors(model, found).network) != ""
        and survivors(model, found).network.subgroup == survivors(wanted.model, wanted).network.subgroup
    )
    assert "irrep_1" in str(report(model, found))
    model.train()
    assert torch.allclose(model(x), network()(x), rtol=ROUNDING)


def test_copies_do_not_run_the_compiled_original():
    """Whatever makes a copy: its methods are its own."""
    x, _ = images()
    strict = Net().double()
    strict.features = torch.compile(strict.features, backend="eager")
    strict(x)
    model = relax(strict)
    assert torch.allclose(model(x), strict(x), atol=1e-6)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    assert not torch.allclose(model(x), strict(x), atol=1e-2)
    hardened = harden(model)
    assert torch.allclose(hardened(x), model(x), atol=1e-5)
    found = Evidence(model)
    found.refresh(batches())
    costs = survivors(model, found, data=batches()).network.losses
    assert costs and all(abs(cost) > 1e-3 for cost in costs.values())


def test_names_are_those_of_the_layers():
    evidence = Evidence(whole(network()))
    assert "first.weights.irrep_1" in evidence.log_precision and evidence.model is not None


@pytest.mark.slow
def test_a_compiled_model_follows_its_weights():
    """In evaluation mode a relaxed layer keeps its expanded kernel until a weight changes, compiled or not."""
    x, _ = images()
    model = whole(network())
    model.eval()
    before = model(x)
    with torch.no_grad():
        model._orig_mod.second.weights["irrep_1"].mul_(3)
    after = model(x)
    assert not torch.allclose(before, after) and torch.allclose(after, model._orig_mod(x), rtol=ROUNDING)


@pytest.mark.slow
def test_a_compiled_model_follows_its_gates():
    x, _ = images()
    model = whole(network())
    model(x)
    model._orig_mod.second.close("irrep_1")
    assert torch.allclose(model(x), model._orig_mod(x), rtol=ROUNDING)
    model._orig_mod.second.open("irrep_1")
    with torch.no_grad():
        model._orig_mod.second.weights["irrep_1"].normal_()
    assert torch.allclose(model(x), model._orig_mod(x), rtol=ROUNDING)
    model(x).sum().backward()
    assert model._orig_mod.second.weights["irrep_1"].grad.abs().sum() > 0


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("gates", [True, False])
def test_fit_of_a_compiled_model(way, gates):
    histories = []
    for model in (network(), way(network())):
        torch.manual_seed(7)
        histories.append(fit(model, batches(1), epochs=3, burn_in=1, refresh_every=1, gates=gates, progress=False))
    one, other = histories
    assert len(one.records) == 3 and all(
        math.isclose(a.loss, b.loss, rel_tol=1e-6) for a, b in zip(one.records, other.records)
    )
    names = [name.replace("_orig_mod.", "") for name in other.evidence.log_precision]  # torch.compile names layers so
    assert list(one.evidence.log_precision) == names


def test_closed_pathways_of_a_wrapped_model_are_the_optimisers_too():
    """What opens later must move: names of a wrapper have another prefix."""
    model = network()
    model.second.close("irrep_1")
    held = []
    fit(
        whole(model),
        batches(),
        epochs=1,
        burn_in=5,
        gates=False,
        progress=False,
        optimizer=lambda p: held.extend(p) or torch.optim.SGD(p, 0.0),
    )
    assert any(p is model.second.weights["irrep_1"] for p in held)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_symmetry_test_of_a_compiled_model(way):
    x, y = images(200)
    data = list(zip(x.split(20), y.split(20)))
    tests = [symmetry_test(model, data, draws=99, progress=False).tests for model in (network(), way(network()))]
    assert tests[0] and all(
        math.isclose(a.statistic, b.statistic, rel_tol=1e-8) and a.pathway == b.pathway for a, b in zip(*tests)
    )


@pytest.mark.slow
def test_a_checkpoint_of_a_compiled_run_is_one_of_the_model(tmp_path):
    """Written by the one, continued by the other."""
    arguments = {"burn_in": 1, "refresh_every": 1, "gates": False, "progress": False, "checkpoint": tmp_path / "run.pt"}
    model = network()
    fit(whole(model), batches(), epochs=2, **arguments)
    again = network()
    fit(again, batches(), epochs=2, **arguments)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))


def traced(model):
    return torch.jit.trace(model.eval(), images()[0])


def exported(model):
    return torch.export.export(model.eval(), (images()[0],)).module()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "hide, words",
    [
        (traced, "^model: TorchScript hides the layers.*pass the model"),
        (exported, "^model: a graph of single operations hides.*pass the model"),
    ],
)
def test_a_compiled_model_that_hides_its_layers(hide, words):
    model = hide(network())
    for ask in (
        lambda: Evidence(model),
        lambda: Evidence(model, relaxed_only=False),
        lambda: fit(model, batches(), epochs=1, progress=False),
        lambda: symmetry_test(model, batches(), progress=False),
        lambda: survivors(model),
        lambda: report(model),
    ):
        with pytest.raises(UnsupportedModuleError, match=words):
            ask()


# --- precision ------------------------------------------------------------------------------------------------------


def test_autocast_around_the_refresh():
    model = network().float()
    data = [(x.float(), y) for x, y in batches()]
    wanted = Evidence(model, curvature="exact")
    wanted.refresh(data)
    found = Evidence(model, curvature="exact")
    with torch.autocast("cpu", torch.bfloat16):
        found.refresh(data)
    # sums of some ten roundings of bfloat16 on the way through the network
    bound = accumulated(torch.bfloat16, 10 * 10)
    assert all(values.dtype == torch.float64 for values in found.eigenvalues.values()) and found.eigenvalues
    for name, values in each(found.eigenvalues.items()):
        scale = float(wanted.eigenvalues[name].sum())
        assert abs(float(values.sum()) - scale) < bound * scale, name
    assert found.refresh(data) == wanted.refresh(data)


def test_a_gradient_scaler_leaves_the_steps_alone():
    """The scale is a power of two, so that the steps are the same bits; what overflows is skipped."""
    steps = []
    for scaled in (False, True):
        model, data = network().float(), [(x.float(), y) for x, y in batches()]
        evidence = Evidence(model, num_data=24)
        descent, scaler = torch.optim.SGD(model.parameters(), 0.1), torch.amp.GradScaler("cpu", enabled=scaled)
        for x, y in data:
            with torch.autocast("cpu", torch.bfloat16, enabled=False):
                loss = evidence.loss(model(x), y)
            descent.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(descent)
            scaler.update()
        steps.append([p.detach().clone() for p in model.parameters()])
    assert len(steps[0]) > 5
    for one, other in each(zip(*steps, strict=True)):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-7)


def test_a_loss_in_the_place_of_the_outputs():
    """Averaged, or scaled, by someone else: it would be averaged and scaled again."""
    model = network()
    x, y = images()
    evidence = Evidence(model, num_data=24)
    own = torch.amp.GradScaler("cpu").scale(nn.functional.cross_entropy(model(x), y).float())
    with pytest.raises(
        LikelihoodError, match="one number, as if it were a loss; return the outputs that the loss is of"
    ):
        evidence.loss(own, y)


def test_half_precision_parameters():
    model = network()
    wanted = Evidence(model, curvature="exact")
    wanted.refresh(batches())
    half = copy.deepcopy(model).to(torch.bfloat16)
    found = Evidence(half, curvature="exact")
    found.refresh([(x.bfloat16(), y) for x, y in batches()])
    bound = accumulated(torch.bfloat16, 10 * 10)
    assert len(found.eigenvalues) == len(wanted.eigenvalues) > 5
    for name, values in each(found.eigenvalues.items()):
        scale = float(wanted.eigenvalues[name].sum())
        assert abs(float(values.sum()) - scale) < bound * scale, name


def test_channels_last():
    model = network().to(memory_format=torch.channels_last)
    data = [(x.expand(-1, 1, -1, -1).contiguous(memory_format=torch.channels_last), y) for x, y in batches()]
    assert alike(Evidence(model).refresh(data), Evidence(network()).refresh(batches()))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_refresh_where_gradients_are_off(mode):
    evidence = Evidence(network())
    with mode():
        found = evidence.refresh(batches())
    assert alike(found, Evidence(network()).refresh(batches()))


# --- steps ----------------------------------------------------------------------------------------------------------


def test_gradients_in_parts_add_up():
    """Two halves of a batch, each loss divided by two: the gradient of the whole, the prior counted once."""
    model = network()
    x, y = images()
    evidence = Evidence(model, num_data=24)
    evidence.loss(model(x), y).backward()
    wanted = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for part, label in zip(x.split(12), y.split(12)):
        (evidence.loss(model(part), label) / 2).backward()
    assert wanted and all(torch.allclose(p.grad, w, rtol=1e-9, atol=1e-12) for p, w in zip(model.parameters(), wanted))


def test_a_refresh_between_parts_leaves_the_gradients():
    model = network()
    evidence = Evidence(model, num_data=24)
    x, y = images()
    loss = evidence.loss(model(x), y)  # its graph is waiting
    evidence.refresh(batches())
    loss.backward()
    found = [p.grad.clone() for p in model.parameters()]
    evidence.refresh(batches())
    assert found and all(torch.equal(p.grad, w) for p, w in zip(model.parameters(), found))
    model.zero_grad()
    evidence.loss(model(x), y).backward()
    assert all(torch.equal(p.grad, w) for p, w in zip(model.parameters(), found))


def test_gradient_checkpointing():
    one, other = Evidence(network(Checkpointed), curvature="exact"), Evidence(network(), curvature="exact")
    assert alike(one.refresh(batches()), other.refresh(batches()))
    for name, values in each(one.eigenvalues.items()):
        assert torch.allclose(values, other.eigenvalues[name], rtol=1e-8, atol=1e-10), name
    slopes = [e.hypergradient(batches(), [e.model.second.bias])[0] for e in (one, other)]
    assert torch.allclose(*slopes, rtol=1e-8) and slopes[0].abs().sum() > 0


@pytest.mark.filterwarnings("ignore:None of the inputs")
def test_reentrant_checkpoints_are_refused():
    class Reentrant(Checkpointed):
        reentrant = True

    with pytest.raises(
        CoverageError, match="^(first|second): the layer took no part.*reentrant checkpoint.*let gradients pass"
    ):
        Evidence(network(Reentrant)).refresh(batches())


@pytest.mark.slow
def test_fit_with_gradient_checkpointing():
    runs = [
        fit(network(kind), batches(), epochs=2, burn_in=1, refresh_every=1, gates=False, progress=False)
        for kind in (Net, Checkpointed)
    ]
    assert len(runs[0].records) == 2 and all(
        math.isclose(a.loss, b.loss, rel_tol=1e-8) for a, b in zip(*(r.records for r in runs))
    )


def test_averaged_copies():
    """An exponential moving average has an evidence of its own; and the model's is not disturbed by it."""
    model = network()
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    own = Evidence(averaged)
    assert alike(own.refresh(batches()), Evidence(network()).refresh(batches()))
    averaged.update_parameters(model)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    averaged.update_parameters(model)
    wanted = network()
    with torch.no_grad():
        for p, q in zip(wanted.parameters(), averaged.module.parameters()):
            p.copy_(q)
    x, _ = images()
    averaged.eval()
    assert torch.allclose(averaged(x), wanted(x), rtol=ROUNDING)
    assert alike(own.refresh(batches()), Evidence(wanted).refresh(batches()))
    assert not alike(own.terms(), Evidence(model).refresh(batches()), 1e-4)
    hardened = harden(averaged.module)
    assert torch.allclose(hardened(x), averaged(x), atol=1e-5)


def test_fit_calls_closures():
    """LBFGS evaluates the loss several times in a step."""
    history = fit(
        network(),
        batches(24),
        epochs=6,
        burn_in=3,
        refresh_every=2,
        gates=False,
        progress=False,
        optimizer=lambda p: torch.optim.LBFGS(p, lr=0.5, line_search_fn="strong_wolfe"),
        scheduler=lambda o: torch.optim.lr_scheduler.ConstantLR(o, 1.0),
    )
    losses = [r.loss for r in history.records]
    assert len(losses) == 6 and losses[2] < losses[1] < losses[0]


def test_a_closure_of_ones_own():
    model = network()
    evidence = Evidence(model, num_data=24)
    x, y = images()
    descent = torch.optim.LBFGS(model.parameters(), max_iter=5, line_search_fn="strong_wolfe")

    def closure():
        descent.zero_grad()
        loss = evidence.loss(model(x), y)
        loss.backward()
        return loss

    first = float(descent.step(closure))
    assert float(closure().detach()) < first
    assert evidence.refresh(batches()).num_data == 24


# --- frozen layers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gates", [True, False])
def test_frozen_layers_stay(gates):
    model = network()
    with torch.no_grad():
        for name in ("irrep_1", "irrep_2"):
            model.first.weights[name].zero_()
    model.first.requires_grad_(False)
    before = copy.deepcopy(model.first.state_dict())
    history = fit(model, batches(1), epochs=3, burn_in=1, refresh_every=1, gates=gates, progress=False)
    parameters = dict(model.first.named_parameters())
    assert parameters and all(torch.equal(p, before[n]) and not p.requires_grad for n, p in parameters.items())
    assert all(history.evidence.uncovered[f"first.{n}"] == "frozen" for n in parameters)
    assert not any(n.startswith("first.") for n in history.evidence.log_precision)
    assert "first" in str(report(model, history.evidence))


def test_everything_frozen():
    model = network().requires_grad_(False)
    with pytest.raises(RelaxError, match="frozen"):
        fit(model, batches(), epochs=1, progress=False)


def test_a_frozen_trunk_has_the_curvature_of_the_rest():
    one, other = network(), network()
    one.first.requires_grad_(False)
    found, wanted = Evidence(one, curvature="exact"), Evidence(other, curvature="exact")
    found.refresh(batches()), wanted.refresh(batches())
    names = [n for n in wanted.eigenvalues if not n.startswith("first.")]
    assert set(names) == set(found.eigenvalues) and len(names) > 3
    assert all(torch.allclose(found.eigenvalues[n], wanted.eigenvalues[n], rtol=1e-9, atol=1e-12) for n in names)
