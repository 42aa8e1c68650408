"""``mix`` and ``merge`` on networks, and the evidence of mixed ones."""

from __future__ import annotations

import warnings

import pytest
import torch
from curvature_oracles import Tensors, assembled, block_positions, dense_ggn, own_filters  # noqa: F401
from escnn import gspaces
from escnn import nn as enn
from fields import SINGLE, distance, field_type
from nonempty import each
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from escnn_relax import Evidence, carry_optimizer, harden, merge, mix, project, relax, report, restrict
from escnn_relax.curvature.curvature import Curvature
from escnn_relax.errors import ArgumentError, SubgroupError, UnsupportedModuleError
from escnn_relax.evidence import NoiseSettings, PriorSettings
from escnn_relax.nn import MergedConvolution, MixedLinear, MixedR2Conv

IDS = [(None, 4), (0, 1), (None, 1)]
#: float64; the two sides sum the same numbers in another order
ROUNDING = 1e-10


class Net(nn.Module):
    """Two convolutions with all that usually stands between them."""

    def __init__(self, name="D4", copies=2, classes=3):
        super().__init__()
        self.gray, fields = field_type(name, "trivial"), field_type(name, copies=copies)
        self.first = enn.R2Conv(self.gray, fields, 3, padding=1)
        self.norm, self.relu = enn.InnerBatchNorm(fields), enn.ReLU(fields)
        self.second = enn.R2Conv(fields, fields, 3)
        self.copies = copies
        self.readout = nn.Linear(copies, classes)

    def forward(self, x):
        x = self.relu(self.norm(self.first(self.gray(x))))
        x = self.second(x).tensor.tanh()  # not GroupPooling, which is in float32 whatever its input
        return self.readout(x.unflatten(1, (self.copies, -1)).mean((2, 3, 4)))


def shaken(model):
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.5)
    return model


@pytest.mark.parametrize("training", [True, False])
def test_mix_keeps_the_function_and_the_model(training):
    model, x = Net().train(training), torch.randn(3, 1, 7, 7)
    before = {n: v.clone() for n, v in model.state_dict().items()}
    mixed = mix(model, IDS, leaning=1.0)
    assert isinstance(mixed.first, MixedR2Conv) and isinstance(mixed.second, MixedR2Conv)
    assert mixed.training == training and type(model.first) is enn.R2Conv
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    with torch.no_grad():
        assert distance(mixed(x), model(x)) < 5 * SINGLE
        shaken(mixed.second)
        assert distance(mixed(x), model(x)) > 1e-3


#: float64; what escnn's sampling in float32 leaves outside the few spatial patterns that a mixture's kernels share
PATTERNS = 1e-7


def test_mix_keeps_the_function_in_double_precision():
    model, x = Net().double(), torch.randn(3, 1, 7, 7).double()
    mixed = mix(model, IDS)
    with torch.no_grad():
        assert distance(mixed(x), model(x)) < PATTERNS
        for name in ("first", "second"):
            ours, theirs = (m.get_submodule(name).expand_parameters()[0] for m in (mixed, model))
            assert distance(ours, theirs) < PATTERNS
        mixed.second.weights["C4"][0] += 1e-4  # the broken twin: so small a change is seen
        assert distance(mixed.second.expand_parameters()[0], theirs) > 10 * PATTERNS


def test_transposed_convolutions_are_mixed_and_merged():
    gray, fields = field_type("D4", "trivial"), field_type("D4")
    model = nn.Sequential(enn.R2Conv(gray, fields, 3), enn.R2ConvTransposed(fields, gray, 3, stride=2))
    mixed, x = shaken(mix(model, IDS)), gray(torch.randn(2, 1, 6, 6))
    assert [type(layer).__name__ for layer in mixed] == ["MixedR2Conv", "MixedR2ConvTransposed"]
    merged = merge(mixed)
    assert isinstance(merged[1].convolution, nn.ConvTranspose2d)
    with torch.no_grad():
        assert distance(merged(x).tensor, mixed(x).tensor) < 5 * SINGLE
    evidence = Evidence(nn.Sequential(mixed, Flat()), num_data=2)
    names = {n for n in evidence.log_precision if n.startswith("0.1.weights")}
    assert names == {f"0.1.weights.{p.name}" for p in mixed[1].pathways}
    before = evidence.refresh([(x, torch.tensor([0, 1]))]).total
    evidence.step(5)
    assert evidence.log_marginal_likelihood() > before


