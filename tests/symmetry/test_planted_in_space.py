"""Subgroups planted in kernels of space, and what is read off them: a confusion matrix without a wrong name.

Planted and confirmed by moving kernels on the pixel grid with numpy, with no code of the package between.
"""

import itertools

import numpy as np
import pytest
import torch
from escnn import gspaces
from escnn import nn as enn
from nonempty import each
from torch.utils.data import DataLoader, TensorDataset

from escnn_relax import fit, survivors
from escnn_relax.evidence import CurvatureSettings
from escnn_relax.nn import RelaxedR3Conv
from escnn_relax.nn.measured.kernel_symmetry import KernelSymmetry
from escnn_relax.nn.measured.stabiliser import stabiliser
from escnn_relax.symmetry.groups.lattice import subgroup, subgroups

#: Relative change of a kernel that counts as none; escnn samples in float32.
SAME = 1e-5


class Moves:
    """All elements of a group that maps the pixel grid to itself, acting on kernels ``(out, in, z, y, x)``."""

    def __init__(self, layer):
        self.elements = list(layer.space.fibergroup.elements)
        size = layer.kernel_size
        places = np.array(list(itertools.product(range(size), repeat=3))) - size // 2
        signs = np.array([1, -1, -1])  # the last index is x; the others run against y and z
        self.sources, self.left, self.right = [], [], []
        for g in self.elements:
            matrix = np.rint(np.asarray(layer.space.basespace_action(~g)))
            source = ((places[:, ::-1] * signs) @ matrix.T * signs)[:, ::-1].astype(int) + size // 2
            self.sources.append(np.ravel_multi_index(source.T, (size,) * 3))
            self.left.append(np.asarray(layer.out_type.representation(g)))
            self.right.append(np.asarray(layer.in_type.representation(~g)))

    def moved(self, kernel, index):
        flat = kernel.reshape(*kernel.shape[:2], -1)[:, :, self.sources[index]]
        return np.einsum("po,ois,iq->pqs", self.left[index], flat, self.right[index]).reshape(kernel.shape)

    def average(self, kernel, members):
        return sum(self.moved(kernel, i) for i in members) / len(members)

    def stabiliser(self, kernel):
        """The positions of all elements that leave the kernel as it is."""
        size = np.linalg.norm(kernel)
        return frozenset(
            i for i in range(len(self.elements)) if np.linalg.norm(self.moved(kernel, i) - kernel) < 1e-3 * size
        )


def dense(layer):
    return layer.expand_parameters()[0].detach().double().numpy()


def write(layer, kernel):
    """Coefficients of the layer whose kernel is this one, for one input and one output field; what is lost
    (fraction)."""
    blocks = [(name, block) for name in layer.kernel.pathways for block in layer.kernel.blocks[name]]
    rows = torch.cat([layer.kernel.basis(block).detach().double().flatten(1) for _, block in blocks])
    wanted = torch.as_tensor(kernel).reshape(1, -1)
    found = torch.linalg.lstsq(rows.T, wanted.T, driver="gelsd").solution[:, 0]
    start = 0
    with torch.no_grad():
        for name, block in blocks:
            count = block.stop - block.start
            layer.weights[name][block.start : block.stop] = found[start : start + count].to(layer.weights[name])
            start += count
    return float((found @ rows - wanted).norm() / wanted.norm())


