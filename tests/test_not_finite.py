"""Wherever a comparison decides: what is not finite propagates or raises, and never passes for the better."""

import math

import pytest
import torch
from escnn import gspaces
from escnn import nn as enn

from escnn_relax import RelaxError, assert_equivariant, equivariance_error
from escnn_relax.errors import ArgumentError, NotEquivariantError
from escnn_relax.nn import RelaxedR2Conv
from escnn_relax.symmetry.equivariance import kernel_equivariance_error
from escnn_relax.symmetry.equivariance_record import EquivarianceError

ODD = [math.nan, math.inf, -math.inf]


def layer(N=4):
    space = gspaces.rot2dOnR2(N)
    fields = enn.FieldType(space, [space.regular_repr])
    return RelaxedR2Conv(fields, fields, 3)


@pytest.mark.parametrize("value", ODD)
def test_a_network_of_nan_is_not_equivariant(value):
    broken = layer()
    assert equivariance_error(broken).max < 1e-5
    with torch.no_grad():
        broken.weights["equivariant"].fill_(value)
    error = equivariance_error(broken)
    assert math.isnan(error.max) and math.isnan(error.mean)
    with pytest.raises(NotEquivariantError, match="RelaxedR2Conv: not equivariant: the outputs are not finite; look for NaN"):
        assert_equivariant(broken, tolerance=1e3)


def test_the_assertion_is_an_assertion_error_and_one_of_ours():
    broken = layer()
    torch.nn.init.normal_(broken.weights["irrep_1"])
    with pytest.raises(AssertionError):
        assert_equivariant(broken)
    with pytest.raises(RelaxError, match="report"):
        assert_equivariant(broken)
    with pytest.raises(ArgumentError, match="tolerance of 0 or more"):
        assert_equivariant(layer(), tolerance=math.nan)


def test_only_one_element_gives_nan():
    """As of a network whose output overflows for some inputs only: the first of the errors is finite."""
    space = gspaces.rot2dOnR2(4)
    elements = tuple(space.fibergroup.elements[1:])
    error = EquivarianceError(elements, (0.1, math.nan, 0.2), True, space)
    assert math.isnan(error.max) and error.worst == elements[1] and math.isnan(error.mean)
    assert EquivarianceError(elements, (0.1, 0.3, 0.2), True, space).max == 0.3


@pytest.mark.parametrize("value", ODD)
def test_kernels(value):
    space = gspaces.rot2dOnR2(4)
    scalar = enn.FieldType(space, [space.trivial_repr])
    kernel = torch.zeros(1, 1, 3, 3)
    assert kernel_equivariance_error(kernel, scalar, scalar).max == 0
    assert math.isnan(kernel_equivariance_error(torch.full_like(kernel, value), scalar, scalar).max)
    kernel[0, 0, 1, 1] = value
    assert math.isnan(kernel_equivariance_error(kernel, scalar, scalar).max)


def test_large_outputs_do_not_overflow():
    """Squares of 1e25 are infinite in float32."""
    fields = layer().in_type
    error = equivariance_error(lambda x: 1e25 * x, torch.randn(2, 4, 5, 5), in_type=fields, out_type=fields)
    assert error.max < 1e-6