class Flat(nn.Module):
    """Three numbers a sample."""

    def forward(self, x):
        return x.tensor.flatten(1)[:, :3]


def test_groups_by_layer():
    model = Net()
    by_name = mix(model, {"second": [(None, 1)]})
    assert type(by_name.first) is enn.R2Conv and [p.name for p in by_name.second.pathways] == ["equivariant", "trivial"]
    by_function = mix(model, lambda name, module: [(None, 2)] if name == "first" else None)
    assert isinstance(by_function.first, MixedR2Conv) and type(by_function.second) is enn.R2Conv
    for layers in ("second", ["second"], lambda name, module: name == "second"):
        assert type(mix(model, IDS, layers=layers).first) is enn.R2Conv


def test_linear_layers_and_what_cannot_be_mixed():
    scalars = field_type("D4", "trivial", 2)
    group = scalars.fibergroup
    point = enn.FieldType(gspaces.no_base_space(group), [group.regular_representation])
    assert isinstance(mix(nn.Sequential(enn.Linear(point, point)), IDS)[0], MixedLinear)
    still = enn.R2Conv(scalars, scalars, 1)
    model = nn.Sequential(still, enn.R2Conv(scalars, scalars, 3))
    with pytest.warns(UserWarning, match="left as it is: 0.*same kernels"):
        mixed = mix(model, [(0, 1)])
    assert type(mixed[0]) is enn.R2Conv and isinstance(mixed[1], MixedR2Conv)
    with warnings.catch_warnings(), pytest.raises(UnsupportedModuleError, match="no layer in it was mixed"):
        warnings.simplefilter("ignore")
        mix(still, [(0, 1)])

    class Own(enn.R2Conv):
        pass

    with pytest.warns(UserWarning, match="Own may compute something else"):
        assert type(mix(nn.Sequential(Own(scalars, scalars, 3), enn.R2Conv(scalars, scalars, 3)), [(0, 1)])[0]) is Own


def test_bad_input():
    with pytest.raises(SubgroupError, match="first.*no such subgroup"):
        mix(Net(), [(None, 3)])
    with pytest.raises(SubgroupError, match="twice"):
        mix(Net(), [(None, 2), (None, 2)])
    with pytest.raises(ArgumentError, match="third.*did you mean 'first'"):
        mix(Net(), {"third": IDS})
    with pytest.raises(ArgumentError, match="third"):
        mix(Net(), IDS, layers=["third"])
    with pytest.raises(UnsupportedModuleError, match="mix"):
        merge(Net())
    with pytest.raises(UnsupportedModuleError, match="first.*mixture.*merge it first"):
        restrict(mix(Net(), IDS), (None, 4))


# --- merge ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 5 * SINGLE), (torch.float64, ROUNDING)])
def test_merge_keeps_the_function(training, dtype, tolerance):
    mixed = shaken(mix(Net(), IDS)).to(dtype).train(training)
    merged, x = merge(mixed), torch.randn(3, 1, 7, 7, dtype=dtype)
    assert isinstance(merged.first, MergedConvolution) and isinstance(merged.first.convolution, nn.Conv2d)
    with torch.no_grad():
        assert distance(merged(x), mixed(x)) < tolerance
        mixed.first.alpha.data.normal_()
        assert distance(merged(x), mixed(x)) > 1e-4
    assert sum(p.numel() for p in merged.parameters()) < sum(p.numel() for p in mixed.parameters())


