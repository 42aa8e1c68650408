"""[G]-mixed layers: what their summands are, and that the layer is the sum of them."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from escnn import gspaces, group
from escnn.nn import FieldType, R2Conv, R2ConvTransposed, R3Conv
from fields import SAMPLING, SINGLE, distance, field_type, image, kernels_of, outside, rank, space, turn
from nonempty import each
from tolerances import autocast
from torch.nn import functional as F

from escnn_relax.errors import ArgumentError, FieldTypeError, NothingToRelaxError, RelaxError, SubgroupError
from escnn_relax.nn import (
    MixedLinear,
    MixedR2Conv,
    MixedR2ConvTransposed,
    MixedR3Conv,
    MixedR3ConvTransposed,
    RelaxedR2Conv,
)
from escnn_relax.symmetry.groups.lattice import subgroup, subgroups

#: float64, the same numbers added in another order
ROUNDING = 1e-10

#: Every subgroup of D4 by the id that escnn gives it, all five reflection axes and both kinds of D2.
OF_D4 = {"C4": (None, 4), "D2": (0, 2), "D2'": (1, 2), "C2": (None, 2), "C1": (None, 1),
         "s0": (0, 1), "s1": (1, 1), "s2": (2, 1), "s3": (3, 1)}  # fmt: skip
SIX = [(None, 4), (0, 2), (None, 2), (0, 1), (None, 1)]


def mixed(name="D4", ins="regular", outs="regular", size=3, subgroups=tuple(OF_D4.values()), shake=True, **options):
    layer = MixedR2Conv(field_type(name, ins), field_type(name, outs), size, subgroups=list(subgroups), **options)
    return shaken(layer) if shake else layer


def shaken(layer):
    """Every weight, bias and architecture weight at random."""
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_()
    return layer


def kernel_gap(kernel, bias, in_type, out_type, elements):
    """Relative change of a kernel and a bias under group elements, by turning the pictures."""
    worst, kernel = 0.0, kernel.detach().double().numpy()
    for h in elements:
        moved = turn(kernel, in_type.gspace, h)
        moved = np.einsum("po,oixy,qi->pqxy", out_type.representation(h), moved, in_type.representation(h))
        worst = max(worst, np.abs(moved - kernel).max() / np.abs(kernel).max())
        if bias is not None:
            b = bias.detach().double().numpy()
            worst = max(worst, np.abs(out_type.representation(h) @ b - b).max() / np.abs(b).max())
    return worst


# --- the sum ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ins, outs",
    [
        ("regular", "regular"),
        ("trivial", "interleaved"),
        pytest.param("interleaved", "quotient", marks=pytest.mark.slow),
    ],
)
def test_mixture_is_the_sum_of_layers_built_separately(ins, outs):
    """Each summand is given the filter of an escnn layer of H, on H's own gspace and the restricted types."""
    layer = mixed(ins=ins, outs=outs, size=5, subgroups=SIX, padding=2)
    x, total, seen = image(layer.in_type), 0.0, 0
    for p, share in each(zip(layer.pathways, layer.kernel.shares.tolist(), strict=True)):
        if p.name == "equivariant":
            types = layer.in_type, layer.out_type
        else:
            types = layer.in_type.restrict(p.subgroup), layer.out_type.restrict(p.subgroup)
        alone = R2Conv(*types, 5, padding=2)
        torch.nn.init.normal_(alone.bias)
        kernel, bias = (t.detach() for t in alone.expand_parameters())
        rows = kernels_of(layer)[p.name] / share
        solution = torch.linalg.lstsq(rows.T, kernel.double().flatten().unsqueeze(1), driver="gelsd").solution.squeeze()
        assert distance(rows.T @ solution, kernel.double().flatten()) < SAMPLING
        assert layer.kernel.dimensions[p.name] == len(alone.weights)
        layer.weights[p.name].data = solution.float()
        start = sum(layer.bias_sizes[: [q.name for q in layer.pathways].index(p.name)])
        own = layer.bias_basis[:, start : start + len(alone.bias)]
        layer.bias.data[start : start + len(alone.bias)] = torch.linalg.pinv(own) @ bias
        assert layer.bias_sizes[[q.name for q in layer.pathways].index(p.name)] == len(alone.bias)
        total = total + share * alone(types[0](x.tensor)).tensor
        seen += 1
    assert seen == 6
    assert distance(layer(x).tensor, total) < SAMPLING


