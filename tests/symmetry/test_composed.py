"""Kernels solved, kept and multiplied by pairs of irreps are those that all representations at once give."""

import copy

import pytest
import torch
from escnn import gspaces, nn
from escnn.nn import FieldType
from fields import ROUNDING, SAMPLING, distance, kernels_of, outside, randomise, same_spans, space
from nonempty import each
from tolerances import accumulated

from escnn_relax.nn import MixedR2Conv, MixedR3Conv, RelaxedR2Conv, RelaxedR3Conv
from escnn_relax.nn.kernels.block_products import BlockProducts, Blocks
from escnn_relax.nn.kernels.pair_sum import ComposedBasis
from escnn_relax.symmetry.kernels import kernel_cache, patterns, pathway_kernels
from escnn_relax.symmetry.kernels.sampling import Band
from escnn_relax.symmetry.kernels.irrep_pairs import BlockKernels
from escnn_relax.symmetry.kernels.plan import plan

#: Sums in single precision of what is sampled in single precision.
SINGLE = 1e-6 + accumulated(torch.float32, 128)


@pytest.fixture(autouse=True)
def empty(monkeypatch):
    """No kernels built before, in memory or on disk."""
    monkeypatch.setenv("ESCNN_RELAX_CACHE", "off")
    monkeypatch.setattr(kernel_cache, "_MEMORY", type(kernel_cache._MEMORY)())


def solved(monkeypatch, composed, gspace, in_repr, out_repr, equivariant=None, **how):
    """Kernels of each pathway between two representations, 3 x 3 (x 3), by pairs of irreps or at once."""
    monkeypatch.setattr(pathway_kernels, "BLOCK_THRESHOLD", 0 if composed else 10**12)
    monkeypatch.setattr(pathway_kernels, "SPATIAL_THRESHOLD", 10**12)
    kernel_cache.clear()
    kind = nn.R2Conv if gspace.dimensionality == 2 else nn.R3Conv
    conv = kind(FieldType(gspace, [in_repr]), FieldType(gspace, [out_repr]), 3, initialize=False, recompute=True)
    (kernels,) = [b for name, b in conv.named_buffers() if name.endswith("sampled_basis")]
    found = plan(gspace, **how).bases(
        Band.from_layer(conv), in_repr, out_repr, kernels if equivariant is None else equivariant(kernels)
    )
    assert all(isinstance(k, BlockKernels) == composed for name, k in found.items() if name != "equivariant")
    return {name: (k.dense() if isinstance(k, BlockKernels) else k).flatten(1) for name, k in found.items()}


def check_the_same_parts(monkeypatch, gspace, in_repr, out_repr, **how):
    at_once, apart = (solved(monkeypatch, composed, gspace, in_repr, out_repr, **how) for composed in (False, True))
    residual = same_spans(apart, at_once)
    own = apart["equivariant"]
    assert (own @ residual.T).abs().max() < 1e-6 * own.norm(dim=1).max()  # two samplings in single precision


@pytest.mark.parametrize(
    "name, how",
    [
        ("C4", {}),
        ("D4", {}),
        ("C3", {}),
        ("D4", {"subgroups": [(None, 4), (0, 2), (None, 1)]}),
        ("C4", {"basis": "pixel"}),
        ("C3", {"basis": "pixel"}),
    ],
)
def test_the_same_parts(monkeypatch, name, how):
    regular = space(name).regular_repr
    for in_repr, out_repr in (
        (regular, regular),
        (space(name).irreps[-1], regular),
        (regular, space(name).trivial_repr),
    ):
        check_the_same_parts(monkeypatch, space(name), in_repr, out_repr, **how)


def test_the_same_parts_in_space(monkeypatch):
    gspace = gspaces.octaOnR3()
    check_the_same_parts(monkeypatch, gspace, gspace.quotient_repr((False, 4)), gspace.quotient_repr((False, 4)))


def test_other_equivariant_kernels_are_not_taken_for_escnns(monkeypatch):
    """The twin: kernels that are not made of those between irreps are split at once, and orthogonally."""
    regular = space("C4").regular_repr
    turned = lambda kernels: kernels.roll(1, 3)  # by a pixel: still as many, no longer equivariant
    with pytest.raises(AssertionError):
        solved(monkeypatch, True, space("C4"), regular, regular, turned)


