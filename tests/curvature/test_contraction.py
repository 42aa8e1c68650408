"""Pulling second moments back through a basis, against the sum over all components written out."""

from dataclasses import replace

import pytest
import torch
from escnn import gspaces
from escnn import nn as enn
from nonempty import each

from escnn_relax.curvature.sums import contraction
from escnn_relax.curvature.sums.contraction import contract
from escnn_relax.curvature.layers.known_layers import linear_map
from escnn_relax.nn import RelaxedLinear, RelaxedR2Conv, RelaxedR3Conv
from tolerances import accumulated

#: Kernels that the float32 layer leaves out along an axis are smaller than this share of their norm.
LEFT_OUT = 1e-6 + accumulated(torch.float32, 128)
EXACT = 1e-12


def planar(space):
    mixed = enn.FieldType(
        space, [space.regular_repr, space.trivial_repr, space.regular_repr, space.irrep(*space.irreps[-1].id)]
    )
    return RelaxedR2Conv(mixed, mixed, 3, bias=False)


def solid(space):
    mixed = enn.FieldType(space, [space.irrep(1), space.trivial_repr, space.irrep(1), space.irrep(2)])
    return RelaxedR3Conv(mixed, mixed, 3, bias=False)


def linear(space):
    mixed = enn.FieldType(space, [space.regular_repr, space.trivial_repr, space.regular_repr])
    return RelaxedLinear(mixed, mixed, bias=False)


CASES = [
    (planar, gspaces.rot2dOnR2(8)),
    (planar, gspaces.flipRot2dOnR2(4)),
    (solid, gspaces.octaOnR3()),
    (linear, gspaces.no_base_space(gspaces.flipRot2dOnR2(3).fibergroup)),
]


def written_out(moments, block, average):
    """Rows of the block as vectors over patch components, one set for each output component; their mean second
    moment."""
    members = block.channels.shape[1]
    rows = []
    for piece in block.pieces:
        count, _, size, sites = piece.basis.shape
        for field in piece.channels:
            vectors = torch.zeros(members, count, len(moments), dtype=moments.dtype)
            for j, channel in enumerate(field.tolist()):
                vectors[:, :, channel * sites : (channel + 1) * sites] = (
                    piece.basis[:, :, j].transpose(0, 1).to(moments)
                )
            rows.append(vectors)
    rows = torch.cat(rows, dim=1)  # (o, D, C S)
    rows = rows.mean(0, keepdim=True) if average else rows
    return torch.stack([r @ moments @ r.T for r in rows]).mean(0)


def blocks(make, space, dtype):
    torch.manual_seed(0)
    layer = make(space).to(dtype)
    size = layer.in_type.size * (layer.kernel.sites if hasattr(layer, "kernel_size") else 1)
    columns = torch.randn(size, 3 * size, dtype=torch.float64)
    moments = columns @ columns.T / len(columns)
    return [(moments, block) for block in linear_map(layer).blocks]


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("make", "space"), CASES, ids=lambda c: getattr(c, "name", getattr(c, "__name__", "")))
def test_equals_the_sum_over_components(make, space, dtype, average, monkeypatch):
    monkeypatch.setattr(contraction, "WORTHWHILE", 0)
    for moments, block in each(blocks(make, space, dtype)):
        expected = written_out(moments, block, average)
        error = (contract(moments, block, average) - expected).abs().max() / expected.abs().max()
        assert error < (EXACT if dtype == torch.float64 or average else LEFT_OUT), block.parameter


def test_axes_that_are_not_orthonormal_give_another_sum(monkeypatch):
    monkeypatch.setattr(contraction, "WORTHWHILE", 0)
    moments, block = blocks(planar, gspaces.rot2dOnR2(8), torch.float32)[0]
    wrong = replace(block, frame=block.frame * torch.linspace(0.9, 1.1, len(block.frame), dtype=torch.float64))
    expected = written_out(moments, block, False)
    assert (contract(moments, wrong, False) - expected).abs().max() > 1e3 * LEFT_OUT * expected.abs().max()


def test_sparse_kernels_are_left_out():
    """Else the axes would serve no purpose."""
    layer = RelaxedR2Conv(
        *2 * [enn.FieldType(gspaces.rot2dOnR2(8), 2 * [gspaces.rot2dOnR2(8).regular_repr])], 5, bias=False
    )
    block = linear_map(layer).blocks[1]
    size = layer.in_type.size * 25
    side = contraction._Side.prepare(block.pieces[0], torch.eye(size, dtype=torch.float64), 0, block.frame, False)
    assert side.alive.double().mean() < 0.5
