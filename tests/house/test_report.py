"""What reports say, and that they say it again from a state dict."""

import json
import math

import matplotlib
import pytest
import torch
from escnn import gspaces
from escnn import nn as enn
from nonempty import each

from escnn_relax import Evidence, relax, report, survivors
from escnn_relax.evidence.verdicts import survivors as survival
from escnn_relax.errors import ArgumentError, UnsupportedModuleError
from test_fit import Net, loader, net

matplotlib.use("Agg")


def broken_net():
    model = net()
    with torch.no_grad():
        for name, weight in model.convolution.weights.items():
            if name != "equivariant":
                weight.normal_(std=0.1)
    return model


def test_numbers_are_consistent():
    model = broken_net()
    evidence = Evidence(model, num_data=24)
    evidence.refresh(loader())
    (layer,) = report(model, evidence).layers
    assert layer.name == "convolution" and layer.group == "C4"
    assert sum(p.energy for p in layer.pathways) == pytest.approx(1, abs=1e-3)
    assert layer.breaking_energy == pytest.approx(sum(p.energy for p in layer.pathways if p.breaks))
    assert sum(p.share for p in layer.pathways) == pytest.approx(1)
    for p in each(layer.pathways):
        assert 0 <= p.fraction <= 1 and p.effective_dimension == pytest.approx(p.fraction * p.dimension)
        key = f"convolution.weights.{p.name}"
        assert p.log_precision == pytest.approx(evidence.log_precision[key])
        assert p.effective_dimension == pytest.approx(evidence.effective_dimension()[key], rel=1e-5)


def test_measured_error_against_the_convolution_itself():
    """The kernel's change under a turn, once by the report, once by turning the kernel's own response by escnn."""
    model = broken_net()
    layer = model.convolution
    (record,) = report(model).layers
    kernel = layer.expand_parameters()[0]
    errors = []
    for element in list(layer.space.fibergroup.elements)[1:]:
        # response to a unit impulse, for the impulse at the centre: the kernel, point-reflected
        impulse = torch.zeros(1, 1, 5, 5)
        impulse[0, 0, 2, 2] = 1
        response = layer(layer.in_type(impulse)).tensor - layer(layer.in_type(0 * impulse)).tensor
        turned = layer.out_type(response).transform(element).tensor
        errors.append(float((turned - response).norm() / kernel.norm()))
    assert record.equivariance_error == pytest.approx(max(errors), rel=1e-4)
    assert record.equivariance_error > 0.05
    (strict,) = report(net()).layers
    assert strict.equivariance_error < 1e-6 and strict.breaking_energy == 0


def test_reload_and_print(tmp_path):
    model = broken_net()
    Evidence(model, num_data=24).refresh(loader())
    torch.save(model.state_dict(), tmp_path / "state.pt")
    fresh = net()
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert report(fresh) == report(model)
    json.dumps(report(model).to_dict())
    text = str(report(model))
    assert all(word in text for word in ("convolution", "equivariant", "irrep_1", "energy"))


def test_without_evidence_the_unknown_is_shown_as_such():
    text = str(report(net()))
    assert "–" in text and "nan" not in text


def test_plot_has_one_cell_for_each_pathway():
    axes = report(broken_net()).plot(title="a title")
    assert axes.images[0].get_array().shape == (1, 3)
    assert axes.get_title() == "a title" and axes.get_ylabel() == "layer"
    assert [t.get_text() for t in axes.get_xticklabels()] == ["equivariant", "irrep_1", "irrep_2"]
    matplotlib.pyplot.close(axes.figure)


