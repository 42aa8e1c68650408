"""Bad input to pathways between whole signals: every error is ours, and names the layer."""

import numpy as np
import pytest
import torch
from escnn import gspaces
from escnn import nn as enn

from escnn_relax import relax_translation
from escnn_relax.errors import ArgumentError, FieldTypeError, SubgroupError, UnsupportedModuleError, naming
from escnn_relax.nn import DensePathway, FactoredPathway, RelaxedTranslation, SparseR2Conv
from escnn_relax.nn.translation.grouped import GroupedLinear
from escnn_relax.symmetry.groups.lattice import subgroup

C4, C8, CONTINUOUS = gspaces.rot2dOnR2(4), gspaces.rot2dOnR2(8), gspaces.rot2dOnR2(-1, maximum_frequency=1)
FREE = subgroup(C4, 1)


def gray(space=C4):
    return enn.FieldType(space, [space.trivial_repr])


def made(kind=FactoredPathway, shape=(4, 4), subgroup=FREE, types=None, **options):
    return kind(*(types or (gray(), gray())), shape, shape, subgroup, **options)


def strict():
    fields = enn.FieldType(C4, [C4.regular_repr])
    return enn.SequentialModule(
        enn.R2Conv(gray(), fields, 3, padding=1), enn.ReLU(fields), enn.R2Conv(fields, gray(), 3)
    )


@pytest.mark.parametrize("shape", [(0, 0), (4, 0), (4,), (4, 4, 4), 4, (4, 2.5), "ab"])
def test_shapes_that_are_no_grid(shape):
    with pytest.raises(ArgumentError, match="DensePathway: expected a shape of 2 positive whole numbers"):
        made(DensePathway, shape)
    assert made(DensePathway, np.array([4, 5])).in_shape == (4, 5)


def test_types_and_subgroups_of_different_gspaces():
    with pytest.raises(FieldTypeError, match="net.1: in_type and out_type live on different G-spaces"):
        with naming("net.1"):
            made(types=(gray(), gray(C8)))
    with pytest.raises(FieldTypeError, match="in_type to be a FieldType"):
        made(types=(3, gray()))
    with pytest.raises(SubgroupError, match="expected a subgroup of C4.*got C4, one of C8"):
        made(subgroup=subgroup(C8, 4))
    assert made(subgroup=4).subgroup == made(subgroup="C4").subgroup == subgroup(C4, 4)
    with pytest.raises(SubgroupError, match="no subgroup 'C3'.*did you mean 'C4'"):
        made(subgroup="C3")
    with pytest.raises(SubgroupError, match="a finite subgroup"):
        made(subgroup=subgroup(CONTINUOUS, -1), types=2 * (gray(CONTINUOUS),))


@pytest.mark.parametrize("kind", [DensePathway, FactoredPathway])
def test_inputs_that_are_not_of_the_type(kind):
    pathway = made(kind)
    with pytest.raises(FieldTypeError, match="net.0: expected 1 channels of .*got 3"):
        with naming("net.0"):
            pathway(torch.randn(2, 3, 4, 4))
    with pytest.raises(FieldTypeError, match=f"{kind.__name__}: expected a tensor.*got GeometricTensor"):
        pathway(gray()(torch.randn(2, 1, 4, 4)))
    for shape in ((2, 1, 5, 4), (2, 1, 4), (1, 4, 4), (4,)):
        with pytest.raises(ArgumentError, match=f"{kind.__name__}: inputs of another spatial size"):
            pathway(torch.randn(shape))


@pytest.mark.parametrize("pathways", ["dense", "factored", "sparse"])
def test_an_empty_batch_stays_one(pathways):
    x = torch.randn(2, 1, 6, 6)
    model = relax_translation(strict(), gray()(x), pathways, silent=False)
    assert model(gray()(x[:0])).tensor.shape == (0, 1, 4, 4)
    assert GroupedLinear(3, 4, 2)(torch.zeros(0, 12)).shape == (0, 6)


def test_grouped_inputs_of_another_width():
    for shape in ((5, 13), (12,), (5, 3, 4)):
        with pytest.raises(ArgumentError, match=r"GroupedLinear: expected an input of shape \(N, 12\)"):
            GroupedLinear(3, 4, 2)(torch.zeros(shape))


def test_another_spatial_size_names_the_layer_in_the_model():
    model = relax_translation(strict(), gray()(torch.randn(1, 1, 6, 6)), "factored", layers="2")
    for size in (7, 2):  # the second is smaller than the kernel
        with pytest.raises(ArgumentError, match=rf"^2: inputs of another spatial size.*\(6, 6\).*\({size}, {size}\)"):
            model(gray()(torch.randn(1, 1, size, size)))
    with pytest.raises(FieldTypeError, match="^2: expected a GeometricTensor"):
        model[2](torch.randn(1, 4, 6, 6))


def test_pathways_between_other_fields():
    fields, convolution = enn.FieldType(C4, [C4.regular_repr]), enn.R2Conv(gray(), gray(), 3, padding=1)
    with pytest.raises(FieldTypeError, match="the pathway 'a' to lead from .*irrep_0.*got .*regular"):
        RelaxedTranslation(convolution, (4, 4), {"a": made(types=(gray(), fields))})
    with pytest.raises(FieldTypeError, match="the pathway 'a' to lead from.*got Linear"):
        RelaxedTranslation(convolution, (4, 4), {"a": torch.nn.Linear(2, 2)})
    RelaxedTranslation(convolution, (4, 4), {"a": made()})


def test_what_relax_translation_is_asked_for():
    x = gray()(torch.randn(1, 1, 6, 6))
    for wanted in ([("sparse",)], [3], [("dense", "free", 1)], [[]], [(4, "free")]):
        with pytest.raises(ArgumentError, match="relax_translation: expected pathways out of"):
            relax_translation(strict(), x, wanted)
    with pytest.raises(ArgumentError, match="relax_translation: expected pathways out of"):
        relax_translation(strict(), x, [])
    for layers in ([], lambda name, module: False):
        with pytest.raises(UnsupportedModuleError, match="layers= chooses no convolution"):
            relax_translation(strict(), x, layers=layers)
    with pytest.raises(ArgumentError, match="^2: the example does not pass.*Kernel size.*2, 2.*large enough"):
        relax_translation(strict(), gray()(torch.randn(1, 1, 2, 2)))
    assert not hasattr(relax_translation(strict(), x, layers="0")[2], "sites")


def test_errors_of_other_modules_are_their_own():
    class Broken(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = strict()

        def forward(self, x):
            self.body(x)
            raise RuntimeError("of the user")

    with pytest.raises(RuntimeError, match="of the user"):
        relax_translation(Broken(), gray()(torch.randn(1, 1, 6, 6)))


SIZES = [{"kernel_size": (3, 3)}, {"kernel_size": 2.5}, {"padding": 0.5}, {"stride": (1, 1, 1)}, {"stride": 0}]


@pytest.mark.parametrize("options", SIZES)
def test_sizes_of_sparse_convolutions(options):
    with pytest.raises(ArgumentError, match="SparseR2Conv: expected"):
        SparseR2Conv(gray(), gray(), **{"kernel_size": 3, **options})


def test_padding_modes_of_sparse_convolutions():
    with pytest.raises(ArgumentError, match="padding_mode out of .*got 'mirror'"):
        SparseR2Conv(gray(), gray(), 3, padding_mode="mirror")
    SparseR2Conv(gray(), gray(), 3, padding_mode="reflect")