@pytest.mark.parametrize(
    "name, ids, dtype, tolerance",
    [
        ("D4", SIX, torch.float32, SINGLE),
        ("D4", SIX, torch.float64, ROUNDING),
        ("C8", [4, 2, 1], torch.float64, ROUNDING),
        ("C6", [3, 2, 1], torch.float64, ROUNDING),
        ("D2", [(0, 1), (1, 1)], torch.float64, ROUNDING),
    ],
)
def test_mixture_is_the_weighted_sum_of_its_summands(name, ids, dtype, tolerance):
    layer = mixed(name, "interleaved", "regular", subgroups=ids, stride=2, padding=1).to(dtype)
    x = image(layer.in_type, dtype=dtype)
    alpha = layer.alpha.detach().double()
    shares = alpha.exp() / alpha.exp().sum()
    total = 0.0
    for p, share in zip(layer.pathways, shares.tolist()):
        kernel, bias = layer.summand_parameters(p.name)
        total = total + share * F.conv2d(x.tensor, kernel, bias, stride=2, padding=1)
    assert distance(layer(x).tensor, total) < tolerance


def test_kernels_are_all_of_each_group_and_no_more():
    """The span of a summand is that of escnn's own layer of H; its rows are orthonormal."""
    layer = mixed("C8", subgroups=[4, 2, 1], size=5, shake=False)
    assert layer.kernel.dimensions == {"equivariant": 88, "C4": 176, "C2": 352, "trivial": 704}
    rows = {n: r / layer.shares[n] for n, r in kernels_of(layer).items()}
    for p in each(layer.pathways[1:]):
        gram = rows[p.name] @ rows[p.name].T
        assert distance(gram, torch.eye(len(gram)).double()) < SAMPLING
        assert outside(rows["equivariant"], rows[p.name]) < SAMPLING
    strict = R2Conv(layer.in_type, layer.out_type, 5)
    unit = torch.eye(len(strict.weights))
    own = torch.stack([strict.basisexpansion(e).detach().flatten() for e in unit]).double()
    assert torch.allclose(rows["equivariant"], own, atol=SINGLE)


def test_groups_that_the_grid_mixes():
    """C6 on a square grid: its irreps' kernels are not orthogonal, and C3 and C2 overlap only in C6's own kernels."""
    layer = mixed("C6", subgroups=[3, 2, 1], size=5, shake=False)
    rows = kernels_of(layer)
    sizes = {n: rank(r) for n, r in rows.items()}
    assert sizes == layer.kernel.dimensions and sizes["C3"] == 2 * sizes["equivariant"]
    assert rank(torch.cat([rows["C3"], rows["C2"]])) == sizes["C3"] + sizes["C2"] - sizes["equivariant"]
    for id in (3, 2):
        alone = R2Conv(layer.in_type.restrict(id), layer.out_type.restrict(id), 5)
        own = torch.stack([alone.basisexpansion(e).detach().flatten() for e in torch.eye(len(alone.weights))])
        assert outside(own.double(), rows[f"C{id}"]) < SAMPLING


def test_one_convolution_whatever_the_number_of_groups(monkeypatch):
    layer, calls, plain = mixed(padding=1), [], F.conv2d
    monkeypatch.setattr("escnn_relax.nn.geometry.F.conv2d", lambda *a: calls.append(1) or plain(*a))
    layer(image(layer.in_type))
    assert len(layer.pathways) == 10 and len(calls) == 1


