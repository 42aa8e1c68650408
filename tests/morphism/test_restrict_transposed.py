"""Transposed convolutions on a subgroup, and what output padding does to their symmetry."""

import pytest
import torch
from escnn import nn
from test_restrict import D4, EQUIVARIANT, FLOAT32, FLOAT64, OCTA, distance, fields, outputs

from escnn_relax.morphism.restrict.network import restrict
from escnn_relax.symmetry.equivariance.model_error import equivariance_error, kernel_equivariance_error


@pytest.mark.parametrize("dimension, size, stride", [(2, 5, 1), (2, 3, 2), (3, 3, 2)])
def test_transposed(dimension, size, stride):
    space, id, kind = (D4, (1, 2), nn.R2ConvTransposed) if dimension == 2 else (OCTA, (True, 4), nn.R3ConvTransposed)
    type = fields(space, "irreps")
    conv = kind(type, type, size, stride=stride, padding=1, recompute=True)
    on_h = restrict(conv, id)
    assert distance(*outputs(conv, on_h, torch.float32, 5)) < FLOAT32
    conv.double()
    assert distance(*outputs(conv, restrict(conv, id), torch.float64, 5)) < FLOAT64
    torch.nn.init.normal_(on_h.weights)
    assert equivariance_error(on_h, size=5).max < EQUIVARIANT


@pytest.mark.parametrize("padding, exact", [(0, True), (1, False)])
def test_output_padding_is_one_sided(padding, exact):
    """Output padding widens one side of each axis, which no turn keeps: escnn's own layer is not equivariant either.

    With stride 2 the zeros between the pixels already put an odd output on the grid; padding one side shifts it.
    """
    type = fields(D4, "irreps")
    conv = nn.R2ConvTransposed(type, type, 3, stride=2, padding=1, output_padding=padding, recompute=True)
    on_h = restrict(conv, (1, 2))
    assert distance(*outputs(conv, on_h, torch.float32, 5)) < FLOAT32
    assert on_h.output_padding == padding
    elements = {"plain": D4.fibergroup.elements, "restricted": on_h.in_type.fibergroup.elements}
    for name, module in {"plain": conv, "restricted": on_h}.items():
        error = equivariance_error(module, size=5, elements=elements[name]).max
        assert error < EQUIVARIANT if exact else error > 0.1, name
    # the kernels are equivariant all the same
    kernel = on_h.basisexpansion(on_h.weights).view(type.size, type.size, 3, 3)
    assert kernel_equivariance_error(kernel, on_h.in_type, on_h.out_type).max < EQUIVARIANT