def test_merge_returns_the_escnn_layer_where_only_g_is_left():
    mixed = shaken(mix(Net(), IDS))
    mixed.first = mixed.first.without(*[p.name for p in mixed.first.pathways[1:]])
    merged, x = merge(mixed), torch.randn(2, 1, 7, 7)
    assert type(merged.first) is enn.R2Conv and isinstance(merged.second, MergedConvolution)
    assert torch.equal(merged.first.weights, mixed.first.weights["equivariant"])
    with torch.no_grad():
        assert distance(merged(x), mixed(x)) < 5 * SINGLE


# --- curvature and evidence -------------------------------------------------------------------------------------------


def one_layer(**options):
    fields = field_type("D4", "interleaved")
    layer = MixedR2Conv(fields, field_type("D4"), 3, subgroups=IDS, **options)
    model = shaken(Tensors(layer, fields)).double()
    layer.freeze()
    x = torch.randn(2, fields.size, 5, 5).double()
    return model, layer, [(x, torch.zeros_like(model(x)).detach())]


@pytest.mark.parametrize("approximation", ["expand", "exact"])
@pytest.mark.parametrize(
    "options", [{}, {"stride": 2, "padding": 1}, {"padding": 1, "padding_mode": "circular"}], ids=str
)
def test_factors_equal_the_dense_gauss_newton_matrix(approximation, options):
    """Shares included, of weights and biases, for squared error, where expand is exact too."""
    model, layer, data = one_layer(**options)
    estimate, expected = Curvature(model, "gaussian", approximation)(data), dense_ggn(model, data, "gaussian")
    assert set(estimate.factors) == set(expected) and "net.weights.C4" in expected and "net.bias" in expected
    for name, factors in each(estimate.factors.items()):
        parameter, size = model.get_parameter(name), len(expected[name])
        places = [torch.arange(size)] if factors[0].dimension == size else block_positions(layer, parameter)
        found = assembled(factors, size, places)
        assert float((found - expected[name]).norm() / expected[name].norm()) < ROUNDING, name


def test_shares_count_in_the_curvature():
    """The broken twin: curvature taken at other shares is another."""
    model, layer, data = one_layer()
    expected = dense_ggn(model, data, "gaussian")["net.weights.C4"]
    layer.alpha.data[1] += 1.0
    layer_found = Curvature(model, "gaussian", "exact")(data).factors["net.weights.C4"][0].dense()
    assert float((layer_found - expected).norm() / expected.norm()) > 0.1


def classifier(copies=1, groups=IDS):
    torch.manual_seed(0)
    model = shaken(mix(Net(copies=copies), groups)).double()
    x, y = torch.randn(9, 1, 6, 6).double(), torch.randint(3, (9,))
    return model, DataLoader(TensorDataset(x, y), batch_size=4)


def test_one_precision_for_each_summand():
    model, loader = classifier()
    evidence = Evidence(model, num_data=9)
    for layer in ("first", "second"):
        names = {p.name for p in model.get_submodule(layer).pathways}
        assert {n for n in evidence.log_precision if n.startswith(layer)} == {
            f"{layer}.bias",
            *(f"{layer}.weights.{n}" for n in names),
        }
    assert evidence.uncovered["first.kernel.alpha"] == "an architecture weight: it has no prior"
    evidence.refresh(loader)
    before = evidence.log_marginal_likelihood()
    evidence.step(5)
    assert evidence.log_marginal_likelihood() > before
    assert torch.isfinite(model.second.log_precision).all() and (model.second.effective_dimension > 0).all()


@pytest.mark.parametrize(
    "curvature", ["expand", *(pytest.param(c, marks=pytest.mark.slow) for c in ("exact", "diagonal"))]
)
def test_the_evidence_differentiates_architecture_weights(curvature):
    """Against central finite differences, precisions of a layer's summands tied and fixed."""
    model, loader = classifier(groups=[(None, 4), (None, 1)])
    for p in model.norm.parameters():
        p.requires_grad_(False)
    evidence = Evidence(
        model, curvature=curvature, num_data=9, prior=PriorSettings(ties="layer"), noise=NoiseSettings(temperature=0.7)
    )
    parameters = [model.first.alpha, model.second.alpha]
    gradients = evidence.hypergradient(loader, parameters)
    for parameter, gradient in each(zip(parameters, gradients, strict=True)):
        assert abs(float(gradient.sum())) < 1e-8 * float(gradient.abs().max())  # softmax: only differences count
        for index in each(range(len(parameter))):
            values = []
            for by in (1e-5, -1e-5):
                parameter.data[index] += by
                values.append(evidence.refresh(loader).total)
                parameter.data[index] -= by
            expected = (values[0] - values[1]) / 2e-5
            assert abs(float(gradient[index]) - expected) < 1e-6 * max(1.0, abs(expected))