# --- symmetry ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ins, outs",
    [("regular", "regular"), ("trivial", "quotient"), pytest.param("interleaved", "irreps", marks=pytest.mark.slow)],
)
def test_each_summand_keeps_its_own_group_and_no_other(ins, outs):
    layer = mixed(ins=ins, outs=outs, size=5)
    lattice = {p.name: subgroup(layer.space, p.subgroup) for p in layer.pathways[1:]}
    lattice["equivariant"] = subgroup(layer.space, (0, 4))
    assert len(lattice) == 10
    kept = {}
    for name in lattice:
        kernel, bias = layer.summand_parameters(name)
        for other, h in each(lattice.items()):
            gap = kernel_gap(kernel, bias, layer.in_type, layer.out_type, h.elements)
            kept[name, other] = gap < SAMPLING
            assert gap < SAMPLING or gap > 0.05  # exact or plainly broken
    for name, h in each(lattice.items()):
        for other, k in each(lattice.items()):
            assert kept[name, other] == (k <= h)


def test_one_embedding_through_a_network():
    """A network reduced to one reflection in every layer is invariant under it, and under no other."""
    gray, fields = field_type("D4", "trivial"), field_type("D4")
    axes = [(0, 1), (1, 1), (2, 1), (3, 1)]
    first, second = (shaken(MixedR2Conv(a, fields, 3, padding=1, subgroups=axes)) for a in (gray, fields))
    x = torch.randn(2, 1, 7, 7)
    for p in each(first.pathways[1:]):
        others = [q.name for q in first.pathways if q.name != p.name]
        one, two = first.without(*others), second.without(*others)

        def value(tensor):
            hidden = one(gray(tensor)).tensor.relu()
            return two(fields(hidden)).tensor.relu().mean((1, 2, 3))

        gaps = {}
        for id in axes:
            (flip,) = [e for e in subgroup(gray.gspace, id).elements if e.value != (0, 0)]
            turned = torch.from_numpy(turn(x.numpy(), gray.gspace, flip).copy())
            gaps[id] = distance(value(turned), value(x))
        assert gaps.pop(p.subgroup) < SINGLE and min(gaps.values()) > 1e-3


def test_the_whole_mixture_breaks_what_its_summands_break():
    layer = mixed(subgroups=[(None, 4), (0, 1)])
    kernel, bias = layer.expand_parameters()
    assert kernel_gap(kernel, bias, layer.in_type, layer.out_type, layer.space.fibergroup.elements) > 0.05
    assert 0.05 < layer.breaking_energy < 1
    strict = layer.without("C4", *[p.name for p in layer.pathways if p.name.startswith("D1")])
    assert strict.breaking_energy == 0


def test_breaking_energy_by_averaging():
    layer = mixed(size=5).double()
    kernel = layer.expand_parameters()[0].detach()
    average, group = torch.zeros_like(kernel), layer.space.fibergroup
    for g in group.elements:
        moved = torch.from_numpy(turn(kernel.numpy(), layer.space, g).copy())
        left, right = (torch.from_numpy(t.representation(g)) for t in (layer.out_type, layer.in_type))
        average += torch.einsum("po,oixy,qi->pqxy", left, moved, right) / group.order()
    expected = float((kernel - average).square().sum() / kernel.square().sum())
    assert abs(layer.breaking_energy - expected) < SAMPLING


# --- other layers -----------------------------------------------------------------------------------------------------


def test_in_space():
    s = gspaces.octaOnR3()
    gray, fields = FieldType(s, [s.trivial_repr]), FieldType(s, [s.irrep(1)])
    layer = shaken(MixedR3Conv(gray, fields, 3, subgroups=_octa_ids(s)))
    strict = R3Conv(gray, fields, 3, initialize=False)
    assert layer.kernel.dimensions["equivariant"] == len(strict.weights)
    sizes = list(layer.kernel.dimensions.values())
    assert sizes == sorted(sizes) and len(sizes) == 3
    x, total = torch.randn(1, 1, 5, 5, 5), 0.0
    for p in layer.pathways:
        kernel, bias = layer.summand_parameters(p.name)
        total = total + layer.shares[p.name] * F.conv3d(x, kernel, bias)
    assert distance(layer(gray(x)).tensor, total) < SINGLE