def planted(layer, seed):
    """A random kernel of the layer."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for w in layer.weights.values():
            w.copy_(torch.randn(w.shape, generator=generator, dtype=w.dtype))
    return dense(layer)


def made(space, into, out, size):
    layer = RelaxedR3Conv(enn.FieldType(space, [into]), enn.FieldType(space, [out]), size, bias=False)
    return layer.double()


def confusion(layer, members, moves):
    """For each planted subgroup the one that was found, and that which leaves the kernel alone by moving it."""
    position = {e: i for i, e in enumerate(moves.elements)}
    table = {}
    for number, kept in enumerate(each(members)):
        own = frozenset(position[e] for e in kept.elements)
        kernel = moves.average(planted(layer, number), own)
        assert write(layer, kernel) < SAME, "the layer has every kernel of every subgroup"
        found = stabiliser([KernelSymmetry(layer)])
        truth = moves.stabiliser(kernel)
        table[kept.name] = found, frozenset(position[e] for e in found.subgroup.elements), truth, own
    return table


def check(table):
    for name, (found, read, truth, own) in each(table.items()):
        assert own <= truth, name
        assert read == truth, f"planted {name}, read {found.subgroup.name}"
        assert found.remainder < 1e-8


def test_all_subgroups_of_the_octahedral_group():
    """30 planted, 30 found, by name; vectors to pseudovectors tell them all apart on 3 x 3 x 3 voxels."""
    space = gspaces.octaOnR3()
    layer = made(space, space.irrep(1), space.irrep(-1), 3)
    members = list(subgroups(space))
    table = confusion(layer, members, Moves(layer))
    check(table)
    assert [name for name, (found, *_) in table.items() if found.subgroup.name != name] == []
    assert len(table) == 30
    # the broken twin: a little of what the tetrahedral group does not fix, and it is not found
    moves = Moves(layer)
    tetra = [i for i, e in enumerate(moves.elements) if subgroup(space, "Tetra").contains(e)]
    noisy = moves.average(planted(layer, 0), tetra) + 0.1 * planted(layer, 1)
    write(layer, noisy)
    assert stabiliser([KernelSymmetry(layer)]).subgroup.name == "trivial"


def test_where_a_kernel_has_more_symmetry_than_was_planted():
    """Between scalars, kernels of 3 x 3 x 3 voxels that T fixes are fixed by all of O: the larger one is the right
    name."""
    space = gspaces.octaOnR3()
    layer = made(space, space.trivial_repr, space.trivial_repr, 3)
    table = confusion(
        layer, [subgroup(space, n) for n in ("Tetra", "C3_1_1_1", "D2", "C2_1_1_0", "C4_x")], Moves(layer)
    )
    check(table)
    assert table["Tetra"][0].subgroup.name == "Octa" and table["C2_1_1_0"][0].subgroup.name == "C2_1_1_0"


@pytest.mark.slow
@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("fields", ["scalars", "regular", "mixed"])
def test_all_subgroups_of_the_octahedral_group_widely(fields, size):
    space = gspaces.octaOnR3()
    into, out = {
        "scalars": (space.trivial_repr, space.trivial_repr),
        "regular": (space.trivial_repr, space.regular_repr),
        "mixed": (space.irrep(2), space.irrep(1)),
    }[fields]
    layer = made(space, into, out, size)
    table = confusion(layer, list(subgroups(space)), Moves(layer))
    assert len(table) == 30
    check(table)
    if fields == "regular":
        assert [name for name, (found, *_) in table.items() if found.subgroup.name != name] == []


@pytest.mark.slow
def test_subgroups_of_the_full_octahedral_group():
    """Of each size those that escnn has no id for, and some of the others."""
    space = gspaces.fullOctaOnR3()
    layer = made(space, space.irrep((1,), (1,)), space.irrep((0,), (-1,)), 3)
    names = [
        "S4",
        "S4_x",
        "D2d",
        "D2d_45deg",
        "Tetra",
        "TetraxInv",
        "FullTetra",
        "C2v_45deg",
        "Mirror_1_1_0",
        "Inv",
        "C4v",
    ]
    table = confusion(layer, [subgroup(space, name) for name in names], Moves(layer))
    assert len(table) == len(names)
    check(table)


class Fields(torch.nn.Module):
    """A relaxed layer between plain tensors."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(self.layer.in_type(x)).tensor


def learned(name, seed, samples=20, noise=0.3):
    """Vectors filtered to pseudovectors on a torus; a tenth of the filter's energy has exactly the subgroup's
    symmetry."""
    torch.manual_seed(seed)
    space = gspaces.octaOnR3()
    into, out = enn.FieldType(space, [space.irrep(1)]), enn.FieldType(space, [space.irrep(-1)])
    options = {"padding": 1, "padding_mode": "circular", "bias": False}
    layer = RelaxedR3Conv(into, out, 3, **options)
    moves, kept = Moves(layer), subgroup(space, name)
    members = [i for i, e in enumerate(moves.elements) if kept.contains(e)]
    whole = range(len(moves.elements))
    kernel, other = (planted(layer, seed + k).astype(float) for k in (0, 1))
    kernel, other = moves.average(kernel, whole), moves.average(other, members)
    other = other - moves.average(other, whole)
    kernel = 0.9**0.5 * kernel / np.linalg.norm(kernel) + 0.1**0.5 * other / np.linalg.norm(other)
    assert moves.stabiliser(kernel) == frozenset(members)
    x = torch.randn(samples, 3, 5, 5, 5)
    padded = torch.nn.functional.pad(x, 6 * (1,), "circular")
    y = torch.nn.functional.conv3d(padded, 2 * torch.as_tensor(kernel, dtype=torch.float32))
    y = y + noise * torch.randn_like(y)
    model = Fields(RelaxedR3Conv(into, out, 3, **options))
    loader = DataLoader(TensorDataset(x, y), 20, shuffle=True, generator=torch.Generator().manual_seed(seed))
    history = fit(
        model,
        loader,
        likelihood="gaussian",
        epochs=50,
        lr=2e-2,
        burn_in=5,
        refresh_every=3,
        curvature=CurvatureSettings(samples=8),
        progress=False,
    )
    return model, history.evidence, kept


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Tetra", "C2_1_1_0", "D2_45deg", "C3_m1_1_1", "D4_x_flip_y"])
def test_subgroups_of_the_octahedral_group_are_learned_from_data(name):
    model, evidence, kept = learned(name, seed=1)
    found = survivors(model, evidence).network
    assert found.subgroup == kept, (found.subgroup.name, found.note)
    assert not found.candidates and found.margin > 0
