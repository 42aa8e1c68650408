"""Subgroups of SO(3) and O(3) about any axis: planted as escnn's own layers of them, and found where they were
planted."""

import numpy as np
import pytest
import torch
from escnn import gspaces
from escnn import nn as enn
from escnn.group import so3_group
from test_planted_in_space import SAME, dense, write

from escnn_relax import harden, restrict, survivors
from escnn_relax.nn import RelaxedR3Conv
from escnn_relax.nn.measured.kernel_symmetry import KernelSymmetry
from escnn_relax.nn.measured.stabiliser import stabiliser
from escnn_relax.symmetry.groups.conjugation import conjugate, smaller_subgroups, standard_position
from escnn_relax.symmetry.kernels.positions import Positions
from escnn_relax.symmetry.groups.subgroup import subgroup
from escnn_relax.symmetry.groups.lattice import subgroups
from escnn_relax.symmetry.groups.rotations import rotation

SO3, O3 = gspaces.rot3dOnR3(), gspaces.flipRot3dOnR3()

#: Angles (radians) of planted and found groups that are the same: half the digits of the remainder's rounding in
#: float32.
ANGLE = 1e-3


def vectors(space):
    return enn.FieldType(space, [space.irrep(1) if space is SO3 else space.irrep(1, 1)])


def made(space, size=3):
    return RelaxedR3Conv(vectors(space), vectors(space), size, bias=False).double()


def turned(space, name, seed):
    return conjugate(subgroup(space, name), torch.as_tensor(np.random.default_rng(seed).normal(size=3)))


def plant(layer, kept, seed=0):
    """A random layer of escnn's own on the subgroup, written into the relaxed layer of the whole group."""
    plain = enn.R3Conv(layer.in_type, layer.out_type, layer.kernel_size, bias=False)
    if kept.index != 1:
        plain = restrict(plain, kept)
    torch.manual_seed(seed)
    with torch.no_grad():
        plain.weights.normal_()
        kernel = plain.expand_parameters()[0].double().numpy()
    assert write(layer, kernel) < SAME, "the layer has every kernel of every subgroup"


def matrices(kept):
    """Elements of a finite subgroup, or of one about an axis a fine sample."""
    space, group = kept.gspace, kept.group
    if kept.order > 0:
        elements = group.elements
    else:
        angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
        kind = type(group).__name__
        if kind == "SO2":
            elements = [group.element(a) for a in angles]
        elif kind == "O2":
            elements = [group.element((f, a)) for f in (0, 1) for a in angles]
        else:
            one, other = group.G1, group.G2
            inner = [other.element(a) if type(other).__name__ == "SO2" else None for a in angles]
            if type(other).__name__ == "O2":
                inner = [other.element((f, a)) for f in (0, 1) for a in angles]
            elements = [group.pair_elements(a, b) for a in one.elements for b in inner]
    return np.stack([np.asarray(space.basespace_action(kept.embed(e))) for e in elements])


def same(found, kept):
    """Whether two subgroups are one, by how their elements move space."""
    if found.index == 1 or kept.index == 1:
        return found.index == kept.index
    if "SO3" in (found.name, kept.name):  # in O(3), where there is one
        return found.name == kept.name
    a, b = matrices(found), matrices(kept)
    distance = np.sqrt(((a[:, None] - b[None]) ** 2).sum((2, 3)))
    sampling = 0.15 if found.order < 0 else ANGLE
    return found.order == kept.order and max(distance.min(0).max(), distance.min(1).max()) < sampling


def found_in(layer):
    return stabiliser([KernelSymmetry(layer)])


slow = pytest.mark.slow


@pytest.mark.parametrize("name", ["C3", "O2", *(pytest.param(name, marks=slow) for name in ("SO2", "D3", "Tetra"))])
def test_found_where_it_was_planted(name):
    layer, kept = made(SO3), turned(SO3, name, 1)
    plant(layer, kept)
    found = found_in(layer)
    assert same(found.subgroup, kept), (found.subgroup.name, kept.name)
    assert found.remainder < 1e-8 and not same(found.subgroup, turned(SO3, name, 2))
    plant(layer, turned(SO3, name, 2), seed=1)  # the broken twin: what was found does not fix another kernel
    assert KernelSymmetry(layer).remainder(kept) > 1e-2


@pytest.mark.parametrize("name", ["ConeO2", *(pytest.param(name, marks=slow) for name in ("Mirror_y", "S4"))])
def test_found_with_reflections(name):
    layer, kept = made(O3), turned(O3, name, 3)
    plant(layer, kept)
    found = found_in(layer)
    assert same(found.subgroup, kept), (found.subgroup.name, kept.name)


def confusion(space, size, seeds, kinds):
    wrong, count = [], 0
    layer = made(space, size)
    for member in kinds:
        for seed in seeds:
            kept = conjugate(member, torch.as_tensor(np.random.default_rng(seed).normal(size=3)))
            plant(layer, kept, seed)
            symmetry = KernelSymmetry(layer)
            found, count = stabiliser([symmetry]).subgroup, count + 1
            # the kernels of some are those of a larger one, at these frequencies: then that is the name
            positions = Positions(space, symmetry.turning(), symmetry.search().highest)
            alike = positions.contains(positions.place(kept), positions.place(found))
            if not same(found, kept) and not (alike and found.order != kept.order and _inside(kept, found)):
                wrong.append((kept.name, found.name))
    return wrong, count


