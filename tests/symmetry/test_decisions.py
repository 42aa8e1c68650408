"""One record of what each layer keeps: whoever made it, the report shows it and hardening follows it."""

import copy
import json
import math
import pickle

import pytest
import torch
from escnn import gspaces
from escnn import nn as enn
from torch import nn

from escnn_relax import Evidence, harden, relax, report, survivors, symmetry_test
from escnn_relax.errors import ArgumentError
from escnn_relax.nn.last_decision import remember, remembered
from escnn_relax.nn.measured.stabiliser import ALIVE
from escnn_relax.symmetry.decision import Decision, Decisions
from escnn_relax.symmetry.groups.lattice import subgroup

SPACE = gspaces.rot2dOnR2(4)
C4, C2 = (subgroup(SPACE, name) for name in ("C4", "C2"))


@pytest.fixture(autouse=True)
def verdicts_without_training(monkeypatch):
    """The networks here are random, of which there is no verdict otherwise."""
    monkeypatch.setattr(Evidence, "learned", True)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        gray, fields = enn.FieldType(SPACE, [SPACE.trivial_repr]), enn.FieldType(SPACE, [SPACE.regular_repr])
        self.first, self.relu, self.second = (
            enn.R2Conv(gray, fields, 3),
            enn.ReLU(fields),
            enn.R2Conv(fields, fields, 3),
        )
        self.again, self.pool, self.linear = enn.ReLU(fields), enn.GroupPooling(fields), nn.Linear(1, 2)

    def forward(self, x):
        x = self.again(self.second(self.relu(self.first(self.first.in_type(x)))))
        return self.linear(self.pool(x).tensor.mean((-2, -1)))


def data(n=64):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(n, 1, 7, 7, generator=generator)
    return [(x, (x[:, 0, 2, 3] > x[:, 0, 4, 3]).long())]


def model(energy=0.0):
    """The first layer keeps C2 for good, the second leaves so much of its energy to what breaks C4."""
    torch.manual_seed(0)
    model = relax(Net())
    with torch.no_grad():
        nn.init.normal_(model.first.weights["irrep_2"])
        layer = model.second
        own = layer.pathway_kernel("equivariant").square().sum()
        layer.weights["irrep_2"].normal_()
        layer.weights["irrep_2"].mul_((energy * own / layer.pathway_kernel("irrep_2").square().sum()).sqrt())
    return model


def between():
    """A model on which the energy and the evidence differ: more than the energy allows, but nothing the data ask
    for."""
    relaxed = model(3e-4)
    evidence = Evidence(relaxed, num_data=64)
    evidence.refresh(data())
    assert [s.subgroup.name for s in survivors(relaxed).layers] == ["C2", "C2"]
    found = survivors(relaxed, evidence)
    assert [s.subgroup.name for s in found.layers] == ["C2", "C4"] and 1e-4 < found.layers[1].remainder < ALIVE
    return relaxed, evidence


def names(*arguments, **options):
    """The subgroups that hardening came to."""
    return [r.subgroup for r in harden(*arguments, return_report=True, **options)[1]]


def test_hardening_is_not_at_odds_with_the_table_above():
    relaxed, evidence = between()
    printed = report(relaxed, evidence)
    assert [layer.survivor for layer in printed.layers] == ["C2", "C4"]
    assert names(relaxed, to="stabiliser", per="layer") == ["C2", "C4"]
    assert names(relaxed, to=printed, per="layer") == ["C2", "C4"]
    assert names(relaxed, evidence=evidence, per="layer") == ["C2", "C4"]
    by_energy = report(relaxed)
    assert [layer.survivor for layer in by_energy.layers] == ["C2", "C2"]
    assert names(relaxed, to="stabiliser", per="layer") == ["C2", "C2"], "the last table is the one that counts"
    assert names(relaxed, to=printed, per="layer") == ["C2", "C4"]
    assert names(relaxed, to="stabiliser", per="layer", energy=1e-3) == ["C2", "C4"], "asked for anew"


def test_what_was_decided_is_forgotten_when_a_weight_changes():
    relaxed, evidence = between()
    decided = survivors(relaxed, evidence).decisions
    layers = {"first": relaxed.first, "second": relaxed.second}
    assert remembered(layers) == decided
    twin = copy.deepcopy(relaxed)
    assert remembered({"first": twin.first, "second": twin.second}) == decided
    with torch.no_grad():
        relaxed.second.weights["irrep_2"][0] += 1e-7
    assert remembered(layers) is None
    assert names(relaxed, to="stabiliser", per="layer") == ["C2", "C2"]
    assert names(twin, to="stabiliser", per="layer") == ["C2", "C4"]


def test_by_depth_by_network_and_by_layer():
    relaxed = model()
    found = survivors(relaxed)
    assert [(d.subgroup.name, d.by_depth.name) for d in found.decisions.layers] == [("C2", "C2"), ("C4", "C2")]
    for to in (found, found.decisions, report(relaxed), "stabiliser"):
        assert names(relaxed, to=to) == ["C2", "C2"]
        assert names(relaxed, to=to, per="network") == ["C2", "C2"]
        assert names(relaxed, to=to, per="layer") == ["C2", "C4"]
    assert dict(found.decisions) == found.subgroups and found.decisions.network == found.network.subgroup


