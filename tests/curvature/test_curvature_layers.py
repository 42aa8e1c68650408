"""Every kind of layer, and every approximation that is not exact by definition."""

from __future__ import annotations

import math

import pytest
import torch
from curvature_oracles import Tensors, dense_ggn, own_filters  # noqa: F401
from escnn import gspaces, group
from escnn import nn as enn
from nonempty import each
from torch import nn

from escnn_relax.curvature.curvature import Curvature
from escnn_relax.curvature.factors.eigenvalue_clusters import TOGETHER
from escnn_relax.curvature.factors import DenseFactor, EigenFactor, GramFactor, KroneckerFactor
from escnn_relax.curvature.layers.known_layers import linear_map
from escnn_relax.curvature.layers.linear_map import LinearMap
from escnn_relax.curvature.sums.patch_moments import PatchMoments, _Patches, _Whole
from escnn_relax.curvature.sums.patch_moments import RowMoments
from escnn_relax.curvature.layers.input_positions import TransposedWindow, Window
from escnn_relax.curvature.approximation_choice import LARGEST_EXACT, recipe
from escnn_relax.errors import ArgumentError, CurvatureError, DataError
from escnn_relax.nn import RelaxedLinear, RelaxedR2Conv, RelaxedR2ConvTransposed, RelaxedR3Conv, RelaxedR3ConvTransposed

#: float64; the two sides sum the same numbers in another order
ROUNDING = 1e-10

C4 = gspaces.rot2dOnR2(4)
POINT = gspaces.no_base_space(group.cyclic_group(4))
MIRROR = gspaces.invOnR3()


def regular(space, count=1):
    return enn.FieldType(space, count * [space.regular_repr])


def shaken(model):
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.5)
    return model.double()


def steerable(kind, space, ins, outs, *arguments, **options):
    layer = kind(regular(space, ins), regular(space, outs), *arguments, **options)
    return shaken(Tensors(layer, layer.in_type)), layer.in_type.size


def plain(layer, channels):
    return shaken(Tensors(layer)), channels


LAYERS = {
    "relaxed linear": (lambda: steerable(RelaxedLinear, POINT, 2, 2), ()),
    "escnn linear": (lambda: steerable(enn.Linear, POINT, 2, 2), ()),
    "relaxed transposed": (lambda: steerable(RelaxedR2ConvTransposed, C4, 1, 2, 3, stride=2, padding=1), (3, 3)),
    "escnn transposed": (lambda: steerable(enn.R2ConvTransposed, C4, 2, 1, 3, stride=2, output_padding=1), (2, 3)),
    "transposed, grouped": (lambda: steerable(RelaxedR2ConvTransposed, C4, 2, 2, 3, groups=2), (2, 2)),
    "transposed, dilated": (lambda: steerable(enn.R2ConvTransposed, C4, 1, 1, 3, dilation=2, padding=2), (3, 3)),
    "relaxed 3D": (lambda: steerable(RelaxedR3Conv, MIRROR, 1, 2, 3, padding=1), (2, 3, 3)),
    "escnn 3D": (
        lambda: steerable(enn.R3Conv, MIRROR, 1, 1, 3, stride=2, padding=1, padding_mode="circular"),
        (4, 3, 3),
    ),
    "transposed 3D": (lambda: steerable(RelaxedR3ConvTransposed, MIRROR, 1, 1, 3, padding=1, stride=2), (2, 2, 2)),
    "torch transposed 1D": (lambda: plain(nn.ConvTranspose1d(2, 3, 4, stride=3, padding=1, output_padding=2), 2), (4,)),
    "torch transposed 2D": (lambda: plain(nn.ConvTranspose2d(4, 2, (2, 3), groups=2, dilation=(1, 2)), 4), (3, 3)),
    "torch transposed 3D": (lambda: plain(nn.ConvTranspose3d(1, 2, 2, stride=2), 1), (2, 2, 2)),
}


@pytest.mark.parametrize("case", LAYERS)
def test_one_layer_with_squared_error(case):
    make, space = LAYERS[case]
    model, channels = make()
    x = torch.randn(2, channels, *space).double()
    data = [(x, torch.zeros_like(model(x)).detach())]
    expected = dense_ggn(model, data, "gaussian")
    exact = Curvature(model, "gaussian", "exact")(data)
    expand = Curvature(model, "gaussian", "expand")(data)
    assert set(exact.factors) == set(expand.factors) == set(expected)
    for name, (factor,) in each(exact.factors.items()):
        assert (factor.dense() - expected[name]).norm() < ROUNDING * expected[name].norm(), name
        for block in each(expand.factors[name]):
            where = torch.arange(len(expected[name])) if block.positions is None else block.positions.flatten()
            part = expected[name][where.unsqueeze(1), where]
            assert (block.dense() - part).norm() < ROUNDING * part.norm(), name