def _inside(kept, found):
    if found.index == 1:
        return True
    if found.name == "SO3":
        return bool((np.linalg.det(matrices(kept)) > 0).all())
    a, b = matrices(kept), matrices(found)
    return np.sqrt(((a[:, None] - b[None]) ** 2).sum((2, 3))).min(1).max() < (0.15 if found.order < 0 else ANGLE)


@pytest.mark.slow
@pytest.mark.parametrize("size", [3, 5])
def test_every_kind_of_SO3(size):
    kinds = list(subgroups(SO3, 4))
    wrong, count = confusion(SO3, size, (0, 1, 2), kinds)
    assert wrong == [] and count == 3 * len(kinds) == 39


@pytest.mark.slow
def test_every_kind_of_O3():
    kinds = list(subgroups(O3, 4))
    wrong, count = confusion(O3, 3, (0,), kinds)
    assert wrong == [] and count == len(kinds) > 30


def test_hardened_about_its_axis():
    """A layer of the found group, with escnn's own coefficients, is the same function."""
    layer, kept = made(SO3), turned(SO3, "C3", 5)
    plant(layer, kept)
    model = enn.SequentialModule(layer)
    read = survivors(model)
    assert same(read.network.subgroup, kept) and "not looked for" not in str(read)
    hardened = harden(model, to=read)
    x = torch.randn(1, 3, 5, 5, 5, dtype=torch.float64)
    before = model(model.in_type(x)).tensor
    after = hardened(hardened.in_type(x)).tensor
    assert float((after - before).norm() / before.norm()) < 1e-6
    assert type(hardened[0]) is enn.R3Conv and hardened[0].in_type.gspace.fibergroup.name == "C3"


def test_where_it_stands():
    kept = turned(O3, "S4", 7)
    own, element = standard_position(kept)
    assert own.name == "S4" and kept.id == conjugate(own, torch.zeros(3)).id or element is not None
    inside = list(smaller_subgroups(kept, 4))
    assert [h.order for h in inside] == [1, 2] and all(h < kept for h in inside)
    assert conjugate(own, torch.zeros(3, dtype=torch.float64)) is own
    assert standard_position(subgroup(SO3, "Octa"))[1] is None


def test_noise_is_no_symmetry():
    layer = made(SO3)
    plant(layer, turned(SO3, "D3", 1))
    kernel = dense(layer)
    write(
        layer,
        kernel + 0.1 * np.random.default_rng(0).normal(size=kernel.shape) * np.linalg.norm(kernel) / kernel.size**0.5,
    )
    assert found_in(layer).subgroup.name == "trivial"


NAMED = [(SO3, n) for n in ("C3", "D3")] + [(O3, n) for n in ("S4", "C3v", "FullTetra")]
MORE = [(SO3, n) for n in ("SO2", "O2", "Octa", "C7")]
MORE += [(O3, n) for n in ("D2d", "ConeO2", "Mirror_y", "C4xInv", "D2xInv", "C3h", "D3h", "Ico")]
NAMED += [pytest.param(*case, marks=slow) for case in MORE]


@pytest.mark.parametrize(("space", "name"), NAMED, ids=lambda v: v if isinstance(v, str) else v.fibergroup.name)
def test_the_names_of_turned_subgroups_are_understood(space, name):
    """To the digits that are printed: a hundredth."""
    for seed in (0, 1):
        kept = turned(space, name, seed)
        read = subgroup(space, kept.name)
        assert read.order == kept.order
        a, b = matrices(kept), matrices(read)
        distance = np.sqrt(((a[:, None] - b[None]) ** 2).sum((2, 3))).min(1).max()
        assert distance < (0.2 if kept.order < 0 else 0.05), (kept.name, read.name)
        assert not same(read, turned(space, name, seed + 2))


def test_twisted_subgroups_stand_anywhere():
    """escnn's maps back from a turned group miss some elements by their rounding; none is needed."""
    own = subgroup(O3, "FullTetra")
    for seed in range(40):
        kept = conjugate(own, torch.as_tensor(2 * np.random.default_rng(seed).normal(size=3)))
        assert kept.order == 24 and len(set(kept.elements)) == 24


def test_turned_by_what_was_asked_for():
    """escnn answers with what it built before for an axis within 1e-5, so that the halves of a twisted subgroup
    stood apart."""
    off = []
    for seed in range(12):
        vector = torch.as_tensor(np.random.default_rng(seed).normal(size=3))
        near = vector + torch.tensor([2e-6, -3e-6, 1e-6])
        so3_group().subgroup((True, 4, rotation(so3_group(), near)))
        kept = conjugate(subgroup(O3, "D2d"), vector)
        assert kept.order == 8 and len(set(kept.elements)) == 8
        exact = conjugate(subgroup(SO3, "D4"), vector)
        turn = np.asarray(SO3.basespace_action(rotation(so3_group(), vector)))
        wanted = turn.T @ matrices(subgroup(SO3, "D4")) @ turn
        assert np.abs(matrices(exact) - wanted).max() < 1e-9
        own, embed, _ = so3_group().subgroup(exact.id)
        stale = np.stack([np.asarray(SO3.basespace_action(embed(h))) for h in own.elements])
        off.append(np.abs(stale - wanted).max())
    assert max(off) > 1e-6, "the broken twin: where the rounded axes are the same"
