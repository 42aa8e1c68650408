"""Layers of point groups that escnn has no G-space for, against its own where it has one and against group averages."""

import copy
import pickle

import numpy as np
import pytest
import torch
from escnn import gspaces
from escnn import nn as enn
from nonempty import each
from scipy.spatial.transform import Rotation

from escnn_relax import equivariance_error, harden, relax, restrict
from escnn_relax.nn.measured.kernel_symmetry import KernelSymmetry
from escnn_relax.symmetry.kernels.sampling import Band
from escnn_relax.symmetry.groups.embedded_space import EmbeddedGSpace
from escnn_relax.symmetry.groups.finite_groups import group_elements
from escnn_relax.symmetry.groups.restriction import restriction
from escnn_relax.symmetry.groups.subgroup import subgroup
from escnn_relax.symmetry.groups.tetrahedral import tetrahedral_group

#: escnn samples its kernels in float32.
SAMPLED = 2e-5

OCTA = gspaces.octaOnR3()


def network(space):
    scalar = enn.FieldType(space, [space.trivial_repr])
    # those that follow the vectors are trivial on some tetrahedral group
    parities = ((1, 1), (0, 3), (1, 3))
    irreps = [space.irrep(1), space.irrep(3)] if space is OCTA else [space.irrep((p,), (l,)) for p, l in parities]
    vectors, last = enn.FieldType(space, [*irreps, space.trivial_repr]), enn.FieldType(space, irreps[1:])
    return enn.SequentialModule(
        enn.R3Conv(scalar, vectors, 3, padding=1),
        enn.NormNonLinearity(vectors),
        enn.R3Conv(vectors, last, 3, padding=1),
    )


def embedded(kept):
    """The space of a subgroup by its matrices, whether escnn has one or not."""
    matrices = [np.asarray(kept.gspace.basespace_action(kept.embed(h))) for h in group_elements(kept.group)]
    return EmbeddedGSpace(kept.group, np.stack(matrices), kept.name)


@pytest.mark.parametrize("name", ["C3_1_1_1", "D2_45deg", "D4", "Octa"])
def test_the_same_kernels_as_escnn(name):
    """Where escnn has the group: equally many kernels, and the same span."""
    kept = subgroup(OCTA, name)
    theirs, ours = restriction(kept).gspace, embedded(kept)
    assert not isinstance(theirs, EmbeddedGSpace)
    inputs, outputs = (restriction(kept).representation(OCTA.irrep(l)) for l in (1, -1))
    vector = enn.FieldType(OCTA, [OCTA.irrep(1)])
    band = Band.from_layer(enn.R3Conv(vector, vector, 3, initialize=False))
    mine, wanted = (band.sample(space, inputs, outputs).flatten(1) for space in (ours, theirs))
    assert mine.shape == wanted.shape and len(mine) > 0
    for a, b in ((mine, wanted), (wanted, mine)):
        basis = torch.linalg.qr(b.T).Q
        assert float((a.T - basis @ (basis.T @ a.T)).norm() / a.norm()) < SAMPLED
    turn = Rotation.from_rotvec([0.3, 0.2, 0.4]).as_matrix()
    moved = EmbeddedGSpace(ours.fibergroup, turn @ ours.matrices @ turn.T, "turned")
    broken = torch.linalg.qr(band.sample(moved, inputs, outputs).flatten(1).T).Q
    assert float((mine.T - broken @ (broken.T @ mine.T)).norm() / mine.norm()) > 0.1


