"""The evolutionary search: moves, weights handed on, selection, kills, workers."""

from __future__ import annotations

import copy
import inspect
import math
import os
import pickle
import random
import time
from collections import Counter
from dataclasses import fields
from functools import partial
from itertools import product
from pathlib import Path

import matplotlib
import pytest
import torch
from escnn import gspaces
from escnn import nn as enn
from fields import distance
from nonempty import each
from search_cases import (
    SmallNet, accuracy, loader, nan_for_c2, negative_parameters, not_a_number, text, turned_bars,
)  # fmt: skip
from torch import nn

from escnn_relax import Evidence, mix
from escnn_relax.errors import (
    ArgumentError,
    CheckpointError,
    DataError,
    FieldTypeError,
    SearchError,
    SubgroupError,
    UnsupportedModuleError,
)
from escnn_relax.evidence import CurvatureSettings
from escnn_relax.search import Conditions, evolve, random_search, static
from escnn_relax.search.evolution.conditions import ConditionKeywords
from escnn_relax.search.evolution.individual import pareto_front
from escnn_relax.search.evolution.genome import Ladder
from escnn_relax.search.evolution.network import Shells, fill, read, scatter, stages_of, transfer
from escnn_relax.search.evolution.order_of_use import calls

matplotlib.use("Agg")
C4, D4 = gspaces.rot2dOnR2(4), gspaces.flipRot2dOnR2(4)
SMALL = {"generations": 2, "population": 2, "epochs": 0.5, "progress": False, "seed": 4, "lr": 0.02}


def network(name="C4", seed=0, **options):
    torch.manual_seed(seed)
    return SmallNet(name, **options)


def search(score=accuracy, count=48, **options):
    return evolve(network(), loader(*turned_bars(count)), score, **{**SMALL, **options})


def same(a, b):
    """The same records and bit for bit the same winner."""
    one, two = a.model.state_dict(), b.model.state_dict()
    alike = one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)
    return alike and repr(a.individuals) == repr(b.individuals) and a.front == b.front


# --- the lattice ------------------------------------------------------------------------------------------------------


def test_moves_of_d4_by_comparing_elements():
    """One step down is to a subgroup with nothing between; by the sets of their elements."""
    ladder = Ladder(D4)
    sets = {n: {str(e) for e in h.elements} for n, h in ladder.members.items()}
    assert len(sets) == 10 and ladder.whole == "D4"
    for name in sets:
        lower = {n for n in sets if sets[n] < sets[name]}
        direct = {n for n in lower if not any(sets[n] < sets[m] for m in lower)}
        assert set(ladder.below(name)) == direct
    assert len(ladder.below("D4")) == 3 and ladder.below("trivial") == ()


def test_children_never_gain_symmetry_with_depth_and_reach_every_chain():
    ladder = Ladder(D4)
    start = 3 * ("D4",)
    reached, todo = {start}, [start]
    while todo:
        for child, change in ladder.children(todo.pop()):
            ladder.check(child, 3)
            if child not in reached:
                reached.add(child)
                todo.append(child)
    every = [g for g in product(ladder.members, repeat=3)
             if all(ladder.members[b] <= ladder.members[a] for a, b in zip(g, g[1:]))]  # fmt: skip
    assert reached == set(every)


def test_allowed_groups_only():
    ladder = Ladder(D4, [(None, 4), (None, 1)])
    assert list(ladder.members) == ["D4", "C4", "trivial"] and ladder.below("C4") == ("trivial",)
    assert [g for g, _ in ladder.children(("D4", "C4"))] == [("D4", "C4"), ("D4", "trivial"), ("C4", "C4")]


def test_random_genomes_are_drawn_evenly():
    ladder, draw = Ladder(C4), random.Random(0)
    counts = Counter(ladder.random(2, draw) for _ in range(6000))
    assert len(counts) == 6 and all(abs(n - 1000) < 150 for n in counts.values())  # 5 standard deviations


# --- weights ----------------------------------------------------------------------------------------------------------