def _octa_ids(s):
    found = [h for h in subgroups(s) if h.order in (1, 4)]
    return [found[0].id, found[-1].id]


def test_linear():
    s = gspaces.no_base_space(group.dihedral_group(4))
    fields = FieldType(s, [s.regular_repr, s.irrep(1, 1)])
    layer = shaken(MixedLinear(fields, fields, subgroups=SIX))
    for p in each(layer.pathways):
        matrix, bias = (t.detach().double().numpy() for t in layer.summand_parameters(p.name))
        h = subgroup(s, p.subgroup if p.subgroup else (0, 4))
        dimension = 0.0
        for e in each(h.elements):
            rho = fields.representation(e)
            assert np.abs(rho @ matrix - matrix @ rho).max() < SAMPLING * np.abs(matrix).max()
            assert np.abs(rho @ bias - bias).max() < SAMPLING
            dimension += np.trace(rho) ** 2 / h.order
        assert layer.kernel.dimensions[p.name] == round(dimension)  # Schur's lemma, by characters
    x = fields(torch.randn(3, fields.size))
    matrix, bias = layer.expand_parameters()
    assert distance(layer(x).tensor, x.tensor @ matrix.T + bias) < SINGLE


def test_continuous_group():
    s = gspaces.rot2dOnR2(-1, maximum_frequency=2)
    gray, fields = FieldType(s, [s.trivial_repr]), FieldType(s, [s.irrep(0), s.irrep(1), s.irrep(2)])
    layer = shaken(MixedR2Conv(gray, fields, 5, subgroups=[4, 2]))
    quarter = fields.representation(s.fibergroup.element(np.pi / 2))
    gaps = {}
    for name in ("C4", "C2"):
        kernel = layer.summand_parameters(name)[0].detach().double().numpy()
        moved = np.einsum("po,oixy->pixy", quarter, np.rot90(kernel, 1, (-2, -1)))
        gaps[name] = np.abs(moved - kernel).max() / np.abs(kernel).max()
    assert gaps["C4"] < SAMPLING and gaps["C2"] > 0.05


@pytest.mark.parametrize("options", [{"stride": 2, "output_padding": 1, "padding": 1}, {"groups": 2}], ids=str)
def test_transposed(options):
    """The sum of its summands; each keeps its own group (stride 2 keeps the grid's symmetry for odd images)."""
    two = FieldType(space("D4"), 2 * [space("D4").regular_repr])
    layer = shaken(MixedR2ConvTransposed(two, two, 3, subgroups=SIX, **options))
    x, total = image(two), 0.0
    for p in each(layer.pathways):
        kernel, bias = layer.summand_parameters(p.name)
        total = total + layer.shares[p.name] * F.conv_transpose2d(x.tensor, kernel, bias, **options)
        elements = subgroup(layer.space, p.subgroup or (0, 4)).elements
        if options.get("groups") is None:
            turned = kernel.transpose(0, 1)
            assert kernel_gap(turned, bias, two, two, elements) < SAMPLING
            broken = kernel_gap(turned, bias, two, two, layer.space.fibergroup.elements)
            assert (broken > 0.05) == (p.name != "equivariant")
    assert distance(layer(x).tensor, total) < SINGLE
    strict = R2ConvTransposed(two, two, 3, **options)
    with torch.no_grad():
        same = MixedR2ConvTransposed.from_strict(strict, subgroups=SIX)
        assert distance(same(x).tensor, strict(x).tensor) < 2 * SINGLE
        assert distance(layer.export()(x.tensor), layer(x).tensor) < SINGLE


