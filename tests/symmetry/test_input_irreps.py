"""Splitting kernels one input irrep at a time gives the parts that splitting them all at once gives."""

import pytest
import torch
from escnn import gspaces, nn
from fields import outside, same_spans, space

from escnn_relax.symmetry.kernels import input_irreps, kernel_cache, pathway_kernels
from escnn_relax.symmetry.kernels.plan import plan
from escnn_relax.symmetry.kernels.sampling import Band
from escnn_relax.symmetry.kernels.input_irreps import Splitting
from escnn_relax.symmetry.kernels.linear_algebra import orthonormal_sections

#: Single precision samples in the two ways of splitting; exact within one.
SAMPLING, ROUNDING = 1e-5, 1e-10


def parts(monkeypatch, above, gspace, in_repr, out_repr, basis="band-limited", size=3):
    monkeypatch.setattr(input_irreps, "SECTION_THRESHOLD", above)
    for name in ("BLOCK_THRESHOLD", "SPATIAL_THRESHOLD"):
        monkeypatch.setattr(pathway_kernels, name, 10**12)
    kernel_cache.clear()
    kind = nn.R2Conv if gspace.dimensionality == 2 else nn.R3Conv
    conv = kind(
        nn.FieldType(gspace, [in_repr]), nn.FieldType(gspace, [out_repr]), size, initialize=False, recompute=True
    )
    (kernels,) = [b for name, b in conv.named_buffers() if name.endswith("sampled_basis")]
    found = plan(gspace, basis=basis).bases(Band.from_layer(conv), in_repr, out_repr, kernels)
    return {name: rows.flatten(1) for name, rows in found.items()}


@pytest.mark.parametrize(
    "name, basis", [("C4", "band-limited"), ("D4", "band-limited"), ("C4", "pixel"), ("C3", "pixel")]
)
def test_the_same_parts(monkeypatch, name, basis):
    gspace = space(name)
    regular = gspace.regular_repr
    for in_repr in (regular, gspace.irreps[-1]):
        at_once = parts(monkeypatch, 10**9, gspace, in_repr, regular, basis)
        apart = parts(monkeypatch, 0, gspace, in_repr, regular, basis)
        residual = same_spans(apart, at_once)
        assert (apart["equivariant"] @ residual.T).abs().max() < ROUNDING


def test_octahedral_fields(monkeypatch):
    gspace = gspaces.octaOnR3()
    field = gspace.quotient_repr((False, 4))
    at_once, apart = (parts(monkeypatch, above, gspace, field, field) for above in (10**9, 0))
    assert all(outside(apart[name], at_once[name]) < SAMPLING for name in apart if len(apart[name]))
    assert {n: len(r) for n, r in apart.items()} == {n: len(r) for n, r in at_once.items()}


def test_small_kernels_are_split_at_once():
    regular = space("C4").regular_repr
    assert Splitting(torch.zeros(0, 4, 4, 9, dtype=torch.float64), regular)._change is None


def test_rows_across_sections_join_them():
    """The broken twin: taking every section by itself would tear a row that lives on two of them."""
    rows = torch.tensor([[1.0, 0, 1, 0], [0, 0, 1, 1], [0, 1, 0, 0]], dtype=torch.float64)
    basis = orthonormal_sections(rows, [slice(0, 1), slice(1, 2), slice(2, 4)], reference=rows[:0])
    assert len(basis) == 3 and outside(rows, basis) < ROUNDING
    assert (basis @ basis.T - torch.eye(3)).abs().max() < ROUNDING
    torn = orthonormal_sections(rows[1:2], [slice(0, 2), slice(2, 3), slice(3, 4)], reference=rows[:0])
    assert len(torn) == 1
