"""What users do wrong with an evidence: each raises our own error, and leaves everything as it was."""

from __future__ import annotations

import math

import pytest
import torch
from escnn import gspaces
from escnn import nn as enn
from evidence_cases import loader, network
from nonempty import each
from torch import nn

from escnn_relax import Evidence, fit, relax
from escnn_relax.errors import (
    ArgumentError,
    CoverageError,
    CurvatureError,
    DataError,
    FieldTypeError,
    LikelihoodError,
    UnsupportedModuleError,
)
from escnn_relax.evidence import CurvatureSettings, NoiseSettings


C4 = gspaces.rot2dOnR2(4)


def with_value(value, what="weight"):
    model, (x, y) = network(), next(iter(loader()))
    if what == "weight":
        with torch.no_grad():
            model.second.weights["equivariant"][0] = value
    else:
        x[0, 0, 0, 0] = value
    return model, [(x, y)]


def test_no_relaxed_layer():
    with pytest.raises(CoverageError, match="no relaxed layer.*relax"):
        Evidence(nn.Sequential(nn.Linear(2, 2)))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("what", ["weight", "input"])
def test_values_that_are_not_finite(what, value):
    model, data = with_value(value, what)
    with pytest.raises(DataError, match="not finite|NaN or infinite"):
        Evidence(model).refresh(data)


def test_an_unused_layer_is_named():
    model = network()
    model.spare = nn.Linear(2, 2).double()
    with pytest.raises(CoverageError, match="spare"):
        Evidence(model).refresh(loader())
    model.spare.requires_grad_(False)
    assert "spare.weight" in Evidence(model).uncovered
    Evidence(model).refresh(loader())


def bad_labels():
    return [(torch.randn(2, 1, 6, 6).double(), torch.tensor([0, 3]))]


