"""The factors are exact where theory promises it; deliberately wrong ones fail the same comparison."""

from __future__ import annotations

import copy

import pytest
import torch
from curvature_oracles import Tensors, assembled, block_positions, dense_ggn, own_filters, rows_and_columns  # noqa: F401
from escnn import gspaces
from escnn import nn as enn
from nonempty import each
from torch import nn

from escnn_relax.curvature.curvature import Curvature
from escnn_relax.nn import RelaxedR2Conv
from escnn_relax.nn.relaxed_convolution import RelaxedConvolution

#: float64; the two sides sum the same numbers in another order
ROUNDING = 1e-10

C4, D4 = gspaces.rot2dOnR2(4), gspaces.flipRot2dOnR2(4)


def field_type(space, **counts):
    known = {"trivial": space.trivial_repr, "regular": space.regular_repr}
    for index, psi in enumerate(space.fibergroup.irreps()):
        known[f"irrep{index}"] = psi
    return enn.FieldType(space, [known[name] for name, count in counts.items() for _ in range(count)])


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


def regression(model, size, count=2):
    x = torch.randn(count, size, 5, 5).double()
    return [(x, torch.zeros_like(model(x)).detach())]


def shaken(model):
    """All weights random, the residual ones too, so that no pathway is accidentally silent."""
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.5)
    return model.double()


def steerable(kind, space, ins, outs, size=3, **options):
    types = field_type(space, **ins), field_type(space, **outs)
    layer = (enn.R2Conv if kind == "strict" else RelaxedR2Conv)(*types, size, **options)
    return shaken(Tensors(layer, types[0]))


MIXED_IN, MIXED_OUT = {"trivial": 1, "regular": 1, "irrep1": 1}, {"regular": 1, "irrep1": 2, "trivial": 1}
STEERABLE = {
    "regular": lambda kind: steerable(kind, C4, {"regular": 1}, {"regular": 2}, padding=1),
    "size 5, stride 2": lambda kind: steerable(kind, C4, {"regular": 1}, {"regular": 2}, 5, stride=2, padding=2),
    "dilation 2": lambda kind: steerable(kind, C4, {"regular": 1}, {"regular": 1}, dilation=2, padding=2),
    "no padding, no bias": lambda kind: steerable(kind, C4, {"trivial": 2}, {"regular": 1}, bias=False),
    "circular": lambda kind: steerable(kind, C4, {"regular": 1}, {"regular": 1}, padding=1, padding_mode="circular"),
    "reflect": lambda kind: steerable(kind, C4, {"regular": 1}, {"regular": 1}, 5, padding=2, padding_mode="reflect"),
    "replicate": lambda kind: steerable(kind, C4, {"trivial": 1}, {"regular": 1}, padding=1, padding_mode="replicate"),
    "grouped": lambda kind: steerable(kind, C4, {"trivial": 2}, {"regular": 4}, groups=2),
    "mixed fields": lambda kind: steerable(kind, C4, MIXED_IN, MIXED_OUT, stride=2),
    "mixed fields, D4": lambda kind: steerable(kind, D4, {"trivial": 1, "irrep4": 1}, {"irrep4": 2, "trivial": 1}),
}
PLAIN = {
    "linear": lambda: nn.Linear(25, 4),
    "convolution": lambda: nn.Conv2d(2, 3, 3, padding=1),
    "convolution, stride 2, circular": lambda: nn.Conv2d(2, 3, 3, stride=2, padding=1, padding_mode="circular"),
    "convolution, dilation 2, reflect": lambda: nn.Conv2d(2, 2, 3, dilation=2, padding=2, padding_mode="reflect"),
    "convolution, grouped, oblong": lambda: nn.Conv2d(4, 6, (3, 1), padding=(0, 1), groups=2, bias=False),
    "convolution, same": lambda: nn.Conv2d(2, 2, 3, padding="same"),
    "pointwise": lambda: nn.Conv2d(2, 3, 1),
}


def positions(model, name):
    """Which weights each block of a parameter holds."""
    parameter, (layer, steerable, _) = model.get_parameter(name), name.partition(".weights")
    if steerable:
        return block_positions(model.get_submodule(layer), parameter)
    return [torch.arange(parameter.numel())]


def places(model, name, factors):
    """As :func:`positions`; a parameter with a single factor for all of it needs no search."""
    whole = [torch.arange(model.get_parameter(name).numel())]
    return whole if factors[0].dimension == len(whole[0]) else positions(model, name)


