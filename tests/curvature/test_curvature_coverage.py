"""Any graph, and nothing covered by mistake: shared and tied layers, in-place user code, layers of an unknown kind."""

from __future__ import annotations

import copy

import pytest
import torch
from curvature_oracles import central_difference, dense_ggn, own_filters  # noqa: F401
from escnn import gspaces
from escnn import nn as enn
from nonempty import each
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

from escnn_relax import Evidence
from escnn_relax.curvature.curvature import Curvature
from escnn_relax.curvature.jacobian import jacobian
from escnn_relax.errors import CoverageError, UnsupportedModuleError
from escnn_relax.nn import RelaxedR2Conv

#: float64; the two sides sum the same numbers in another order
ROUNDING = 1e-10

C4 = gspaces.rot2dOnR2(4)


def images(count=4, channels=1, size=5):
    return [(torch.randn(count, channels, size, size).double(), torch.randint(3, (count,)))]


def check(model, data=None):
    """Exact blocks equal the dense Gauss-Newton matrix, through whatever graph."""
    model = model.double()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.5)
    data = data or images()
    estimate, expected = Curvature(model, "categorical", "exact")(data), dense_ggn(model, data, "categorical")
    assert set(estimate.factors) == set(expected)
    for name, (factor,) in each(estimate.factors.items()):
        assert (factor.dense() - expected[name]).norm() < ROUNDING * expected[name].norm(), name
    return estimate


class Net(nn.Module):
    """A steerable network whose forward pass each test writes itself."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.gray = enn.FieldType(C4, [C4.trivial_repr])
        self.fields = enn.FieldType(C4, [C4.regular_repr])
        self.first = RelaxedR2Conv(self.gray, self.fields, 3, padding=1)
        for name, module in modules.items():
            setattr(self, name, module)
        self.linear = nn.Linear(4, 3)
        self.steps = forward

    def forward(self, x):
        x = self.steps(self, self.first(self.gray(x)))
        return self.linear(getattr(x, "tensor", x).mean((-2, -1)))


def fields():
    return enn.FieldType(C4, [C4.regular_repr])


def convolution(kind=RelaxedR2Conv, **options):
    return kind(fields(), fields(), 3, padding=1, **options)


def test_residual_sum():
    check(Net(lambda net, x: x + net.second(net.act(x)), second=convolution(), act=enn.ELU(fields())))


def test_dense_connections():
    wide = enn.FieldType(C4, 2 * [C4.regular_repr])

    def forward(net, x):
        return net.third(enn.tensor_directsum([x, net.second(x)]))

    check(Net(forward, second=convolution(), third=RelaxedR2Conv(wide, fields(), 3)))


def test_gate_and_user_code_between_layers():
    def forward(net, x):
        x = net.second(x)
        gate = x.tensor.sum(1, keepdim=True).sigmoid()
        return enn.GeometricTensor(x.tensor * gate / (1 + x.tensor.square().mean()), x.type)

    check(Net(lambda net, x: forward(net, x), second=convolution(enn.R2Conv)), images(count=1))


def test_norm_nonlinearity():
    vectors = enn.FieldType(C4, 2 * [C4.irrep(1)])
    act = enn.NormNonLinearity(vectors, bias=False)
    model = Net(lambda net, x: net.act(net.second(x)), second=RelaxedR2Conv(fields(), vectors, 3), act=act)
    check(model)


@pytest.mark.parametrize("kind", [RelaxedR2Conv, enn.R2Conv])
def test_a_layer_used_twice(kind):
    def forward(net, x):
        return net.second(net.act(net.second(x)))

    check(Net(forward, second=convolution(kind), act=enn.ELU(fields())))


def test_a_layer_used_at_two_scales():
    def forward(net, x):
        fine = net.second(x).tensor.mean((-2, -1))
        coarse = net.second(enn.GeometricTensor(x.tensor[..., ::2, ::2].tanh(), x.type)).tensor.mean((-2, -1))
        return (fine + coarse)[..., None, None]

    check(Net(forward, second=convolution()))


@pytest.mark.parametrize("function", [nn.ReLU(inplace=True), nn.Tanh()])
def test_activations_in_place(function):
    def forward(net, x):
        return net.second(enn.GeometricTensor(function(x.tensor), x.type))

    check(Net(forward, second=convolution()))


def test_input_changed_in_place_after_use():
    """The layer's input is kept as it was read."""

    def careless(net, x):
        y = net.second(x)
        x.tensor.mul_(2)
        return y

    model = Net(careless, second=convolution()).double()
    data = images()
    found = Curvature(model, "categorical", "exact")(data).factors["second.weights.equivariant"][0].dense()
    model.steps = lambda net, x: net.second(x)
    expected = dense_ggn(model, data, "categorical")["second.weights.equivariant"]
    assert (found - expected).norm() < ROUNDING * expected.norm()