def test_patterns_give_the_kernels_that_escnn_samples():
    gspace = gspaces.octaOnR3()
    field = gspace.quotient_repr((False, 4))
    band = Band.from_layer(nn.R3Conv(*2 * [FieldType(gspace, [field])], 3, initialize=False))
    found = patterns.band_patterns(band, gspace)
    pairs = [(field, gspace.irrep(1)), (gspace.irrep(1), gspace.irrep(1).tensor(gspace.irrep(1)))]
    for in_repr, out_repr in pairs:
        mine = (found.sample(gspace, in_repr, out_repr) @ found.pictures).flatten(1)
        escnns = band.sample(gspace, in_repr, out_repr).flatten(1)
        assert mine.shape == escnns.shape and len(mine)
        assert outside(mine, escnns) < SAMPLING and outside(escnns, mine) < SAMPLING
    assert len(found.pictures) < found.pictures.shape[1] / 2
    assert patterns.band_patterns(band, gspace) is found


def test_patterns_of_another_axis_are_others():
    """The twin: what one band and one group remember is not given to another embedding of the group."""
    spaces = [gspaces.rot2dOnR3(4), gspaces.octaOnR3()]
    found = []
    for gspace in spaces:
        scalar = FieldType(gspace, [gspace.trivial_repr])
        found.append(patterns.band_patterns(Band.from_layer(nn.R3Conv(scalar, scalar, 3, initialize=False)), gspace))
    assert found[0] is not found[1]


# --- the layer --------------------------------------------------------------------------------------------------------


def both(monkeypatch, make):
    """A layer whose kernels are composed, and the same one with dense kernels."""
    monkeypatch.setattr(pathway_kernels, "BLOCK_THRESHOLD", 0)
    composed = make()
    monkeypatch.setattr(pathway_kernels, "BLOCK_THRESHOLD", 10**12)
    monkeypatch.setattr(pathway_kernels, "SPATIAL_THRESHOLD", 10**12)
    return composed, make()


def fields(name):
    """Two field types with fields of several kinds, in no order."""
    s = space(name)
    return FieldType(s, [s.regular_repr, s.trivial_repr, s.regular_repr]), FieldType(s, [s.irreps[-1], s.regular_repr])


@pytest.mark.parametrize("name", ["C4", "D4"])
def test_layers_have_the_same_kernels(monkeypatch, name):
    composed, dense = both(monkeypatch, lambda: RelaxedR2Conv(*fields(name), 3))
    assert any(isinstance(m, ComposedBasis) for m in composed.modules())
    assert not any(isinstance(m, ComposedBasis) for m in dense.modules())
    dense.weights.equivariant.data = composed.weights.equivariant.data.clone()
    assert distance(composed.expand_parameters()[0], dense.expand_parameters()[0]) < SINGLE
    mine, theirs = kernels_of(composed), kernels_of(dense)
    assert list(mine) == list(theirs)
    for pathway, rows in each(mine.items()):
        assert outside(rows, theirs[pathway]) < SAMPLING, pathway


def test_expansion_rows_and_gradients(monkeypatch):
    layer, _ = both(monkeypatch, lambda: RelaxedR2Conv(*fields("D4"), 3).double())
    randomise(layer)
    names = [p.name for p in layer.pathways]
    for some in (names, names[1:], names[::2], names[-1:], names[:1]):
        kernel = layer.kernel({n: layer.weights[n] for n in some})
        expected = torch.zeros_like(kernel)
        for n in some:
            for b in layer.kernel.blocks[n]:
                w = layer.weights[n][b.start : b.stop].view(b.outputs, b.inputs, -1)
                outs, ins = layer.kernel.out_fields[b.out_name].channels, layer.kernel.in_fields[b.in_name].channels
                values = torch.einsum("OIk,kois->OoIis", w, layer.kernel.basis(b))
                expected[outs[:, :, None, None], ins] += values
        assert distance(kernel, expected) < ROUNDING
        (gradient,) = torch.autograd.grad(kernel.square().sum(), layer.weights[some[-1]])
        (wanted,) = torch.autograd.grad(expected.square().sum(), layer.weights[some[-1]])
        assert distance(gradient, wanted) < ROUNDING


def test_copies_and_checkpoints(monkeypatch):
    layer, _ = both(monkeypatch, lambda: RelaxedR2Conv(*fields("C4"), 3))
    randomise(layer)
    other, _ = both(monkeypatch, lambda: RelaxedR2Conv(*fields("C4"), 3))
    assert not torch.equal(other.expand_parameters()[0], layer.expand_parameters()[0])
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.expand_parameters()[0], layer.expand_parameters()[0])
    assert torch.equal(copy.deepcopy(layer).expand_parameters()[0], layer.expand_parameters()[0])