@pytest.mark.parametrize("padding_mode", ["zeros", "circular", "reflect", "replicate"])
def test_tables_of_places_agree_with_torch(padding_mode):
    """A table says where a convolution reads: gathering by it and multiplying is the convolution."""
    layer = nn.Conv2d(
        2, 3, (3, 2), stride=(1, 2), padding=(1, 1), dilation=(2, 1), padding_mode=padding_mode, bias=False
    )
    x = torch.randn(2, 2, 6, 5)
    places = Window(layer.kernel_size, layer.stride, layer.dilation, layer.padding, padding_mode)
    gathered = super(Window, places).patches(x)
    assert torch.allclose((layer.weight.flatten(1) @ gathered).view_as(layer(x)), layer(x), atol=1e-5)
    assert torch.equal(gathered, places.patches(x))
    counts = places.counts(x.shape[2:])
    assert torch.allclose((x.flatten(2) @ counts).flatten(1), gathered.sum(-1), atol=1e-5)


def test_tables_of_transposed_places_agree_with_torch():
    layer = nn.ConvTranspose2d(
        2, 3, (3, 2), stride=(2, 3), padding=(1, 0), output_padding=(1, 2), dilation=(1, 2), bias=False
    )
    x = torch.randn(2, 2, 4, 3)
    places = TransposedWindow(layer.kernel_size, layer.stride, layer.dilation, layer.padding, layer.output_padding)
    kernel = layer.weight.transpose(0, 1).flatten(1)
    assert torch.allclose((kernel @ places.patches(x)).view_as(layer(x)), layer(x), atol=1e-5)


# --- the two ways to sum over patches, and the forms of a factor ------------------------------------------------------


WINDOWS = {
    "same": Window((3, 3), (1, 1), (1, 1), (1, 1)),
    "no padding, oblong": Window((3, 2), (1, 1), (1, 1), (0, 0)),
    "wide padding": Window((3, 3), (1, 1), (1, 1), (4, 3)),
    "large kernel": Window((5, 5), (1, 1), (1, 1), (2, 2)),
    "dilation, stride across": Window((3, 3), (1, 2), (2, 1), (2, 1)),
    "circular": Window((3, 3), (1, 1), (1, 1), (1, 1), "circular"),
    "reflect, dilation": Window((3, 3), (1, 1), (2, 2), (2, 2), "reflect"),
    "stride 2": Window((3, 3), (2, 2), (1, 1), (1, 1)),
}


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("case", WINDOWS)
def test_all_ways_to_sum_over_patches_agree(case, groups):
    layer = LinearMap((), None, WINDOWS[case], groups)
    shape = (7, 6)
    ways = [_Patches(layer, shape), _Whole(layer, shape)]
    if RowMoments.applies(layer.places, shape):
        ways.append(RowMoments(layer.places, groups, shape))
    assert len(ways) == (2 if case == "stride 2" else 3)
    for _ in range(2):
        x = torch.randn(3, 4, *shape).double()
        for way in ways:
            way.add(x)
    patches, *others = [way.total for way in ways]
    assert all(torch.allclose(other, patches, rtol=1e-10, atol=1e-10) for other in others)


@pytest.mark.parametrize(
    ("channels", "size", "kernel", "expected"), [(1, 6, 5, _Whole), (64, 12, 5, RowMoments), (64, 12, 1, _Patches)]
)
def test_the_cheapest_way_is_taken(channels, size, kernel, expected):
    layer = linear_map(nn.Conv2d(channels, 2, kernel))
    moments = PatchMoments(layer)
    moments.add([torch.randn(1, channels, size, size)])
    assert [type(of) for of in moments._sums.values()] == [expected]


def network():
    gray, fields = enn.FieldType(C4, [C4.trivial_repr]), regular(C4)
    net = enn.SequentialModule(RelaxedR2Conv(gray, fields, 3), enn.ELU(fields), RelaxedR2Conv(fields, gray, 3))
    return shaken(nn.Sequential(Tensors(net, gray), nn.Linear(4, 3)))


