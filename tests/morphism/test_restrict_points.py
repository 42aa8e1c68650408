"""Convolutions between points on a subgroup: kernels are functions, compared as such and through whole graphs."""

import copy

import pytest
import torch
from escnn import gspaces, nn

from escnn_relax.errors import UnsupportedModuleError
from escnn_relax.morphism.optimizer import carry_optimizer
from escnn_relax.morphism.project import project
from escnn_relax.morphism.restrict.network import restrict
from escnn_relax.symmetry.equivariance.model_error import kernel_equivariance_error
from tolerances import accumulated

pytest.importorskip("torch_geometric")

#: Relative. escnn keeps the coefficients of its analytic kernels in float32 whatever the layer's precision.
SAME = accumulated(torch.float32, 64)
#: Exact, since no grid is involved: rounding only.
EQUIVARIANT = 1e-5

C8, D4, OCTA = gspaces.rot2dOnR2(8), gspaces.flipRot2dOnR2(4), gspaces.octaOnR3()
SO2 = gspaces.rot2dOnR2(-1, maximum_frequency=3)
CASES = [(C8, 4), (C8, 1), (D4, (1, 2)), (D4, (3, 1)), (SO2, 6), (OCTA, (True, 4)), (OCTA, (False, 3))]


def mixed(space, regular=False):
    some = [r for r in list(space.fibergroup.irreps()) if not r.is_trivial()][:2]
    whole = [space.regular_repr] if regular else []
    return nn.FieldType(space, [some[0], space.trivial_repr, *whole, some[1], some[0]])


def layer(space, regular=False, **options):
    type = mixed(space, regular)
    kind = nn.R2PointConv if space.dimensionality == 2 else nn.R3PointConv
    conv = kind(type, type, **{"width": 2.0, "n_rings": 3, **options}, recompute=True, initialize=False)
    for p in conv.parameters():
        torch.nn.init.normal_(p)
    return conv


def graph(type, dtype=torch.float32):
    points = torch.randn(20, type.gspace.dimensionality, dtype=dtype)
    edges = (torch.cdist(points, points) < 1.5).nonzero().T
    return torch.randn(20, type.size, dtype=dtype), points, edges


def outputs(conv, on_h, dtype):
    x, points, edges = graph(conv.in_type, dtype)
    return [m(nn.GeometricTensor(x, m.in_type, points), edges).tensor for m in (conv, on_h)]


def distance(a, b):
    return float((a - b).norm() / a.norm())


def kernel(conv):
    return lambda points: conv.expand_filter(points).permute(1, 2, 0)


@pytest.mark.parametrize("space, id", CASES, ids=str)
def test_same_function_and_equivariant(space, id):
    check(lambda: layer(space), id)


@pytest.mark.slow
@pytest.mark.parametrize("space, id", CASES[:4], ids=str)
def test_regular_fields(space, id):
    check(lambda: layer(space, regular=True), id)


def check(make, id):
    conv = make()
    weights = conv.weights.detach().clone()
    on_h = restrict(conv, id)
    assert type(on_h) is type(conv) and on_h.weights.numel() > conv.weights.numel()
    for mode in (True, False):
        assert distance(*outputs(conv.train(mode), on_h.train(mode), torch.float32)) < SAME
    assert distance(*outputs(conv, restrict(conv, id), torch.float32)) < SAME
    assert torch.equal(conv.weights, weights)
    double = copy.deepcopy(make()).double()
    assert distance(*outputs(double, restrict(double, id), torch.float64)) < SAME
    torch.nn.init.normal_(on_h.weights)
    assert kernel_equivariance_error(kernel(on_h), on_h.in_type, on_h.out_type).max < EQUIVARIANT
    # the broken twin: the same weights have no reason to keep the elements outside H
    assert kernel_equivariance_error(kernel(on_h), conv.in_type, conv.out_type).max > 0.1


def test_own_cutoff_rings_and_filter():
    options = {"width": None, "n_rings": None, "rings": [0.0, 0.7, 1.9], "sigma": [0.1, 0.3, 0.5]}
    for extra in ({"frequencies_cutoff": 2.0}, {"basis_filter": lambda e: e["irrep:frequency"] != 1}):
        conv = layer(C8, **options, **extra)
        assert distance(*outputs(conv, restrict(conv, 2), torch.float32)) < SAME


def test_restricted_layer_is_as_large_as_escnns_own():
    conv = layer(C8)
    on_h = restrict(conv, 4)
    own = nn.R2PointConv(on_h.in_type, on_h.out_type, width=2.0, n_rings=3, initialize=False)
    assert own.weights.shape == on_h.weights.shape


def test_chains_compose():
    conv = layer(D4)
    twice, once = restrict(restrict(conv, (1, 2)), (1, 1)), restrict(conv, (3, 1))
    assert once.weights.shape == twice.weights.shape
    points = torch.randn(30, 2)
    assert distance(kernel(once)(points), kernel(twice)(points)) < SAME


def test_momentum_is_carried():
    """One step of each from carried momenta leads to the same kernels: SGD's moves are linear in them."""
    conv = layer(C8)
    optimiser = torch.optim.SGD(conv.parameters(), lr=0.1, momentum=0.9)
    x, points, edges = graph(conv.in_type)
    conv(nn.GeometricTensor(x, conv.in_type, points), edges).tensor.square().mean().backward()
    optimiser.step()
    on_h = restrict(conv, 4)
    carried = carry_optimizer(optimiser, conv, on_h)
    for model, o in ((conv, optimiser), (on_h, carried)):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        o.step()
    where = torch.randn(30, 2)
    assert distance(kernel(conv)(where), kernel(on_h)(where)) < SAME


def test_projecting_is_refused():
    conv = layer(C8)
    with pytest.raises(UnsupportedModuleError, match="no grid"):
        project(restrict(conv, 4), like=conv)