def test_transposed_in_space():
    s = gspaces.invOnR3()
    signs = FieldType(s, [s.regular_repr])
    layer = shaken(MixedR3ConvTransposed(signs, signs, 3, subgroups=[1]))
    x = torch.randn(1, 2, 4, 4, 4)
    parts = [(layer.shares[p.name], *layer.summand_parameters(p.name)) for p in layer.pathways]
    total = sum(share * F.conv_transpose3d(x, kernel, bias) for share, kernel, bias in parts)
    assert len(parts) == 2 and distance(layer(signs(x)).tensor, total) < SINGLE


@pytest.mark.parametrize(
    "options",
    [
        {"groups": 2},
        pytest.param({"dilation": 2, "padding": 2}, marks=pytest.mark.slow),
        {"bias": False},
        {"padding_mode": "circular", "padding": 1},
    ],
)
def test_options_of_the_convolution(options):
    two = FieldType(space("D4"), 2 * [space("D4").regular_repr])
    layer = shaken(MixedR2Conv(two, two, 3, subgroups=SIX, **options))
    x = image(two)
    plain = layer.export()
    with torch.no_grad():
        assert distance(plain(x.tensor), layer(x).tensor) < SINGLE
    assert tuple(layer(x).shape) == layer.evaluate_output_shape(x.shape)
    assert (layer.bias is None) == (options.get("bias") is False)


# --- the start, shares, norms -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kinds",
    [
        ("regular", "regular"),
        pytest.param(("interleaved", "quotient"), marks=pytest.mark.slow),
        ("trivial", "quotient"),
    ],
)
def test_starts_as_the_strict_layer_whatever_the_shares(kinds):
    a, b = (field_type("D4", kind) for kind in kinds)
    strict = R2Conv(a, b, 5, padding=2)
    torch.nn.init.normal_(strict.bias)
    layer = MixedR2Conv.from_strict(strict, subgroups=list(OF_D4.values()), leaning=1.5, temperature=0.5)
    x = image(a)
    assert distance(layer(x).tensor, strict(x).tensor) < 2 * SINGLE and layer.breaking_energy < 1e-12
    layer.alpha.data.normal_()
    assert distance(layer(x).tensor, strict(x).tensor) < 2 * SINGLE
    assert torch.equal(layer.weights["equivariant"], strict.weights)
    layer.weights["trivial"].data.normal_()
    assert distance(layer(x).tensor, strict(x).tensor) > 1e-3


def test_shares_temperature_and_leaning():
    layer = mixed(subgroups=SIX, shake=False, leaning=2.0, temperature=0.5)
    expected = torch.softmax(torch.tensor([0.0, -2, -2, -2, -2, -2]) / 0.5, 0)
    assert np.allclose(list(layer.shares.values()), expected, atol=1e-7)
    assert list(layer.group_names.values())[0] == "D4" and list(layer.shares)[0] == "equivariant"
    before = layer.state_dict()
    layer.temperature = 2.0
    assert np.allclose(list(layer.shares.values()), torch.softmax(torch.tensor([0.0, *5 * [-2]]) / 2, 0), atol=1e-7)
    other = mixed(subgroups=SIX)
    other.load_state_dict(layer.state_dict())
    assert other.temperature == 2.0 and before["kernel.temperature"].item() == 2.0
    with pytest.raises(ArgumentError, match="temperature"):
        layer.temperature = 0.0


def test_independent_start_has_the_same_norms():
    layer = mixed(subgroups=SIX, shake=False, start="independent")
    norms = [float(layer.summand_parameters(p.name)[0].norm()) for p in layer.pathways]
    assert np.allclose(norms, norms[0], rtol=1e-5) and np.allclose(layer.norms, norms, rtol=1e-5)
    kernels = [layer.summand_parameters(p.name)[0].flatten() for p in layer.pathways]
    assert all(abs(float(F.cosine_similarity(kernels[0], k, 0))) < 0.9 for k in kernels[1:])