def test_a_share_and_a_precision_are_one_hyperparameter():
    """Why free precisions make architecture weights redundant: the evidence sees the prior of the product only."""
    model, loader = classifier(groups=[(None, 4), (None, 1)])
    layer, names = model.second, [p.name for p in model.second.pathways]
    layer.bias = None
    evidence = Evidence(model, curvature="exact", num_data=9)
    for n, name in enumerate(names):
        evidence.log_precision[f"second.weights.{name}"] = 0.3 * n
    before, old = evidence.refresh(loader), layer.kernel.shares.detach().clone()
    layer.alpha.data.normal_()
    new = layer.kernel.shares.detach()
    assert abs(evidence.refresh(loader).total - before.total) > 1e-3
    with torch.no_grad():
        for n, name in enumerate(names):
            layer.weights[name].mul_(old[n] / new[n])
            evidence.log_precision[f"second.weights.{name}"] += 2 * float((new[n] / old[n]).log())
    after = evidence.refresh(loader)
    for term in ("data_fit", "complexity", "prior"):
        assert abs(getattr(after, term) - getattr(before, term)) < 1e-8 * abs(getattr(before, term)) + 1e-10


def test_project_is_the_average_over_the_group():
    mixed = shaken(mix(Net(), IDS)).double()
    layer, x = mixed.second, torch.randn(1, 16, 5, 5).double()
    strict = project(mixed).second
    assert type(strict) is enn.R2Conv
    total, group = 0.0, layer.space.fibergroup
    with torch.no_grad():
        for g in group.elements:  # g^-1 f(g x), by escnn's own action
            turned = layer.in_type(x).transform(g).tensor.double()
            total = total + layer(layer.in_type(turned)).transform(~g).tensor.double() / group.order()
        assert distance(strict(layer.in_type(x)).tensor, total) < 1e-3  # escnn's action rounds to half precision
        assert distance(layer(layer.in_type(x)).tensor, total) > 0.05
    mixed.second = layer.without("equivariant")
    with pytest.raises(ArgumentError, match="some of the summands.*equivariant"):
        project(mixed)


@pytest.mark.parametrize("function", [relax, harden])
def test_other_morphisms_refuse_or_leave_mixed_layers(function):
    mixed = mix(Net(), IDS)
    with pytest.raises(UnsupportedModuleError):
        function(mixed)


def test_an_optimiser_can_be_carried_over():
    strict = Net()
    adam = torch.optim.Adam(strict.parameters(), lr=0.01)
    strict(torch.randn(4, 1, 7, 7)).square().sum().backward()
    adam.step()
    mixed = mix(strict, IDS)
    carried = carry_optimizer(adam, strict, mixed)
    theirs, ours = adam.state[strict.first.weights], carried.state[mixed.first.weights["equivariant"]]
    assert torch.equal(theirs["exp_avg"], ours["exp_avg"]) and mixed.first.alpha not in carried.state
    mixed(torch.randn(4, 1, 7, 7)).square().sum().backward()
    before = mixed.first.bias.detach().clone()
    carried.step()
    assert not torch.equal(mixed.first.bias, before)


def test_report_on_a_mixed_network():
    mixed = shaken(mix(Net(), IDS))
    first, second = report(mixed).layers
    assert [p.name for p in first.pathways] == ["equivariant", "C4", "D1_90deg", "trivial"]
    assert first.breaking_energy == mixed.first.breaking_energy and first.equivariance_error > 0.05
    assert report(mix(Net(), IDS)).layers[0].breaking_energy < 1e-10
