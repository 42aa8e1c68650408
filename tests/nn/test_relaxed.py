"""RelaxedR2Conv as a layer: the escnn layer it starts from, what its residual breaks, its state, its refusals."""

import copy

import pytest
import torch
from escnn import gspaces
from escnn.nn import FieldType, R2Conv
from fields import (
    ON_GRID,
    ROUNDING,
    SINGLE,
    distance,
    field_type,
    gap,
    geometries,
    image,
    kernels_of,
    layers,
    randomise,
    space,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from nonempty import each
from tolerances import autocast
from torch.nn import functional as F

from escnn_relax.errors import ArgumentError, EmptyBasisError, FieldTypeError, RelaxError, SubgroupError, naming
from escnn_relax.nn import RelaxedR2Conv

#: Bases are sampled in float32, so escnn's own layers are equivariant to this, relative to the output.
EQUIVARIANT = 1e-5
#: What a residual with coefficients of size 1 must break at the least.
BROKEN = 0.05


def fitting(geometry, size, pixels=9):
    """Whether the kernel fits in the padded image, and the padding in the image."""
    padding = geometry["padding"] if isinstance(geometry["padding"], tuple) else 2 * (geometry["padding"],)
    return all(pixels + 2 * p >= geometry["dilation"] * (size - 1) + 1 for p in padding)


# --- the same function as escnn's layer -------------------------------------------------------------------------------


@settings(max_examples=40)
@given(layers(), st.data())
def test_starts_as_the_escnn_layer(layer, data):
    in_type, out_type, size = layer
    geometry = data.draw(geometries(size))
    assume(fitting(geometry, size))
    strict = R2Conv(in_type, out_type, size, **geometry)
    if strict.bias is not None:
        torch.nn.init.normal_(strict.bias)
    x = image(in_type)
    relaxed = RelaxedR2Conv.from_strict(strict)
    assert distance(relaxed(x).tensor, strict(x).tensor) < SINGLE
    assert relaxed(x).type == strict(x).type == out_type
    assert relaxed.breaking_energy == 0


@settings(max_examples=20)
@given(layers(), st.data())
def test_starts_as_the_escnn_layer_in_float64(layer, data):
    in_type, out_type, size = layer
    geometry = data.draw(geometries(size))
    assume(fitting(geometry, size))
    # recompute: blocks of its own, which .double() may change
    strict = R2Conv(in_type, out_type, size, recompute=True, **geometry).double()
    relaxed = RelaxedR2Conv.from_strict(strict)
    assert {v.dtype for v in relaxed.state_dict().values()} == {torch.float64}
    x = image(in_type, dtype=torch.float64)
    assert distance(relaxed(x).tensor, strict(x).tensor) < ROUNDING
    # one turned coefficient is noticed
    with torch.no_grad():
        relaxed.weights["equivariant"][0] += 1e-6
    assert distance(relaxed(x).tensor, strict(x).tensor) > ROUNDING


@pytest.mark.parametrize("kind", ["regular", "interleaved"])
@pytest.mark.parametrize("groups", [1, 2])
def test_groups(groups, kind):
    in_type, out_type = field_type("C4", kind, 2), field_type("C4", "interleaved", 2)
    strict = R2Conv(in_type, out_type, 3, groups=groups, padding=1)
    relaxed = RelaxedR2Conv(in_type, out_type, 3, groups=groups, padding=1)
    relaxed.weights["equivariant"].data.copy_(strict.weights)
    x = image(in_type)
    assert distance(relaxed(x).tensor, strict(x).tensor) < SINGLE
    randomise(relaxed)
    kernel, bias = relaxed.expand_parameters()
    assert kernel.shape == (out_type.size, in_type.size // groups, 3, 3)
    per_group = [F.conv2d(a, b, padding=1) for a, b in zip(x.tensor.chunk(groups, 1), kernel.chunk(groups, 0))]
    assert distance(relaxed(x).tensor, torch.cat(per_group, 1) + bias[:, None, None]) < SINGLE


def test_constructed_like_escnns_layer():
    """By position, in escnn's order."""
    a, b = field_type("C4"), field_type("C4", "irreps")
    arguments = (5, (2, 1), 2, 1, "circular", 1, False, [0.005, 0.6, 0.4], 2.0, [0.0, 1.0, 2.0], None, True)
    strict, relaxed = R2Conv(a, b, *arguments), RelaxedR2Conv(a, b, *arguments)
    relaxed.weights["equivariant"].data.copy_(strict.weights)
    x = image(a)
    assert distance(relaxed(x).tensor, strict(x).tensor) < SINGLE
    assert relaxed.bias is None and relaxed.stride == 2 and relaxed.padding == (2, 1)


def test_double_default_is_no_obstacle():
    """escnn's own layers fail to be built under it, so escnn is given float32 while it builds."""
    torch.set_default_dtype(torch.float64)
    try:
        layer = RelaxedR2Conv(field_type("D2"), field_type("D2", "irreps"), 3)
        assert torch.get_default_dtype() == torch.float64
        assert layer(image(layer.in_type, dtype=torch.float64)).tensor.dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_precision_of_one_layer_is_its_own():
    first, second = (RelaxedR2Conv(field_type("C4"), field_type("C4"), 3) for _ in range(2))
    x, before = image(first.in_type), {k: v.clone() for k, v in second.state_dict().items()}
    expected = second(x).tensor
    first.double()
    randomise(first)
    assert torch.equal(second(x).tensor, expected)
    assert all(v.dtype == before[k].dtype for k, v in second.state_dict().items())
    third = RelaxedR2Conv(field_type("C4"), field_type("C4"), 3)
    assert third(x).tensor.dtype == torch.float32


def test_bases_of_a_float64_layer_are_not_rounded_to_float32():
    layer = RelaxedR2Conv.from_strict(R2Conv(field_type("C4"), field_type("C4"), 3, recompute=True).double())
    (pair,) = layer.kernel.pairs
    rows = torch.cat([layer.kernel.basis(layer.kernel.blocks[p.name][0]) for p in layer.pathways[1:]]).flatten(1)
    assert (rows @ rows.T - torch.eye(len(rows))).abs().max() < ROUNDING


def test_equivariant_basis_is_the_layers_own():
    """escnn's solutions carry signs that a checkpoint of another machine may have changed in place."""
    a = field_type("C4", "irreps")
    plain, changed = (R2Conv(a, a, 3, recompute=True, bias=False) for _ in range(2))
    with torch.no_grad():
        for name, buffer in changed.basisexpansion.named_buffers():
            if name.endswith("sampled_basis"):
                buffer.neg_()
    x = image(a)
    for strict in (plain, changed, plain):
        assert distance(RelaxedR2Conv.from_strict(strict)(x).tensor, strict(x).tensor) < SINGLE


def test_residual_is_orthogonal_to_the_layers_own_basis():
    """Whatever was computed before for other kernels of the same shape."""
    a = field_type("C4")
    for _ in range(2):
        strict = R2Conv(a, a, 3, recompute=True, bias=False)
        for name, buffer in strict.basisexpansion.named_buffers():
            if name.endswith("sampled_basis"):
                buffer.add_(0.1 * torch.randn_like(buffer))
        rows = kernels_of(RelaxedR2Conv.from_strict(strict))
        assert all((rows[p] @ rows["equivariant"].T).abs().max() < 1e-5 for p in ("irrep_1", "irrep_2"))


def test_frozen_weights_stay_frozen():
    strict = R2Conv(field_type("C4"), field_type("C4"), 3)
    strict.weights.requires_grad_(False)
    layer = RelaxedR2Conv.from_strict(strict)
    assert not layer.weights["equivariant"].requires_grad and layer.bias.requires_grad


# --- what the residual breaks -----------------------------------------------------------------------------------------


@settings(max_examples=12)
@given(layers(names=ON_GRID))
def test_equivariant_at_first_and_broken_by_a_residual(layer):
    in_type, out_type, size = layer
    relaxed = RelaxedR2Conv(in_type, out_type, size, padding=size // 2, padding_mode="zeros", bias=False)
    randomise(relaxed, "equivariant")
    x = image(in_type)
    elements = in_type.fibergroup.elements
    assert max(gap(relaxed, x, g) for g in elements) < EQUIVARIANT
    for p in each(relaxed.pathways[1:]):
        broken = randomise(copy.deepcopy(relaxed), p.name)
        assert max(gap(broken, x, g) for g in elements) > BROKEN
        assert 0 < broken.breaking_energy < 1


@pytest.mark.parametrize(
    ("name", "id", "elements"),
    [
        ("C4", 2, [(2,), (1, 3)]),
        ("D4", (None, 4), [((0, 1), (0, 2)), ((1, 0), (1, 1))]),
        ("D4", (0, 2), [((0, 2), (1, 0), (1, 2)), ((0, 1), (1, 1))]),
        ("D2", (1, 1), [((1, 1),), ((0, 1), (1, 0))]),
    ],
)
def test_a_subgroups_pathway_keeps_the_subgroup_and_breaks_the_rest(name, id, elements):
    layer = RelaxedR2Conv(field_type(name, "interleaved"), field_type(name), 3, padding=1, subgroups=[id], bias=False)
    randomise(layer)
    x = image(layer.in_type)
    kept, broken = ([space(name).fibergroup.element(e if name[0] == "D" else e) for e in part] for part in elements)
    assert max(gap(layer, x, g) for g in kept) < EQUIVARIANT
    assert min(gap(layer, x, g) for g in broken) > BROKEN


def test_breaking_energy_is_the_share_of_the_kernels_square():
    layer = randomise(RelaxedR2Conv(field_type("C4", "interleaved"), field_type("C4"), 3))
    kernel = layer.expand_parameters()[0].detach()
    rest = kernel - layer.pathway_kernel("equivariant").detach()
    assert layer.breaking_energy == pytest.approx(float(rest.square().sum() / kernel.square().sum()), rel=1e-5)
    assert sum(layer.energies().values()) == pytest.approx(1)
    assert layer.energies()["irrep_1"] != pytest.approx(layer.energies()["irrep_2"])


# --- as a module ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate"])
@pytest.mark.parametrize("training", [True, False])
def test_one_convolution_a_forward_pass(monkeypatch, mode, training):
    layer = RelaxedR2Conv(field_type("C4"), field_type("C4"), 3, padding=1, padding_mode=mode).train(training)
    x, calls, plain = image(layer.in_type), [], F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda *a, **k: calls.append(1) or plain(*a, **k))
    layer(x)
    assert len(calls) == 1
    layer(x)
    assert len(calls) == 2


@settings(max_examples=30)
@given(geometries(3), st.integers(7, 10), st.integers(7, 10))
def test_output_shape(geometry, height, width):
    layer = RelaxedR2Conv(field_type("C2"), field_type("C2", "irreps"), 3, **geometry)
    x = torch.randn(3, layer.in_type.size, height, width)
    assert layer.evaluate_output_shape(x.shape) == tuple(layer(layer.in_type(x)).tensor.shape)
    assert layer.evaluate_output_shape(x.shape) == layer.evaluate_output_shape(list(x.shape))


@settings(max_examples=30)
@given(geometries(3), st.sampled_from(["regular", "interleaved"]), st.booleans())
def test_export_equals_forward(geometry, kind, training):
    layer = randomise(RelaxedR2Conv(field_type("C4", kind), field_type("C4"), 3, **geometry)).train(training)
    x, exported = image(layer.in_type), layer.export()
    assert type(exported) is torch.nn.Conv2d and not exported.training and layer.training is training
    assert distance(exported(x.tensor), layer(x).tensor) < SINGLE
    with torch.no_grad():  # a copy
        exported.weight.zero_()
    assert layer(x).tensor.abs().max() > 0


@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize("loaded", [True, False])
def test_state_dict_in_every_mode(saved, loaded):
    a, b = field_type("D2", "interleaved"), field_type("D2")
    one, other = (randomise(RelaxedR2Conv(a, b, 3, basis="pixel")) for _ in range(2))
    one.train(saved), other.train(loaded)
    x = image(a)
    with torch.no_grad():
        one(x), other(x)  # fill the caches
        assert distance(other(x).tensor, one(x).tensor) > 0.1
        other.load_state_dict(one.state_dict())
        assert torch.equal(other(x).tensor, one(x).tensor)
        assert other.train(not loaded).state_dict().keys() == one.state_dict().keys()
        assert torch.equal(other(x).tensor, one(x).tensor)


def write_data(layer):
    layer.weights["irrep_1"].data.mul_(3)


def write_bias(layer):
    layer.bias.data.add_(1)


def write_basis(layer):
    layer.kernel.bases["0"].neg_()


def write_bias_basis(layer):
    layer.bias_expansion.mul_(2)


def write_whole(layer):
    layer.weights["equivariant"] = torch.nn.Parameter(torch.randn_like(layer.weights["equivariant"]))


def step(layer):
    optimiser = torch.optim.SGD(layer.parameters(), lr=1.0)
    with torch.enable_grad():
        layer(image(layer.in_type)).tensor.square().sum().backward()
    optimiser.step()


def load(layer):
    layer.load_state_dict({k: v + 1 if k.startswith("weights") else v for k, v in layer.state_dict().items()})


@pytest.mark.parametrize("change", [write_data, write_bias, write_basis, write_bias_basis, write_whole, step, load])
def test_eval_mode_never_keeps_a_stale_kernel(change):
    layer = randomise(RelaxedR2Conv(field_type("C4"), field_type("C4"), 3)).eval()
    x = image(layer.in_type)
    with torch.no_grad():
        before = layer(x).tensor
        assert torch.equal(layer(x).tensor, before)
        change(layer)
        after = layer(x).tensor
        kernel, bias = layer.expand_parameters()
    assert torch.equal(after, F.conv2d(x.tensor, kernel, bias))
    assert distance(after, before) > 1e-3


def test_eval_mode_expands_once(monkeypatch):
    layer = randomise(RelaxedR2Conv(field_type("C4"), field_type("C4"), 3)).eval()
    x, calls, plain = image(layer.in_type), [], layer.expand_parameters
    monkeypatch.setattr(layer, "expand_parameters", lambda: calls.append(1) or plain())
    with torch.no_grad():
        layer(x), layer(x)
        assert len(calls) == 1
        layer.weights["irrep_2"].data.zero_()
        layer(x), layer(x)
    assert len(calls) == 2


def test_functional_call_in_eval_mode():
    layer = randomise(RelaxedR2Conv(field_type("C4"), field_type("C4"), 3)).eval()
    x, other = image(layer.in_type), {name: 2 * p.detach() for name, p in layer.named_parameters()}
    with torch.no_grad():
        once = layer(x).tensor
        twice = torch.func.functional_call(layer, other, (x,)).tensor
        assert distance(twice, 2 * once) < SINGLE
        assert torch.equal(layer(x).tensor, once)
        stacked = {name: torch.stack([p, 2 * p]) for name, p in layer.named_parameters()}
        both = torch.func.vmap(lambda p: torch.func.functional_call(layer, p, (x,)).tensor)(stacked)
        assert distance(both, torch.stack([once, twice])) < SINGLE
        assert torch.equal(layer(x).tensor, once)


def test_jacobian_by_functional_call_in_train_mode():
    """Plain escnn layers fail here."""
    layer = randomise(RelaxedR2Conv(field_type("C2"), field_type("C2"), 3))
    x, parameters = image(layer.in_type, 3, 1), dict(layer.named_parameters())
    jacobian = torch.func.jacrev(lambda p: torch.func.functional_call(layer, p, (x,)).tensor.flatten())(parameters)
    kernel = layer.kernel({"irrep_1": torch.eye(len(layer.weights["irrep_1"]))[0]}).flatten(1)
    assert distance(jacobian["weights.irrep_1"][:, 0], kernel @ x.tensor[0].flatten()) < SINGLE


@pytest.mark.parametrize("training", [True, False])
def test_autocast_leaves_no_trace(training):
    layer = randomise(RelaxedR2Conv(field_type("C4", "interleaved"), field_type("C4"), 3)).train(training)
    x = image(layer.in_type)
    with torch.no_grad():
        expected = copy.deepcopy(layer)(x).tensor
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = layer(x).tensor
        assert low.dtype == torch.bfloat16 and distance(low.float(), expected) < autocast(torch.bfloat16, 4)
        assert torch.equal(layer(x).tensor, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_device():
    layer = randomise(RelaxedR2Conv(field_type("D4", "interleaved"), field_type("D4"), 3)).eval()
    x = image(layer.in_type)
    with torch.no_grad():
        here = layer(x).tensor
        there = layer.to("cuda")(x.to("cuda")).tensor
        assert there.device.type == "cuda" and distance(there.cpu(), here) < 3 * 2**-11  # TF32: 11 bits
        assert layer.evaluate_output_shape(x.shape) == tuple(here.shape)
        assert distance(layer.to("cpu")(x).tensor, here) < SINGLE


def test_gradients_reach_every_pathway_and_the_bias():
    layer = RelaxedR2Conv(field_type("D4"), field_type("D4"), 3)
    layer(image(layer.in_type)).tensor.square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in layer.parameters())
    assert {n for n, _ in layer.named_parameters()} == {"bias", *(f"weights.{p.name}" for p in layer.pathways)}


# --- the band ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cutoff", [None, -1.0, -2.0, -3.0, 1.0, 2.0, lambda r: 1, lambda r: 3 if r > 1 else 0])
@pytest.mark.parametrize("kinds", [("regular", "regular"), ("trivial", "trivial"), ("trivial", "irreps")], ids=str)
def test_relaxed_kernels_share_the_layers_cutoff(cutoff, kinds):
    a, b = (field_type("C4", kind) for kind in kinds)
    layer = RelaxedR2Conv(a, b, 5, frequencies_cutoff=cutoff)
    free = [FieldType(space("C1"), n * [space("C1").trivial_repr]) for n in (a.size, b.size)]
    expected = R2Conv(*free, 5, frequencies_cutoff=cutoff, bias=False).basisexpansion.dimension()
    assert sum(layer.kernel.dimensions.values()) == expected


def test_rings_and_widths_are_shared():
    layer = RelaxedR2Conv(field_type("C4"), field_type("C4"), 5, rings=[0.0, 1.5], sigma=[0.3, 0.7], bias=False)
    assert layer.band.rings == (0.0, 1.5) and layer.band.sigma == (0.3, 0.7)
    strict = R2Conv(field_type("C4"), field_type("C4"), 5, rings=[0.0, 1.5], sigma=[0.3, 0.7], bias=False)
    x = image(layer.in_type)
    assert distance(RelaxedR2Conv.from_strict(strict)(x).tensor, strict(x).tensor) < SINGLE


@pytest.mark.parametrize("cutoff", [1.0, 3.0, lambda r: 1, lambda r: 4 if r > 1 else 0])
def test_the_cutoff_of_a_given_layer_is_recovered(cutoff):
    strict = R2Conv(field_type("C8"), field_type("C8", "trivial"), 5, frequencies_cutoff=cutoff)
    recovered = dict(RelaxedR2Conv.from_strict(strict).band.limit)
    expected = cutoff if callable(cutoff) else lambda r: cutoff * r
    # the middle pixel has frequency 0 only
    assert recovered == {r: min(int(expected(r)), 0 if r == 0 else 6) for r in (0.0, 1.0, 2.0)}


def test_a_cutoff_that_few_kernels_show_is_not_taken_for_the_default():
    """Between scalars of C4 only frequency 0 is seen here, but the largest that was looked for is known: 3."""
    strict = R2Conv(field_type("C4", "trivial"), field_type("C4", "trivial"), 5, frequencies_cutoff=1.5)
    assert dict(RelaxedR2Conv.from_strict(strict).band.limit) == {0.0: 0, 1.0: 1, 2.0: 3}


def test_filters_by_radius_and_frequency_are_shared_and_others_refused():
    a = field_type("C4")
    by_radius = R2Conv(a, a, 5, basis_filter=lambda d: d["radius"] < 1.5)
    assert dict(RelaxedR2Conv.from_strict(by_radius).band.limit)[2.0] == -1
    with pytest.raises(RelaxError, match="conv7.*basis_filter.*frequencies_cutoff"):
        strict = R2Conv(a, a, 5, basis_filter=lambda d: d["irrep:frequency"] != 1)
        with naming("conv7"):
            RelaxedR2Conv.from_strict(strict)
    with pytest.raises(RelaxError, match="basis_filter"):
        RelaxedR2Conv(a, a, 5, basis_filter=lambda d: d["irrep:frequency"] != 1)


# --- bad input --------------------------------------------------------------------------------------------------------


def refuse(error, *parts, in_type=None, out_type=None, size=3, **how):
    with pytest.raises(error) as caught:
        RelaxedR2Conv(in_type or field_type("D4"), out_type or field_type("D4"), size, **how)
    assert isinstance(caught.value, RelaxError)
    for part in ("RelaxedR2Conv", *parts):
        assert part in str(caught.value)


def test_types_on_different_gspaces():
    refuse(FieldTypeError, "C4_on_R2", "D4_on_R2", "on one gspace", in_type=field_type("C4"))


def test_types_that_are_none_or_live_elsewhere():
    solid = gspaces.invOnR3()
    refuse(FieldTypeError, "in_type", "FieldType", "int", in_type=8)
    refuse(FieldTypeError, "out_type", "GSpace2D", solid.name, out_type=FieldType(solid, [solid.trivial_repr]))


@pytest.mark.parametrize("id", [3, (None, 3), (0, 3), "C5", (0.5, 2), None])
def test_ids_that_name_no_subgroup(id):
    refuse(SubgroupError, repr(id), "(None, M)", subgroups=[(None, 1), id])


@pytest.mark.parametrize("name, id", [("D4", (0, 4)), ("C4", 4)])
def test_the_whole_group_is_no_relaxation(name, id):
    refuse(SubgroupError, repr(id), f"whole group {name}", "proper subgroups", subgroups=[id],
           in_type=field_type(name), out_type=field_type(name))  # fmt: skip


def test_subgroups_named_twice_or_not_at_all_or_not_in_a_list():
    refuse(SubgroupError, "twice", "(0, 1)", "name each once", subgroups=[(0, 1), (0, 1)])
    refuse(SubgroupError, "no subgroup named", "graded", subgroups=[])
    refuse(SubgroupError, "list of subgroup ids", "subgroups=[2]", subgroups=2)


def test_unknown_words():
    refuse(ArgumentError, "'graded'", "'random'", "subgroups=[...]", relaxation="random")
    refuse(ArgumentError, "band-limited", "pixel", "'fourier'", basis="fourier")
    refuse(ArgumentError, "groups", "1 or more", "0", groups=0)
    refuse(FieldTypeError, "groups=3", "repeat the same fields", groups=3)


def test_nothing_equivariant():
    s = space("C4")
    sign = FieldType(s, [s.irreps[2]])
    refuse(EmptyBasisError, "no equivariant kernel of size 1", "larger kernel", in_type=field_type("C4", "trivial"),
           out_type=sign, size=1)  # fmt: skip


def test_nothing_that_breaks():
    scalar = field_type("C4", "trivial")
    refuse(EmptyBasisError, "size 1", "breaks the symmetry", "leave", in_type=scalar, out_type=scalar, size=1)
    assert len(RelaxedR2Conv(scalar, scalar, 3).pathways) > 1


def test_a_subgroup_that_adds_nothing():
    """Between scalars of C8, kernels of size 3 reach frequency 2, where C4 is already all of C8."""
    scalar = field_type("C8", "trivial")
    refuse(EmptyBasisError, "subgroup 4", "leave it out", in_type=scalar, out_type=scalar, subgroups=[4])
    wide = RelaxedR2Conv(scalar, scalar, 3, subgroups=[2, 1])
    assert [p.name for p in wide.pathways] == ["equivariant", "C2", "trivial"]


def test_input_of_another_type():
    layer = RelaxedR2Conv(field_type("C4"), field_type("C4"), 3)
    for wrong in (image(field_type("C4", "irreps")), torch.randn(1, 4, 5, 5)):
        with pytest.raises(FieldTypeError, match="RelaxedR2Conv.*GeometricTensor.*in_type"):
            layer(wrong)
    with pytest.raises(ArgumentError, match="shape"):
        layer.evaluate_output_shape((1, 3, 9, 9))