def data(count=30):
    return [(torch.randn(count, 1, 6, 6).double(), torch.randint(3, (count,)))]


def test_columns_are_kept_while_they_are_fewer_than_weights():
    model = network()
    few, many = data(1), data(40)
    assert isinstance(Curvature(model, "categorical", "exact")(few).factors["0.net.2.weights.irrep_1"][0], GramFactor)
    assert isinstance(Curvature(model, "categorical", "exact")(many).factors["0.net.2.weights.irrep_1"][0], DenseFactor)
    (factor,) = Curvature(model, "categorical", "exact")(few).factors["0.net.2.weights.irrep_1"]
    dense = torch.linalg.eigvalsh(factor.dense()).clamp(min=0)
    assert torch.allclose(factor.spectrum.sort().values, dense, atol=1e-10 * float(dense.max()))


def diagonalises(U, matrix, tolerance=ROUNDING):
    """Whether U is an eigenbasis; which one is not determined where eigenvalues coincide."""
    rotated = U.T @ matrix @ U
    off = rotated - rotated.diag().diag()
    return off.norm() < tolerance * matrix.norm() and torch.allclose(U.T @ U, torch.eye(len(U)).double())


def corrected_by_hand(dense, factor):
    """The exact diagonal in the eigenbasis of the Kronecker factors."""
    U = torch.kron(factor.U_B, factor.U_A)
    where = factor.positions.flatten()
    return torch.einsum("pi,pq,qi->i", U, dense[where.unsqueeze(1), where], U)


def test_eigenvalue_corrected_is_the_exact_diagonal_in_expands_basis():
    model, batch = network(), data()
    exact = Curvature(model, "categorical", "exact")(batch)
    expand = Curvature(model, "categorical", "expand")(batch)
    corrected = Curvature(model, "categorical", "eigenvalue-corrected")(batch)
    for name in each(exact.factors):
        if name.endswith("bias"):
            continue
        H = exact.factors[name][0].dense()
        for factor, kronecker in each(zip(corrected.factors[name], expand.factors[name], strict=True)):
            assert isinstance(factor, EigenFactor) and isinstance(kronecker, KroneckerFactor)
            # up to what counts as equal, where another operator says which basis
            assert diagonalises(factor.U_A, kronecker.A, TOGETHER) and diagonalises(factor.U_B, kronecker.B, TOGETHER)
            by_hand = corrected_by_hand(H, factor)
            assert torch.allclose(factor.values.flatten(), by_hand, atol=ROUNDING * float(by_hand.max()))
            assert not torch.allclose(kronecker.spectrum, by_hand, atol=1e-3 * float(by_hand.max()))
        assert math.isclose(float(corrected.eigenvalues(name).sum()), float(H.trace()), rel_tol=1e-10)


def test_eigenvalue_corrected_errs_upwards():
    """Hadamard: log|H + delta| is never below the exact block's."""
    model, batch = network(), data()
    exact = Curvature(model, "categorical", "exact")(batch)
    corrected = Curvature(model, "categorical", "eigenvalue-corrected")(batch)
    for delta in (1e-2, 1.0, 1e2):
        for name in each(exact.factors):
            upper = (corrected.eigenvalues(name) + delta).log().sum()
            assert upper >= (exact.eigenvalues(name) + delta).log().sum() - 1e-9


def test_second_pass_must_see_the_same_data():
    model = network()

    class Changing:
        def __iter__(self):
            yield from data(4)

    with pytest.raises(DataError, match="second pass"):
        Curvature(model, "categorical", "eigenvalue-corrected")(Changing())
    with pytest.raises(DataError, match="second pass saw 0 samples"):
        Curvature(model, "categorical", "eigenvalue-corrected")(iter(data(4)))


def test_automatic_choice_by_size():
    assert recipe("auto", {"a": LARGEST_EXACT, "b": LARGEST_EXACT + 1}) == {"a": "exact", "b": "expand"}
    with pytest.raises(ArgumentError, match="auto"):
        recipe("automatic", {"a": 1})
    sizes = {"large": 1024, "small": 512}
    assert recipe("auto", sizes, memory=55.9) == {"large": "expand", "small": "expand"}, "16 and 40 P² bytes are 14 MiB"
    assert recipe("auto", sizes, memory=56) == {"large": "expand", "small": "exact"}
    assert recipe("auto", sizes, memory=239.9) == {"large": "expand", "small": "exact"}, "20 MiB of blocks, 40 for one"
    assert recipe("auto", sizes, memory=240) == {"large": "exact", "small": "exact"}
    with pytest.raises(ArgumentError, match="memory"):
        recipe("auto", sizes, memory=-1)
    assert set(recipe("expand", sizes, memory=1).values()) == {"expand"}