def test_linear_on_sequences():
    """A linear layer with extra dimensions shares its weight over them."""

    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.head = nn.Linear(5, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.tokens(x).tanh().mean((1, 2)))

    check(Mixer())


def test_one_and_three_dimensions():
    class Lines(nn.Module):
        def __init__(self):
            super().__init__()
            self.lines = nn.Conv1d(5, 3, 3, padding=1, padding_mode="circular")
            self.solid = nn.Conv3d(1, 2, (1, 2, 2), stride=(1, 2, 1))
            self.head = nn.Linear(2, 3)

        def forward(self, x):
            y = self.lines(x[:, 0]).tanh()
            return self.head(self.solid(y[:, None, :, :, None].expand(-1, -1, -1, -1, 3)).mean((-3, -2, -1)))

    check(Lines())


def test_frozen_layers_are_left_out_but_passed_through():
    model = Net(lambda net, x: net.second(x), second=convolution())
    model.second.requires_grad_(False)
    curvature = Curvature(model.double(), "categorical", "exact")
    frozen = {n for n, why in curvature.uncovered.items() if why == "frozen"}
    assert frozen == {n for n, _ in model.named_parameters() if "second" in n}
    data = images()
    estimate, expected = curvature(data), dense_ggn(model, data, "categorical")
    assert all((f.dense() - expected[n]).norm() < ROUNDING * expected[n].norm() for n, (f,) in estimate.factors.items())


@pytest.mark.parametrize("statistics", ["at the start", "after some training"])
def test_batch_normalisation(statistics):
    """Its scales and shifts, if asked for, in evaluation mode; exact, and in expand channel by channel."""

    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Net(
                lambda net, x: net.inner(net.second(x)), second=convolution(), inner=enn.InnerBatchNorm(fields())
            )
            self.after = nn.BatchNorm1d(3)

        def forward(self, x):
            return self.after(self.net(x))

    model = Normalised().double()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.5)
    data = images()
    if statistics == "after some training":
        model.train()(data[0][0])
    model.eval()
    exact = Curvature(model, "categorical", "exact", normalisation=True)
    expand = Curvature(model, "categorical", "expand", normalisation=True)(data)
    assert exact.uncovered == {}
    expected = dense_ggn(model, data, "categorical")
    for name, (factor,) in each(exact(data).factors.items()):
        assert (factor.dense() - expected[name]).norm() < ROUNDING * expected[name].norm(), name
    diagonal = torch.cat([factor.dense().flatten() for factor in expand.factors["after.weight"]])
    assert len(diagonal) == 3 and (diagonal > 0).all()


def test_batch_normalisation_without_statistics_is_not_covered():
    model = nn.Sequential(nn.Flatten(), nn.Linear(25, 3), nn.BatchNorm1d(3, track_running_stats=False))
    assert "mixes the samples" in Curvature(model, "categorical", normalisation=True).uncovered["2.weight"]
    assert "normalisation=True" in Curvature(model, "categorical").uncovered["2.weight"]


