"""The differentiable search: what it finds, that it can be stopped, and what it refuses."""

from __future__ import annotations

import copy
import math
import warnings

import matplotlib
import pytest
import torch
from fields import SINGLE, distance
from nonempty import each
from search_cases import SmallNet, accuracy, loader, turned_bars
from torch import nn

from escnn_relax import Evidence, merge, mix
from escnn_relax.errors import ArgumentError, CheckpointError, DataError, UnsupportedModuleError
from escnn_relax.evidence import PriorSettings
from escnn_relax.nn import MixedR2Conv
from escnn_relax.search import differentiate, discretise
from escnn_relax.search.architecture import degree_penalty

matplotlib.use("Agg")
QUIET = {"progress": False, "seed": 3}


def network(groups=(2, 1), seed=0, **options):
    torch.manual_seed(seed)
    return mix(SmallNet(), list(groups), **options)


def state(result):
    return {**{f"model {n}": v for n, v in result.model.state_dict().items()},
            **{f"mixture {n}": v for n, v in result.mixture.state_dict().items()}}  # fmt: skip


def same(a, b):
    one, two = state(a), state(b)
    return one.keys() == two.keys() and all(torch.equal(one[n], two[n]) or one[n].isnan().all() for n in one)


def test_finds_that_the_symmetry_must_be_broken():
    train, held_out = loader(*turned_bars()), loader(*turned_bars(seed=2))
    model = network(leaning=1.0)
    before = copy.deepcopy(model.state_dict())
    result = differentiate(model, train, held_out, epochs=12, architecture_lr=0.1, **QUIET)
    final = result.history.final()
    assert min(of["C4"] for of in final.values()) < 0.25  # from 0.58
    assert accuracy(result.model.eval()) > 0.9 and accuracy(SmallNet().eval()) < 0.7
    assert all(torch.equal(v, before[n]) or v.isnan().all() for n, v in model.state_dict().items())
    assert [len(layer.pathways) for layer in result.model.modules() if isinstance(layer, MixedR2Conv)] == [1, 1]
    x = turned_bars()[0]
    with torch.no_grad():
        assert distance(merge(result.model.eval())(x), result.model(x)) < 1e-5


def test_history_by_layer_and_step():
    result = differentiate(network(), loader(*turned_bars()), epochs=2, record_every=4, **QUIET)
    history = result.history
    assert history.steps == (0, 4, 6, 8, 12)  # every fourth, and the end of each epoch of 6
    assert history.groups == {"first": ("C4", "C2", "trivial"), "second": ("C4", "C2", "trivial")}
    for layer, of in each(history.shares.items()):
        assert len(of) == len(history.steps) and all(abs(sum(s) - 1) < 1e-6 for s in of)
        assert of[0] == pytest.approx((1 / 3,) * 3) and max(abs(a - b) for a, b in zip(of[0], of[-1])) > 1e-3
        last = result.mixture.get_submodule(layer).shares.values()
        assert history.final()[layer] == dict(zip(history.groups[layer], last))
    assert [e.epoch for e in history.epochs] == [0, 1] and all(e.architecture_loss > 0 for e in history.epochs)
    assert "kept: " in str(result) and "33% →" in str(history) and history.to_dict()["steps"] == history.steps
    panels = result.plot()
    assert len(panels) == 2 and panels[0].get_title() == "first"


def test_norms_stay_where_they_were_and_only_if_asked():
    model = network()
    moved = differentiate(model, loader(*turned_bars()), epochs=1, normalise=False, discretise=None, **QUIET)
    fixed = differentiate(model, loader(*turned_bars()), epochs=1, discretise=None, **QUIET)
    for result, still in ((fixed, True), (moved, False)):
        for layer in (result.model.first, result.model.second):
            norms = [layer.summand_parameters(p.name)[0].norm() for p in layer.pathways]
            gaps = [abs(float(now / initial) - 1) for now, initial in zip(norms, layer.norms)]
            assert (max(gaps) < 1e-4) == still


def test_deterministic_by_seed():
    runs = [differentiate(network(), loader(*turned_bars()), epochs=2, progress=False, seed=s) for s in (5, 5, 6)]
    assert same(runs[0], runs[1]) and not same(runs[0], runs[2])


class Stop(Exception):
    pass