def test_normalise_restores_every_norm_and_no_more():
    layer = mixed(subgroups=SIX, shake=False)
    initial = {p.name: float(layer.summand_parameters(p.name)[0].norm()) for p in layer.pathways}
    with torch.no_grad():
        for n, w in layer.weights.items():
            w.add_(torch.randn_like(w))
    directions = {n: w.detach() / w.detach().norm() for n, w in layer.weights.items()}
    assert abs(float(layer.summand_parameters("C4")[0].norm()) / initial["C4"] - 1) > 0.1
    kernel = layer.expand_parameters()[0]
    assert layer.normalise() is layer and distance(layer.expand_parameters()[0], kernel) > 1e-3
    for name, norm in each(initial.items()):
        assert abs(float(layer.summand_parameters(name)[0].norm()) / norm - 1) < 1e-5
        assert torch.allclose(layer.weights[name] / layer.weights[name].norm(), directions[name], atol=SINGLE)
    again = mixed(subgroups=SIX)
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again.norms, layer.norms)
    empty = mixed(subgroups=SIX, shake=False, initialize=False)
    for w in empty.weights.values():
        w.data.zero_()
    assert all(torch.isfinite(w).all() for w in empty.normalise().weights.values())


def test_without_renormalises_the_rest():
    layer = mixed(subgroups=SIX, padding=1)
    rest = layer.without("C4", "trivial")
    shares = {n: s for n, s in layer.shares.items() if n not in ("C4", "trivial")}
    assert np.allclose(list(rest.shares.values()), np.array(list(shares.values())) / sum(shares.values()))
    x = image(layer.in_type)
    total = 0.0
    for name, share in rest.shares.items():
        kernel, bias = layer.summand_parameters(name)
        total = total + share * F.conv2d(x.tensor, kernel, bias, padding=1)
    assert distance(rest(x).tensor, total) < SINGLE and len(layer.pathways) == 6
    assert {n for n, _ in rest.named_parameters()} < {n for n, _ in layer.named_parameters()}
    assert not any("table" in n and n not in dict(layer.named_buffers()) for n, _ in rest.named_buffers())
    copy.deepcopy(rest).load_state_dict(rest.state_dict())
    for wrong in (["C8"], [p.name for p in layer.pathways]):
        with pytest.raises(ArgumentError, match="summands"):
            layer.without(*wrong)


def average(kernel, bias, in_type, out_type, elements):
    """The mean over some group elements of a kernel and a bias, by turning the pictures."""
    total, shift = torch.zeros_like(kernel), torch.zeros_like(bias)
    for g in elements:
        moved = torch.from_numpy(turn(kernel.numpy(), in_type.gspace, g).copy())
        left, right = (torch.from_numpy(t.representation(g)) for t in (out_type, in_type))
        total += torch.einsum("po,oixy,qi->pqxy", left, moved, right) / len(elements)
        shift += left @ bias / len(elements)
    return total, shift


@pytest.mark.parametrize("name", ["D4", "C4", "C2", "D1", "trivial"])
def test_nearest_summand_is_the_average_over_its_group(name):
    """Kernel and bias of a layer reduced to one group are the orthogonal projections of the mixture's."""
    layer = mixed(size=5, subgroups=SIX).double()
    (p,) = [p for p in layer.pathways if layer.group_names[p.name].startswith(name)]
    elements = subgroup(layer.space, p.subgroup or (0, 4)).elements
    found = layer.nearest(p.name)
    kernel, bias = (t.detach() for t in layer.expand_parameters())
    wanted = average(kernel, bias, layer.in_type, layer.out_type, elements)
    for ours, theirs in each(zip(found.expand_parameters(), wanted, strict=True)):
        assert distance(ours, theirs) < SAMPLING
    assert list(found.shares.values()) == [1.0]
    assert name == "trivial" or distance(found.expand_parameters()[0], kernel) > 1e-2
    dropped = layer.without(*[q.name for q in layer.pathways if q.name != p.name])
    assert distance(dropped.expand_parameters()[0], wanted[0]) > 1e-2  # what the others did is lost there