def test_products_of_blocks_are_those_of_the_matrix():
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.randperm(13, generator=generator), torch.randperm(20, generator=generator)
    matrices = [
        torch.randn(size, generator=generator, dtype=torch.float64) for size in ((2, 3), (2, 3), (1, 2), (4, 3))
    ]
    blocks, row, column, whole = [], 0, 0, torch.zeros(13, 20, dtype=torch.float64)
    for matrix, copies in zip(matrices, (2, 2, 1, 1)):
        taken = rows[row : row + copies * len(matrix)].view(copies, -1)
        placed = columns[column : column + copies * matrix.shape[1]].view(copies, -1)
        row, column = row + taken.numel(), column + placed.numel()
        for r, c in zip(taken, placed):
            whole[r[:, None], c] = matrix
        blocks.append(Blocks(taken, matrix, placed))
    assert row == 13 and column < 20  # all rows, and columns that stay zero
    found = BlockProducts(blocks, 20)
    assert [g.members for g in found.groups] == [2, 1, 1]
    assert torch.equal(found.dense(), whole)
    x = torch.randn(3, 13, generator=generator, dtype=torch.float64)
    assert distance(found(x), x @ whole) < ROUNDING


# --- mixtures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, ids", [("C4", [2, 1]), ("D4", [(None, 4), (0, 2), (0, 1), (None, 1)]), ("C8", [4, 1])])
def test_mixtures_have_the_same_groups(monkeypatch, name, ids):
    s = space(name)
    types = FieldType(s, [s.regular_repr, s.irreps[-1]]), FieldType(s, [s.regular_repr])
    strict = nn.R2Conv(*types, 3)
    composed, dense = both(monkeypatch, lambda: MixedR2Conv.from_strict(strict, subgroups=ids))
    assert any(isinstance(m, ComposedBasis) for m in composed.modules())
    assert list(composed.weights) == list(dense.weights) and composed.kernel.dimensions == dense.kernel.dimensions
    assert distance(composed.expand_parameters()[0], strict.expand_parameters()[0]) < SINGLE
    for n in each(composed.weights):
        assert len(composed.kernel.combinations[n]) == 2  # one for each representation of the input
        for pair in composed.kernel.combinations[n]:
            mine, theirs = (layer.kernel.filters(n, pair).detach().flatten(1).double() for layer in (composed, dense))
            assert outside(mine, theirs) < SAMPLING, (n, pair)
            if n != "equivariant":
                assert (mine @ mine.T - torch.eye(len(mine))).abs().max() < SINGLE
    randomise(composed)
    plain = [composed.kernel.plain({n: composed.weights[n]}) for n in composed.kernel.pathways]
    total = sum(share * kernel for share, kernel in zip(composed.kernel.shares, plain))
    assert distance(composed.kernel(dict(composed.weights.items())), total) < SINGLE


def test_combinations_are_kept_as_blocks(monkeypatch):
    """Of the irreps of which a subgroup keeps some of the vectors only."""
    s = space("D4")
    field = FieldType(s, [s.regular_repr])
    layer, _ = both(monkeypatch, lambda: MixedR2Conv(field, field, 3, subgroups=[(0, 1), (None, 1)]))
    tables = list(layer.kernel.block_tables.values())
    assert tables and all(isinstance(table, BlockProducts) for table in tables)
    assert layer.without("trivial").shares and layer.nearest("trivial").shares


# --- at full size -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_regular_octahedral_fields():
    """Few numbers, as many kernels as the trivial group has, and the same bits as the exported layer."""
    s = gspaces.octaOnR3()
    field = FieldType(s, [s.regular_repr])
    strict = nn.R3Conv(field, field, 3, padding=1)
    layer = RelaxedR3Conv.from_strict(strict)
    assert torch.equal(layer.expand_parameters()[0], strict.expand_parameters()[0])
    assert sum(layer.kernel.dimensions.values()) == 24 * 24 * 10
    own = layer.kernel.bases["0"].numel()
    assert sum(b.numel() for b in layer.kernel.buffers()) < own + 10**5
    randomise(layer)
    x = torch.randn(2, 24, 5, 5, 5)
    with torch.no_grad():
        assert layer.expand_parameters()[0].is_contiguous()
        assert torch.equal(layer(field(x)).tensor, layer.export()(x))
    mixed = MixedR3Conv.from_strict(strict, subgroups=[(True, 4), (False, 4), (False, 1)])
    assert distance(mixed.expand_parameters()[0], strict.expand_parameters()[0]) < SINGLE
    assert sum(b.numel() for b in mixed.kernel.buffers()) < 10**6
    assert list(mixed.kernel.dimensions.values()) == [240, 720, 1440, 5760]