CHAIN = [("D4", "C4"), ("C4", "C2"), ("C2", "C2"), ("C2", "trivial"), ("trivial", "trivial")]


def test_children_start_with_their_parents_function():
    """From the template and along a chain of moves, weights moved in between, batch norm's statistics too."""
    torch.manual_seed(0)
    template, ladder = SmallNet("D4", norm=True), Ladder(D4)
    shells, x = Shells(template, stages_of(template), ladder), torch.randn(4, 1, 7, 7)
    parent = template
    for genome in CHAIN:
        child = transfer(parent, shells.build(genome))
        for mode in (True, False):
            with torch.no_grad():
                one, two = (copy.deepcopy(m).train(mode)(x) for m in (parent, child))
            assert distance(two, one) < 1e-5
        with torch.no_grad():  # the broken twin: other weights, another function; and the next child inherits these
            before = child.eval()(x)
            for p in child.train().parameters():
                p.add_(0.1 * torch.randn_like(p))
            child(x)
            assert distance(child.eval()(x), before) > 1e-3
            child.train()
        parent = child


def test_unchanged_layers_keep_their_coefficients():
    """Also for a basis that the way to it has polished otherwise, where the coefficients of the same function are
    new."""
    template, ladder = network("D4"), Ladder(D4)
    shells = Shells(template, stages_of(template), ladder)
    parent = scatter(shells.build(("C4", "C4")))
    child = transfer(parent, shells.build(("C4", "C2")))
    ours, theirs = (m.get_submodule("first") for m in (child, parent))
    layer = lambda m: next(part for part in m.modules() if isinstance(part, enn.R2Conv))
    assert torch.equal(layer(ours).weights, layer(theirs).weights)
    for block in layer(parent.get_submodule("first")).modules():
        if hasattr(block, "sampled_basis"):
            block.sampled_basis.copy_(block.sampled_basis.flip(0))
    child, x = transfer(parent, shells.build(("C4", "C2"))), torch.randn(2, 1, 7, 7)
    assert not torch.equal(layer(child.get_submodule("first")).weights, layer(theirs).weights)
    with torch.no_grad():
        assert distance(child.eval()(x), parent.eval()(x)) < 1e-5


def test_networks_keep_the_groups_of_their_genome():
    template = network("D4")
    x = torch.randn(2, 1, 7, 7)
    for genome, kept in ((("C4", "C4"), True), (("C4", "C2"), False)):
        model = scatter(Shells(template, stages_of(template), Ladder(D4)).build(genome)).eval()
        with torch.no_grad():
            gap = distance(model(torch.rot90(x, 1, (-2, -1))), model(x))
            flipped = distance(model(x.flip(-1)), model(x))
        assert (gap < 1e-5) == kept and flipped > 1e-3


def test_states_are_small_and_complete():
    template = network("D4")
    shells = Shells(template, stages_of(template), Ladder(D4))
    shell = scatter(shells(("D4", "C2")))
    state, x = read(shell), torch.randn(2, 1, 7, 7)
    count = lambda tensors: sum(t.numel() for t in tensors)
    assert count(shell.parameters()) <= count(state.values()) < 0.1 * count(shell.state_dict().values())
    with torch.no_grad():
        before = shell.eval()(x)
        scatter(shell)
        assert distance(shell.eval()(x), before) > 1e-3
        assert torch.equal(fill(shell, state).eval()(x), before)
        assert shells(("D4", "C2")) is shell  # one network a genome, so one set of kernels
        other = Shells(template, stages_of(template), Ladder(D4)).build(("D4", "C2"))
        assert torch.equal(fill(other, state).eval()(x), before)


def test_the_callers_model_is_left_alone():
    model = network()
    before = {n: v.clone() for n, v in model.state_dict().items()}
    torch.manual_seed(7)
    expected, _ = torch.randn(1), torch.manual_seed(7)
    evolve(model, loader(*turned_bars(32)), accuracy, **{**SMALL, "generations": 1})
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert torch.equal(torch.randn(1), expected)  # and so are the caller's random numbers


