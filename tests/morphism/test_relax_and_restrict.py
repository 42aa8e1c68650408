"""Relaxing on H and restricting to H allow the same kernels: spans compared by rank, in float64."""

import pytest
import torch
from escnn import gspaces, group, nn
from fields import kernels_of, kernels_of_strict, rank

from escnn_relax.morphism.relax import relax
from escnn_relax.morphism.restrict.network import restrict

C4, C8, D4 = gspaces.rot2dOnR2(4), gspaces.rot2dOnR2(8), gspaces.flipRot2dOnR2(4)
OCTA = gspaces.octaOnR3()
FIBER = gspaces.no_base_space(group.dihedral_group(4))


def some(space, kind):
    irreps = [r for r in space.fibergroup.irreps() if not r.is_trivial()]
    if kind == "regular":
        return nn.FieldType(space, [space.regular_repr])
    if kind == "quotient":
        return nn.FieldType(space, [space.quotient_repr(2 if space in (C4, C8) else (None, 2))])
    first = [irreps[0]] if kind == "mixed" else []
    return nn.FieldType(space, [*first, space.trivial_repr, irreps[-1]])


def conv2d(space, kind, size=3):
    return nn.R2Conv(some(space, kind), some(space, kind), size, initialize=False, recompute=True)


def layer(kind, space, reads, writes, *size):
    return kind(some(space, reads), some(space, writes), *size, recompute=True)


CASES = {
    "C4, regular -> 2": (lambda: conv2d(C4, "regular", 5), 2),
    "C4, regular -> 1": (lambda: conv2d(C4, "regular"), 1),
    "C8, irreps -> 4": (lambda: conv2d(C8, "irreps", 5), 4),
    "C8, quotient -> 2": (lambda: conv2d(C8, "quotient"), 2),
    "D4, quotient -> C4": (lambda: conv2d(D4, "quotient"), (None, 4)),
    "D4, mixed -> D2": (lambda: conv2d(D4, "mixed", 5), (1, 2)),
    **{f"D4, irreps -> axis {k}": (lambda: conv2d(D4, "irreps"), (k, 1)) for k in range(4)},
    **{f"D4, quotient -> axis {k}": (lambda: conv2d(D4, "quotient"), (k, 1)) for k in range(4)},
    "D4, transposed -> axis 3": (lambda: layer(nn.R2ConvTransposed, D4, "mixed", "irreps", 3), (3, 1)),
    "D4, linear -> D2": (lambda: layer(nn.Linear, FIBER, "regular", "mixed"), (1, 2)),
    "D4, linear -> axis 1": (lambda: layer(nn.Linear, FIBER, "regular", "mixed"), (1, 1)),
    "octahedral, irreps -> D4": (lambda: layer(nn.R3Conv, OCTA, "mixed", "irreps", 3), (True, 4)),
    "octahedral, irreps -> C3": (lambda: layer(nn.R3Conv, OCTA, "irreps", "mixed", 3), (False, 3)),
}


def spans(conv, relaxed_on, restricted_to):
    """Kernels of the layer relaxed on one subgroup and of the layer restricted to another, one a row."""
    conv = conv.double()
    relaxed = torch.cat(list(kernels_of(relax(conv, subgroups=[relaxed_on])).values()))
    return relaxed, kernels_of_strict(restrict(conv, restricted_to))


@pytest.mark.parametrize("name", CASES)
def test_the_same_kernels(name):
    make, id = CASES[name]
    relaxed, restricted = spans(make(), id, id)
    # the relaxed layer's coordinates are not redundant; escnn's own on H may be, where kernels coincide on the grid
    assert rank(relaxed) == rank(restricted) == rank(torch.cat([relaxed, restricted])) == len(relaxed)


@pytest.mark.parametrize("axis, other", [(0, 2), (1, 3), (0, 1), (3, 2)])
def test_another_axis_is_another_space(axis, other):
    """The broken twin: spans of two reflections differ, though (conjugate axes) their dimensions may agree."""
    relaxed, restricted = spans(conv2d(D4, "quotient"), (axis, 1), (other, 1))
    assert rank(torch.cat([relaxed, restricted])) > max(rank(relaxed), rank(restricted))


def test_the_trivial_group_allows_more():
    relaxed, restricted = spans(conv2d(C4, "regular"), 1, 2)
    assert rank(torch.cat([relaxed, restricted])) == rank(relaxed) > rank(restricted)