BAD = {
    "empty": (lambda: [], {}, DataError, "no batch"),
    "label out of range": (bad_labels, {}, DataError, "labels in 0 ... 2"),
    "empty batch": (
        lambda: [(torch.zeros(0, 1, 6, 6).double(), torch.zeros(0).long())],
        {},
        DataError,
        "0: no samples",
    ),
    "no pair": (lambda: [torch.randn(2, 1, 1, 6, 6).double()], {}, DataError, "pair"),
    "real targets": (lambda: loader("gaussian"), {}, LikelihoodError, "gaussian"),
    "class targets": (loader, {"likelihood": "gaussian"}, LikelihoodError, "categorical"),
    "too few targets": (lambda: [(torch.randn(3, 1, 6, 6).double(), torch.tensor([0, 1]))], {}, LikelihoodError, "3"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_leaves_everything_as_it_was(case):
    data, options, error, message = BAD[case]
    model = network()
    model.train()
    evidence = Evidence(model, **options)
    state = {n: t.clone() for n, t in model.state_dict().items()}
    before = evidence.state_dict()
    with pytest.raises(error, match=message):
        evidence.refresh(data())
    for n, t in each(model.state_dict().items()):
        assert torch.equal(t, state[n]) or (t.isnan().all() and state[n].isnan().all())
    assert str(evidence.state_dict()) == str(before)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(m.training for m in model.modules())
    assert not any("forward" in vars(m) for m in model.modules())
    good = loader(options.get("likelihood", "categorical"))
    assert math.isfinite(evidence.refresh(good).total)


@pytest.mark.parametrize(
    "options",
    [
        {"curvature": "k-fac"},
        {"curvature": CurvatureSettings(samples=0)},
        {"noise": NoiseSettings(temperature=0.0)},
        {"curvature": CurvatureSettings(bias="none")},
        {"noise": NoiseSettings(temperature=math.nan)},
    ],
)
def test_bad_arguments(options):
    with pytest.raises(ArgumentError):
        Evidence(network(), **options)


def test_unknown_likelihood():
    with pytest.raises(LikelihoodError, match="poisson"):
        Evidence(network(), "poisson")


def test_terms_before_refresh():
    for question in ("terms", "step", "gradient", "effective_dimension"):
        with pytest.raises(CoverageError, match="refresh"):
            getattr(Evidence(network()), question)()


def test_an_eigendecomposition_that_fails(monkeypatch):
    def fails(matrix):
        raise torch.linalg.LinAlgError("the algorithm failed to converge")

    monkeypatch.setattr(torch.linalg, "eigvalsh", fails)
    evidence = Evidence(network())
    with pytest.raises(CurvatureError, match="first.bias: the eigendecomposition failed.*learning rate"):
        evidence.refresh(loader())
    monkeypatch.undo()
    assert evidence.estimate is None and math.isfinite(evidence.refresh(loader()).total)


def test_a_frozen_layer_keeps_its_curvature_to_itself():
    model = network()
    model.first.requires_grad_(False)
    evidence = Evidence(model)
    evidence.refresh(loader())
    assert not any(name.startswith("first") for name in evidence.log_precision)
    assert evidence.uncovered["first.weights.equivariant"] == "frozen"
    model.requires_grad_(False)
    with pytest.raises(CoverageError, match="no layer whose curvature is known.*frozen"):
        Evidence(model)


class Dropping(nn.Module):
    """Dropout of torch's and of escnn's kind around a relaxed network."""

    def __init__(self):
        super().__init__()
        self.net = network()
        self.fields = enn.FieldDropout(self.net.first.out_type, p=0.7)
        self.net.act = enn.SequentialModule(self.net.act, self.fields)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        return self.dropout(self.net(self.dropout(x)))


def test_training_mode_with_dropout_and_batch_norm():
    """A refresh looks at the network in evaluation mode, whatever mode it is in, and puts it back."""
    torch.manual_seed(1)
    model, data = Dropping().double(), list(loader())
    drawn = [float(model.train()(data[0][0]).sum()) for _ in range(2)]
    expected = Evidence(model.eval()).refresh(data)
    statistics = {n: b.clone() for n, b in model.named_buffers() if "running" in n}
    model.train()
    assert drawn[0] != drawn[1] and Evidence(model).refresh(data) == expected == Evidence(model).refresh(data)
    assert all(m.training for m in model.modules())
    assert statistics and all(torch.equal(b, dict(model.named_buffers())[n]) for n, b in statistics.items())


@pytest.mark.parametrize("frozen", [True, False])
def test_samples_that_are_mixed(frozen):
    """By a batch norm without running statistics: also where it is frozen, since all layers before it are concerned."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 3))
    model.double()[2].requires_grad_(not frozen)
    with pytest.raises(UnsupportedModuleError, match="2: BatchNorm1d without running statistics mixes the samples"):
        Evidence(model, relaxed_only=False).refresh(loader())
    single = nn.Sequential(nn.Conv2d(1, 2, 3), nn.InstanceNorm2d(2), nn.Flatten(), nn.Linear(32, 3))
    Evidence(single.double(), relaxed_only=False).refresh(loader())


class Changing:
    """A loader with random augmentation."""

    def __iter__(self):
        return ((x + 3 * torch.randn_like(x), y) for x, y in loader())


def test_a_loader_that_changes_between_passes():
    evidence = Evidence(network(), curvature="eigenvalue-corrected")
    with pytest.raises(DataError, match="second pass saw 12 samples.*without random augmentation"):
        evidence.refresh(Changing())
    assert evidence.estimate is None
    evidence = Evidence(network())
    with pytest.raises(DataError, match="second pass saw 12 samples.*without random augmentation"):
        evidence.hypergradient(Changing(), [evidence.model.linear.weight])
    with pytest.raises(DataError, match="second pass saw 0 samples"):
        evidence.hypergradient(iter(loader()), [evidence.model.linear.weight])


def test_an_activation_in_place():
    """Gives what it gives out of place."""
    totals = []
    for inplace in (False, True):
        torch.manual_seed(2)
        layers = [nn.Conv2d(1, 3, 3), nn.ReLU(inplace), nn.Conv2d(3, 3, 3), nn.ELU(inplace=inplace)]
        layers += [nn.Flatten(), nn.Linear(12, 3)]
        torch.manual_seed(3)
        totals.append(Evidence(nn.Sequential(*layers).double(), relaxed_only=False).refresh(loader()).total)
    assert totals[0] == totals[1]


def test_factors_that_are_not_finite():
    model = network()
    with torch.no_grad():
        model.linear.weight.fill_(1e200)
        model.linear.bias.fill_(0)
    data = [(torch.zeros(2, 1, 6, 6).double(), torch.randn(2, 3).double())]
    with torch.no_grad():
        for p in (*model.first.parameters(), *model.second.parameters(), *model.norm.parameters()):
            p.zero_()
    with pytest.raises(CurvatureError, match="second|first|norm"):
        Evidence(model, "gaussian").refresh(data)


def test_plain_tensors_for_a_model_of_fields():
    """What escnn answers with a bare assertion."""
    space = gspaces.rot2dOnR2(4)
    fields = enn.FieldType(space, [space.trivial_repr])
    model = relax(enn.SequentialModule(enn.R2Conv(fields, fields, 5)))
    data = [(torch.randn(4, 1, 5, 5), torch.zeros(4, dtype=torch.long))]
    with pytest.raises(FieldTypeError, match="SequentialModule: an assertion.*got Tensor.*forward"):
        fit(model, data, epochs=1, progress=False)
    with pytest.raises(FieldTypeError, match="SequentialModule: an assertion"):
        Evidence(model).refresh(data)


def test_opening_and_closing_take_names_and_numbers():
    model = nn.Sequential(relax(enn.R2Conv(*2 * [enn.FieldType(C4, [C4.regular_repr])], 3, bias=False)))
    evidence, name = Evidence(model, num_data=10), "0.weights.irrep_1"
    with pytest.raises(
        ArgumentError, match=rf"close: expected a list of names.*got '{name}'; pass close\(\['{name}'\]\)"
    ):
        evidence.close(name)
    evidence.close([name])
    for wrong in (name, [name]):
        with pytest.raises(ArgumentError, match=rf"open: expected log precisions by the names.*\{{'{name}': 3.0\}}"):
            evidence.open(wrong)
    already_open = "0.weights.irrep_2"
    for path in (name, already_open):
        for value in (math.nan, -math.inf, "3"):
            with pytest.raises(ArgumentError, match=f"{path}: expected a log precision, a number, got {value!r}"):
                evidence.open({path: value})
    assert evidence.closed == (name,) and not model[0].weights["irrep_1"].any()
    assert evidence.open({name: torch.tensor(2.0)}) == (name,)
