"""harden: what is switched off goes, what is left is plain, and the output moves no more than was removed."""

import math
from dataclasses import replace

import pytest
import torch
from escnn import nn as enn
from escnn.nn import R2Conv, SequentialModule
from fields import SINGLE, distance, field_type, image, layers, randomise, space
from hypothesis import given, settings
from hypothesis import strategies as st

from escnn_relax import harden, relax
from escnn_relax.errors import FieldTypeError, UnsupportedModuleError
from escnn_relax.morphism import HardenedLayer
from escnn_relax.symmetry.kernels.pathway import SWITCHED_OFF
from escnn_relax.nn import MergedConvolution, RelaxedR2Conv
from escnn_relax.nn.measured.certificate import certify

SCALAR, FIELDS = field_type("C4", "trivial"), field_type("C4", "interleaved")


def network(training=True):
    model = SequentialModule(
        R2Conv(SCALAR, FIELDS, 5, padding=2), enn.NormNonLinearity(FIELDS), R2Conv(FIELDS, field_type("C4"), 3),
        enn.GroupPooling(field_type("C4")),
    )  # fmt: skip
    return relax(model).train(training)


def unmeasured(record):
    return replace(record, error=math.nan, change=math.nan)


@settings(max_examples=15)
@given(layers(), st.sampled_from(["zeros", "circular"]), st.booleans())
def test_the_equivariant_pathway_alone_is_an_escnn_layer(layer, mode, training):
    in_type, out_type, size = layer
    options = {"padding": (1, 0), "padding_mode": mode, "stride": 2}
    relaxed = randomise(RelaxedR2Conv(in_type, out_type, size, **options), "equivariant").train(training)
    x = image(in_type)
    hardened, (record,) = harden(relaxed, return_report=True)
    assert type(hardened) is R2Conv and hardened.training is training
    assert torch.equal(hardened.weights, relaxed.weights["equivariant"])
    assert distance(hardened(x).tensor, relaxed(x).tensor) < SINGLE
    assert record.error < SINGLE * certify(relaxed).norm.bound and record.change == 0.0
    assert unmeasured(record) == HardenedLayer(
        "", tuple(p.name for p in relaxed.pathways[1:]), (), 0.0, "R2Conv", relaxed.space.fibergroup.name
    )


@pytest.mark.parametrize("how", [{"frequencies_cutoff": 3.0}, {"rings": [0.0, 1.5], "sigma": [0.3, 0.7]},
                                 {"basis_filter": lambda d: d["radius"] < 1.5}])  # fmt: skip
def test_the_band_is_kept(how):
    relaxed = RelaxedR2Conv(FIELDS, field_type("C4"), 5, **how)
    x = image(FIELDS)
    assert distance(harden(relaxed)(x).tensor, relaxed(x).tensor) < SINGLE


def test_a_hardened_escnn_layer_has_a_basis_of_its_own():
    strict = R2Conv(FIELDS, FIELDS, 3)
    x, hardened = image(FIELDS), harden(relax(strict))
    expected = strict(x).tensor
    hardened.double()
    assert torch.equal(strict(x).tensor, expected)


@pytest.mark.parametrize("training", [True, False])
def test_what_broke_the_symmetry_is_merged(training):
    relaxed = network(training)
    randomise(relaxed[2], "irrep_2")
    x = image(SCALAR)
    before = {k: v.clone() for k, v in relaxed.state_dict().items()}
    hardened, (first, last) = harden(relaxed, return_report=True)
    assert [type(m).__name__ for m in hardened] == ["R2Conv", "NormNonLinearity", "MergedConvolution", "GroupPooling"]
    assert all(m.training is training for m in hardened.modules())
    assert distance(hardened(x).tensor, relaxed(x).tensor) < SINGLE
    assert all(torch.equal(v, before[k]) or v.isnan().all() for k, v in relaxed.state_dict().items())
    assert unmeasured(first) == HardenedLayer("0", ("irrep_1", "irrep_2"), (), 0.0, "R2Conv", "C4")
    assert unmeasured(last) == HardenedLayer("2", ("irrep_1",), ("irrep_2",), 0.0, "MergedConvolution")


