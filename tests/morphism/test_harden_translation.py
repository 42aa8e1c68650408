"""Hardening layers that may break translations: constants, averages, subgroups; what survives in them."""

import copy
import math
import pickle
from dataclasses import replace

import pytest
import torch
from curvature_oracles import Tensors, own_filters  # noqa: F401
from escnn import gspaces
from escnn import nn as enn
from nonempty import each
from tolerances import accumulated
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from escnn_relax import Evidence, harden, mix, relax, relax_translation, report, survivors
from escnn_relax.errors import DataError, UnsupportedModuleError, naming
from escnn_relax.nn import FactoredPathway, RelaxedTranslation, SparseR2Conv
from escnn_relax.nn.affine import linear_parameters
from escnn_relax.symmetry.groups.lattice import common_subgroup, subgroup

EXACT = 1e-10
#: Of single precision, and of the rounding of escnn's kernels where they are expanded anew.
SINGLE = accumulated(torch.float32, 128)
C4, O2 = gspaces.rot2dOnR2(4), gspaces.flipRot2dOnR2(-1, 2)
GRAY, FIELDS = enn.FieldType(C4, [C4.trivial_repr]), enn.FieldType(C4, [C4.regular_repr, C4.irreps[1]])
REGULAR = enn.FieldType(C4, [C4.regular_repr])


def net(make=enn.R2Conv, **options):
    layers = [make(GRAY, REGULAR, 3, padding=1, **options), enn.ReLU(REGULAR), make(REGULAR, GRAY, 3, **options)]
    return Tensors(enn.SequentialModule(*layers), GRAY)


def inputs():
    return torch.randn(3, 1, 6, 6)


def distance(a, b, x):
    with torch.no_grad():
        return float((a(x) - b(x)).norm() / b(x).norm())


