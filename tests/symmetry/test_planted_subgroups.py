"""Planted subgroups are named: kernels from escnn's own layer of the subgroup, and kernels learned from data with
them."""

import math

import pytest
import torch
from escnn import gspaces
from escnn import nn as enn
from nonempty import each
from torch.utils.data import DataLoader, TensorDataset
from whole_irreps import by_whole_irreps

from escnn_relax import fit, project, restrict, survivors
from escnn_relax.evidence import CurvatureSettings
from escnn_relax.nn import RelaxedR2Conv
from escnn_relax.nn.measured.kernel_symmetry import KernelSymmetry
from escnn_relax.nn.measured.stabiliser import stabiliser
from escnn_relax.symmetry.groups.subgroup import subgroup
from escnn_relax.symmetry.groups.lattice import subgroups

#: escnn samples kernels in float32: what lies in a span is found in it up to this.
SAMPLED = 1e-6
#: Norm outside the span of a larger group from which on a random kernel is not of that group.
OUTSIDE = 1e-2

slow = pytest.mark.slow


def space_of(name):
    if name in ("SO2", "O2"):
        return (gspaces.rot2dOnR2 if name == "SO2" else gspaces.flipRot2dOnR2)(-1, maximum_frequency=6)
    return (gspaces.rot2dOnR2 if name[0] == "C" else gspaces.flipRot2dOnR2)(int(name[1:]))


def vector(space, frequency=1):
    return space.irrep(*((1, frequency) if space.fibergroup.name[0] in "DO" else (frequency,)))


def field_types(space, kind):
    scalar = [space.trivial_repr]
    if kind == "scalars":
        return enn.FieldType(space, scalar), enn.FieldType(space, scalar)
    if kind == "vectors":
        both = enn.FieldType(space, [*scalar, vector(space)])
        return both, both
    if kind == "frequencies":
        types = [*scalar, vector(space)]
        return enn.FieldType(space, types), enn.FieldType(space, [*types, vector(space, 2)])
    return enn.FieldType(space, scalar), enn.FieldType(space, [space.regular_repr])


class Planted:
    """Relaxed layers whose kernel is that of escnn's own layer of a subgroup, with random weights."""

    def __init__(self, name, kind, size):
        self.space = space_of(name)
        types = field_types(self.space, kind)
        self.strict = enn.R2Conv(*types, size, bias=False)
        self.layer = RelaxedR2Conv(*types, size, bias=False)
        columns = []
        with torch.no_grad():
            for weights in self.layer.weights.values():
                weights.zero_()
            for weights in self.layer.weights.values():
                for k in range(len(weights)):
                    weights[k] = 1
                    columns.append(self.layer.expand_parameters()[0].double().flatten())
                    weights[k] = 0
        self.basis = torch.stack(columns, dim=1)
        self.inverse = torch.linalg.pinv(self.basis)
        self.spans = {}

    def own(self, kept):
        return self.strict if kept.index == 1 else restrict(self.strict, kept.id)

    def plant(self, kept, seed):
        """Kernel of a random layer of the subgroup; the relaxed layer has it."""
        layer = self.own(kept)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            layer.weights.copy_(torch.randn(layer.weights.shape, generator=generator))
        kernel = layer.expand_parameters()[0].detach().double().flatten()
        weights = self.inverse @ kernel
        assert float((self.basis @ weights - kernel).norm() / kernel.norm()) < SAMPLED
        with torch.no_grad():
            for of, values in zip(
                self.layer.weights.values(), weights.split([len(w) for w in self.layer.weights.values()])
            ):
                of.copy_(values)
        return kernel

    def plant_apart(self, kept, seed, lattice):
        """A random kernel that is not, by chance, all but that of a larger group.

        Between vectors on 3x3 pixels D4 has one kernel more than D8: one random kernel of D4 in fifty holds less than
        1e-4 of its energy there, which counts as switched off. Which one depends on the signs of escnn's basis.
        """
        for again in range(20):
            kernel = self.plant(kept, seed + 1000 * again)
            gaps = [self.outside(kernel, larger) for larger in lattice if kept < larger]
            if not any(SAMPLED < gap <= OUTSIDE for gap in gaps):
                return kernel
        raise AssertionError(f"no kernel of {kept.name} is clearly its own")

    def outside(self, kernel, kept):
        """How much of a kernel escnn's own layer of a subgroup cannot have (fraction of the norm)."""
        if kept.id not in self.spans:
            layer, columns = self.own(kept), []
            with torch.no_grad():
                for k in range(len(layer.weights)):
                    layer.weights.copy_(torch.eye(len(layer.weights))[k])
                    layer.train()
                    columns.append(layer.expand_parameters()[0].double().flatten())
            basis, sizes, _ = torch.linalg.svd(torch.stack(columns, dim=1), full_matrices=False)
            self.spans[kept.id] = basis[:, sizes > 1e-4 * sizes[0]]
        basis = self.spans[kept.id]
        return float((kernel - basis @ (basis.T @ kernel)).norm() / kernel.norm())