# --- layers that look like ones we know -------------------------------------------------------------------------------


def uncovered(model):
    curvature = Curvature(model, "categorical")
    assert set(curvature.uncovered) | set(curvature.covered) == {n for n, _ in model.named_parameters()}
    return curvature.uncovered


def test_a_parametrised_layer_is_not_covered():
    model = nn.Sequential(nn.Flatten(), nn.Linear(25, 4), parametrizations.weight_norm(nn.Linear(4, 3)))
    assert {name.split(".")[0] for name in uncovered(model)} == {"2"}


def test_a_subclass_with_its_own_forward_is_not_covered():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            return self._conv_forward(x, self.weight / self.weight.norm(), self.bias)

    model = nn.Sequential(Standardised(1, 2, 3), nn.Flatten(), nn.Linear(18, 3))
    assert set(uncovered(model)) == {"0.weight", "0.bias"}
    assert "Standardised" in uncovered(model)["0.weight"]


def test_a_subclass_that_computes_the_same_is_covered():
    class Named(nn.Conv2d):
        pass

    assert uncovered(nn.Sequential(Named(1, 2, 3), nn.Flatten(), nn.Linear(18, 3))) == {}


class Scaled(nn.Linear):
    """With a parameter of its own that its parent's forward does not use."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.scale = nn.Parameter(torch.ones(()))


def pruned(layer):
    return prune.l1_unstructured(layer, "weight", 0.5)


REPLACED = {
    "pruning": (lambda: pruned(nn.Linear(4, 4)), {"3.weight_orig"}),
    "spectral norm by hooks": (lambda: nn.utils.spectral_norm(nn.Linear(4, 4)), {"3.weight_orig"}),
    "another parameter": (lambda: Scaled(4, 4), {"3.scale"}),
}


@pytest.mark.parametrize("case", REPLACED)
def test_parameters_that_are_no_weights_of_their_layer(case):
    """Are not covered; what is left of the layer, and all layers around it, are."""
    make, names = REPLACED[case]
    model = nn.Sequential(nn.Flatten(), nn.Linear(25, 4), nn.Tanh(), make(), nn.Linear(4, 3)).double()
    why = uncovered(model)
    assert set(why) == names and all("no weight of" in reason for reason in why.values())
    model.eval()  # the norm's power iteration goes on in training mode
    data = images()
    estimate = Curvature(model, "categorical", "exact")(data)
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    expected = dense_ggn(model, data, "categorical")
    assert set(expected) == set(estimate.factors) > {"3.bias", "1.weight"}
    for name, (factor,) in each(estimate.factors.items()):
        assert (factor.dense() - expected[name]).norm() < ROUNDING * expected[name].norm(), name


def test_a_use_without_gradient_has_no_curvature():
    """As in a network that looks at its own features, held fixed: that use adds nothing, the others count."""

    class Looking(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(25, 4), nn.Linear(4, 3)

        def forward(self, x):
            with torch.no_grad():
                fixed = self.body(x.flatten(1).flip(0)).tanh()
            return self.head(self.body(x.flatten(1)).tanh() + fixed)

    check(Looking(), images(count=1))


class Held(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.body, self.head, self.how = nn.Linear(25, 4), nn.Linear(4, 3), how

    def forward(self, x):
        if self.how == "reentrant checkpoint":
            return self.head(checkpoint(self.body, x.flatten(1), use_reentrant=True))
        with torch.no_grad():
            features = self.body(x.flatten(1))
        return self.head(features)


@pytest.mark.parametrize("how", ["no gradient", "reentrant checkpoint"])
def test_layers_that_no_gradient_reaches_are_named(how):
    model = Held(how).double()
    with pytest.raises(CoverageError, match="body: .*no gradient passes.*requires_grad_"):
        Curvature(model, "categorical")(images())
    model.body.requires_grad_(False)
    assert set(Curvature(model, "categorical")(images()).factors) == {"head.weight", "head.bias"}


def test_checkpointed_layers():
    """Those that are not reentrant change nothing."""

    class Saving(Held):
        def forward(self, x):
            features = lambda z: self.body(z).tanh()
            return self.head(
                checkpoint(features, x.flatten(1), use_reentrant=False) if self.how else features(x.flatten(1))
            )

    model, data = Saving("").double(), images()
    plain = Curvature(model, "categorical", "exact")(data)
    model.how = "not reentrant"
    saving = Curvature(model, "categorical", "exact")(data)
    assert all(torch.equal(saving.eigenvalues(name), plain.eigenvalues(name)) for name in plain.factors)
    assert float(saving.eigenvalues("body.weight").sum()) > 0


@pytest.mark.parametrize("approximation", ["expand", "reduce"])
def test_kronecker_factors_of_weights_used_several_times(approximation):
    """Two grouped convolutions that share their weights, one of them used at two scales: all their places count
    alike."""

    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = (nn.Conv2d(4, 4, 3, padding=1, groups=2) for _ in range(2))
            self.other.weight = self.one.weight
            self.head, self.uses = nn.Linear(4, 3), []

        def use(self, layer, x):
            self.uses.append((x, layer(x)))
            return self.uses[-1][1].tanh()

        def forward(self, x):
            x = x.expand(-1, 4, -1, -1) * torch.arange(1, 5).view(4, 1, 1)
            fine = self.use(self.other, self.use(self.one, x))
            coarse = self.use(self.one, x[..., ::2, ::2])
            return self.head(torch.cat([fine.flatten(2), coarse.flatten(2)], dim=2).mean(2))

    model, ((x, y),) = Several().double(), images()
    factors = Curvature(model, "categorical", approximation)([(x, y)]).factors["one.weight"]
    model.uses = []
    output = model(x)
    p = output.detach().softmax(1)
    root = torch.linalg.cholesky(torch.diag_embed(p) - p[:, :, None] * p[:, None] + 1e-15 * torch.eye(3))
    reached = [
        torch.autograd.grad(output, [o for _, o in model.uses], c, retain_graph=True) for c in root.permute(2, 0, 1)
    ]
    rows = torch.cat([nn.functional.unfold(i.detach(), 3, padding=1) for i, _ in model.uses], dim=2).chunk(2, 1)
    columns = torch.stack([torch.cat([g.flatten(2) for g in of], dim=2) for of in reached]).chunk(2, 2)
    for factor, a, s in each(zip(factors, rows, columns, strict=True)):
        if approximation == "reduce":
            a, s = a.mean(2, keepdim=True), s.sum(3, keepdim=True)
        A = torch.einsum("ndr,ner->de", a, a) / (len(a) * a.shape[2])
        B = torch.einsum("cnor,cnpr->op", s, s)
        expected = torch.kron(B, A)
        assert (factor.dense() - expected).norm() < 1e-8 * expected.norm()


def test_convolutions_between_points_are_not_covered():
    """They take the points of all samples as one graph; what stands behind them is covered, through their graph."""
    pytest.importorskip("torch_geometric")

    class Clouds(nn.Module):
        def __init__(self):
            super().__init__()
            self.gray, fields = enn.FieldType(C4, [C4.trivial_repr]), enn.FieldType(C4, [C4.regular_repr])
            # a copy: escnn shares what it caches, and would find a basis of float64 where others ask for float32
            self.points = copy.deepcopy(enn.R2PointConv(self.gray, fields, width=2.0, n_rings=3))
            self.linear = nn.Linear(4, 3)

        def forward(self, x):  # (N, K, 3): a feature and two coordinates of each of K points
            sample = torch.arange(len(x)).repeat_interleave(x.shape[1])
            where = x[..., 1:].flatten(0, 1)
            edges = ((torch.cdist(where, where) < 1) & (sample[:, None] == sample)).nonzero().T
            y = self.points(enn.GeometricTensor(x[..., :1].flatten(0, 1), self.gray, where), edges)
            return self.linear(y.tensor.tanh().unflatten(0, x.shape[:2]).mean(1))

    model = Clouds().double()
    why = uncovered(model)
    assert set(why) == {"points.weights", "points.bias"} and "samples cannot be told apart" in why["points.weights"]
    data = [(torch.rand(4, 6, 3).double(), torch.randint(3, (4,)))]
    estimate = Curvature(model, "categorical", "exact")(data)
    model.points.requires_grad_(False)
    expected = dense_ggn(model, data, "categorical")
    for name in ("linear.weight", "linear.bias"):
        assert (estimate.factors[name][0].dense() - expected[name]).norm() < ROUNDING * expected[name].norm(), name


def plain_ties():
    model = nn.Sequential(nn.Flatten(), nn.Linear(25, 25), nn.Tanh(), nn.Linear(25, 25), nn.Tanh(), nn.Linear(25, 3))
    model[3].weight = model[1].weight
    return model


def strict_ties():
    model = Net(lambda net, x: net.third(net.act(net.second(x))), second=convolution(enn.R2Conv), act=enn.ELU(fields()))
    model.third = convolution(enn.R2Conv)
    model.third.weights = model.second.weights
    return model


def relaxed_ties():
    """One pathway and the bias are common, the others are not."""
    model = Net(lambda net, x: net.third(net.act(net.second(x))), second=convolution(), act=enn.ELU(fields()))
    model.third = convolution()
    model.third.weights["irrep_1"], model.third.bias = model.second.weights["irrep_1"], model.second.bias
    return model


def dictionaries_tied():
    """The module that holds all weights is common, the layers are two."""
    model = relaxed_ties()
    model.third.weights = model.second.weights
    return model


@pytest.mark.parametrize("make", [plain_ties, strict_ties, relaxed_ties, dictionaries_tied])
def test_weights_tied_between_layers_of_one_kind(make):
    """Count as one layer used twice; what the layers do not share stays their own."""
    model = make()
    assert uncovered(model) == {}
    check(model)
    estimate = Curvature(model, "categorical", "expand")(images())
    assert set(estimate.factors) == {n for n, _ in model.named_parameters()}


def test_tied_weights_differ_from_untied_ones():
    """The broken twin: the same numbers in two parameters have another curvature."""
    model, data = plain_ties(), images()
    tied = Curvature(model.double(), "categorical", "exact")(data).factors["1.weight"][0].dense()
    model[3].weight = nn.Parameter(model[1].weight.detach().clone())
    apart = Curvature(model, "categorical", "exact")(data).factors["1.weight"][0].dense()
    assert (tied - apart).norm() > 0.1 * tied.norm()


@pytest.mark.parametrize("curvature", ["expand", "exact"])
def test_posterior_and_hypergradient_of_tied_weights(curvature):
    model, data = plain_ties().double(), images()
    evidence = Evidence(model, "categorical", curvature, relaxed_only=False)
    evidence.refresh(data)
    x, weight = torch.randn(2, 1, 5, 5).double(), model[1].weight
    _, rows = jacobian(evidence.curvature, x)
    expected = torch.autograd.functional.jacobian(
        lambda w: torch.func.functional_call(model, {"1.weight": w, "3.weight": w}, (x,)), weight.detach()
    )
    assert torch.allclose(rows["1.weight"], expected.flatten(2), atol=ROUNDING)
    (gradient,) = evidence.hypergradient(data, [weight])
    for index in (0, 333):
        assert abs(float(gradient.view(-1)[index]) - central_difference(evidence, data, weight, index)) < 1e-5


UNLIKE = {
    "an unknown layer": (lambda: (nn.Linear(9, 4), nn.Bilinear(3, 3, 4)), "no curvature is known for Bilinear"),
    "another stride": (lambda: (nn.Conv2d(1, 2, 3), nn.Conv2d(1, 2, 3, stride=2)), "another kind of layer uses"),
    "other groups": (lambda: (nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, groups=2)), "another kind of layer uses"),
}


@pytest.mark.parametrize("case", UNLIKE)
def test_weights_tied_between_layers_of_two_kinds_are_not_covered(case):
    make, message = UNLIKE[case]
    one, other = make()
    other.weight = one.weight
    why = uncovered(nn.ModuleDict({"one": one, "other": other, "more": nn.Linear(2, 2)}))["one.weight"]
    assert "other.weight" in why and message in why


def test_batch_norms_tied_are_not_covered():
    """Their statistics differ, so that they are two maps."""
    one, other = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    other.weight = one.weight
    model = nn.ModuleDict({"one": one, "other": other})
    assert set(Curvature(model, "categorical", normalisation=True).uncovered) == {"one.weight"}


def test_nothing_to_cover():
    with pytest.raises(CoverageError, match="no layer whose curvature is known"):
        Curvature(nn.Sequential(nn.Flatten(), nn.PReLU()), "categorical")


def test_lopsided_padding_is_refused():
    model = nn.Sequential(nn.Conv2d(1, 2, 2, padding="same"), nn.Flatten(), nn.Linear(50, 3)).double()
    with pytest.raises(UnsupportedModuleError, match="0.*lopsided"):
        Curvature(model, "categorical")(images())


def test_a_batch_that_is_folded_into_rows():
    class Folded(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.head = nn.Linear(5, 4), nn.Linear(20, 3)

        def forward(self, x):
            return self.head(self.linear(x.flatten(0, 2)).reshape(len(x), -1))

    model, data = Folded().double(), images()
    expected = dense_ggn(model, data, "categorical")
    for name, (factor,) in each(Curvature(model, "categorical", "exact")(data).factors.items()):
        assert (factor.dense() - expected[name]).norm() < 1e-10 * expected[name].norm()


def test_rows_that_no_sample_owns():
    class Sums(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.head = nn.Linear(5, 4), nn.Linear(4, 3)

        def forward(self, x):
            rows = self.linear(x.flatten(0, 2))
            return self.head((rows + rows.roll(1, 0))[::5])

    with pytest.raises(UnsupportedModuleError, match="^model: the output of a sample depends on other samples"):
        Curvature(Sums().double(), "categorical")(images())


def test_users_own_hooks_and_forward_survive():
    model = nn.Sequential(nn.Flatten(), nn.Linear(25, 3)).double()
    calls, own = [], model[1].forward
    model[1].register_forward_hook(lambda *_: calls.append("hook"))

    def patched(x):
        calls.append("patch")
        return own(x)

    model[1].forward = patched
    Curvature(model, "categorical")(images())
    assert calls and calls == ["patch", "hook"] * (len(calls) // 2) and vars(model[1])["forward"] is patched


def test_the_users_data_gets_no_gradient():
    model = nn.Sequential(nn.Flatten(), nn.Linear(25, 3)).double()
    ((x, y),) = images()
    x.requires_grad_()
    Curvature(model, "categorical")([(x, y)])
    assert x.grad is None


def test_a_layer_that_is_told_more_than_its_input_is_refused():
    class Sized(nn.Module):
        def __init__(self, **options):
            super().__init__()
            self.up, self.options = nn.ConvTranspose2d(1, 3, 3, stride=2), options

        def forward(self, x):
            return self.up(x, **self.options).mean((2, 3))

    alone = Curvature(Sized().double(), "categorical", "exact")(images())
    assert set(alone.factors) == {"up.weight", "up.bias"}
    with pytest.raises(UnsupportedModuleError, match="up: .*only input, got Tensor, output_size=; call.*input alone"):
        Curvature(Sized(output_size=(12, 12)).double(), "categorical", "exact")(images())