@pytest.mark.parametrize(
    "by, after",
    [*(("held-out", n) for n in (1, 3, 4)), pytest.param("evidence", 1, marks=pytest.mark.slow), ("evidence", 4)],
)
def test_killed_and_resumed_ends_alike(tmp_path, by, after):
    """Stopped in the search (1), between search and retraining (3), and while retraining (4)."""
    options = {"epochs": 3, "by": by, "retrain": 2, "burn_in": 0, **QUIET}
    whole = differentiate(network(), loader(*turned_bars(48)), **options)
    calls = []

    def stop(record):
        calls.append(record)
        if len(calls) == after:
            raise Stop

    path = tmp_path / "search.pt"
    with pytest.raises(Stop):
        differentiate(network(), loader(*turned_bars(48)), checkpoint=path, callback=stop, **options)
    torch.manual_seed(99)
    resumed = differentiate(network(), loader(*turned_bars(48)), checkpoint=path, **options)
    assert same(whole, resumed) and repr(whole.history) == repr(resumed.history)
    assert [e.phase for e in resumed.history.epochs] == 3 * ["search"] + 2 * ["retrain"]
    with pytest.raises(CheckpointError, match="lr"):
        differentiate(network(), loader(*turned_bars(48)), checkpoint=path, **{**options, "lr": 0.5})


def test_retraining_starts_from_the_initial_weights_with_frozen_shares():
    model = network()
    result = differentiate(model, loader(*turned_bars()), epochs=1, retrain=1, lr=1e-12, discretise=0.2, **QUIET)
    for name in ("first", "second"):
        layer, mixture = result.model.get_submodule(name), result.mixture.get_submodule(name)
        assert not layer.alpha.requires_grad
        for p in each(layer.pathways):
            assert torch.allclose(layer.weights[p.name], model.get_submodule(name).weights[p.name], atol=SINGLE)
        ratio = torch.tensor([mixture.shares[p.name] for p in layer.pathways])
        assert torch.allclose(layer.kernel.shares, ratio / ratio.sum(), atol=SINGLE)


# --- by evidence ------------------------------------------------------------------------------------------------------


