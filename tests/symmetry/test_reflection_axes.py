"""O(2) with reflections on any axis: kernels of their own for each, and by name where escnn mixed them up."""

import math

import numpy as np
import pytest
import torch
from escnn import gspaces
from escnn import nn as enn
from escnn.kernels.polar_basis import CircularShellsBasis

from escnn_relax import RelaxError, _escnn, _escnn_repairs, relax, restrict, survivors
from escnn_relax.errors import ReflectionAxisError
from escnn_relax.symmetry.equivariance.model_error import kernel_equivariance_error

AXES = [math.pi / 2, 0.0, 0.3]
#: escnn's samples are float32.
SAMPLED = 1e-5


def layer(axis, size=5):
    space = gspaces.flipRot2dOnR2(-1, axis=axis, maximum_frequency=4)
    fields = enn.FieldType(space, [space.trivial_repr, space.irrep(1, 1)])
    torch.manual_seed(0)
    return enn.R2Conv(fields, fields, size, bias=False)


def error(convolution):
    """Of the kernel as a function of points, under reflections that no pixel grid has."""
    space = convolution.in_type.gspace
    elements = [space.fibergroup.element((1, angle)) for angle in (0.0, 0.9)]
    blocks = dict(_escnn.block_modules(convolution.basisexpansion))
    worst = 0.0
    for (i, o), block in blocks.items():
        ins, outs = (next(r for r in space.representations.values() if r.name == n) for n in (i, o))

        def kernel(points, basis=block.basis):
            return basis.sample(points.float()).sum(1).permute(1, 2, 0)  # (S, K, o, i)

        types = (enn.FieldType(space, [r]) for r in (ins, outs))
        worst = max(worst, kernel_equivariance_error(kernel, *types, elements=elements).max)
    return worst


def test_each_axis_has_kernels_of_its_own():
    kernels = [layer(axis) for axis in AXES]
    assert max(error(k) for k in kernels) < SAMPLED
    for convolution in kernels:
        assert _escnn.foreign_axis(convolution) is None
        relaxed = relax(enn.SequentialModule(convolution))
        assert survivors(relaxed).network.subgroup.name == "O2"
        below = restrict(convolution, (None, 4))
        before = convolution.expand_parameters()[0].detach()
        assert float((below.expand_parameters()[0].detach() - before).norm() / before.norm()) < SAMPLED


def test_layers_that_escnn_mixed_up_are_refused_by_name(monkeypatch):
    """The broken twin: escnn as it is, where the first axis decides for all."""
    for method in ("__eq__", "__hash__"):
        monkeypatch.setattr(CircularShellsBasis, method, getattr(CircularShellsBasis, method).__wrapped__)
    first, second = layer(AXES[0], 7), layer(AXES[1], 7)
    assert error(first) < SAMPLED < 0.1 < np.float64(error_of_filter(second))
    assert relax(enn.SequentialModule(first)) is not None
    for change in (relax, lambda model: restrict(model, (None, 4))):
        with pytest.raises(
            ReflectionAxisError, match="axis at 0 degrees.*got those at 90 degrees; build it again"
        ) as caught:
            change(enn.SequentialModule(second))
        assert isinstance(caught.value, RelaxError) and "basis_filter" not in str(caught.value)
    monkeypatch.undo()
    assert error_of_filter(layer(AXES[1], 7)) < SAMPLED


def error_of_filter(convolution):
    space = convolution.in_type.gspace
    kernel = convolution.expand_parameters()[0].detach()
    elements = [space.fibergroup.element((1, 0.0))]
    return kernel_equivariance_error(kernel, convolution.in_type, convolution.out_type, elements=elements).max


def test_the_repair_is_made_once():
    before = CircularShellsBasis.__eq__
    _escnn_repairs.separate_reflection_axes()
    assert CircularShellsBasis.__eq__ is before and hasattr(before, "__wrapped__")
