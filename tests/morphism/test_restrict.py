"""Convolutions on a subgroup: the same function, H-equivariant whatever the weights, for many pairs of groups."""

import pytest
import torch
from escnn import gspaces, nn
from hypothesis import given, settings
from hypothesis import strategies as st
from nonempty import each

from escnn_relax.morphism.restrict.network import restrict
from escnn_relax.symmetry.equivariance.model_error import equivariance_error, grid_elements, kernel_equivariance_error
from escnn_relax.symmetry.groups.restriction import restriction
from escnn_relax.symmetry.groups.lattice import subgroup

#: Relative L2 distance of outputs; float32 rounds at 6e-8, and sums over up to a thousand terms.
FLOAT32, FLOAT64 = 1e-5, 1e-10
#: escnn samples its own kernels in float32, so no escnn layer is more equivariant than this.
EQUIVARIANT = 2e-5

C8, C12, D4, D6, D8 = (
    gspaces.rot2dOnR2(8),
    gspaces.rot2dOnR2(12),
    gspaces.flipRot2dOnR2(4),
    gspaces.flipRot2dOnR2(6),
    gspaces.flipRot2dOnR2(8, axis=0.3),
)
SO2, O2 = gspaces.rot2dOnR2(-1, maximum_frequency=4), gspaces.flipRot2dOnR2(-1, maximum_frequency=4)
OCTA, SO3, O3 = gspaces.octaOnR3(), gspaces.rot3dOnR3(), gspaces.flipRot3dOnR3()
CYLINDER, CONE = gspaces.fullCylindricalOnR3(4), gspaces.conicalOnR3(4)

#: (G-space, ids of subgroups): planar
PLANAR = [
    *[(C8, id) for id in (4, 2, 1)],
    (C12, 3),
    *[(D4, id) for id in ((None, 4), (1, 2), (0, 1), (3, 1), (None, 1))],
    *[(D6, id) for id in ((None, 6), (1, 3), (5, 1))],
    (D8, (1, 4)),
    *[(SO2, id) for id in (8, 3, 1)],
    *[(O2, id) for id in ((None, -1), (0.0, 8), (1.1, 4), (2.0, 1), (None, 6))],
]
SPATIAL = [(OCTA, (False, 4)), (OCTA, (True, 4)), (CONE, (None, 4))]
SPATIAL_SLOW = [
    *[(OCTA, id) for id in ((False, 3), (True, 2))],
    *[(SO3, id) for id in ("octa", (False, -1), (True, -1), (True, 3))],
    *[(O3, id) for id in ("so3", (True, "octa"), ("cone", 4), (True, False, 1), (True, False, 4))],
    *[(CYLINDER, id) for id in ((2, (None, 2)), (1, (0, 2)), (2, (None, 1)))],
    (CONE, (1, 1)),
]


def fields(space, kind):
    """A field type of the given kind; continuous groups have irreps (mixed) only."""
    group = space.fibergroup
    irreps = [space.trivial_repr] + [r for r in list(group.irreps()) if not r.is_trivial()][:3]
    if group.order() < 0 or kind == "irreps":
        return nn.FieldType(space, [*irreps, irreps[1], irreps[0]])
    if kind == "regular":
        return nn.FieldType(space, [space.regular_repr])
    half = {8: 2, 12: 3}.get(group.order()) if group.name.startswith("C") else (None, 2)
    if kind == "quotient":
        return nn.FieldType(space, [space.quotient_repr(half)])
    if kind == "induced":
        inner, _, _ = group.subgroup(half)
        return nn.FieldType(space, [space.induced_repr(half, list(inner.irreps())[-1])])
    return nn.FieldType(space, [irreps[1], space.regular_repr, irreps[0], space.regular_repr, irreps[2]])