def test_the_evidence_raises_itself():
    """Without weight steps, steps of the shares along the hypergradient raise the evidence."""
    model = network().double()
    with torch.no_grad():
        for layer in (model.first, model.second):
            for w in layer.weights.values():
                w.normal_(std=0.3)
    model.pool = nn.Identity()
    x, y = turned_bars(32)

    class Flat(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            n = self.net
            x = n.second(n.relu(n.first(n.gray(x.double())))).tensor
            return n.readout(x.unflatten(1, (2, 4)).tanh().mean((2, 3, 4)))

    model = Flat(model)
    data = loader(x, y, shuffle=False)
    options = {
        "by": "evidence",
        "burn_in": 0,
        "lr": 1e-12,
        "hypersteps": 0,
        "discretise": None,
        "architecture_lr": 0.02,
    }
    result = differentiate(model, data, epochs=8, **options, **QUIET)
    values = [e.log_evidence for e in result.history.epochs]
    assert values[0] < values[-1] and sum(b > a for a, b in zip(values, values[1:])) >= 6
    ties = {f"net.{n}.weights.{p.name}": n for n in ("first", "second") for p in model.net.get_submodule(n).pathways}
    direct = Evidence(model, num_data=32, prior=PriorSettings(ties=ties)).refresh(data).total / 32
    assert abs(values[0] - direct) < 1e-6


def test_retraining_after_the_evidence_has_its_prior_and_its_likelihood():
    """A regression with steps of no length from the strict start, where shares change nothing: retraining sees the loss
    of the search, squared error and prior, until the evidence has moved precisions and noise."""
    x, y = turned_bars(32)
    y = torch.stack([2.0 * y - 1, 1.0 - y], dim=1)
    data, model = loader(x, y, shuffle=False), network()
    options = {"by": "evidence", "likelihood": "gaussian", "burn_in": 0, "lr": 0.0, "discretise": None, "retrain": 1}
    losses = {}
    for hypersteps in (0, 5):
        result = differentiate(model, data, epochs=2, hypersteps=hypersteps, **options, **QUIET)
        assert [e.phase for e in result.history.epochs] == ["search", "search", "retrain"]
        losses[hypersteps] = result.history.epochs[0].loss, result.history.epochs[-1].loss
    with torch.no_grad():
        squares = float((copy.deepcopy(model).eval()(x) - y).square().sum() / 64)
    assert losses[0][1] == pytest.approx(losses[0][0], rel=1e-5) and losses[0][0] > squares
    assert losses[5][0] == losses[0][0] and abs(losses[5][1] / losses[0][1] - 1) > 0.01


def test_normalisation_and_evidence_exclude_each_other():
    with pytest.raises(ArgumentError, match="norm.*leave normalise out"):
        differentiate(network(), loader(*turned_bars()), by="evidence", normalise=True, **QUIET)


# --- choosing ---------------------------------------------------------------------------------------------------------


def with_shares(*rows, groups=(2, 1)):
    model = network(groups)
    for layer, row in zip((model.first, model.second), rows):
        layer.alpha.data.copy_(torch.tensor(row).log())
    return model


def kept(model):
    return [tuple(m.group_names.values()) for m in model.modules() if isinstance(m, MixedR2Conv)]


def test_argmax_threshold_and_chain():
    model = with_shares([0.2, 0.5, 0.3], [0.6, 0.3, 0.1])
    assert kept(discretise(model)) == [("C2",), ("C4",)]
    assert kept(discretise(model, 0.29)) == [("C2", "trivial"), ("C4", "C2")]
    assert kept(discretise(model, 0.9)) == [("C2",), ("C4",)]
    # C2 then C2: 0.15; C4 then C4: 0.12; C4 then C2: 0.06
    assert kept(discretise(model, monotone=True)) == [("C2",), ("C2",)]
    model.first.alpha.data.copy_(torch.tensor([0.3, 0.45, 0.25]).log())
    assert kept(discretise(model, monotone=True)) == [("C4",), ("C4",)]  # 0.18 against 0.135


def test_chain_by_brute_force():
    """All chains of a D4 network with conjugate reflections, by comparing elements."""
    from escnn_relax.symmetry.groups.lattice import subgroup

    torch.manual_seed(1)
    model = mix(SmallNet("D4"), [(None, 4), (0, 1), (2, 1), (1, 2), (None, 1)])
    for _ in range(10):
        for layer in (model.first, model.second):
            layer.alpha.data.normal_(std=2)
        best, layers = (-math.inf, None), (model.first, model.second)
        for a in layers[0].pathways:
            for b in layers[1].pathways:
                sets = []
                for p in (a, b):
                    h = subgroup(model.first.space, p.subgroup if p.subgroup else (0, 4))
                    sets.append({str(e) for e in h.elements})
                value = layers[0].shares[a.name] * layers[1].shares[b.name]
                if sets[1] <= sets[0] and value > best[0]:
                    best = value, [a.name, b.name]
        found = discretise(model, monotone=True)
        assert [found.first.pathways[0].name, found.second.pathways[0].name] == best[1]


def test_discretising_keeps_what_the_chosen_group_can_do():
    """Of 54 % C2 and 46 % trivial, C2 takes over what the trivial group's filter has of it."""
    model = with_shares([0.01, 0.54, 0.45], [0.01, 0.54, 0.45])
    with torch.no_grad():
        for layer in (model.first, model.second):
            for w in layer.weights.values():
                w.normal_()
    found = discretise(model)
    for name in ("first", "second"):
        mixture, ours = model.get_submodule(name), found.get_submodule(name)
        kernel, left = mixture.expand_parameters()[0].detach(), ours.expand_parameters()[0].detach()
        dropped = mixture.without("equivariant", "trivial").expand_parameters()[0].detach()
        assert (left - kernel).norm() < 0.95 * (dropped - kernel).norm()
        # a projection: what is lost is at right angles to what is left
        assert abs(float(((kernel - left) * left).sum())) < 1e-4 * float(kernel.norm() * left.norm())


def test_what_discretising_costs_is_said():
    data, held_out = loader(*turned_bars()), loader(*turned_bars(seed=2), shuffle=False)
    model = with_shares([0.58, 0.02, 0.4], [0.58, 0.02, 0.4])
    with torch.no_grad():
        for layer in (model.first, model.second):
            layer.weights["trivial"].normal_()
    options = {"epochs": 0, **QUIET}
    with pytest.warns(UserWarning, match="discretising raised the loss from .* train the found model on"):
        result = differentiate(model, data, held_out, **{**options, "epochs": 6, "architecture_lr": 0.0, "lr": 0.02})
    assert set(result.architecture.values()) == {"C4"}
    x, y = (torch.cat(parts) for parts in zip(*held_out))
    for searched, value in each(zip((result.mixture, result.model), result.losses, strict=True)):
        with torch.no_grad():
            expected = nn.functional.cross_entropy(copy.deepcopy(searched).eval()(x), y)
        assert abs(value - float(expected)) < 1e-5
    assert result.losses[1] > result.losses[0] + 0.1 and "; loss " in str(result)
    assert all(module.training for module in result.model.modules())
    assert differentiate(model, data, discretise=None, **options).losses is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # retraining is the remedy; and the evidence's likelihood is the loss there
        differentiate(model, data, held_out, retrain=1, **options)
        quiet = differentiate(network(), data, by="evidence", evidence_options={"curvature": "diagonal"}, **options)
    assert quiet.losses[0] == pytest.approx(quiet.losses[1], rel=1e-4)


def test_the_penalty_keeps_symmetry_from_growing():
    rising, falling = with_shares([0.1, 0.1, 0.8], [0.8, 0.1, 0.1]), with_shares([0.8, 0.1, 0.1], [0.1, 0.1, 0.8])
    layers = lambda m: {"first": m.first, "second": m.second}
    assert (
        abs(float(degree_penalty(layers(rising))) - (0.85 - 0.15)) < 1e-6
        and float(degree_penalty(layers(falling))) == 0
    )
    data = loader(*turned_bars())
    loose, tight = (
        differentiate(rising, data, epochs=2, monotone=m, architecture_lr=0.1, discretise="argmax", **QUIET)
        for m in (0, 20)
    )
    gaps = [float(degree_penalty(layers(r.mixture))) for r in (loose, tight)]
    assert gaps[1] < gaps[0] - 0.1
    orders = [{"C4": 4, "C2": 2, "trivial": 1}[g] for g in tight.architecture.values()]
    assert orders == sorted(orders, reverse=True)


def test_entropy_makes_shares_decide():
    data = loader(*turned_bars())
    options = {"epochs": 2, "architecture_lr": 0.1, **QUIET}
    plain, sharp = (differentiate(network(leaning=0.5), data, entropy=e, **options) for e in (0.0, 30.0))
    most = [max(max(of.values()) for of in r.history.final().values()) for r in (plain, sharp)]
    assert most[1] > most[0] + 0.02


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, parts",
    [({"by": "luck"}, "by.*'luck'"), ({"epochs": -1}, "epochs.*-1"), ({"record_every": 0}, "record_every"),
     ({"entropy": -1.0}, "entropy"), ({"hypersteps": -1}, "hypersteps"),
     ({"architecture_lr": -0.1}, "architecture_lr"), ({"lr": math.nan}, "lr"),
     ({"discretise": "best"}, "'best'"), ({"discretise": 1.5}, "1.5"),
     ({"discretise": 0.5, "monotone": 1.0}, "monotone.*argmax")],
)  # fmt: skip
def test_arguments_that_make_no_sense(options, parts):
    with pytest.raises(ArgumentError, match=parts):
        differentiate(network(), loader(*turned_bars()), **options, **QUIET)