def confusion(name, kind, size):
    """Pairs (planted, found) of all subgroups of a finite group, each confirmed by escnn's own layers."""
    planted, pairs = Planted(name, kind, size), []
    lattice = list(subgroups(planted.space))
    for seed, kept in enumerate(each(lattice)):
        kernel = planted.plant_apart(kept, seed, lattice)
        symmetry = KernelSymmetry(planted.layer)
        found = stabiliser([symmetry])
        assert found.remainder < SAMPLED and not found.candidates
        assert planted.outside(kernel, found.subgroup) < SAMPLED, "escnn's own layer of what was found has the kernel"
        for larger in each(lattice):
            if found.subgroup < larger:
                assert planted.outside(kernel, larger) > OUTSIDE, "and that of no larger group"
        pairs.append((kept, found.subgroup))
        if found.subgroup != kept:
            assert kept < found.subgroup and symmetry.alike(kept, found.subgroup), (kept.name, found.subgroup.name)
    return pairs


QUICK = [("C6", "vectors", 3), ("C12", "vectors", 3), ("D3", "regular", 3), ("D4", "scalars", 5)]
GROUPS = ["C4", "C6", "C8", "C12", "D3", "D4", "D6", "D8"]
ALL = [(name, kind, size) for name in GROUPS for kind in ("scalars", "vectors", "regular") for size in (3, 5, 7)]


@pytest.mark.parametrize(
    ("name", "kind", "size"), QUICK + [pytest.param(*case, marks=slow) for case in ALL if case not in QUICK]
)
def test_every_subgroup_planted_in_a_kernel_is_found(name, kind, size):
    """The subgroup itself, or the larger one whose kernels are the same on this layer, so that they are its kernels,
    too."""
    pairs = confusion(name, kind, size)
    assert len(pairs) == len(subgroups(space_of(name)))
    found = {kept.name: one.name for kept, one in pairs}
    if kind == "regular" or (name, kind) in (("C6", "vectors"), ("D6", "vectors"), ("D8", "vectors")):
        assert all(one == kept for kept, one in found.items()), found


def test_a_kernel_that_is_all_but_a_larger_groups_is_read_as_that():
    """Of D4 with a share of 3e-5 outside of D8; a share of 3e-4 is D4's."""
    planted = Planted("D8", "vectors", 3)
    smaller, larger = subgroup(planted.space, (0, 4)), subgroup(planted.space, (0, 8))
    planted.plant(smaller, 0)
    symmetry = KernelSymmetry(planted.layer)
    assert sum(len(symmetry.fixed(p, smaller)) - len(symmetry.fixed(p, larger)) for p in symmetry.pairs) == 1
    inside = symmetry.projected_weights(larger)
    beyond = {name: weights.detach() - inside[name] for name, weights in planted.layer.weights.items()}
    for share, found in ((3e-5, larger), (3e-4, smaller)):
        ratio = (share / (1 - share) * (1 - symmetry.remainder(larger)) / symmetry.remainder(larger)) ** 0.5
        with torch.no_grad():
            for name, weights in planted.layer.weights.items():
                weights.copy_(inside[name] + ratio * beyond[name])
        survivor = stabiliser([KernelSymmetry(planted.layer)])
        assert survivor.subgroup == found
        assert survivor.remainder == pytest.approx(share if found == larger else 0.0, rel=1e-2, abs=1e-9)


def test_grids_that_mix_irreps_hide_no_subgroup():
    """The kernels of C3 are not those of C6's irreps 0 and 3: a decision by whole irreps cannot see them."""
    planted = Planted("C6", "vectors", 3)
    planted.plant(subgroup(planted.space, 3), 0)
    energies = planted.layer.energies()
    assert energies["irrep_3"] > 0.01 and energies["irrep_1"] > 1e3 * SAMPLED, (
        "the grid puts a part of irrep 3 in irrep 1"
    )
    assert stabiliser([KernelSymmetry(planted.layer)]).subgroup.name == "C3"
    with torch.no_grad():
        planted.layer.weights["irrep_1"].zero_()  # what a decision by whole irreps would ask of C3
    assert stabiliser([KernelSymmetry(planted.layer)]).subgroup.name == "trivial"


CONTINUOUS = [(group, size) for group in ("SO2", "O2") for size in (3, 5, 7)]


@pytest.mark.parametrize(
    ("name", "size"), [pytest.param(n, s, marks=[] if (n, s) == ("SO2", 3) else slow) for n, s in CONTINUOUS]
)
def test_subgroups_of_continuous_groups_on_any_axis(name, size):
    planted = Planted(name, "frequencies", size)
    highest = KernelSymmetry(planted.layer).search().highest
    assert highest == {3: 5, 5: 5, 7: 6}[size], (
        "kernels of frequencies up to 2, 2 and 3 between fields of frequencies 1 and 2"
    )
    turns = [-1, *range(1, highest + 1)]
    generator = torch.Generator().manual_seed(size)
    axes = [2 * math.pi / m * float(torch.rand((), generator=generator)) for m in turns[1:]]
    ids = turns if name == "SO2" else [(None, m) for m in turns] + [(axis, m) for m, axis in zip(turns[1:], axes)]
    for seed, id in enumerate(each(ids)):
        kept = subgroup(planted.space, id)
        planted.plant(kept, seed)
        found = stabiliser([KernelSymmetry(planted.layer)]).subgroup
        assert (found.order, type(found.group)) == (kept.order, type(kept.group)), (kept.name, found.name)
        if name == "O2" and id[0] is not None:
            assert math.remainder(found.id[0] - id[0], 2 * math.pi / id[1]) == pytest.approx(0, abs=1e-3)
    # with more turns than the kernels have frequencies nobody can tell them from all turns
    more = subgroup(planted.space, highest + 1 if name == "SO2" else (None, highest + 1))
    planted.plant(more, 0)
    symmetry = KernelSymmetry(planted.layer)
    found = stabiliser([symmetry]).subgroup
    assert found.order == -1 and symmetry.alike(more, found)


