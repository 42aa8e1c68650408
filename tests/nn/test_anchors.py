"""Anchors: how many there may be, precision, a learned scale that is solved for only when it moved."""

import copy
import math
import pickle
import warnings

import pytest
import torch
from escnn import gspaces
from escnn import nn as enn
from tolerances import accumulated, autocast, central_difference
from torch import nn

from escnn_relax import relax_translation
from escnn_relax.errors import ArgumentError, naming
from escnn_relax.nn import FactoredPathway, SparseR2Conv
from escnn_relax.nn.translation import anchors as module
from escnn_relax.nn.translation.anchors import Anchors, length_scales
from escnn_relax.symmetry.grid.interpolation import interpolation, sufficient_noise
from escnn_relax.symmetry.groups.lattice import subgroup


C4, D4 = gspaces.rot2dOnR2(4), gspaces.flipRot2dOnR2(4)
#: half precision of the weights, not of the positions, absolute for outputs up to 3
HALVED = 3 * accumulated(torch.float16, 3)


def gray(space=C4):
    return enn.FieldType(space, [space.trivial_repr])


def anchors(omega=0.7, learn=True, **options):
    return Anchors((4, 5), subgroup(C4, 1), 0.6, omega, learn, 3, **options)


def sparse(size=6, learn=False, space=C4, **options):
    fields = enn.FieldType(space, [space.regular_repr])
    layers = [enn.R2Conv(gray(space), fields, 3, padding=1), enn.ReLU(fields), enn.R2Conv(fields, gray(space), 3)]
    x = torch.randn(2, 1, size, size)
    strict = enn.SequentialModule(*layers)
    return relax_translation(strict, gray(space)(x), "sparse", silent=False, learn_omega=learn, **options), gray(space)(
        x
    )


def direct(of, omega):
    return interpolation(of.anchors, of.pixels, torch.tensor(omega, dtype=torch.float64)).to(of.pixels.dtype)


@pytest.mark.parametrize("size", [1, 2])
def test_no_more_anchors_than_sites(size):
    match = rf"SparseR2Conv: more anchors than sites.*D4 has 8.*at most {size**2}.*'factored'.*'free'"
    with pytest.raises(ArgumentError, match=match):
        SparseR2Conv(gray(D4), gray(D4), size)
    layer = SparseR2Conv(gray(D4), gray(D4), size, subgroup="free")
    assert 1 <= len(layer.anchors.sites) <= size**2
    assert len(SparseR2Conv(gray(D4), gray(D4), 3).anchors.sites) == 8, "one orbit fits nine sites"


def test_a_network_that_ends_in_a_small_map_names_its_layer():
    with pytest.raises(ArgumentError, match="^2: more anchors than sites.*2 x 2"):
        sparse(4, space=D4)
    assert len(sparse(4, space=D4, layers="0")[0][0].sites["sparse_D4"].target.sites) == 8


def test_one_site_has_one_anchor():
    from translation_networks import Network

    model = Network("S-FC", alpha=1)
    assert [len(b.layers["S-FC"].target.sites) for b in model.blocks] == [512, 128, 128, 32, 32, 8, 2, 1]