def test_survivors_are_shown(monkeypatch):
    """By the energies: the net broke C2 as well; with only irrep_2 it keeps C2, with a margin in nats from the
    evidence."""
    model = broken_net()
    (layer,) = report(model).layers
    assert (layer.survivor, layer.by_depth) == ("trivial", "trivial") and math.isnan(layer.margin)
    with torch.no_grad():
        model.convolution.weights["irrep_1"].zero_()
    evidence = Evidence(model, num_data=24)
    evidence.refresh(loader())
    assert not evidence.learned, "random weights"
    monkeypatch.setattr(Evidence, "learned", True)
    learned = report(model, evidence)
    (layer,) = learned.layers
    assert layer.survivor == "C2" and layer.margin == pytest.approx(survivors(model, evidence).network.margin)
    assert f"C2 ({layer.margin:.1f})" in str(learned) and "survives by depth: C2" in str(learned)
    json.dumps(learned.to_dict(), allow_nan=False)
    axes = learned.plot()
    assert axes.get_yticklabels()[0].get_text() == "convolution\nkeeps C2"
    matplotlib.pyplot.close(axes.figure)
    bare = report(model, subgroups=False)
    assert bare.layers[0].survivor == "" and "survivor" not in str(bare)
    assert report(net()).layers[0].survivor == "C4"
    with pytest.raises(ArgumentError, match="another model"):
        report(model, Evidence(net(), num_data=24))


def test_heat_map_of_the_effective_dimension():
    model = broken_net()
    Evidence(model, num_data=24).refresh(loader())
    learned = report(model)
    axes = learned.plot(quantity="fraction")
    shown = axes.images[0].get_array()
    assert shown.data.tolist() == [[p.fraction for p in learned.layers[0].pathways]]
    assert learned.plot().images[0].norm(1e-3) == pytest.approx(0.5)
    with pytest.raises(ArgumentError, match="energy"):
        learned.plot(quantity="shares")
    with pytest.warns(DeprecationWarning, match="quantity="):
        assert learned.plot(of="fraction").images[0].get_array().data.tolist() == shown.data.tolist()
    with pytest.raises(ArgumentError, match="no argument 'quantities'; did you mean 'quantity'"):
        learned.plot(quantities="energy")
    matplotlib.pyplot.close("all")


def test_uncovered_parameters_are_named():
    class WithNorm(Net):
        def __init__(self):
            super().__init__()
            self.norm = enn.InnerBatchNorm(self.activation.in_type)

    model = relax(WithNorm())
    evidence = Evidence(model, num_data=8)
    assert any(name.startswith("norm") for name in evidence.uncovered)
    assert "norm" in str(report(model, evidence))


def test_groups_without_a_grid_symmetry():
    space = gspaces.rot2dOnR2(3)
    fields = enn.FieldType(space, [space.regular_repr])
    model = relax(enn.SequentialModule(enn.R2Conv(fields, fields, 3)))
    assert math.isnan(report(model).layers[0].equivariance_error)


def test_nothing_to_report():
    with pytest.raises(UnsupportedModuleError, match="relax"):
        report(torch.nn.Linear(2, 2))


def test_components_without_kernels_are_said():
    space = gspaces.rot2dOnR2(4)
    both, odd = enn.FieldType(space, [space.trivial_repr, space.irrep(2)]), enn.FieldType(space, [space.irrep(2)])
    learned = report(relax(enn.SequentialModule(enn.R2Conv(both, odd, 1))))
    assert learned.layers[0].empty == ("irrep_1",) and "without kernels: 0: irrep_1" in str(learned)
    assert learned.to_dict()["layers"][0]["empty"] == ["irrep_1"]
    whole = report(relax(enn.SequentialModule(enn.R2Conv(both, odd, 3))))
    assert not whole.layers[0].empty and "without kernels" not in str(whole)


def test_reading_a_deep_network_shows_its_progress(monkeypatch, capsys):
    model = broken_net()
    survivors(model)
    assert "survivors" not in capsys.readouterr().err, "nobody waits for a bar"
    monkeypatch.setattr(survival, "PATIENCE", 0.0)
    survivors(model, progress=False)
    assert "survivors" not in capsys.readouterr().err
    survivors(model)
    assert "survivors" in capsys.readouterr().err
