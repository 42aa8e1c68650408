"""What a layer cannot tell apart, and what would: counts of kernels against escnn's own solver."""

import pytest
from escnn import gspaces
from escnn import nn as enn
from nonempty import each

from escnn_relax import _escnn, relax, restrict, survivors
from escnn_relax.nn import RelaxedR2Conv
from escnn_relax.nn.measured.resolution import alike
from escnn_relax.nn.measured.kernel_symmetry import KernelSymmetry
from escnn_relax.symmetry.groups.restriction import restriction
from escnn_relax.symmetry.groups.subgroup import subgroup
from escnn_relax.symmetry.groups.lattice import subgroups
from escnn_relax.symmetry.kernels.distinguishing_frequency import kernel_count, telling_frequency, telling_size


def solved(kept, in_repr, out_repr, highest):
    """Kernels of each angular frequency on one ring, as escnn solves for them."""
    change = restriction(kept)
    with _escnn.single_precision():
        basis = change.gspace.build_kernel_basis(
            change.representation(in_repr), change.representation(out_repr), [0.6], [1.0], maximum_frequency=highest
        )
    found = [abs(element["irrep:frequency"]) for element in basis]
    return [found.count(f) for f in range(highest + 1)]


def planar_cases():
    space = gspaces.flipRot2dOnR2(6)
    wide = gspaces.flipRot2dOnR2(-1, maximum_frequency=6)
    ids = [(None, 1), (None, 3), (1, 2), (2, 1), (0, 6)]
    yield from ((space, id, space.irrep(1, 1), space.regular_repr) for id in ids)
    yield from ((wide, id, wide.irrep(1, 1), wide.irrep(1, 2)) for id in [(None, 3), (0.4, 2), (None, -1), (0.0, -1)])


def test_counts_are_those_of_the_solver():
    cases = list(planar_cases())
    space = gspaces.octaOnR3()
    cases += [(space, id, space.trivial_repr, space.irrep(1)) for id in [(False, 1), (False, 3), (False, 4), "octa"]]
    assert len(cases) == 13
    for space, id, one, other in cases:
        kept = subgroup(space, id)
        highest = 6 if space.dimensionality == 2 else 3
        counted = [kernel_count(kept, one, other, f) for f in range(highest + 1)]
        assert counted == solved(kept, one, other, highest), (kept.name, counted)


def test_a_layer_says_what_it_cannot_tell_and_what_would():
    space = gspaces.rot2dOnR2(6)
    scalar = enn.FieldType(space, [space.trivial_repr])
    small, large = (relax(enn.SequentialModule(enn.R2Conv(scalar, scalar, size))) for size in (5, 7))
    found = survivors(small)
    assert [(a.subgroup.name, a.frequency, a.kernel_size) for a in found.network.alike] == [("C3", 3, 7)]
    assert (
        "0: cannot tell C6 from C3, whose kernels are the same here; those of frequency 3 differ (kernel_size=7)"
        in str(found)
    )
    assert not survivors(large).network.alike and "cannot tell" not in str(survivors(large))
    # it is true of every kernel: those of C3 on these pixels are those of C6
    below = restrict(enn.R2Conv(scalar, scalar, 5, bias=False), 3)
    assert below.weights.shape == enn.R2Conv(scalar, scalar, 5, bias=False).weights.shape
    assert restrict(enn.R2Conv(scalar, scalar, 7, bias=False), 3).weights.shape[0] > below.weights.shape[0] + 1


def test_pathways_that_were_left_out_are_not_a_matter_of_size():
    space = gspaces.flipRot2dOnR2(-1, maximum_frequency=4)
    scalar, vector = enn.FieldType(space, [space.trivial_repr]), enn.FieldType(space, [space.irrep(1, 1)])
    layer = RelaxedR2Conv(scalar, vector, 5, frequencies=1)
    symmetry = KernelSymmetry(layer)
    whole = subgroup(space, (0.0, -1))
    found = {one.subgroup.name: one for one in alike([symmetry], whole, symmetry.search())}
    assert found["D2_0deg"].frequency == 1 and found["D2_0deg"].kernel_size is None
    assert "for which the layer has no pathways" in found["D2_0deg"].describe(whole)


@pytest.mark.parametrize("name", ["C8", "D4"])
def test_alike_subgroups_are_all_that_have_the_same_kernels(name):
    space = gspaces.rot2dOnR2(8) if name == "C8" else gspaces.flipRot2dOnR2(4)
    scalar = enn.FieldType(space, [space.trivial_repr])
    symmetry = KernelSymmetry(RelaxedR2Conv(scalar, scalar, 3))
    lattice = list(subgroups(space))
    pair = [(space.trivial_repr, space.trivial_repr)]
    told = []
    for kept in each(lattice):
        largest = {one.subgroup.name for one in alike([symmetry], kept, symmetry.search())}
        below = [h for h in lattice if h < kept]
        same = [
            h for h in below if all(kernel_count(h, *pair[0], f) == kernel_count(kept, *pair[0], f) for f in range(3))
        ]
        assert largest == {h.name for h in same if not any(h < other for other in below)}
        told += [telling_frequency(h, kept, pair) for h in same]
    for frequency in each(told):
        assert frequency is None or frequency > symmetry.layer.band.highest


def test_sizes_have_the_frequency_and_no_smaller_one_does():
    for frequency in (1, 3, 4, 6):
        size = telling_size(2, frequency)
        assert _escnn.default_highest(2, size) >= frequency > _escnn.default_highest(2, size - 2)
    space = gspaces.trivialOnR2()
    one = enn.FieldType(space, [space.trivial_repr])
    kernel = enn.R2Conv(one, one, telling_size(2, 4), initialize=False)
    kept = {
        abs(e["irrep:frequency"]) for _, b in _escnn.block_modules(kernel.basisexpansion) for e in b.get_basis_info()
    }
    assert max(kept) == _escnn.default_highest(2, 9) and 4 in kept
    space = gspaces.no_base_space(space.fibergroup)
    assert telling_frequency(subgroup(space, 1), subgroup(space, 1), [(space.trivial_repr, space.trivial_repr)]) is None