@pytest.mark.parametrize("learn", [False, True])
def test_half_precision_is_refused_by_the_layer_and_loses_no_positions(learn):
    model, x = sparse(learn=learn)
    expected, positions = model(x).tensor, model[0].sites["sparse_C4"].source.anchors.anchors.clone()
    halved = copy.deepcopy(model).half()
    with pytest.raises(
        ArgumentError, match=r"^0: interpolation.*half precision.*got torch.float16.*float32.*'factored'"
    ):
        halved(x.type(x.tensor.half()))
    with pytest.raises(ArgumentError, match="SparseR2Conv.*float16"):
        SparseR2Conv(gray(), gray(), 3, learn_omega=learn).half().expand_parameters()
    back = halved.float()
    assert torch.equal(back[0].sites["sparse_C4"].source.anchors.anchors, positions)
    with torch.no_grad():
        for a, b in zip(back.parameters(), model.parameters()):
            a.copy_(b)
    strict = copy.deepcopy(model[0].convolution)  # escnn's bases are rounded too
    assert (strict.half().float()(x).tensor - model[0].convolution(x).tensor).abs().max() < HALVED
    pathway, again = (of[0].sites["sparse_C4"] for of in (model, back))
    assert torch.allclose(again(x.tensor), pathway(x.tensor), atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert (model(x).tensor - expected).abs().max() < autocast(torch.bfloat16, 4) * expected.abs().max()


@pytest.mark.parametrize("kind", ["dense", "factored"])
def test_pathways_without_anchors_work_in_half_precision(kind):
    pathway = relax_translation(enn.R2Conv(gray(), gray(), 3), gray()(torch.zeros(1, 1, 5, 5)), kind, silent=False)
    pathway, x = pathway.sites[f"{kind}_C4"], torch.randn(2, 1, 5, 5)
    expected = pathway(x)
    assert (copy.deepcopy(pathway).half()(x.half()).float() - expected).abs().max() < autocast(
        torch.float16, 4
    ) * expected.abs().max()


def test_double_precision_is_exact_from_float32_on():
    for learn in (False, True):
        single = anchors(learn=learn)
        if learn:
            single.log_omega.data.fill_(0.0)
        omega = 1.0 if learn else 0.7
        assert (single.double().matrix() - direct(single, omega)).abs().max() < 1e-12


@pytest.fixture
def counted(monkeypatch):
    calls = []
    monkeypatch.setattr(module, "interpolation", lambda *a, **k: calls.append(1) or interpolation(*a, **k))
    return calls


def test_a_learned_scale_is_solved_for_once(counted):
    of = anchors()
    with torch.no_grad():
        first = of.matrix()
        assert of.matrix() is first and len(counted) == 1 and not first.requires_grad
    assert of.matrix().requires_grad and len(counted) == 2, "a gradient is wanted"
    of.log_omega.requires_grad_(False)
    assert of.matrix() is first and len(counted) == 2
    for change in (
        lambda: of.log_omega.data.add_(0.5),
        lambda: of.log_omega.copy_(-0.2),
        lambda: setattr(of, "noise", 0.1),
    ):
        change()
        found = of.matrix()
        expected = interpolation(of.anchors, of.pixels, of.log_omega.double().exp(), noise=of.noise).float()
        assert torch.equal(found, expected) and not torch.equal(found, first)
        first = found
    assert torch.equal(of.double().matrix(), of.matrix()) and of.matrix().dtype == torch.float64


def test_what_is_kept_does_not_follow_copies_or_states():
    of, other = (
        anchors().requires_grad_(False),
        Anchors((4, 5), subgroup(C4, 1), 0.6, 1.3, True, 4).requires_grad_(False),
    )
    first = of.matrix()
    for copied in (copy.deepcopy(of), pickle.loads(pickle.dumps(of))):
        assert copied._cached is None and torch.equal(copied.matrix(), first)
        copied.log_omega.data.fill_(0.4)
        assert not torch.equal(copied.matrix(), first) and torch.equal(of.matrix(), first)
    of.load_state_dict(other.state_dict())
    assert torch.equal(of.matrix(), other.matrix()) and not torch.equal(of.matrix(), first)
    with torch.no_grad():
        other.log_omega.copy_(of.log_omega)
        of.load_state_dict({**other.state_dict(), "anchors": other.anchors + 0.3})  # the same scale elsewhere
    assert not torch.equal(of.matrix(), other.matrix())
    fixed, another = anchors(learn=False), Anchors((4, 5), subgroup(C4, 1), 0.6, 1.3, False, 4)
    fixed.load_state_dict(another.state_dict())
    assert torch.equal(fixed.matrix(), another.matrix())


def test_a_matrix_from_inference_serves_training():
    pathway = FactoredPathway(gray(), gray(), (4, 4), (4, 4), subgroup(C4, 1), fraction=0.5, learn_omega=True)
    scales = list(length_scales(pathway).values())
    with torch.inference_mode():
        pathway(torch.randn(1, 1, 4, 4))
    for p in scales:
        p.requires_grad_(False)
    pathway(torch.randn(1, 1, 4, 4)).sum().backward()
    assert all(p.grad is not None for p in pathway.parameters() if p.requires_grad)


class Matrix(nn.Module):
    def __init__(self, of):
        super().__init__()
        self.of = of

    def forward(self):
        return self.of.matrix()


def test_derivatives_are_not_lost_in_what_is_kept():
    of = anchors().double()
    of.matrix()

    def entries(log_omega):
        return torch.func.functional_call(Matrix(of), {"of.log_omega": log_omega}, ())

    point = of.log_omega.detach()
    _, forwards = torch.func.jvp(entries, (point,), (torch.ones_like(point),))
    backwards = torch.func.jacrev(entries)(point)
    with torch.no_grad():
        finite = (entries(point + 1e-5) - entries(point - 1e-5)) / 2e-5
    # the values are solutions of linear systems whose jitter bounds their condition by 1e4
    tolerance = central_difference(torch.float64, 1e-5, condition=1e4)
    assert (forwards - finite).abs().max() < tolerance and (backwards - finite).abs().max() < tolerance
    assert finite.abs().max() > 0.1


def test_more_noise_than_asked_for_is_reported():
    build = lambda **k: FactoredPathway(gray(), gray(), (4, 4), (3, 3), subgroup(C4, 1), fraction=1.0, **k)
    with naming("net.3"), pytest.warns(UserWarning, match=r"net\.3: singular with noise 0; 0\.0001 is used instead"):
        pathway = build(omega=0.05, noise=0.0)
    assert pathway.source.anchors.noise_used == 1e-4 and "noise=0.0001 instead of 0" in repr(pathway)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        enough = build(omega=0.05)
        assert enough.source.anchors.noise_used == 0.01 and "instead" not in repr(enough)
        assert build(omega=3.0, noise=0.0).source.anchors.noise_used == 0.0


def test_no_eigenvalues_are_needed_where_the_noise_is_enough(monkeypatch):
    """The shortcut never says less than the eigenvalues do."""
    of = anchors(0.05)
    values = torch.linalg.eigvalsh(direct_covariance(of))
    assert float(values[0]) + 0.01**2 > torch.finfo(torch.float64).eps / 1e-4 * float(values[-1])
    monkeypatch.setattr(torch.linalg, "eigvalsh", None)
    assert sufficient_noise(of.anchors, torch.tensor(0.05)) == 0.01
    with pytest.raises(TypeError):
        sufficient_noise(of.anchors, torch.tensor(0.05), noise=0.0)


def direct_covariance(of):
    squares = torch.cdist(of.anchors, of.anchors).square()
    return (1 + 1e-6) * torch.exp(-0.5 * 0.05**2 * squares)


@pytest.mark.parametrize("omega", [0, -1, math.inf, math.nan, 1e9, "a", None, True])
def test_scales_that_are_none(omega):
    with pytest.raises(ArgumentError, match="SparseR2Conv: expected omega"):
        SparseR2Conv(gray(), gray(), 3, omega=omega)


@pytest.mark.parametrize("fraction", ["a", None, 0, -0.5, 1.5, math.nan])
def test_fractions_that_are_none(fraction):
    with pytest.raises(ArgumentError, match="a fraction above 0 and at most 1"):
        SparseR2Conv(gray(), gray(), 3, fraction=fraction)


@pytest.mark.parametrize("value", [100.0, -100.0, math.nan, math.inf])
def test_a_scale_that_ran_away(value):
    model, x = sparse(learn=True)
    with torch.no_grad():
        model[0].sites["sparse_C4"].source.anchors.log_omega.fill_(value)
    with pytest.raises(ArgumentError, match="^0: expected a positive amplitude and omega.*let the evidence move it"):
        model(x)
    repr(model)


def test_names_of_length_scales():
    model, _ = sparse(learn=True)
    names = [f"{n}.sites.sparse_C4.{side}.anchors.log_omega" for n in (0, 2) for side in ("source", "target")]
    assert list(length_scales(model)) == names
    model[0].requires_grad_(False)
    assert list(length_scales(model)) == names[2:] and not length_scales(sparse()[0])
