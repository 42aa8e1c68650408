"""A relaxed layer in the place of escnn's: what escnn documents of its layers is there and means the same.

Symptom: with our layer in the place of ``R2Conv``, escnn's own tests stopped at ``weights.data``, ``basisexpansion``,
``filter``, ``matrix``, ``check_equivariance(device=)``, and at the trivial group.
"""

import copy

import numpy as np
import pytest
import torch
from escnn import gspaces
from escnn import nn as enn
from escnn.group import cyclic_group
from escnn.nn import init

from escnn_relax.errors import NotEquivariantError
from escnn_relax.nn import RelaxedLinear, RelaxedR2Conv, RelaxedR2ConvTransposed

ROUNDING = 1e-6  # float32, sums of some tens


def pair(kind=RelaxedR2Conv, strict=enn.R2Conv, space=None, **options):
    space = space or gspaces.rot2dOnR2(4)
    a = enn.FieldType(space, list(space.representations.values()))
    b = enn.FieldType(space, 2 * list(space.representations.values()))
    ours, theirs = kind(a, b, 3, **options), strict(a, b, 3, **options)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def linear():
    space = gspaces.no_base_space(cyclic_group(5))
    fields = enn.FieldType(space, list(space.representations.values()))
    ours, theirs = RelaxedLinear(fields, fields), enn.Linear(fields, fields)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def test_weights_read_as_the_tensor():
    ours, theirs = pair()
    w, v = ours.weights, theirs.weights
    assert w.shape == v.shape and w.numel() == v.numel() and (w.dtype, w.device) == (v.dtype, v.device)
    assert w.is_leaf and w.size() == v.size() and w.ndim == v.ndim and w.dim() == 1
    for f in (
        lambda x: x * 2,
        lambda x: 2 * x,
        lambda x: x + x,
        lambda x: 1 - x,
        lambda x: -x,
        lambda x: x[2:5],
        lambda x: x**2,
    ):
        assert torch.equal(f(w), f(v))
    for f in (torch.norm, torch.zeros_like, lambda x: torch.cat([x, x]), lambda x: torch.stack((x, x)), torch.abs):
        assert torch.equal(f(w), f(v))
    assert (
        torch.equal(torch.ones_like(v) * w, v) and torch.equal(w.detach(), v.detach()) and torch.equal(w.data, v.data)
    )
    assert w.detach().numpy().shape == v.shape


def test_weights_are_written_as_the_tensor_is():
    ours, theirs = pair()
    for layer in (ours, theirs):
        torch.manual_seed(0)
        layer.weights.data[:] = torch.randn_like(layer.weights.data)
        layer.weights.data *= 2
        with torch.no_grad():
            layer.weights[:3] = 1.0
            layer.weights.mul_(0.5)
    assert torch.equal(ours.weights.data, theirs.weights.data)
    torch.nn.init.normal_(ours.weights, std=3.0)
    assert float(ours.weights.data.std()) > 1
    ours.weights.data = theirs.weights.data.clone()
    x = torch.randn(2, ours.in_type.size, 7, 7)
    assert torch.allclose(ours(ours.in_type(x)).tensor, theirs(theirs.in_type(x)).tensor, atol=1e-5)
    ours.expand_parameters()[0].square().sum().backward()
    theirs.expand_parameters()[0].square().sum().backward()
    assert torch.allclose(ours.weights.grad, theirs.weights.grad, rtol=1e-4, atol=1e-4)
    ours.weights.grad = None
    assert ours.weights["equivariant"].grad is None and ours.weights["irrep_1"].grad is not None