def layer(space, in_type, out_type, size, seed=0, **options):
    kind = {2: nn.R2Conv, 3: nn.R3Conv}[space.dimensionality]
    conv = kind(in_type, out_type, size, initialize=False, recompute=True, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in conv.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return conv


def distance(a, b):
    return ((a - b).norm() / a.norm()).item()


def outputs(conv, on_h, dtype, side):
    x = torch.randn(2, conv.in_type.size, *(side,) * conv.space.dimensionality).to(dtype)
    return conv(conv.in_type(x)).tensor, on_h(on_h.in_type(x)).tensor


def check(space, id, in_type, out_type, size, **options):
    conv = layer(space, in_type, out_type, size, **options)
    weights = conv.weights.detach().clone()
    side = size + 2 if space.dimensionality == 3 else size + 4
    on_h = restrict(conv, id)
    assert type(on_h) is type(conv)
    assert distance(*outputs(conv, on_h, torch.float32, side)) < FLOAT32
    assert distance(*outputs(conv.eval(), restrict(conv, id), torch.float32, side)) < FLOAT32
    assert torch.equal(conv.weights, weights)
    conv.double().train()
    on_h = restrict(conv, id)
    assert on_h.weights.dtype == torch.float64
    assert distance(*outputs(conv, on_h, torch.float64, side)) < FLOAT64
    assert distance(*outputs(conv.eval(), on_h.eval(), torch.float64, side)) < FLOAT64
    with torch.no_grad():
        for p in on_h.parameters():
            p.normal_()
    on_h.train()
    error = equivariance_error(on_h, size=side + (side + 1) % 2)
    assert not error.exact or error.max < EQUIVARIANT
    kernel = on_h.expand_parameters()[0]
    grid = grid_elements(on_h.in_type.gspace)
    if not options.get("groups"):
        assert kernel_equivariance_error(kernel, on_h.in_type, on_h.out_type, elements=grid).max < EQUIVARIANT
    return conv, on_h


#: Those that are quick enough for every run; the rest have the same properties and are tested with the slow ones.
PLANAR_QUICK = [
    p for p in PLANAR if p[1] in (4, 1, 3, 8, (None, 4), (1, 2), (3, 1), (5, 1), (0.0, 8), (2.0, 1), (None, -1))
]


@pytest.mark.parametrize("space, id", PLANAR_QUICK, ids=lambda v: str(v).split("[")[0])
def test_planar_pairs(space, id):
    kinds = (("irreps", 5), ("regular", 3)) if len(list(space.testing_elements)) <= 8 else (("irreps", 5),)
    for kind, size in each(kinds):
        check(space, id, fields(space, kind), fields(space, kind), size)


@pytest.mark.slow
@pytest.mark.parametrize("space, id", PLANAR, ids=lambda v: str(v).split("[")[0])
def test_planar_pairs_widely(space, id):
    for kind, size in (("irreps", 5), ("regular", 3)):
        check(space, id, fields(space, kind), fields(space, kind), size)


@pytest.mark.parametrize("space, id", SPATIAL, ids=lambda v: str(v).split("[")[0])
def test_spatial_pairs(space, id):
    check(space, id, fields(space, "irreps"), fields(space, "irreps"), 3)


@pytest.mark.slow
@pytest.mark.parametrize("id", [(0, 4), (None, 8), (7, 1)])
def test_sixteen_elements(id):
    for kind, size in (("irreps", 5), ("regular", 3)):
        check(D8, id, fields(D8, kind), fields(D8, kind), size)


@pytest.mark.slow
@pytest.mark.parametrize("space, id", SPATIAL_SLOW, ids=lambda v: str(v).split("[")[0])
def test_more_spatial_pairs(space, id):
    check(space, id, fields(space, "irreps"), fields(space, "irreps"), 3)


KINDS = ["regular", "irreps", "quotient", "induced", "mixed"]


@settings(max_examples=12)
@given(
    pair=st.sampled_from(PLANAR),
    kinds=st.tuples(st.sampled_from(KINDS), st.sampled_from(KINDS)),
    size=st.integers(1, 7),
    stride=st.sampled_from([1, 2]),
    mode=st.sampled_from(["zeros", "circular"]),
)
def test_any_fields_and_sizes(pair, kinds, size, stride, mode):
    space, id = pair
    try:
        layer(space, fields(space, kinds[0]), fields(space, kinds[1]), size)
    except ValueError:  # size 1 between unlike irreps: escnn has no kernel to restrict
        return
    options = {"padding": size // 2, "padding_mode": mode}
    check(space, id, fields(space, kinds[0]), fields(space, kinds[1]), size, **options)
    if stride == 2:
        conv = layer(space, fields(space, kinds[0]), fields(space, kinds[1]), size, stride=2, **options)
        assert distance(*outputs(conv, restrict(conv, id), torch.float32, 11)) < FLOAT32


@pytest.mark.slow
@settings(max_examples=80)
@given(
    pair=st.sampled_from(PLANAR),
    kinds=st.tuples(st.sampled_from(KINDS), st.sampled_from(KINDS)),
    size=st.integers(1, 7),
)
def test_any_fields_and_sizes_widely(pair, kinds, size):
    space, id = pair
    try:
        layer(space, fields(space, kinds[0]), fields(space, kinds[1]), size)
    except ValueError:
        return
    check(space, id, fields(space, kinds[0]), fields(space, kinds[1]), size)


@pytest.mark.slow
@pytest.mark.parametrize("id", [(False, 4), (False, 3), (True, 4), (True, 3)])
def test_octahedral_regular_fields(id):
    regular = fields(OCTA, "regular")
    check(OCTA, id, regular, regular, 3)


@pytest.mark.slow
@pytest.mark.parametrize("id", [(False, 5), (False, 3), (True, 5)])
def test_icosahedral_irreps(id):
    space = gspaces.icoOnR3()
    check(space, id, fields(space, "irreps"), fields(space, "irreps"), 3)


@pytest.mark.parametrize("dilation, groups, bias", [(2, 1, True), (1, 2, True), (1, 1, False)])
def test_options_are_kept(dilation, groups, bias):
    type = nn.FieldType(D4, 2 * [D4.regular_repr])
    _, on_h = check(D4, (1, 2), type, type, 3, dilation=dilation, groups=groups, bias=bias, padding=1)
    assert (on_h.dilation, on_h.groups, on_h.padding) == (dilation, groups, 1) and (on_h.bias is not None) == bias


def test_own_frequency_cutoff():
    """A larger cutoff, other rings and widths are copied from G's layer."""
    type = fields(C8, "mixed")
    check(C8, 4, type, type, 5, frequencies_cutoff=lambda r: 3 * r, rings=[0.0, 1.0, 1.7], sigma=[0.1, 0.4, 0.7])
    check(C8, 4, type, type, 5, basis_filter=lambda e: e["irrep:frequency"] != 1)


@pytest.mark.parametrize(
    "space, middle, last, direct",
    [
        (C8, 4, 2, 2),
        (D8, (1, 4), (None, 2), (None, 2)),
        (D4, (1, 2), (1, 1), (3, 1)),
        (OCTA, (True, 4), (None, 4), (False, 4)),
    ],
)
def test_chains_compose(space, middle, last, direct):
    conv = layer(space, fields(space, "irreps"), fields(space, "irreps"), 3).double()
    twice, once = restrict(restrict(conv, middle), last), restrict(conv, direct)
    x = torch.randn(2, conv.in_type.size, *(5,) * space.dimensionality, dtype=torch.float64)
    assert distance(conv(conv.in_type(x)).tensor, twice(twice.in_type(x)).tensor) < FLOAT64
    assert distance(once(once.in_type(x)).tensor, twice(twice.in_type(x)).tensor) < FLOAT64
    assert once.weights.shape == twice.weights.shape
    actions = [
        sorted(t.in_type.gspace.basespace_action(h).round(6).tolist() for h in t.in_type.fibergroup.elements)
        for t in (once, twice)
    ]
    assert all(abs(a - b) < 1e-5 for p, q in zip(*actions) for r, s in zip(p, q) for a, b in zip(r, s))


def test_broken_twins():
    """What a wrong axis, a wrong coset or another weight does must be seen by the checks above."""
    type = fields(D4, "mixed")
    conv = layer(D4, type, type, 3)
    right = restrict(conv, (1, 1))
    torch.nn.init.normal_(right.weights)
    kernel = right.expand_parameters()[0].detach()
    held = kernel_equivariance_error(kernel, type, type, elements=subgroup(D4, (1, 1)).elements).max
    wrong_axis = kernel_equivariance_error(kernel, type, type, elements=subgroup(D4, (0, 1)).elements).max
    wrong_coset = kernel_equivariance_error(kernel, type, type, elements=[D4.fibergroup.element((0, 1))]).max
    assert held < EQUIVARIANT < 0.1 < min(wrong_axis, wrong_coset)
    on_h = restrict(conv, (1, 1))
    other = restrict(conv, (0, 1))
    with torch.no_grad():
        on_h.weights[0] += 0.1 * on_h.weights.norm()
    assert distance(*outputs(conv, on_h, torch.float32, 7)) > 1e-3
    shuffled = restriction(subgroup(D4, (0, 1))).field_type(type)
    assert shuffled == other.in_type != on_h.in_type


def test_a_subgroup_layer_can_learn_what_the_group_forbids():
    type = nn.FieldType(C8, [C8.regular_repr])
    on_h = restrict(layer(C8, type, type, 5), 2)
    torch.nn.init.normal_(on_h.weights)
    assert on_h.weights.numel() == 4 * layer(C8, type, type, 5).weights.numel()
    kernel = on_h.expand_parameters()[0].detach()
    assert kernel_equivariance_error(kernel, type, type, elements=[C8.fibergroup.element(2)]).max > 0.1