def errors(model, estimate, expected):
    """Relative error of each parameter's factors against the dense Gauss-Newton blocks."""
    assert set(estimate.factors) == set(expected)
    return {
        name: relative(assembled(factors, len(expected[name]), places(model, name, factors)), expected[name])
        for name, factors in estimate.factors.items()
    }


@pytest.mark.parametrize("approximation", ["expand", "exact"])
@pytest.mark.parametrize("kind", ["relaxed", "strict"])
@pytest.mark.parametrize("case", STEERABLE)
def test_one_steerable_layer_with_squared_error(case, kind, approximation):
    model = STEERABLE[case](kind)
    assert isinstance(model.net, RelaxedConvolution) == (kind == "relaxed")
    data = regression(model, model.net.in_type.size)
    found = errors(model, Curvature(model, "gaussian", approximation)(data), dense_ggn(model, data, "gaussian"))
    assert max(found.values()) < ROUNDING, found


@pytest.mark.parametrize("approximation", ["expand", "exact"])
@pytest.mark.parametrize("case", PLAIN)
def test_one_plain_layer_with_squared_error(case, approximation):
    layer = PLAIN[case]()
    model = shaken(Tensors(nn.Sequential(nn.Flatten(), layer) if case == "linear" else layer))
    size = 1 if case == "linear" else layer.in_channels
    data = regression(model, size)
    expected = dense_ggn(model, data, "gaussian")
    for name, factors in each(Curvature(model, "gaussian", approximation)(data).factors.items()):
        sizes = [factor.dimension for factor in factors]
        positions = list(torch.arange(sum(sizes)).split(sizes))
        assert relative(assembled(factors, sum(sizes), positions), expected[name]) < ROUNDING, name


class Deep(nn.Module):
    """Two steerable layers, then a linear one; no part of it works in float32 only."""

    def __init__(self, space, kind, outputs=3):
        super().__init__()
        gray, first = field_type(space, trivial=1), field_type(space, regular=2)
        second = field_type(space, irrep1=1, trivial=2)
        self.gray = gray
        self.first = RelaxedR2Conv(gray, first, 3, padding=1)
        self.act = enn.ELU(first)
        self.second = (RelaxedR2Conv if kind == "relaxed" else enn.R2Conv)(first, second, 3)
        self.linear = nn.Linear(second.size, outputs)

    def forward(self, x):
        return self.linear(self.second(self.act(self.first(self.gray(x)))).tensor.tanh().mean((-2, -1)))


LIKELIHOODS = ["categorical", "gaussian"]


def deep(space=C4, kind="relaxed", count=5, likelihood="categorical"):
    model = shaken(Deep(space, kind))
    y = torch.randint(3, (count,)) if likelihood == "categorical" else torch.randn(count, 3).double()
    return model, [(torch.randn(count, 1, 6, 6).double(), y)]


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("kind", ["relaxed", "strict"])
def test_exact_blocks_of_a_deep_network(kind, likelihood):
    model, data = deep(kind=kind, likelihood=likelihood)
    expected = dense_ggn(model, data, likelihood)
    found = errors(model, Curvature(model, likelihood, "exact")(data), expected)
    assert max(found.values()) < ROUNDING, found


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_diagonal_of_a_deep_network(likelihood):
    model, data = deep(likelihood=likelihood)
    expected = dense_ggn(model, data, likelihood)
    expected.update({name: H.diag().diag() for name, H in expected.items() if not name.endswith("bias")})
    found = errors(model, Curvature(model, likelihood, "diagonal")(data), expected)
    assert max(found.values()) < ROUNDING, found


def explicit(model, data, likelihood, layer, parameter, where):
    """All rows and columns of a block, over the whole data set."""
    record = {}
    hook = layer.register_forward_hook(lambda m, i, o: record.update(input=i[0].tensor.detach(), output=o.tensor))
    ((x, _),) = data
    output = model(x)
    hook.remove()
    root = torch.eye(output.shape[1]).double().expand(len(x), -1, -1)
    if likelihood == "categorical":
        p = output.detach().softmax(1)
        root = torch.linalg.cholesky(torch.diag_embed(p) - p[:, :, None] * p[:, None] + 1e-15 * torch.eye(p.shape[1]))
    columns = [torch.autograd.grad(output, record["output"], c, retain_graph=True)[0] for c in root.permute(2, 0, 1)]
    return rows_and_columns(layer, parameter, where, record["input"], torch.stack(columns))