def test_weights_are_still_a_dictionary():
    ours, _ = pair()
    names = [p.name for p in ours.pathways]
    assert len(names) == 3 and list(ours.weights) == list(ours.weights.keys()) == names and len(ours.weights) == 3
    assert [n for n, _ in ours.named_parameters() if n.startswith("weights")] == [f"weights.{n}" for n in names]
    other = copy.deepcopy(ours)
    assert list(other.weights) == names and other.weights["irrep_1"] is not ours.weights["irrep_1"]
    assert all(p.dtype == torch.float64 for p in other.double().weights.values())
    other.weights.requires_grad_(False)
    assert not any(p.requires_grad for p in other.weights.values())


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("kinds", [(RelaxedR2Conv, enn.R2Conv), (RelaxedR2ConvTransposed, enn.R2ConvTransposed)])
def test_kernel_bias_and_expansion(kinds, mode):
    ours, theirs = pair(*kinds)
    ours.train(mode), theirs.eval()  # escnn has them in eval mode only
    assert torch.allclose(ours.filter, theirs.filter, atol=ROUNDING) and not ours.filter.requires_grad
    assert torch.allclose(ours.expanded_bias, theirs.expanded_bias, atol=ROUNDING)
    assert ours.basisexpansion.dimension() == theirs.basisexpansion.dimension() == len(ours.weights.data)
    mine, known = (list(layer.basisexpansion.get_basis_info()) for layer in (ours, theirs))
    assert len(mine) == len(known) > 50 and [e["in_irrep"] for e in mine] == [e["in_irrep"] for e in known]
    found = ours.basisexpansion(ours.weights)
    assert torch.allclose(found, theirs.basisexpansion(theirs.weights), atol=ROUNDING)
    assert ours.double().basisexpansion(ours.weights).dtype == torch.float64
    with pytest.raises(AttributeError, match="filter"):
        ours.matrix
    for name in ("_rings", "_sigma", "_basisexpansion", "_maximum_frequency"):
        assert hasattr(theirs, name)
        with pytest.raises(AttributeError, match="use"):
            getattr(ours, name)


def test_matrix_of_a_linear_layer():
    ours, theirs = linear()
    assert torch.allclose(ours.matrix, theirs.eval().matrix, atol=ROUNDING)
    with pytest.raises(AttributeError, match="matrix"):
        ours.filter
    assert len(ours.check_equivariance(verbose=False)) == len(list(ours.space.testing_elements)) == 5
    torch.nn.init.normal_(ours.weights["irrep_1"])
    with pytest.raises(NotEquivariantError):
        ours.check_equivariance(verbose=False)


@pytest.mark.parametrize("draw", [init.generalized_he_init, init.deltaorthonormal_init])
def test_initialisers_of_escnn(draw):
    space = gspaces.rot2dOnR2(4)
    fields = enn.FieldType(space, 2 * [space.regular_repr])
    ours, theirs = RelaxedR2Conv(fields, fields, 3), enn.R2Conv(fields, fields, 3)
    for layer in (ours, theirs):
        torch.manual_seed(3)
        np.random.seed(3)
        draw(layer.weights.data, layer.basisexpansion)
    assert torch.equal(ours.weights.data, theirs.weights.data) and ours.weights.abs().sum() > 0


def test_check_equivariance_as_escnn_has_it(capsys):
    ours, _ = pair(space=gspaces.flipRot2dOnR2(4))
    found = ours.check_equivariance(atol=1e-3, rtol=1e-3, device="cpu")
    assert len(found) == len(list(ours.space.testing_elements)) and len(capsys.readouterr().out.splitlines()) == len(
        found
    )
    torch.nn.init.normal_(ours.weights["irrep_1,1"])
    with pytest.raises(AssertionError, match="breaking_energy"):
        ours.check_equivariance(verbose=False, device="cpu")
    errors = ours.check_equivariance(assertion=False, verbose=False)
    assert max(error for _, error in errors) > 0.2 and not capsys.readouterr().out


@pytest.mark.parametrize("kind", [RelaxedR2Conv, RelaxedR2ConvTransposed])
def test_the_trivial_group(kind):
    space = gspaces.trivialOnR2()
    fields = enn.FieldType(space, 3 * [space.trivial_repr])
    layer = kind(fields, fields, 3)
    assert [p.name for p in layer.pathways] == ["equivariant"] and layer.breaking_energy == 0.0
    assert layer.weights.numel() == kind._strict(fields, fields, 3).weights.numel()
    assert layer(fields(torch.randn(1, 3, 6, 6))).shape[1] == 3


@pytest.mark.parametrize("kinds", [(RelaxedR2Conv, enn.R2Conv), (RelaxedR2ConvTransposed, enn.R2ConvTransposed)])
@pytest.mark.parametrize("space", [gspaces.rot2dOnR2(9), gspaces.flipRot2dOnR2(7), gspaces.trivialOnR2()])
def test_export_computes_the_same_to_the_bit(kinds, space):
    fields = enn.FieldType(space, 2 * [space.regular_repr])
    layer = kinds[0](fields, fields, 5)
    for p in layer.parameters():
        torch.nn.init.normal_(p)
    x = torch.randn(2, fields.size, 13, 13)
    assert layer.expand_parameters()[0].is_contiguous()
    assert torch.equal(layer(fields(x)).tensor, layer.export()(x))