def test_nearest_of_several_groups():
    """C4 and a reflection, neither in the other: no kernel of the two is closer, and what both had stays theirs."""
    layer = mixed(size=5, subgroups=SIX).double()
    names = [n for n in layer.shares if n == "C4" or n.startswith("D1")]
    found = layer.nearest(*reversed(names))
    assert list(found.shares) == names and abs(sum(found.shares.values()) - 1) < 1e-12
    kernel = layer.expand_parameters()[0].detach().flatten()
    rows = torch.cat([kernels_of(layer)[n] for n in names])
    best = rows.T @ torch.linalg.lstsq(rows.T, kernel.unsqueeze(1), driver="gelsd").solution.squeeze()
    assert distance(found.expand_parameters()[0].flatten(), best) < SAMPLING
    everything = layer.nearest(*layer.shares)
    for ours, theirs in each(zip(everything.expand_parameters(), layer.expand_parameters(), strict=True)):
        assert distance(ours, theirs) < ROUNDING
    for wrong in ([], ["C8"], ["C4", "C8"]):
        with pytest.raises(ArgumentError, match="some of the summands"):
            layer.nearest(*wrong)


def test_gradients_reach_weights_and_architecture_until_frozen():
    layer = mixed(subgroups=SIX)
    layer(image(layer.in_type)).tensor.square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in layer.parameters())
    assert layer.alpha in set(layer.parameters()) and layer.freeze() is layer and not layer.alpha.requires_grad
    frozen = layer.without("C4")
    assert not frozen.alpha.requires_grad and layer.freeze(False).alpha.requires_grad


def test_coinciding_groups_are_left_out_and_named():
    """Between scalars of C8, kernels of size 3 reach frequency 2, where C4 is already all of C8."""
    scalar = field_type("C8", "trivial")
    layer = MixedR2Conv(scalar, scalar, 3, subgroups=[4, 2, 1])
    assert layer.coinciding == {"C4": "equivariant"} and [p.name for p in layer.pathways] == [
        "equivariant",
        "C2",
        "trivial",
    ]
    with pytest.raises(NothingToRelaxError, match="same kernels"):
        MixedR2Conv(scalar, scalar, 3, subgroups=[4])
    gray = field_type("D4", "trivial")
    chain = MixedR2Conv(gray, gray, 3, subgroups=[(None, 4), (0, 1), (None, 1)])
    assert chain.coinciding == {"C4": "equivariant"}


# --- edges, as relaxed layers have them -------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["alpha", "temperature", "weight", "bias"])
def test_eval_mode_never_serves_a_stale_kernel(change):
    layer = mixed(subgroups=SIX, padding=1).eval()
    x = image(layer.in_type)
    with torch.no_grad():
        before = layer(x).tensor
        assert torch.equal(layer(x).tensor, before)
        if change == "temperature":
            layer.temperature = 3.0
        else:
            {"alpha": layer.alpha, "weight": layer.weights["C4"], "bias": layer.bias}[change].data.add_(
                torch.randn(1) if change != "alpha" else torch.randn(6)
            )
        after = layer(x).tensor
    assert distance(after, before) > 1e-4
    kernel, bias = layer.expand_parameters()
    assert torch.equal(after, F.conv2d(x.tensor, kernel, bias, padding=1))


def test_copies_pickles_and_state_dicts(tmp_path):
    layer = mixed(ins="interleaved", subgroups=SIX).eval()
    x = image(layer.in_type)
    with torch.no_grad():
        expected = layer(x).tensor
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(other(x).tensor, expected)
        torch.save(layer, tmp_path / "layer.pt")
        assert torch.equal(torch.load(tmp_path / "layer.pt", weights_only=False)(x).tensor, expected)
        fresh = mixed(ins="interleaved", subgroups=SIX)
        fresh.load_state_dict(layer.train().state_dict())
        assert distance(fresh(x).tensor, expected) < SINGLE
        assert distance(layer.double()(x.type(x.tensor.double())).tensor, expected.double()) < SINGLE


