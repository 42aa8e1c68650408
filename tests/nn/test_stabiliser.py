"""Stabilisers against kernels that are moved by group elements, with no code of the package between."""

import itertools
import math

import numpy as np
import pytest
import torch
from escnn import gspaces
from escnn import nn as enn
from nonempty import each
from scipy.ndimage import map_coordinates

from escnn_relax import Evidence, harden, mix, relax, report
from escnn_relax.errors import ArgumentError, DataError, UnsupportedModuleError
from escnn_relax.evidence import survivors
from escnn_relax.nn import RelaxedLinear, RelaxedR2Conv, RelaxedR3Conv
from escnn_relax.nn.measured.kernel_symmetry import KernelSymmetry
from escnn_relax.nn.measured.stabiliser import stabiliser, stabilisers
from escnn_relax.symmetry.groups.subgroup import subgroup
from escnn_relax.symmetry.groups.lattice import subgroups

#: Relative change of a kernel that counts as none; escnn samples in float32.
SAME = 1e-5


def dense(layer):
    """The kernel ``(out, in, *pixels)`` in float64."""
    return layer.expand_parameters()[0].detach().double()


def moved(kernel, layer, g):
    """rho_out(g) K(g^-1 x) rho_in(g)^-1, pixel by pixel; only for g that maps the grid onto itself."""
    left = torch.as_tensor(layer.out_type.representation(g), dtype=torch.float64)
    right = torch.as_tensor(layer.in_type.representation(~g), dtype=torch.float64)
    d = kernel.ndim - 2
    if d and kernel.shape[-1] > 1:
        size = kernel.shape[-1]
        matrix = np.rint(np.asarray(layer.space.basespace_action(~g)))
        # the last index is x; the others run against y and z
        signs = np.array([1, -1, -1])[:d]
        places = np.array(list(itertools.product(range(size), repeat=d))) - size // 2
        sources = (places[:, ::-1] * signs) @ matrix.T * signs
        kernel = kernel[(..., *(sources[:, ::-1].astype(int) + size // 2).T)].view(kernel.shape)
    return torch.einsum("po,oi...,iq->pq...", left, kernel, right)


def fixed_by(layer, kept):
    kernel = dense(layer)
    return max(float((moved(kernel, layer, g) - kernel).norm() / kernel.norm()) for g in kept.elements)


def randomise(layer, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for w in layer.weights.values():
            w.copy_(torch.randn(w.shape, generator=generator))


def planar(name):
    n = int(name[1:])
    return gspaces.rot2dOnR2(n) if name[0] == "C" else gspaces.flipRot2dOnR2(n)


def made(kind):
    if kind in ("C4", "D4", "D2"):
        space = planar(kind)
        more = [space.irrep(1, 1), space.irrep(1, 0)] if kind == "D4" else [space.regular_repr]
        fields = enn.FieldType(space, [*more, space.trivial_repr])
        return RelaxedR2Conv(fields, fields, 3)
    if kind == "linear D3":
        space = gspaces.no_base_space(planar("D3").fibergroup)
        fields = enn.FieldType(space, [space.regular_repr, space.trivial_repr])
        return RelaxedLinear(fields, fields)
    if kind == "pixel":
        space = planar("C4")
        fields = enn.FieldType(space, [space.regular_repr])
        return RelaxedR2Conv(fields, fields, 3, basis="pixel")
    space = gspaces.octaOnR3()
    return RelaxedR3Conv(enn.FieldType(space, [space.trivial_repr]), enn.FieldType(space, [space.irrep(1)]), 3)


KINDS = ["C4", "D4", "D2", "linear D3", "pixel", pytest.param("octahedral", marks=pytest.mark.slow)]


@pytest.mark.parametrize("kind", KINDS)
def test_projection_is_the_average_over_the_group(kind):
    """P_H K by the package, and by moving the kernel with every element of H; the remainder by both."""
    layer = made(kind)
    randomise(layer)
    kernel, symmetry = dense(layer), KernelSymmetry(layer)
    for kept in each(subgroups(layer.space)):
        average = sum(moved(kernel, layer, g) for g in kept.elements) / kept.order
        found = symmetry.projected_weights(kept)
        ours = layer.kernel({n: w.to(layer.weights[n]) for n, w in found.items()}).detach().double().view(kernel.shape)
        assert float((ours - average).norm() / kernel.norm()) < SAME, kept.name
        lost = float((kernel - average).square().sum() / kernel.square().sum())
        assert symmetry.remainder(kept) == pytest.approx(lost, abs=SAME), kept.name


@pytest.mark.parametrize("kind", [pytest.param(k, marks=pytest.mark.slow) if k == "D4" else k for k in KINDS])
def test_stabiliser_is_the_largest_subgroup_that_moves_nothing(kind):
    layer = made(kind)
    group = list(subgroups(layer.space))
    planted = group[:: 1 + len(group) // 4]
    for number, kept in enumerate(each(planted)):
        randomise(layer, number)
        parts = KernelSymmetry(layer).projected_weights(kept)
        with torch.no_grad():
            for name, w in layer.weights.items():
                w.copy_(parts[name])
        found = stabiliser([KernelSymmetry(layer)])
        survive = [h for h in group if fixed_by(layer, h) < 1e-3]
        largest = max(h.order for h in survive)
        assert found.subgroup.order == largest and kept <= found.subgroup, (kept.name, found.subgroup.name)
        assert fixed_by(layer, found.subgroup) < SAME and found.remainder < SAME
        if kept.order < layer.space.fibergroup.order():  # the broken twin: a little of what H does not fix
            with torch.no_grad():
                for name, w in layer.weights.items():
                    w.add_(0.1 * torch.randn_like(w))
            broken = stabiliser([KernelSymmetry(layer)])
            assert broken.subgroup.order == max(h.order for h in group if fixed_by(layer, h) < 1e-2)
            if kept.order > 1:
                assert broken.subgroup.order < found.subgroup.order


def turned(kernel, matrix):
    """A smooth scalar kernel ``(side, side)`` moved by any matrix, by interpolation."""
    side = kernel.shape[-1]
    half = side // 2
    y, x = np.meshgrid(-(np.arange(side) - half), np.arange(side) - half, indexing="ij")
    source = np.tensordot(np.linalg.inv(matrix), np.stack([x, y]), 1)
    return map_coordinates(kernel.numpy(), [half - source[1], source[0] + half], order=5, mode="constant")


@pytest.mark.parametrize("mirrored", [True, False])
@pytest.mark.parametrize("turns", [1, 2, 4])
def test_planar_continuous_with_the_axis(turns, mirrored):
    """A smooth kernel of D_n on an axis of its own: found from O(2), and confirmed by turning the picture."""
    space = gspaces.flipRot2dOnR2(-1, maximum_frequency=4)
    scalar = enn.FieldType(space, [space.trivial_repr])
    layer = RelaxedR2Conv(scalar, scalar, 17, frequencies=4, sigma=[1.2, 1.2], rings=[4.0, 5.0], frequencies_cutoff=4.0)
    kept = subgroup(space, (0.47, turns) if mirrored else (None, turns))
    randomise(layer, turns)
    parts = KernelSymmetry(layer).projected_weights(kept)
    with torch.no_grad():
        for name, w in layer.weights.items():
            w.copy_(parts[name])
    found = stabiliser([KernelSymmetry(layer)])
    assert found.subgroup.order == kept.order and found.remainder < SAME
    picture = dense(layer)[0, 0]
    y, x = np.mgrid[-8:9, -8:9]
    disk = np.hypot(x, y) <= 7  # which no turn takes over the edge
    norm = np.linalg.norm(picture.numpy()[disk])
    change = lambda g: np.linalg.norm((turned(picture, space.basespace_action(g)) - picture.numpy())[disk]) / norm
    assert max(change(g) for g in found.subgroup.elements) < 0.05
    # another axis, or more turns, would be seen
    other = subgroup(space, (0.47 + math.pi / turns, turns) if mirrored else (None, 2 * turns))
    if mirrored or turns < 4:
        assert max(change(g) for g in other.elements) > 0.15


@pytest.mark.parametrize("axis", [0.143, 1.527, 3.619, 5.968])
def test_the_axis_is_found_where_one_frequency_outweighs_the_others(axis):
    """Frequency 4 alone has four axes; which of them is the one, only a hundredth of the energy in frequency 3
    tells."""
    space = gspaces.flipRot2dOnR2(-1, maximum_frequency=4)
    scalar = enn.FieldType(space, [space.trivial_repr])
    layer = RelaxedR2Conv(scalar, scalar, 17, frequencies=4, sigma=[1.2, 1.2], rings=[4.0, 5.0], frequencies_cutoff=4.0)
    randomise(layer)
    parts = KernelSymmetry(layer).projected_weights(subgroup(space, (axis, 1)))
    amplitudes = {"equivariant": 1.0, "irrep_1,3": 0.1, "irrep_1,4": 1.0}
    with torch.no_grad():
        for name, w in layer.weights.items():
            w.copy_(amplitudes.get(name, 0.0) * parts[name])
    found = stabiliser([KernelSymmetry(layer)])
    assert found.subgroup.order == 2 and found.remainder < SAME
    assert math.remainder(found.subgroup.id[0] - axis, 2 * math.pi) == pytest.approx(0, abs=1e-2)


def test_discrete_subgroups_of_SO2_are_read_from_the_frequencies():
    space = gspaces.rot2dOnR2(-1, maximum_frequency=4)
    scalar = enn.FieldType(space, [space.trivial_repr])
    # large rings: on few pixels the grid mixes frequencies 3 and 1
    layer = RelaxedR2Conv(scalar, scalar, 17, frequencies=4, sigma=[1.2, 1.2], rings=[4.0, 5.0], frequencies_cutoff=4.0)
    for alive, name in [
        ((), "SO2"),
        ((4,), "C4"),
        ((2, 4), "C2"),
        ((3,), "C3"),
        ((3, 4), "trivial"),
        ((2, 3), "trivial"),
    ]:
        with torch.no_grad():
            for pathway, w in layer.weights.items():
                w.fill_(1.0 if pathway == "equivariant" or any(pathway == f"irrep_{f}" for f in alive) else 0.0)
        assert stabiliser([KernelSymmetry(layer)]).subgroup.name == name, alive


def test_symmetry_never_grows_with_depth():
    layers = [made("D4") for _ in range(3)]
    for layer, id in zip(layers, [(None, 4), (0, 4), (0, 2)]):
        randomise(layer)
        parts = KernelSymmetry(layer).projected_weights(subgroup(layer.space, id))
        with torch.no_grad():
            for name, w in layer.weights.items():
                w.copy_(parts[name])
    read = [KernelSymmetry(layer) for layer in layers]
    assert [stabiliser([s]).subgroup.order for s in read] == [4, 8, 4]
    assert [s.subgroup.name for s in stabilisers(read)] == ["C4", "C4", "C2"]


def test_where_the_grid_itself_breaks_c8():
    """escnn's C8 kernels, sampled: turning the picture by 90 degrees returns them, by 45 degrees it does not."""
    space = planar("C8")
    scalar = enn.FieldType(space, [space.trivial_repr])
    vector = enn.FieldType(space, [space.irrep(2)])
    layer = RelaxedR2Conv(scalar, vector, 5)
    randomise(layer)
    with torch.no_grad():
        for name, w in layer.weights.items():
            w.mul_(name == "equivariant")
    assert stabiliser([KernelSymmetry(layer)]).subgroup.name == "C8", "by its coefficients"
    kernel = dense(layer)
    assert fixed_by(layer, subgroup(space, 4)) < SAME
    g = space.fibergroup.element(1)
    left = torch.as_tensor(layer.out_type.representation(g))
    matrix = np.asarray(space.basespace_action(g))
    turn = torch.stack([torch.as_tensor(turned(kernel[c, 0], matrix)) for c in range(2)])
    change = float((torch.einsum("pq,qyx->pyx", left, turn) - kernel[:, 0]).norm() / kernel.norm())
    assert change > 0.05, "the pixels do not map to pixels"


class Linear(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(self.layer.in_type(x)).tensor.flatten(1)


def test_a_whole_irrep_that_is_alive_is_not_argued_away():
    """Where the evidence does not know, a subgroup that fixes nothing of an irrep with energy is a candidate and no
    more."""
    layer = made("D4")
    with torch.no_grad():
        layer.weights["irrep_1,0"].normal_()
    symmetry = KernelSymmetry(layer)
    unknowing = lambda s, h: 0.0
    found = stabiliser([symmetry], gain=unknowing)
    assert found.subgroup.name == "C4" and "D4" in [h.name for h in found.candidates]
    assert not any(h <= found.subgroup for h in found.candidates)
    against = lambda s, h: -6.0 * (h.order > 4)
    found = stabiliser([symmetry], gain=against)
    assert found.subgroup.name == "C4" and "D4" not in [h.name for h in found.candidates]
    # half of a two-dimensional irrep is for the evidence to decide
    with torch.no_grad():
        layer.weights["irrep_1,0"].zero_()
        layer.weights["irrep_1,1"].normal_()
    assert stabiliser([KernelSymmetry(layer)]).subgroup.name == "trivial"
    wanted = subgroup(layer.space, (1, 1))
    prefers = lambda s, h: 3.0 if h == wanted else -6.0 * (h.order > 1)
    found = stabiliser([KernelSymmetry(layer)], gain=prefers)
    assert found.subgroup == wanted and not found.candidates
    # what it prefers is no larger group with a smaller one in it that it prefers more
    nested = lambda s, h: 30.0 if h.order == 2 else 20.0 * (h.order > 1)
    assert stabiliser([KernelSymmetry(layer)], gain=nested).subgroup.order == 2


def test_what_cannot_be_read_is_said():
    space = planar("C4")
    fields = enn.FieldType(space, [space.regular_repr])
    mixed = mix(enn.SequentialModule(enn.R2Conv(fields, fields, 3)), [2])
    with pytest.raises(UnsupportedModuleError, match="overlap.*merge it first"):
        KernelSymmetry(mixed[0], "0")
    with pytest.raises(UnsupportedModuleError, match="no relaxed layer"):
        survivors(torch.nn.Linear(2, 2))
    with pytest.raises(ArgumentError, match="at least one layer"):
        stabiliser([])
    with pytest.raises(ArgumentError, match=r"energy in \[0, 1\)"):
        stabiliser([KernelSymmetry(made("C4"))], energy=1.0)
    with pytest.raises(UnsupportedModuleError, match="its group is D4, that of a C4"):
        stabiliser([KernelSymmetry(made("C4"), "a"), KernelSymmetry(made("D4"), "b")])
    model = Linear(relax(enn.R2Conv(fields, fields, 3)))
    other = Evidence(Linear(relax(enn.R2Conv(fields, fields, 3))), "gaussian", num_data=2)
    with pytest.raises(ArgumentError, match="another model"):
        survivors(model, other)
    unread = survivors(model, Evidence(model, "gaussian", num_data=2))
    assert math.isnan(unread.network.margin) and "refreshed" in unread.network.note and "nan" not in str(unread)
    with torch.no_grad():
        model.layer.weights["irrep_1"].normal_()
    assert "C4" not in [survivors(model).network.subgroup.name] and harden(model, return_report=True)[1][0].merged == (
        "irrep_1",
    )
    frozen = Linear(relax(enn.R2Conv(fields, fields, 3, bias=False)))
    frozen.layer.weights["irrep_2"].requires_grad_(False)
    evidence = Evidence(frozen, "gaussian", num_data=2)
    evidence.refresh([(torch.randn(2, 4, 5, 5), torch.randn(2, 36))])
    uncovered = survivors(frozen, evidence).network
    assert uncovered.subgroup.name == "C4" and math.isnan(uncovered.margin) and "irrep_2" in uncovered.note
    assert math.isnan(report(frozen, evidence).layers[0].margin), "the rest of the report is there"
    with torch.no_grad():
        frozen.layer.weights["irrep_1"].fill_(math.nan)
    for read in (survivors, lambda model: harden(model, to="stabiliser")):
        with pytest.raises(DataError, match="layer: NaN or infinite weights"):
            read(frozen)


def test_kernels_of_size_one_have_an_empty_component_or_nothing_to_relax():
    space = planar("C4")
    scalar, regular = enn.FieldType(space, [space.trivial_repr]), enn.FieldType(space, [space.regular_repr])
    layer = RelaxedR2Conv(regular, scalar, 1)
    randomise(layer)
    assert stabiliser([KernelSymmetry(layer)]).subgroup.name == "trivial"
    odd = enn.FieldType(space, [space.irrep(2)])
    layer = RelaxedR2Conv(enn.FieldType(space, [space.trivial_repr, space.irrep(2)]), odd, 1)
    assert [p.name for p in layer.empty_pathways] == ["irrep_1"]
    randomise(layer)
    assert stabiliser([KernelSymmetry(layer)]).subgroup.name == "C2"
    with pytest.raises(ArgumentError, match="lacks|irrep"):
        RelaxedR2Conv(regular, regular, 3, irreps=[(7,)])