def test_reasons():
    relaxed, evidence = between()
    first, second = survivors(relaxed, evidence, data=data()).decisions.layers
    assert first.source == "evidence" and second.reasons[0].endswith("of the kernel's energy is equivariant under C4")
    assert any("nats in the data" in reason for reason in first.reasons) and math.isfinite(first.loss)
    assert second.margin == math.inf and second.p_value != second.p_value
    (own,) = [r for r in harden(relaxed, evidence=evidence, per="layer", return_report=True)[1] if r.name == "second"]
    assert own.reasons == survivors(relaxed, evidence).decisions.record("second").reasons and own.reasons
    third = survivors(relaxed).decisions.layers[0]
    assert third.source == "energy" and any("no curvature" in reason for reason in third.reasons)
    assert str(third).startswith("first keeps C2, by the energy: all but ")
    json.dumps(report(relaxed, evidence, data=data()).to_dict(), allow_nan=False)


def test_a_symmetry_test_decides_and_gives_reasons():
    torch.manual_seed(0)
    relaxed = relax(Net())
    samples = [(x, y) for x, y in zip(data(600)[0][0].split(50), data(600)[0][1].split(50))]
    test = symmetry_test(relaxed, samples, progress=False)
    assert test.decisions.record("second").source == "test" and set(test.decisions) == {"first", "second"}
    broken = [t for t in test.tests if t.broken]
    assert broken, "what lies above the centre is asked for"
    assert names(relaxed, to=test)[-1] == test.decisions.network.name != "C4"
    sizes = [test.decisions.record(n).by_depth.order for n in ("first", "second")]
    assert sizes == sorted(sizes, reverse=True)
    shown = report(relaxed, decisions=test)
    assert [layer.survivor for layer in shown.layers] == ["C4", "C4"], "the kernels are still strict"
    text = " ".join(shown.decisions.record(broken[0].layer).reasons)
    assert f"the test says {test.subgroups[broken[0].layer].name}" in text and broken[0].pathway in text
    assert shown.decisions.record("first").p_value == pytest.approx(
        min(t.adjusted_p_value for t in test.tests if t.layer == "first")
    )


def test_choices_of_the_user():
    relaxed = model()
    assert names(relaxed, to={"first": "C2", "second": C2}) == ["C2", "C2"]
    with pytest.raises(ArgumentError, match=r"to: no relaxed layer 'secnd' in the model; did you mean 'second'\?"):
        harden(relaxed, to={"first": "C2", "secnd": "C2", "second": "C2"})
    with pytest.raises(ArgumentError, match="add 'second', or pass survivors"):
        harden(relaxed, to={"first": "C2"})
    with pytest.raises(ArgumentError, match="pass survivors.model, evidence., a report or a symmetry test"):
        harden(relaxed, to="stabilizer")
    with pytest.raises(ArgumentError, match="a report without decisions"):
        harden(relaxed, to=report(relaxed, subgroups=False))
    with pytest.raises(ArgumentError, match="data without an evidence; pass the evidence too"):
        harden(relaxed, data=data())
    evidence = Evidence(relaxed, num_data=64)
    with pytest.raises(ArgumentError, match="both decisions and an evidence"):
        harden(relaxed, to={"first": "C2", "second": C2}, evidence=evidence)
    with pytest.raises(ArgumentError, match="another model"):
        harden(model(), evidence=evidence)
    other = Decisions((Decision("third", C2, C2, "choice"),))
    with pytest.raises(ArgumentError, match="no relaxed layer 'third' in the model; did you mean"):
        report(relaxed, decisions=other)
    with pytest.raises(ArgumentError, match="nothing is said about the layer 'first'"):
        survivors(relaxed).decisions.annotate(other)


def test_records_are_values():
    made = Decisions((Decision("a", C2, C2, "choice"), Decision("b", C4, C2, "choice", margin=3.0)))
    assert dict(made) == {"a": C2, "b": C2} and made.select("layer")["b"] == C4
    assert pickle.loads(pickle.dumps(made)).record("b").by_depth.name == "C2"
    assert made.to_dict()["b"]["margin"] == 3.0 and made.to_dict()["a"]["margin"] is None
    assert "b keeps C4 (C2 by depth), as was asked" in str(made)
    with pytest.raises(KeyError):
        made["c"]
    relaxed = model()
    layers = {"first": relaxed.first, "second": relaxed.second}
    remember(layers, made)
    assert remembered(layers) is None, "a record of other layers is no record"


@pytest.mark.parametrize(("old", "new", "argument"), [("of", "record", "a"), ("chosen", "select", "layer")])
def test_former_names_still_work(old, new, argument):
    made = Decisions((Decision("a", C2, C2, "choice"),))
    with pytest.warns(DeprecationWarning, match=f"Decisions.{old} is an old spelling.*write Decisions.{new}"):
        assert getattr(made, old)(argument) == getattr(made, new)(argument)