def fill_biases(model, value=None):
    """Of the pathways beside the convolutions; random ones without a value."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".sites." in name and name.endswith("bias"):
                p.normal_() if value is None else p.fill_(value)
    return model


def translation_layers(model):
    return [m for m in model.modules() if isinstance(m, RelaxedTranslation)]


@pytest.mark.parametrize("kept", [4, 1])
def test_energy_is_that_of_the_map_and_of_what_no_bias_of_the_convolution_says(kept):
    x = torch.zeros(1, GRAY.size, 4, 4)
    single = Tensors(enn.SequentialModule(enn.R2Conv(GRAY, FIELDS, 3, padding=1)), GRAY)
    layer = relax_translation(single, x, [("dense", kept), ("factored", kept)], silent=False).net[0].double()
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_()
    squares = {"convolution": 16 * float(layer.convolution.expand_parameters()[0].square().sum())}
    rest = {}
    for name, pathway in layer.sites.items():
        constant = pathway(torch.zeros(1, 1, 4, 4).double())[0].detach()
        units = torch.eye(16).double().view(16, 1, 4, 4)
        average = constant.mean((1, 2))
        turned = [torch.as_tensor(FIELDS.representation(g)) @ average for g in C4.fibergroup.elements]
        rest[name] = constant - (sum(turned) / len(turned))[:, None, None]
        squares[name] = float((pathway(units) - constant).square().sum()) + float(rest[name].square().sum())
    total = sum(squares.values())
    assert layer.energies() == pytest.approx({n: s / total for n, s in squares.items()}, rel=1e-6)
    assert all(float(r.norm()) > 1 for r in rest.values())
    assert layer.breaking_energy == pytest.approx(1 - squares["convolution"] / total, rel=1e-6)


@pytest.mark.parametrize("pathways", ["factored", "dense", ["factored", ("dense", "free")]])
def test_a_bias_of_each_site_keeps_a_pathway_alive(pathways):
    x = inputs()
    model = fill_biases(relax_translation(net(), x, pathways))
    assert all(layer.breaking_energy > 0.01 for layer in translation_layers(model))
    hardened = harden(model)
    assert distance(hardened, model, x) < SINGLE and translation_layers(hardened)
    assert distance(fill_biases(copy.deepcopy(model), 0.0), model, x) > 0.05  # they matter
    forced, done = harden(model, energy=0.99, return_report=True)
    assert not translation_layers(forced) and distance(forced, model, x) > 0.05
    assert len(done) == len(translation_layers(model)) > 0
    for record, layer in each(zip(done, translation_layers(model), strict=True)):
        assert record.removed_energy == pytest.approx(layer.breaking_energy) and record.removed_energy > 0.01


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("change", [lambda m: m, relax])
def test_constants_become_the_bias_of_the_convolution(change, average, training):
    x, pathways = inputs(), ["factored", ("dense", "free")]
    model = fill_biases(relax_translation(change(net()), x, pathways, average=average), 0.7).train(training)
    hardened, done = harden(model, return_report=True)
    assert [type(m) for m in hardened.net] == [enn.R2Conv, enn.ReLU, enn.R2Conv]
    assert all(m.training == training for m in hardened.modules())
    for copied in (
        hardened,
        copy.deepcopy(hardened),
        pickle.loads(pickle.dumps(hardened)),
        copy.deepcopy(hardened).eval(),
    ):
        assert distance(copied, model, x) < SINGLE
    assert len(done) > 1 and all(r.removed_energy < 1e-12 for r in done)
    assert distance(harden(fill_biases(copy.deepcopy(model), 0.0)), model, x) > 0.05
    other = harden(relax_translation(change(net()), x, pathways, average=average).train(training))
    other.load_state_dict(hardened.state_dict())
    assert distance(other.train().eval(), model, x) < SINGLE


def test_constants_of_removed_pathways_stay_beside_others():
    x = inputs()
    model = fill_biases(relax_translation(net(), x, ["factored", ("dense", "free")], average=True), 0.7).eval()
    for layer in translation_layers(model):
        layer.sites["factored_C4"].reset_parameters(silent=False)
    hardened = harden(model)
    assert [list(layer.sites) for layer in translation_layers(hardened)] == [["factored_C4"]] * 2
    assert distance(hardened, model, x) < SINGLE
    again = harden(hardened, energy=0.999)  # as if the rest had died later
    assert [type(m) for m in again.net] == [enn.R2Conv, enn.ReLU, enn.R2Conv]


def test_a_convolution_without_bias_takes_no_constant():
    x = GRAY(inputs())
    pathway = FactoredPathway(GRAY, GRAY, (6, 6), (6, 6), subgroup(C4, 4))
    with torch.no_grad():
        pathway.onto[0].bias.fill_(0.5)
    for bias, kind in ((False, RelaxedTranslation), (True, enn.R2Conv)):
        layer = RelaxedTranslation(enn.R2Conv(GRAY, GRAY, 3, padding=1, bias=bias), (6, 6), {"factored": pathway})
        hardened = harden(layer)
        assert type(hardened) is kind
        assert torch.allclose(hardened(x).tensor, layer(x).tensor, atol=SINGLE)


@pytest.mark.parametrize("training", [True, False])
def test_an_average_divides_what_the_map_is_linear_in(training):
    x, pathways = inputs().double(), ["factored", ("dense", "free")]

    def sparse(model):
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.fill_(-0.3) if "omega" in name else p.normal_()
        return model

    models = {
        "strict": net(),
        "mixture": mix(net(), [2, 1]),
        "sparse": sparse(net(SparseR2Conv, learn_omega=True)),
    }
    for kind, model in models.items():
        averaged = relax_translation(model.double(), x, pathways, average=True).train(training)
        with torch.no_grad():
            for name, p in averaged.named_parameters():
                p.copy_(torch.linspace(-1, 1, len(p))) if name.endswith("alpha") else None
        averaged.train().train(training)
        hardened = harden(averaged)
        assert not translation_layers(hardened)
        assert distance(hardened, averaged, x) < EXACT, kind
        wrong = copy.deepcopy(hardened).train()
        with torch.no_grad():
            for p in wrong.parameters():
                p.mul_(3)
        assert distance(wrong, averaged, x) > 0.05
        if kind == "mixture":
            first = hardened.net[0]
            norms = first.norms.clone()
            ratio = torch.stack([w.norm() for w in first._summands()])
            first.normalise()
            assert torch.allclose(first.norms, norms)
            assert torch.allclose(torch.stack([w.norm() for w in first._summands()]), ratio)


def test_unknown_convolutions_are_not_divided_in_silence():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 2)

    with pytest.raises(UnsupportedModuleError, match="first: the weights of a Own are not known"):
        with naming("first"):
            linear_parameters(Own())


def turned_error(model, x):
    """Relative change of the output when the input is turned, beyond turning."""
    with torch.no_grad():
        y, turned = (model(of).unflatten(1, (4, 4)) for of in (x, torch.rot90(x, 1, (2, 3))))
        return float((turned - torch.rot90(y, 1, (1, 2))).norm() / y.norm())


@pytest.mark.parametrize("per", ["depth", "network", "layer"])
def test_to_stabiliser_after_the_pathways_died(per):
    x = inputs()
    model = fill_biases(relax_translation(relax(net()), x, ["factored", ("dense", "free")], average=True), 0.7)
    with torch.no_grad():
        model.net[2].convolution.weights["irrep_2"].normal_()
    plain, done = harden(model, to="stabiliser", per=per, return_report=True)
    assert not translation_layers(plain)
    assert not [m for m in plain.modules() if type(m).__module__.startswith("escnn_relax.nn")]
    assert distance(plain, model, x) < SINGLE
    assert {r.name: r.subgroup for r in done if r.subgroup} == {
        "net.0.convolution": "C2" if per == "network" else "C4",
        "net.2.convolution": "C2",
    }
    assert {r.name: (r.removed, r.kind) for r in done if not r.subgroup} == {
        name: (("factored_C4", "dense_free"), "R2Conv") for name in ("net.0", "net.2")
    }
    assert turned_error(model, x) > 0.1
    if per == "depth":
        given, asked = harden(model, to=survivors(model).subgroups, return_report=True)
        wanted = tuple(replace(r, reasons=(), lost=math.nan) for r in done)  # a mapping has neither
        assert distance(given, model, x) < SINGLE and asked.layers == wanted


def test_to_stabiliser_refuses_pathways_that_break_it():
    x = inputs()
    free = relax_translation(relax(net()), x, [("factored", "free")], silent=False)
    assert turned_error(free, x) > 0.05
    for per in ("depth", "network", "layer"):
        with pytest.raises(
            UnsupportedModuleError, match=r"^net\.0: .*expected pathways that keep C4, got factored_free"
        ):
            harden(free, to="stabiliser", per=per)
        with pytest.raises(UnsupportedModuleError, match="expected none, since they have no counterpart on trivial"):
            harden(free, to={"net.0.convolution": 1, "net.2.convolution": 1}, per=per)
    kept = relax_translation(relax(net()), x, ["factored", "sparse-kernel"], silent=False)
    hardened = harden(kept, to="stabiliser")
    assert distance(hardened, kept, x) < SINGLE and turned_error(hardened, x) < 1e-5
    assert all(type(layer.convolution) is enn.R2Conv for layer in translation_layers(hardened))
    with torch.no_grad():
        kept.net[2].convolution.weights["irrep_1"].normal_()
    with pytest.raises(UnsupportedModuleError, match=r"^net\.2: .*no counterpart on trivial"):
        harden(kept, to="stabiliser")


def test_to_stabiliser_beside_strict_convolutions():
    x = inputs()
    dead = relax_translation(net(), x, ["factored", ("dense", "free")])
    plain = harden(dead, to="stabiliser")
    assert [type(m) for m in plain.net] == [enn.R2Conv, enn.ReLU, enn.R2Conv] and distance(plain, dead, x) < SINGLE
    dead.net[2].sites["dense_free"].reset_parameters(silent=False)
    with pytest.raises(UnsupportedModuleError, match=r"^net\.2: .*dense_free"):
        harden(dead, to="stabiliser")
    with pytest.raises(UnsupportedModuleError, match="nothing to harden"):
        harden(net(), to="stabiliser")


def test_survivors_count_living_pathways_in():
    x = inputs()
    model = relax_translation(relax(net()), x, ["factored", ("dense", "free")])
    assert [s.subgroup.name for s in survivors(model).layers] == ["C4", "C4"]
    model.net[2].sites["dense_free"].reset_parameters(silent=False)
    found = survivors(model)
    assert [s.subgroup.name for s in found.layers] == [s.subgroup.name for s in found.by_depth] == ["C4", "trivial"]
    assert math.isnan(found.network.margin) and found.network.note == "no margin: dense_free of net.2 keeps trivial"
    assert "survives by depth: C4 → trivial" in str(report(model))
    strict = relax_translation(relax(net(), layers="net.0"), x, [("dense", 2)])
    strict.net[2].sites["dense_C2"].reset_parameters(silent=False)  # after the only relaxed convolution
    found = survivors(strict)
    assert (found.layers[0].subgroup.name, found.network.subgroup.name) == ("C4", "C2")


def test_survivors_of_a_continuous_group_beside_living_pathways():
    one, two = (enn.FieldType(O2, [r]) for r in (O2.trivial_repr, O2.irreps[2]))
    strict = Tensors(enn.SequentialModule(enn.R2Conv(one, two, 5, padding=2), enn.R2Conv(two, one, 3)), one)
    model = relax_translation(relax(strict), inputs(), "factored")
    assert [s.subgroup.name for s in survivors(model).layers] == 2 * ["O2"]
    model.net[0].sites["factored_D4_0deg"].reset_parameters(silent=False)
    found = survivors(model)
    assert [s.subgroup.name for s in found.layers] == ["D4_0deg", "O2"]
    assert [s.subgroup.name for s in found.by_depth] == 2 * ["D4_0deg"]


def test_common_subgroup():
    d4 = gspaces.flipRot2dOnR2(4)
    edge, corner = (subgroup(d4, id) for id in ((0, 2), (1, 2)))
    common = common_subgroup(edge, corner)
    assert common._members == edge._members & corner._members and common.name == "C2"
    assert common_subgroup(subgroup(O2, (0.3, 4)), subgroup(O2, (None, -1))).name == "C4"


@pytest.mark.parametrize("name", ["into.0.weight", "onto.0.bias", "onto.0.weight"])
def test_nan_is_no_switched_off_pathway(name):
    model = relax_translation(relax(net()), inputs())
    with torch.no_grad():
        model.net[2].sites["factored_C4"].get_parameter(name).view(-1)[0] = math.nan
    wrapped = nn.Sequential(model)
    for read in (harden, lambda m: harden(m, to="stabiliser"), report, survivors):
        with pytest.raises(DataError, match=r"^0\.net\.2: NaN or infinite weights in the pathway 'factored_C4'"):
            read(wrapped)
    with pytest.raises(DataError, match=r"^net\.2: "):
        model.net[2].breaking_energy


def test_biases_start_as_breaking_and_the_convolution_has_its_share():
    x = torch.randn(12, 1, 6, 6)
    inner = {"strict": net(), "relaxed": relax(net()), "mixture": mix(net(), [2, 1]), "sparse": net(SparseR2Conv)}
    for kind, model in inner.items():
        model = nn.Sequential(
            relax_translation(model, x, ["factored", ("dense", "free")], silent=False), nn.Linear(16, 3)
        )
        evidence = Evidence(model, num_data=12)
        biases = {n for n in evidence.log_precision if ".sites." in n and n.endswith("bias")}
        assert len(biases) == 6 and all(evidence.log_precision[n] == 3.0 for n in biases)
        assert evidence.log_precision["0.net.0.convolution.bias"] == 0.0
        evidence.refresh(DataLoader(TensorDataset(x, torch.randint(3, (12,))), 4))
        gammas, sizes = evidence.effective_dimension(), {n: p.numel() for n, p in model.named_parameters()}
        seen = next(layer for layer in report(model, evidence, subgroups=False).layers if layer.name == "0.net.0")
        expected = {}
        for pathway in each(seen.pathways):
            prefix = "0.net.0." + ("convolution." if pathway.name == "convolution" else f"sites.{pathway.name}.")
            own = [n for n in gammas if n.startswith(prefix) and not n.endswith("bias")]
            expected[pathway.name] = sum(gammas[n] for n in own) / sum(sizes[n] for n in own)
            assert pathway.dimension == sum(sizes[n] for n in own), (kind, pathway)
        assert {p.name: p.fraction for p in seen.pathways} == pytest.approx(expected, rel=1e-5)
        assert {p.name: p.share for p in seen.pathways} == pytest.approx(
            {n: f / sum(expected.values()) for n, f in expected.items()}, rel=1e-5
        )
        assert 0 < seen.pathways[0].share < 1