def expand_factor(a, s):
    return torch.einsum("nrd,nre->de", a, a) / (a.shape[0] * a.shape[1]), torch.einsum("cnro,cnrp->op", s, s)


def reduce_factor(a, s):
    mean, total = a.mean(1), s.sum(2)
    return mean.T @ mean / len(a), torch.einsum("cno,cnp->op", total, total)


def without_averaging(a, s):
    A, B = expand_factor(a, s)
    return A * a.shape[1], B


def without_components(a, s):  # averages over sites only, not over the components of the output field
    A, B = expand_factor(a, s)
    return A * 2, B


def mixed_conventions(a, s):
    return reduce_factor(a, s)[0], expand_factor(a, s)[1]


def column_mean(a, s):
    return reduce_factor(a, s)[0], reduce_factor(a, s)[1] / s.shape[2] ** 2


BRUTE = {"expand": expand_factor, "reduce": reduce_factor}


def brute_force_errors(space, kind, likelihood, approximation, rule):
    model, data = deep(space, kind, likelihood=likelihood)
    estimate = Curvature(model, likelihood, approximation)(data)
    found, scale = [], {}
    for name, factors in estimate.factors.items():
        layer, steerable, _ = name.partition(".weights")
        if not steerable:
            continue
        layer, parameter = model.get_submodule(layer), model.get_parameter(name)
        for factor, where in zip(factors, positions(model, name), strict=True):
            A, B = rule(*explicit(model, data, likelihood, layer, parameter, where))
            # some irreps vanish on average over a field, so that reduce leaves them nothing but rounding
            scale[layer] = max(scale.get(layer, 0.0), float(torch.kron(B, A).norm()))
            found.append((layer, float((factor.dense() - torch.kron(B, A)).norm())))
    return [error / scale[layer] for layer, error in found]


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("approximation", BRUTE)
@pytest.mark.parametrize("kind", ["relaxed", "strict"])
@pytest.mark.parametrize("space", [C4, D4], ids=["C4", "D4"])
def test_kronecker_factors_of_a_deep_network(space, kind, approximation, likelihood):
    # the Cholesky root of the oracle is regularised by 1e-15
    found = brute_force_errors(space, kind, likelihood, approximation, BRUTE[approximation])
    assert len(found) >= 5 and max(found) < 1e-8, found


@pytest.mark.parametrize(
    ("approximation", "rule"),
    [
        ("expand", without_averaging),
        ("expand", without_components),
        ("expand", reduce_factor),
        ("reduce", expand_factor),
        ("reduce", mixed_conventions),
        ("reduce", column_mean),
    ],
)
def test_wrong_factors_are_told_apart(approximation, rule):
    found = brute_force_errors(C4, "relaxed", "categorical", approximation, rule)
    assert max(found) > 0.1


def test_backpacks_own_convolution_factors_are_told_apart():
    """They count each output position as a sample of its own, on one side only: T times the Gauss-Newton matrix."""
    from backpack import backpack, extend
    from backpack.extensions import KFLR

    convolution = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten()).double()
    extended, loss = extend(copy.deepcopy(convolution)), extend(nn.MSELoss(reduction="sum"))
    ((x, y),) = data = regression(convolution, 2)
    with backpack(KFLR()):
        loss(extended(x.clone().requires_grad_()), y).backward()
    B, A = extended[0].weight.kflr
    expected = dense_ggn(convolution, data, "gaussian")["0.weight"]
    theirs = torch.kron(B, A) / 2  # squared error without the half
    assert relative(theirs, 9 * expected) < ROUNDING  # 3 x 3 output positions
    ours = Curvature(convolution, "gaussian", "expand")(data).factors["0.weight"][0].dense()
    assert relative(ours, expected) < ROUNDING


def test_bias_under_expand_is_not_the_shared_factor():
    """Taking expand's B for the bias, as laplace-torch does, is another matrix than the Gauss-Newton block."""
    model, data = deep()
    expected = dense_ggn(model, data, "categorical")["second.bias"]
    exact = Curvature(model, "categorical", "expand")(data).factors["second.bias"][0].dense()
    shared = Curvature(model, "categorical", "expand", bias="kronecker")(data).factors["second.bias"][0].dense()
    assert relative(exact, expected) < ROUNDING < 0.1 < relative(shared, expected)
