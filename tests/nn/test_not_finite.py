"""Wherever a comparison decides: what is not finite propagates or raises, and never passes for the better."""

import math
from dataclasses import replace

import pytest
import torch
from escnn import gspaces
from escnn import nn as enn
from torch import nn

from escnn_relax import Evidence, RelaxError, assert_equivariant, equivariance_error
from escnn_relax import harden, mix, project, report, restrict, survivors
from escnn_relax.curvature.factors import DenseFactor
from escnn_relax.errors import ArgumentError, CurvatureError, DataError, NotEquivariantError
from escnn_relax.evidence.calibration import calibration
from escnn_relax.evidence.verdicts.kernel_family import FamilyBlock
from escnn_relax.evidence.verdicts.restricted_evidence import evidence_of_all, evidence_of_family
from escnn_relax.evidence.verdicts.subgroup_cost import Demands
from escnn_relax.nn import RelaxedR2Conv
from escnn_relax.nn.measured.certificate import certify
from escnn_relax.nn.measured.kernel_symmetry import KernelSymmetry
from escnn_relax.symmetry.equivariance.operator_norm import Norm
from escnn_relax.symmetry.groups.lattice import subgroup
from escnn_relax.search.architecture import chosen_summands
from escnn_relax.symmetry.equivariance.model_error import kernel_equivariance_error
from escnn_relax.symmetry.equivariance.error_record import EquivarianceError

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
    with pytest.raises(
        NotEquivariantError, match="RelaxedR2Conv: not equivariant: the outputs are not finite; look for NaN"
    ):
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


def net():
    space = gspaces.rot2dOnR2(4)
    gray, fields = enn.FieldType(space, [space.trivial_repr]), enn.FieldType(space, [space.regular_repr])

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution, self.pool = RelaxedR2Conv(gray, fields, 3), enn.GroupPooling(fields)
            self.linear = nn.Linear(1, 2)

        def forward(self, x):
            return self.linear(self.pool(self.convolution(gray(x))).tensor.mean((-2, -1)))

    return Net()


@pytest.mark.parametrize("value", ODD)
def test_steps_of_the_evidence_refuse_weights_that_are_not_finite(value):
    model = net()
    evidence = Evidence(model)
    evidence.refresh([(torch.randn(8, 1, 5, 5), torch.randint(2, (8,)))])
    with torch.no_grad():
        model.convolution.weights["equivariant"][0] = value
    before = dict(evidence.log_precision)
    for method in ("mackay", "gradient"):
        with pytest.raises(DataError, match=r"convolution\.weights\.equivariant: NaN or infinite weights; go back"):
            evidence.step(method=method)
    assert evidence.log_precision == before


@pytest.mark.parametrize("value", ODD)
def test_readings_refuse_weights_that_are_not_finite(value):
    model = net()
    with torch.no_grad():
        model.convolution.weights["irrep_1"][0] = value
    for reading in (report, survivors, harden, lambda m: harden(m, to="stabiliser")):
        with pytest.raises(DataError, match="convolution"):
            reading(model)


@pytest.mark.parametrize("value", ODD)
def test_evidences_of_families_refuse_weights_that_are_not_finite(value):
    factor = DenseFactor("w", torch.eye(2).double())
    weights = torch.tensor([1.0, value]).double()
    with pytest.raises(DataError, match="w: NaN"):
        evidence_of_all([(factor, weights, 0.0)], 1.0)
    with pytest.raises(DataError, match="w: NaN"):
        evidence_of_family([[FamilyBlock("w", factor, weights[None], 0.0, torch.eye(2).double())]], 1.0)


def test_thresholds_that_are_not_numbers():
    for name in ("energy", "determined"):
        with pytest.raises(ArgumentError, match=f"{name}: expected a fraction in 0 ... 1, got nan; leave it out"):
            harden(net(), **{name: math.nan})


@pytest.mark.parametrize("value", ODD)
def test_mixtures(value):
    space = gspaces.rot2dOnR2(4)
    fields = enn.FieldType(space, [space.regular_repr])
    model = mix(enn.SequentialModule(enn.R2Conv(fields, fields, 3)), [2, 1])
    with torch.no_grad():
        model[0].weights["C2"][0] = value
    assert not math.isfinite(model[0].breaking_energy)
    with torch.no_grad():
        model[0].weights["C2"][0] = 1
        model[0].kernel.alpha[1] = math.nan
    for by, monotone in (("argmax", False), ("argmax", True), (0.2, False)):
        with pytest.raises(DataError, match="0: its shares are not finite"):
            chosen_summands(model, by, monotone)


@pytest.mark.parametrize("value", ODD)
def test_projections(value):
    strict = enn.SequentialModule(enn.R2Conv(*2 * (layer().in_type,), 3))
    on_c2 = restrict(strict, 2)
    with torch.no_grad():
        on_c2[0].weights[0] = value
    _, (record,) = project(on_c2, strict, return_report=True)
    assert math.isnan(record.lost)


def test_calibration():
    with pytest.raises(DataError, match="the probabilities are not finite"):
        calibration(torch.tensor([[0.5, 0.5], [math.nan, 0.5]]), torch.tensor([0, 1]))


@pytest.mark.parametrize("value", ODD)
def test_certificates(value):
    broken = layer()
    with torch.no_grad():
        broken.weights["irrep_1"][0] = value
    found = certify(broken)
    assert math.isnan(found.bound) and math.isnan(found.reached) and math.isnan(found.norm.bound)
    mended = replace(found, errors=(Norm(0.0, 0.0), Norm(math.nan, math.nan), Norm(1.0, 1.0)), complete=True)
    assert math.isnan(mended.bound) and math.isnan(mended.reached), "wherever it stands"


def test_evidences_of_subgroups():
    space = gspaces.rot2dOnR2(4)
    model = net()
    evidence = Evidence(model)
    evidence.refresh([(torch.randn(8, 1, 5, 5), torch.randint(2, (8,)))])
    demands = Demands(
        KernelSymmetry(model.convolution, "convolution"), evidence.estimate.factors, evidence.log_precision, math.inf
    )
    with pytest.raises(CurvatureError, match="convolution: the evidence of C4 is not finite, got .*; look for"):
        demands.gain(subgroup(space, 4))