# --- selection --------------------------------------------------------------------------------------------------------


def test_finds_that_the_symmetry_must_be_broken():
    result = search(count=96, generations=4, epochs=3, population=3)
    assert accuracy(result.model) == result.winner.score > 0.9
    assert result.winner.genome[-1] != "C4" and result.individuals[0].score < 0.75
    known = {"escnn", "torch", "escnn_relax", "search_cases"}
    assert {type(m).__module__.split(".")[0] for m in result.model.modules()} <= known
    assert isinstance(result.model.get_submodule("first"), (enn.R2Conv, enn.SequentialModule))
    x = turned_bars()[0]
    with torch.no_grad():
        assert not result.model.training and torch.equal(copy.deepcopy(result.model)(x), result.model(x))
    result.model(x).sum().backward()  # training can go on


def test_records():
    result = search()
    assert [one.id for one in result.individuals] == list(range(len(result.individuals)))
    by_id = {one.id: one for one in result.individuals}
    for generation in range(3):
        born = [one for one in result.individuals if one.generation == generation]
        kept = sorted((one for one in born if one.survived), key=lambda one: (-one.score, one.id))
        assert len(kept) == min(2, len(born))
        assert min(one.score for one in kept) >= max((one.score for one in born if not one.survived), default=0)
    for one in each(result.individuals[1:]):
        parent = by_id[one.parent]
        assert parent.generation == one.generation - 1 and parent.survived
        assert one.genome in [g for g, _ in Ladder(C4).children(parent.genome)]
    line = result.lineage()
    assert line[0].id == 0 and line[-1] == result.winner and [one.generation for one in line] == [0, 1, 2]
    assert result.stages == ("first", "second") and result.to_dict()["winner"] == result.winner.id
    text = str(result)
    assert text.count("W") == 1 and "stage 2 to C2" in text and len(text.splitlines()) == 3 + len(result.individuals)
    best = [one for one in result.individuals if one.id in result.front]
    last = text.splitlines()[-1]
    assert best and all(f"{one.id} ({one.groups}, {one.parameters}, {one.score:.4f})" in last for one in best)
    tree, front = result.plot()
    assert tree.get_ylabel() == "generation" and front.get_xlabel() == "parameters"


def test_pareto_front_by_brute_force():
    draw = random.Random(1)
    points = [(n, draw.randrange(5), draw.randrange(5)) for n in range(40)] + [(40, math.nan, 0)]
    for id, value, cost in each(points[:-1]):
        beaten = any((v > value and c <= cost) or (v >= value and c < cost) for _, v, c in points[:-1])
        assert (id in pareto_front(points)) != beaten
    assert 40 not in pareto_front(points)


def test_selection_by_pareto_keeps_small_networks():
    result = search(selection="pareto", population=3, generations=2)
    last = [one for one in result.individuals if one.generation == 2]
    points = [(one.id, one.score, one.parameters) for one in last]
    assert list(result.front) == pareto_front(points)
    kept = {one.id for one in last if one.survived}
    assert kept <= set(result.front) or set(result.front) <= kept


def test_selection_by_evidence_needs_no_score():
    data = loader(*turned_bars(32), shuffle=False)
    result = evolve(network(), data, selection="evidence", **{**SMALL, "generations": 1, "epochs": 2})
    assert result.criterion == "log_evidence" and all(math.isnan(one.score) for one in result.individuals)
    best = max(result.individuals[1:], key=lambda one: one.log_evidence)
    assert result.winner == best and all(math.isfinite(one.log_evidence) for one in result.individuals)
    evidence = Evidence(result.model, num_data=32, relaxed_only=False)
    evidence.refresh(data)
    assert evidence.step(200).total / 32 >= best.log_evidence - 1e-3  # at these weights, with more updates