@pytest.mark.parametrize("name", ["Tetra", "C2_1_1_0"])
def test_restricted_to_it(name):
    check(OCTA, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Tetra", "TetraxInv", "FullTetra", "S4", "S4_x", "D2d", "D2d_45deg", "C2v_45deg"])
def test_restricted_from_the_full_group(name):
    check(gspaces.fullOctaOnR3(), name)


def check(space, name):
    """The same function; H-equivariant whatever it learns, and no more."""
    net = network(space)
    on_h, kept = restrict(net, name), subgroup(space, name)
    assert [type(part) for part in on_h] == [type(part) for part in net]
    x = torch.randn(1, 1, 5, 5, 5)
    before = net(net.in_type(x)).tensor
    assert torch.allclose(on_h(on_h.in_type(x)).tensor, before, atol=1e-5 * float(before.abs().max()))
    with torch.no_grad():
        for part in (on_h[0], on_h[2]):
            part.weights.normal_()
        on_h.train().eval()
    assert on_h[0].weights.numel() > net[0].weights.numel() or on_h[2].weights.numel() > net[2].weights.numel()
    error = equivariance_error(on_h, on_h.in_type(x))
    assert error.exact and error.max < SAMPLED and len(error) == kept.order - 1
    outside = next(g for g in space.fibergroup.elements if not kept.contains(g))
    moved = on_h(on_h.in_type(net.in_type(x).transform(outside).tensor)).tensor
    wanted = net.out_type(on_h(on_h.in_type(x)).tensor).transform(outside).tensor
    assert float((moved - wanted).norm() / wanted.norm()) > 1e-2
    for other in (copy.deepcopy(on_h), pickle.loads(pickle.dumps(on_h))):
        assert torch.equal(other(other.in_type(x)).tensor, on_h(on_h.in_type(x)).tensor)
        assert other.in_type == on_h.in_type


def test_from_one_to_the_next_smaller():
    """Octahedral, tetrahedral, three turns: in two steps as in one."""
    net = network(OCTA)
    middle = restrict(net, "tetra")
    twice, once = restrict(middle, (False, 3)), restrict(net, "C3_1_1_1")
    assert twice[0].weights.shape == once[0].weights.shape
    x = torch.randn(1, 1, 5, 5, 5)
    assert torch.allclose(twice(twice.in_type(x)).tensor, net(net.in_type(x)).tensor, atol=1e-5)
    inner, embed, pull = middle[0].in_type.gspace.restrict((True, 2))
    h = inner.fibergroup.elements[1]
    assert pull(embed(h)) == h
    assert np.allclose(inner.basespace_action(h), middle[0].in_type.gspace.basespace_action(embed(h)))


def test_hardened_to_the_tetrahedral_group():
    """A learned kernel of T becomes an escnn layer of T with the same kernel."""
    model = relax(network(OCTA))
    kept = subgroup(OCTA, "Tetra")
    with torch.no_grad():
        for index in (0, 2):
            for w in model[index].weights.values():
                w.normal_()
            for name, w in KernelSymmetry(model[index]).projected_weights(kept).items():
                model[index].weights[name].copy_(w)
    hardened = harden(model, to={"0": "Tetra", "2": "Tetra"})
    assert hardened[0].in_type.gspace.fibergroup is tetrahedral_group() and type(hardened[0]) is enn.R3Conv
    x = torch.randn(1, 1, 5, 5, 5)
    before = model(model.in_type(x)).tensor
    assert torch.allclose(hardened(hardened.in_type(x)).tensor, before, atol=1e-5 * float(before.abs().max()))


def test_equal_spaces():
    kept = subgroup(OCTA, "Tetra")
    space, again = restriction(kept).gspace, embedded(kept)
    assert space == again and hash(space) == hash(again) and pickle.loads(pickle.dumps(space)) == space
    assert space != OCTA and OCTA != space and "Tetra" in str(space)
    turned = EmbeddedGSpace(tetrahedral_group(), space.matrices[:, [1, 2, 0]][:, :, [1, 2, 0]][::-1].copy(), "other")
    assert space != turned


def test_a_tetrahedral_layer_can_be_relaxed():
    """T is a group of escnn's in all that a layer asks of one: irreps, products of them, intertwiners."""
    group = tetrahedral_group()
    assert sorted(psi.size for psi in group.irreps()) == [1, 2, 3]
    assert sum(psi.size**2 / psi.sum_of_squares_constituents for psi in group.irreps()) == group.order()
    for psi in each(group.irreps()):
        for a in each(group.elements):
            for b in each(group.elements[::5]):
                assert np.allclose(psi(a @ b), psi(a) @ psi(b))
    on_t = restrict(network(OCTA), "Tetra")
    relaxed = relax(on_t)
    assert [p.name for p in relaxed[0].pathways] == ["equivariant", "irrep_1", "irrep_2"]
    x = torch.randn(1, 1, 5, 5, 5)
    assert torch.allclose(relaxed(relaxed.in_type(x)).tensor, on_t(on_t.in_type(x)).tensor, atol=1e-5)
    flat = gspaces.no_base_space(group)
    regular = enn.FieldType(flat, [flat.regular_repr])
    assert enn.Linear(regular, regular, bias=False).weights.numel() == group.order()