def test_nothing_to_search_and_no_data():
    data = loader(*turned_bars())
    with pytest.raises(UnsupportedModuleError, match="mix"):
        differentiate(SmallNet(), data, **QUIET)
    frozen = network()
    for layer in (frozen.first, frozen.second):
        layer.freeze()
    with pytest.raises(ArgumentError, match="frozen.*freeze"):
        differentiate(frozen, data, **QUIET)
    for loaders in ([[]], [data, []]):
        with pytest.raises(DataError, match="no batch"):
            differentiate(network(), *loaders, epochs=1, **QUIET)
    with pytest.raises(DataError, match="not finite.*learning rate"):
        differentiate(network(), data, loss=lambda o, t: o.sum() * math.nan, **QUIET)
    nothing = differentiate(network(leaning=1.0), data, epochs=0, **QUIET)
    assert nothing.history.steps == (0,) and set(nothing.architecture.values()) == {"C4"}


def test_results_under_their_former_names():
    import escnn_relax.search as search

    for old, new in (("Differentiated", "GradientSearchResult"), ("Evolved", "EvolutionResult")):
        with pytest.warns(DeprecationWarning, match=f"search.{old} is an old spelling.*write escnn_relax.search.{new}"):
            assert getattr(search, old) is getattr(search, new)
    with pytest.raises(AttributeError, match="has no attribute 'Devolved'"):
        _ = search.Devolved