def test_the_curvature_can_be_taken_on_a_part_of_the_data_and_by_samples():
    data, part = (loader(*turned_bars(n), shuffle=False) for n in (32, 16))
    options = {
        **SMALL,
        "generations": 0,
        "selection": "evidence",
        "evidence_options": {"curvature": CurvatureSettings(samples=2)},
    }
    result = evolve(network(), data, evidence_loader=part, **options)
    again = evolve(network(), data, evidence_loader=part, **options)
    assert same(result, again) and math.isfinite(result.winner.log_evidence)
    assert result.winner.log_evidence != evolve(network(), data, **options).winner.log_evidence


def test_ablations():
    drawn = random_search(network(), loader(*turned_bars(48)), negative_parameters, **SMALL)
    ranked = search(negative_parameters)
    assert ranked.winner.genome == ("C4", "C4")
    assert [one.survived for one in drawn.individuals] != [one.survived for one in ranked.individuals]
    with pytest.raises(ArgumentError, match="at random"):
        random_search(network(), [], accuracy, selection="score")
    options = {"epochs": 1, "progress": False, "seed": 1}
    given = static(network(), loader(*turned_bars(48)), accuracy, [["C4", "C4"], ["C2", "trivial"]], **options)
    assert [one.groups for one in given.individuals] == ["C4²", "C2 trivial"]
    chance = static(network(), loader(*turned_bars(48)), negative_parameters, 4, **options)
    assert len(chance.individuals) == 4 and all(one.change == "random" for one in chance.individuals)
    for wrong in (0, [], [["C4"]], [["C2", "C4"]], [["C4", "C8"]]):
        with pytest.raises(ArgumentError):
            static(network(), loader(*turned_bars(48)), accuracy, wrong, **options)
    with pytest.raises(ArgumentError, match="generations"):
        static(network(), loader(*turned_bars(48)), accuracy, 1, generations=3)


# --- kills and workers ------------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


def kill_after(count, model, calls=[]):  # noqa: B006 - a counter across calls is what is wanted
    calls.append(1)
    if len(calls) == count:
        raise Killed
    return accuracy(model)


SLOW = pytest.mark.slow


@pytest.mark.parametrize("after", [pytest.param(1, marks=SLOW), 3, pytest.param(6, marks=SLOW)])
def test_killed_and_resumed_ends_with_the_identical_winner(tmp_path, after):
    whole = search()
    with pytest.raises(Killed):
        search(partial(kill_after, after, calls=[]), checkpoint=tmp_path)
    done = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "individuals").glob("*.pt")}
    judged = []
    resumed = search(lambda m: judged.append(1) or accuracy(m), checkpoint=tmp_path)
    assert same(whole, resumed)
    assert len(judged) == len(whole.individuals) - (after - 1)  # no finished work was done again
    assert done or after == 1
    again = search(lambda m: judged.append(1) or accuracy(m), checkpoint=tmp_path)
    assert same(again, whole) and len(judged) == len(whole.individuals) - (after - 1)
    survivors = {f"{one.id}.pt" for one in whole.individuals if one.survived and one.generation == 2}
    assert {p.name for p in (tmp_path / "individuals").iterdir()} == survivors


def test_lost_weights_are_not_replaced_by_others(tmp_path):
    """Two individuals are made before the search is killed in generation 1; the first one's weights are deleted."""
    with pytest.raises(Killed):
        search(partial(kill_after, 2, calls=[]), checkpoint=tmp_path)
    (tmp_path / "individuals" / "0.pt").unlink()
    with pytest.raises(CheckpointError, match="individual 0 are gone"):
        search(checkpoint=tmp_path)