def test_one_layer_may_mix_approximations(monkeypatch):
    from escnn_relax.curvature import approximation_choice as module

    monkeypatch.setattr(module, "LARGEST_EXACT", 10)
    model, batch = network(), data()
    mixed = Curvature(model, "categorical", "auto")(batch)
    kinds = {name: type(factors[0]) for name, factors in mixed.factors.items() if "weight" in name}
    assert set(kinds.values()) == {KroneckerFactor, DenseFactor}
    for kind, approximation in ((KroneckerFactor, "expand"), (DenseFactor, "exact")):
        alone = Curvature(model, "categorical", approximation)(batch)
        for name in each(n for n, k in kinds.items() if k is kind):
            assert torch.equal(mixed.eigenvalues(name), alone.eigenvalues(name))


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
def test_monte_carlo_columns_are_unbiased(likelihood):
    """The mean over many draws approaches the sum over outputs; five standard errors."""
    model = shaken(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)))
    x = torch.randn(10, 3).double()
    batch = [(x, torch.randint(3, (10,)) if likelihood == "categorical" else torch.randn(10, 3).double())]
    exact = Curvature(model, likelihood, "exact")(batch).factors["0.weight"][0].dense().trace()
    sampled = Curvature(model, likelihood, "exact", samples=5)
    draws = torch.stack([sampled(batch).factors["0.weight"][0].dense().trace() for _ in range(100)])
    assert abs(draws.mean() - exact) < 5 * draws.std() / 10


@pytest.mark.parametrize("seed", range(3))
def test_reduce_in_single_precision(seed):
    """Mean rows of kernels that vanish on average over a field are small differences of large numbers: in float32 their
    second moment must be positive all the same, and that of the float64 network, but for a few of the 60 * 64 places
    where a unit may be on in one precision and off in the other."""
    kinks = 4 / (60 * 64)
    torch.manual_seed(seed)
    gray, fields = enn.FieldType(C4, [C4.trivial_repr]), regular(C4, 3)
    first, second = RelaxedR2Conv(gray, fields, 3, padding=1), RelaxedR2Conv(fields, fields, 3, padding=1)
    net = enn.SequentialModule(first, enn.ReLU(fields), second)
    model = nn.Sequential(Tensors(net, gray), nn.Linear(12 * 64, 3))
    x, y = torch.randn(60, 1, 8, 8) + 1, torch.randint(3, (60,))
    single = Curvature(model, "categorical", "reduce")([(x, y)])
    spectra = {name: single.eigenvalues(name) for name in single.factors}
    double = Curvature(model.double(), "categorical", "reduce")([(x.double(), y)])
    for name, values in each(spectra.items()):
        largest = max(
            float(double.eigenvalues(n).max()) for n in spectra if n.split(".weights")[0] == name.split(".weights")[0]
        )
        assert (values.sort().values - double.eigenvalues(name).sort().values).abs().max() < kinks * largest


def test_underflow_is_not_taken_for_an_indefinite_factor():
    """float32 loses products below 1e-38: sums of many tiny ones are indefinite by more than rounding."""
    rows = torch.randn(4, 20000).mul_(3e-19)
    matrix = rows @ rows.T  # some entries vanish, others are denormal
    matrix[0, 1:] = matrix[1:, 0] = 2 * matrix.diagonal().max()
    assert torch.linalg.eigvalsh(matrix.double()).min() < 0
    assert KroneckerFactor("layer", torch.eye(2), matrix).spectrum.min() == 0


def test_indefinite_and_infinite_factors_are_refused():
    with pytest.raises(CurvatureError, match="layer.weight.*negative"):
        DenseFactor("layer.weight", torch.diag(torch.tensor([1.0, -0.5]))).spectrum
    with pytest.raises(CurvatureError, match="layer.weight.*not finite"):
        KroneckerFactor("layer.weight", torch.eye(2), torch.tensor([[math.nan]])).spectrum
    rounding = DenseFactor("layer.weight", torch.diag(torch.tensor([1.0, -1e-12]).double())).spectrum
    assert rounding.min() == 0