def test_functional_call_and_autocast():
    layer = mixed(subgroups=SIX, padding=1).eval()
    x, other = image(layer.in_type), {n: 2 * p.detach() for n, p in layer.named_parameters() if "alpha" not in n}
    with torch.no_grad():
        once = layer(x).tensor
        assert distance(torch.func.functional_call(layer, other, (x,)).tensor, 2 * once) < SINGLE
        assert torch.equal(layer(x).tensor, once)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = layer(x).tensor
        assert low.dtype == torch.bfloat16 and distance(low.float(), once) < autocast(torch.bfloat16, 4)
        assert torch.equal(layer(x).tensor, once)


def test_prints_what_it_is():
    text = repr(mixed(subgroups=SIX))
    assert "C4: 96" in text and "trivial: 384" in text and "D4" in text


# --- bad input --------------------------------------------------------------------------------------------------------


def refuse(error, *parts, **how):
    with pytest.raises(error) as caught:
        mixed(**how)
    assert isinstance(caught.value, RelaxError)
    for part in ("MixedR2Conv", *parts):
        assert part in str(caught.value)


def test_groups_without_a_common_supergroup():
    refuse(SubgroupError, "(None, 3)", "no such subgroup", subgroups=[(None, 4), (None, 3)])
    refuse(SubgroupError, "4", "(None, M)", subgroups=[4])
    refuse(SubgroupError, "8", "no such subgroup", name="C4", subgroups=[2, 8])


def test_duplicates_and_empty_sets():
    refuse(SubgroupError, "twice", subgroups=[(None, 2), (None, 2)])
    refuse(SubgroupError, "2 times", subgroups=[(0, 4), (0, 4), (None, 2)])
    for ids in ([], [(0, 4)]):
        refuse(SubgroupError, "no proper subgroup", subgroups=ids)
    with pytest.raises(SubgroupError, match="list of subgroup ids"):
        MixedR2Conv(field_type("C4"), field_type("C4"), 3, subgroups="C2")
    named = MixedR2Conv(field_type("D4"), field_type("D4"), 3, subgroups=[(0, 4), (None, 4)])
    assert [p.name for p in named.pathways] == ["equivariant", "C4"]


def test_other_arguments():
    refuse(ArgumentError, "start", "'zero'", start="zero", subgroups=SIX)
    refuse(ArgumentError, "temperature", "-1", temperature=-1.0, subgroups=SIX)
    refuse(ArgumentError, "leaning", "nan", leaning=float("nan"), subgroups=SIX)
    refuse(ArgumentError, "kernel", subgroups=SIX, kernel=3)
    with pytest.raises(FieldTypeError):
        layer = mixed(subgroups=SIX)
        layer(torch.randn(1, 8, 5, 5))


def test_relaxed_layers_are_untouched():
    """They share the machinery: arguments of one kind are refused by the other."""
    with pytest.raises(ArgumentError):
        RelaxedR2Conv(field_type("C4"), field_type("C4"), 3, leaning=1.0)
    with pytest.raises(ArgumentError):
        mixed(subgroups=SIX, basis="pixel")


def test_eval_mode_expands_once(monkeypatch):
    """And anew when a share moves."""
    d4 = gspaces.flipRot2dOnR2(4)
    layer = shaken(MixedR2Conv(*2 * [FieldType(d4, [d4.regular_repr])], 3, subgroups=[(None, 4), (None, 1)])).eval()
    x, calls, plain = layer.in_type(torch.randn(1, 8, 5, 5)), [], layer.expand_parameters
    monkeypatch.setattr(layer, "expand_parameters", lambda: calls.append(1) or plain())
    with torch.no_grad():
        before = layer(x).tensor
        assert torch.equal(layer(x).tensor, before) and len(calls) == 1
        layer.alpha.add_(torch.tensor([1.0, 0.0, 0.0]))
        after = layer(x).tensor
        assert len(calls) == 2 and not torch.allclose(after, before)