def test_a_checkpoint_of_another_search(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file.*folder"):
        search(checkpoint=tmp_path / "file")
    search(generations=0, checkpoint=tmp_path)
    for other in ({"seed": 5}, {"epochs": 0.25}, {"groups": [2]}, {"lr": 0.5}):
        with pytest.raises(CheckpointError, match="other"):
            search(**{"generations": 0, "checkpoint": tmp_path, **other})
    with pytest.raises(CheckpointError, match="weights"):
        evolve(network(seed=1), loader(*turned_bars(48)), accuracy, **{**SMALL, "generations": 0}, checkpoint=tmp_path)


def test_deterministic_by_seed_and_from_a_factory():
    assert same(search(generations=1), search(generations=1))
    assert not same(search(generations=1), search(generations=1, seed=9))
    made = [evolve(SmallNet, loader(*turned_bars(32)), accuracy, **{**SMALL, "generations": 0}) for _ in range(2)]
    assert same(*made)


def test_what_workers_get_can_be_pickled():
    model = pickle.loads(pickle.dumps(network()))
    x = torch.randn(1, 1, 5, 5)
    assert model(x).shape == (1, 2)
    with pytest.raises(ArgumentError, match="worker.*top level"):
        search(lambda m: 0.0, workers=2)


def die_once(marker, model):
    if not Path(marker).exists() and "C2" in repr(model):
        Path(marker).write_text("died")
        os._exit(9)
    return accuracy(model)


def die_always(model):
    if "C2" in repr(model):
        os._exit(9)
    return accuracy(model)


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing(tmp_path):
    alone = search()
    assert same(alone, search(workers=2))
    assert same(alone, search(partial(die_once, str(tmp_path / "marker")), workers=2, checkpoint=tmp_path / "run"))
    assert (tmp_path / "marker").exists()


def fail_for_c2(model):
    if "C2" in repr(model.second):
        time.sleep(2.0)
        raise ZeroDivisionError
    return accuracy(model)


@pytest.mark.slow
def test_what_others_finished_is_kept_when_a_score_raises(tmp_path):
    """In a generation of three the clone is done while the second individual's score fails."""
    with pytest.raises(ZeroDivisionError):
        search(fail_for_c2, workers=2, checkpoint=tmp_path)
    kept = {p.name for p in (tmp_path / "individuals").iterdir()}
    assert {"0.pt", "1.pt"} <= kept and "2.pt" not in kept
    assert same(search(), search(checkpoint=tmp_path))


@pytest.mark.slow
def test_a_worker_that_keeps_dying(tmp_path):
    with pytest.raises(SearchError, match="died 2 times.*individuals.*kept"):
        search(die_always, workers=2, retries=1, checkpoint=tmp_path)
    assert (tmp_path / "individuals" / "0.pt").exists()
    assert same(search(), search(checkpoint=tmp_path))  # once mended, it goes on


# --- bad input --------------------------------------------------------------------------------------------------------


def test_scores_that_are_not_finite():
    with pytest.raises(SearchError, match="generation 0.*none of 1 .*score is nan"):
        search(not_a_number)
    with pytest.raises(ArgumentError, match="score.*one number.*'good'"):
        search(text)
    partly = search(nan_for_c2, generations=1)
    failed = [one for one in partly.individuals if math.isnan(one.score)]
    assert failed and not any(one.survived for one in failed) and all("nan" in one.note for one in failed)
    assert partly.winner.score == 0.5


def test_training_that_diverges_is_passed_over():
    with pytest.raises(SearchError, match="not finite.*lower the learning rate"):
        search(loss=lambda output, target: output.sum() * math.nan)


@pytest.mark.parametrize(
    "options, parts",
    [
        ({"population": 0}, "empty population.*0"),
        ({"generations": -1}, "generations.*-1"),
        ({"epochs": -1.0}, "epochs"),
        ({"population": 1.5}, "whole number.*1.5"),
        ({"generations": 2.5}, "whole number.*2.5"),
        ({"workers": 0}, "workers"),
        ({"selection": "luck"}, "'luck'"),
        ({"score": None}, "needs a score"),
        ({"score": 3}, "function of the model"),
        ({"stages": ["third"]}, "third"),
        ({"stages": ["second", "first"]}, "order"),
    ],
)
def test_arguments_that_make_no_sense(options, parts):
    with pytest.raises(ArgumentError, match=parts):
        search(options.pop("score", accuracy), **options)


def test_groups_that_do_not_fit():
    with pytest.raises(SubgroupError, match="no such subgroup"):
        search(groups=[2, 3])
    with pytest.raises(SubgroupError, match="twice"):
        search(groups=[2, 2])
    with pytest.raises(ArgumentError, match="no two groups"):
        search(groups=[4])
    with pytest.raises(FieldTypeError, match="no field type"):
        evolve(nn.Linear(2, 2), [], accuracy)
    with pytest.raises(ArgumentError, match="model.*got int"):
        evolve(lambda: 3, [], accuracy)
    with pytest.raises(UnsupportedModuleError, match="not a relaxed or mixed one"):
        evolve(mix(network(), [2]), [], accuracy)


class Shared(SmallNet):
    """One nonlinearity for two layers, registered behind both."""

    def __init__(self):
        super().__init__()
        relu = self.relu
        del self.relu
        self.relu = relu

    def forward(self, x):
        x = self.relu(self.first(self.gray(x)))
        return self.readout(self.pool(self.relu(self.second(x))).tensor.mean((-2, -1)))


class Late(SmallNet):
    """The first layer's nonlinearity is used behind the second layer."""

    def forward(self, x):
        return self.readout(self.pool(self.relu(self.second(self.first(self.gray(x))))).tensor.mean((-2, -1)))


class Skipping(SmallNet):
    """Adds what goes into the second layer to what comes out of it."""

    def forward(self, x):
        x = self.relu(self.first(self.gray(x)))
        return self.readout(self.pool(self.second(x) + x).tensor.mean((-2, -1)))


def test_modules_must_be_used_in_the_order_of_their_registration():
    data = loader(*turned_bars(32))
    generator = data.generator.get_state()
    with pytest.raises(UnsupportedModuleError, match="relu: it is used before second but registered behind .*order of"):
        evolve(Shared(), data, accuracy, **SMALL)
    with pytest.raises(UnsupportedModuleError, match="relu: it is used after second but registered before it"):
        evolve(Late(), data, accuracy, **SMALL)
    assert torch.equal(data.generator.get_state(), generator)
    options = {"epochs": 0.5, "progress": False}
    assert static(Shared(), data, accuracy, [["C4", "C4"], ["C2", "C2"]], **options).winner  # no change on the way
    with pytest.raises(UnsupportedModuleError, match="relu"):
        static(Shared(), data, accuracy, [["C4", "C2"]], **options)
    assert evolve(Shared(), data, accuracy, stages=["first"], **{**SMALL, "generations": 1}).winner
    calls_of = calls(SmallNet(norm=True), data)
    assert calls_of == ["first", "norm", "relu", "second", "pool"]


def test_what_skips_over_a_change_of_group():
    with pytest.raises(UnsupportedModuleError, match="Skipping: its parts do not fit together.*stages"):
        evolve(Skipping(), loader(*turned_bars(32)), accuracy, **SMALL)
    found = evolve(Skipping(), loader(*turned_bars(32)), accuracy, stages=["first"], **SMALL)
    assert {one.genome for one in found.individuals} == {("C4",), ("C2",), ("trivial",)}


def test_no_data():
    with pytest.raises(DataError, match="train_loader.*no batch"):
        evolve(network(), [], accuracy, **SMALL)
    with pytest.raises(DataError, match="only once"):
        evolve(network(), iter(loader(*turned_bars(32))), accuracy, **SMALL)


def test_no_budget():
    """Documented: no generation judges the initial network, no epoch trains nothing."""
    result = search(generations=0, epochs=0)
    assert len(result.individuals) == 1 and result.winner.genome == ("C4", "C4") and math.isnan(result.winner.loss)
    x = torch.randn(2, 1, 5, 5)
    with torch.no_grad():
        assert torch.equal(result.model(x), network().eval()(x))


def test_its_arguments_are_spelled_out():
    """With the defaults of the conditions, which the other searches take as keywords."""
    conditions = {f.name: f.default for f in fields(Conditions)}
    given = {name: p.default for name, p in inspect.signature(evolve).parameters.items() if name in conditions}
    assert given == conditions and len(given) == 17
    assert {*ConditionKeywords.__annotations__, "selection"} == set(conditions)