class Fields(torch.nn.Module):
    """A relaxed layer between plain tensors."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(self.layer.in_type(x)).tensor


def learned(name, id, seed, size, samples, noise, gates=False):
    """A scalar and a vector field on a torus, filtered: a tenth of the filter's energy has exactly the subgroup's
    symmetry."""
    torch.manual_seed(seed)
    space = space_of(name)
    both = enn.FieldType(space, [space.trivial_repr, vector(space)])
    strict = enn.R2Conv(both, both, size, padding=size // 2, padding_mode="circular", bias=False)
    below = restrict(strict, id)
    with torch.no_grad():
        kernel = strict.expand_parameters()[0]
        below.weights.normal_()
        other = below.expand_parameters()[0]
        other = other - project(below, like=strict).expand_parameters()[0]
        kernel = 0.9**0.5 * kernel / kernel.norm() + 0.1**0.5 * other / other.norm()
        x = torch.randn(samples, both.size, 7, 7)
        padded = torch.nn.functional.pad(x, 4 * (size // 2,), "circular")
        y = torch.nn.functional.conv2d(padded, 2 * kernel)
        y = y + noise * torch.randn_like(y)
    model = Fields(RelaxedR2Conv(both, both, size, padding=size // 2, padding_mode="circular"))
    torch.manual_seed(seed)
    loader = DataLoader(TensorDataset(x, y), 20, shuffle=True, generator=torch.Generator().manual_seed(seed))
    options = {
        "epochs": 50,
        "lr": 2e-2,
        "burn_in": 5,
        "refresh_every": 3,
        "curvature": CurvatureSettings(samples=8),
        "gates": gates,
    }
    history = fit(model, loader, likelihood="gaussian", progress=False, **options)
    return model, history.evidence, subgroup(space, id)


#: Of each the subgroup's id, seed, kernel size, samples and noise.
HIDDEN = [("C6", 3, 2, 3, 20, 0.3), ("C6", 3, 0, 5, 80, 1.0), ("D6", (2, 2), 2, 3, 20, 0.3)]


@pytest.mark.parametrize(("name", "id", "seed", "size", "samples", "noise"), HIDDEN)
def test_subgroups_that_whole_irreps_hide_are_learned_from_data(name, id, seed, size, samples, noise):
    model, evidence, planted = learned(name, id, seed, size, samples, noise)
    found = survivors(model, evidence).network
    assert found.subgroup == planted and not found.candidates
    assert found.margin > 100 and found.margin == min(found.costs.values()) and found.gain > 0
    # the broken twin
    other, margin = by_whole_irreps(KernelSymmetry(model.layer, "layer"), evidence)
    assert other < planted and margin < 20
    if (name, size) != ("C6", 5):
        assert margin < 0, "its own evidence contradicts it"


LEARNED = {"C6": (1, 2, 3), "D4": tuple(h.id for h in subgroups(space_of("D4")) if h.index > 1)}
LEARNED["O2"] = ((None, -1), (None, 2), (None, 3), (0.7, 1), (1.1, 2), (0.5, 3))


@pytest.mark.parametrize(("name", "id"), [pytest.param(n, id, marks=slow) for n, ids in LEARNED.items() for id in ids])
def test_subgroups_are_learned_from_data(name, id):
    model, evidence, planted = learned(name, id, 1, 3, 80, 0.3)
    found = survivors(model, evidence).network
    assert found.margin > 100 and not found.candidates
    assert (found.subgroup.order, type(found.subgroup.group)) == (planted.order, type(planted.group))
    if name != "O2":
        assert found.subgroup == planted
    elif id[0] is not None:  # the axis is learned, too: half of this angle
        assert math.remainder(found.subgroup.id[0] - id[0], 2 * math.pi / id[1]) == pytest.approx(0, abs=0.02)


def test_what_no_test_has_cleared_is_open():
    """The fields that this network answers with turn with its inputs, so no randomisation test applies to it: were its
    pathways closed for that, the answer would be C6."""
    model, evidence, planted = learned("C6", 3, 0, 3, 20, 0.3, gates=True)
    assert not model.layer.closed
    assert survivors(model, evidence).network.subgroup == planted
    model.layer.close("irrep_1", "irrep_2", "irrep_3")
    assert survivors(model).network.subgroup.name == "C6"