@settings(max_examples=20)
@given(layers(sizes=(3,)), st.floats(0.01, 0.3), st.sampled_from(["zeros", "circular"]))
def test_output_moves_no_more_than_the_removed_energy(layer, size_of_residual, mode):
    r"""With e the removed share, |dW| = sqrt(e) |W| and by Cauchy-Schwarz, patch by patch,
    |dy(x)|^2 <= |dW|^2 |patch(x)|^2."""
    in_type, out_type, size = layer
    relaxed = RelaxedR2Conv(in_type, out_type, size, padding=1, padding_mode=mode)
    randomise(relaxed, "equivariant")
    randomise(relaxed, *(p.name for p in relaxed.pathways[1:]), scale=size_of_residual)
    hardened, (record,) = harden(relaxed, energy=1.0, return_report=True)
    assert record.removed_energy == pytest.approx(relaxed.breaking_energy, rel=1e-6) and record.removed_energy > 0
    kernel = relaxed.expand_parameters()[0].detach()
    removed = kernel - hardened.expand_parameters()[0].detach()
    assert float(removed.norm() / kernel.norm()) == pytest.approx(record.removed_energy**0.5, rel=1e-3)
    x = image(in_type)
    padded = torch.nn.functional.pad(x.tensor, 4 * (1,), mode=mode.replace("zeros", "constant"))
    patches = torch.nn.functional.unfold(padded, size).square().sum(1)
    moved = (hardened(x).tensor - relaxed(x).tensor).flatten(2).square().sum(1)
    bound = record.removed_energy * kernel.square().sum() * patches
    assert (moved <= bound * (1 + 1e-3)).all()
    # and it is of the right size: the worst patch reaches the mean of the singular values' squares at least
    worst = torch.linalg.svd(removed.flatten(1), full_matrices=False).Vh[0].view(1, in_type.size, size, size)
    reached = torch.conv2d(worst, removed).square().sum() / (record.removed_energy * kernel.square().sum())
    assert reached > 0.99 / min(removed.flatten(1).shape)


def test_thresholds():
    relaxed = randomise(RelaxedR2Conv(FIELDS, FIELDS, 3), "equivariant")
    relaxed.weights["irrep_1"].data.normal_(std=1e-3)
    share = relaxed.energies()["irrep_1"]
    assert 0 < share < SWITCHED_OFF

    def merged(**options):
        _, (record,) = harden(relaxed, return_report=True, **options)
        return record.merged

    assert merged() == ()
    assert merged(energy=share / 2) == ("irrep_1",)
    # small weights that the data nevertheless determine stay
    relaxed.effective_dimension.copy_(torch.tensor([10.0, 0.5 * len(relaxed.weights["irrep_1"]), 0.0]))
    assert merged() == ("irrep_1",)
    assert merged(determined=0.6) == ()


def test_equivariant_kernels_beyond_the_band_are_merged_too():
    relaxed = randomise(RelaxedR2Conv(FIELDS, FIELDS, 3, basis="pixel"), "equivariant", "off_band")
    x, (hardened, done) = image(FIELDS), harden(relaxed, return_report=True)
    assert done[0].merged == ("off_band",) and "off_band" not in str(done) and len(done) == 1
    assert distance(hardened(x).tensor, relaxed(x).tensor) < SINGLE


@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate"])
@pytest.mark.parametrize("groups", [1, 2])
def test_merged_layers_keep_the_geometry(mode, groups):
    two = field_type("C4", "regular", 2)
    relaxed = RelaxedR2Conv(two, two, 3, padding=(2, 1), stride=2, dilation=2, padding_mode=mode, groups=groups)
    randomise(relaxed)
    x, hardened = image(two), harden(relaxed)
    assert type(hardened) is MergedConvolution and (hardened.in_type, hardened.out_type) == (two, two)
    assert distance(hardened(x).tensor, relaxed(x).tensor) < SINGLE
    assert hardened.evaluate_output_shape(x.shape) == tuple(hardened(x).shape)
    assert distance(hardened.export()(x.tensor), relaxed(x).tensor) < SINGLE
    with pytest.raises(FieldTypeError, match=r"MergedConvolution.*GeometricTensor.*in_type\(tensor\)"):
        hardened(x.tensor)


def test_nothing_to_harden():
    with pytest.raises(UnsupportedModuleError, match="SequentialModule.*no relaxed layer"):
        harden(SequentialModule(R2Conv(SCALAR, FIELDS, 3)))


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled(broken, backend):
    fields = field_type("C4", "regular", 2)
    relaxed = relax(SequentialModule(R2Conv(SCALAR, fields, 5), enn.ReLU(fields), R2Conv(fields, fields, 3)))
    if broken:
        randomise(relaxed[2])
    hardened = harden(relaxed).eval()
    x = image(SCALAR)
    torch._dynamo.reset()
    compiled = torch.compile(lambda pixels: hardened(SCALAR(pixels)).tensor, backend=backend)
    with torch.no_grad():
        assert distance(compiled(x.tensor), hardened(x).tensor) < SINGLE


def test_hardened_under_a_double_default():
    relaxed = relax(R2Conv(field_type("D2"), field_type("D2", "irreps"), 3))
    x = image(relaxed.in_type)
    torch.set_default_dtype(torch.float64)
    try:
        hardened = harden(relaxed)
    finally:
        torch.set_default_dtype(torch.float32)
    assert hardened.weights.dtype == torch.float32
    assert distance(hardened(x).tensor, relaxed(x).tensor) < SINGLE


def test_the_space_of_the_layers_is_unchanged():
    hardened = harden(network())
    assert hardened[0].space == space("C4") and hardened[0].in_type == SCALAR
