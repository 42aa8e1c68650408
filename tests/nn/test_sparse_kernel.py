"""Sparse kernels beside escnn's, as a pathway that keeps translations; and sparse convolutions in the morphisms."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from curvature_oracles import Tensors, dense_ggn, own_filters  # noqa: F401
from escnn import gspaces
from escnn import nn as enn
from nonempty import each
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from escnn_relax import Evidence, harden, merge, mix, project, relax, relax_translation, report, restrict
from escnn_relax.curvature.curvature import Curvature
from escnn_relax.errors import ArgumentError, SubgroupError, UnsupportedModuleError
from escnn_relax.nn import (
    FactoredPathway,
    KernelPathway,
    MergedConvolution,
    RelaxedTranslation,
    SparseR2Conv,
    SparseR3Conv,
)
from escnn_relax.nn.expanded_convolution import ExpandedConvolution
from escnn_relax.symmetry.grid.field_action import transform_field
from escnn_relax.symmetry.groups.lattice import subgroup

EXACT = 1e-10
#: escnn samples its kernels in float32; interpolation between crowded anchors amplifies rounding.
SAMPLED, INTERPOLATED = 1e-6, 1e-4
C4, C8, D4 = gspaces.rot2dOnR2(4), gspaces.rot2dOnR2(8), gspaces.flipRot2dOnR2(4)
SO2, O2 = gspaces.rot2dOnR2(-1, maximum_frequency=2), gspaces.flipRot2dOnR2(-1, maximum_frequency=2)
OCTA, MIRROR = gspaces.octaOnR3(), gspaces.invOnR3()


@pytest.fixture(autouse=True)
def double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def fields(space, count=1):
    if space.fibergroup.continuous:
        return enn.FieldType(space, count * [space.trivial_repr, space.irreps[-1]])
    return enn.FieldType(space, count * [space.regular_repr, space.trivial_repr])


def strict(in_type, out_type, size=3, **options):
    """An escnn layer, whose constructor knows single precision only."""
    torch.set_default_dtype(torch.float32)
    layer = enn.R2Conv(in_type, out_type, size, recompute=True, **options)
    torch.set_default_dtype(torch.float64)
    return layer.double()


def shaken(model):
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.5)
    return model


def net(space=C4, **options):
    gray, hidden = enn.FieldType(space, [space.trivial_repr]), fields(space)
    layers = [strict(gray, hidden, padding=1, **options), enn.IdentityModule(hidden), strict(hidden, gray)]
    return Tensors(enn.SequentialModule(*layers), gray)


def error(of, type, elements, size=8):
    """Largest relative departure from equivariance, and the largest change under a shift by one pixel."""
    x = torch.randn(2, type.size, *(size,) * type.gspace.dimensionality)
    y = of(type(x))
    moved = [of(type(transform_field(x, type, g))).tensor - transform_field(y.tensor, y.type, g) for g in elements]
    shifted = of(type(x.roll(1, -1))).tensor - y.tensor.roll(1, -1)
    return [float(m.abs().max() / y.tensor.abs().max()) for m in (torch.stack(moved), shifted)]


GEOMETRIES = [{}, {"padding": 1, "stride": 2}, {"groups": 2}, {"dilation": 2}]
GEOMETRIES += [{"padding": (1, 0), "padding_mode": "circular"}]


@pytest.mark.parametrize("options", GEOMETRIES)
def test_the_pathway_adds_its_kernel_to_that_of_the_convolution(options):
    two = fields(C4, 2)
    layer, x = strict(two, two, **options), two(torch.randn(2, two.size, 7, 7))
    if isinstance(layer.padding, tuple):  # escnn's layer does not know the shape of its output then
        with pytest.raises(UnsupportedModuleError, match="one padding for all axes"):
            relax_translation(layer, x)
        layer = relax(layer)
    relaxed = relax_translation(layer, x, ["sparse-kernel", ("sparse-kernel", "free")])
    assert list(relaxed.sites) == ["sparse-kernel_C4", "sparse-kernel_free"]
    assert torch.equal(relaxed(x).tensor, layer(x).tensor) and relaxed.breaking_energy == 0
    for pathway in relaxed.sites.values():
        pathway.reset_parameters(silent=False)
    kernel, bias = relaxed.convolution.expand_parameters()
    kernel = kernel + sum(p.convolution.expand_parameters()[0] for p in relaxed.sites.values())
    geometry = {n: getattr(layer, n) for n in ("stride", "padding", "dilation", "groups", "padding_mode")}
    plain = nn.Conv2d(two.size, two.size, 3, **geometry)
    with torch.no_grad():
        plain.weight.copy_(kernel), plain.bias.copy_(bias)
    expected = plain(x.tensor)
    assert (relaxed(x).tensor - expected).abs().max() < EXACT < (layer(x).tensor - expected).abs().max()
    assert relaxed.evaluate_output_shape(x.shape) == expected.shape
    assert all("bias" not in n for n, _ in relaxed.sites.named_parameters())


def test_it_keeps_translations_and_breaks_the_group_where_it_is_free():
    both = fields(C4)
    x = both(torch.zeros(1, both.size, 8, 8))
    layer = strict(both, both, padding=1, padding_mode="circular")
    pathways = ("sparse-kernel", ("sparse-kernel", "free"), "factored")
    group, free, sites = (shaken(relax_translation(layer, x, [p])) for p in pathways)
    turned, shifted = error(group, both, C4.fibergroup.elements)
    assert turned < INTERPOLATED and shifted < EXACT
    turned, shifted = error(free, both, C4.fibergroup.elements)
    assert turned > 0.1 and shifted < EXACT
    turned, shifted = error(sites, both, C4.fibergroup.elements)
    assert turned < SAMPLED and shifted > 0.1
    assert group.breaking_energy == free.breaking_energy == 0 < sites.breaking_energy


@pytest.mark.parametrize("keeps", ["group", "free", 2])
def test_energy_is_the_norm_of_the_whole_map(keeps):
    both = fields(C4)
    x = both(torch.zeros(1, both.size, 5, 5))
    layer = shaken(
        relax_translation(strict(both, both, padding=1, padding_mode="circular"), x, [("sparse-kernel", keeps)])
    )
    (pathway,) = layer.sites.values()
    units = torch.eye(both.size * 25).view(-1, both.size, 5, 5)
    norms = [
        float(of(units).square().sum()) for of in (lambda u: layer.convolution(both(u)).tensor - bias(layer), pathway)
    ]
    energies = layer.energies()
    assert pathway.energy() == pytest.approx(norms[1], rel=EXACT)
    assert list(energies.values()) == pytest.approx([n / sum(norms) for n in norms], rel=1e-6)


def bias(layer):
    zeros = torch.zeros(1, layer.in_type.size, *layer.in_shape)
    return layer.convolution(layer.in_type(zeros)).tensor


def test_spatial_layers_and_learned_length_scales():
    one = enn.FieldType(MIRROR, [MIRROR.trivial_repr, MIRROR.irreps[1]])
    torch.set_default_dtype(torch.float32)
    layer = enn.R3Conv(one, one, 3, padding=1)
    torch.set_default_dtype(torch.float64)
    x = one(torch.randn(1, 2, 4, 4, 4))
    relaxed = relax_translation(layer.double(), x, ["sparse-kernel"], learn_omega=True)
    (pathway,) = relaxed.sites.values()
    assert isinstance(pathway.convolution, SparseR3Conv) and pathway.subgroup.order == 2
    assert {"weights", "anchors.log_omega"} == {n for n, _ in pathway.convolution.named_parameters()}
    assert torch.equal(relaxed(x).tensor, layer(x).tensor)
    scale, before = pathway.convolution.anchors.log_omega, shaken(relaxed)(x).tensor
    with torch.no_grad():
        scale.add_(0.3)
    assert (relaxed(x).tensor - before).abs().max() > 1e-3


def test_blocks_are_exact_and_the_evidence_gives_each_a_precision():
    x = torch.randn(3, 1, 5, 5)
    model = shaken(relax_translation(net(), x, ["sparse-kernel", ("sparse-kernel", "free")]))
    data = [(x, torch.zeros_like(model(x)).detach())]
    expected = dense_ggn(model, data, "gaussian")
    estimate = Curvature(model, "gaussian", "exact")(data)
    assert set(estimate.factors) == set(expected)
    for name, (factor,) in each(estimate.factors.items()):
        assert (factor.dense() - expected[name]).norm() < EXACT * expected[name].norm(), name
    evidence = Evidence(model, "gaussian", num_data=3)
    assert not evidence.uncovered
    starts = [evidence.log_precision[f"net.0.sites.sparse-kernel_{n}.convolution.weights"] for n in ("C4", "free")]
    assert starts == [0.0, 3.0]  # what keeps the group is no residual
    evidence.refresh(DataLoader(TensorDataset(*data[0]), 2))
    assert math.isfinite(evidence.step().total)
    assert (
        len({evidence.log_precision[f"net.0.sites.sparse-kernel_{n}.convolution.weights"] for n in ("C4", "free")}) == 2
    )
    shown = next(r for r in report(model, evidence).layers if r.name == "net.0")
    rows = {p.name: p for p in shown.pathways}
    assert list(rows) == ["convolution", "sparse-kernel_C4", "sparse-kernel_free"]
    assert not any(p.breaks for p in rows.values())
    assert shown.breaking_energy == 0 and all(0 < p.energy < 1 for p in rows.values())
    gammas = evidence.effective_dimension()
    for name in ("sparse-kernel_C4", "sparse-kernel_free"):
        weights = model.net[0].sites[name].convolution.weights
        assert rows[name].dimension == len(weights)
        assert rows[name].effective_dimension == pytest.approx(gammas[f"net.0.sites.{name}.convolution.weights"])


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_harden_removes_dead_kernels_and_merges_living_ones(average, training):
    x = torch.randn(3, 1, 6, 6)
    pathways = ["sparse-kernel", ("sparse-kernel", "free"), "factored"]
    model = relax_translation(net(padding_mode="circular"), x, pathways, average=average).train(training)
    dead = harden(model)
    assert type(dead.net[0]) is enn.R2Conv and (dead(x) - model(x)).abs().max() < SAMPLED
    model.net[0].sites["sparse-kernel_free"].reset_parameters(silent=False)
    merged, done = harden(model, return_report=True)
    assert type(merged.net[0]) is MergedConvolution and merged.net[0].training is training
    assert (merged(x) - model(x)).abs().max() < EXACT < 1e-3 < (dead(x) - model(x)).abs().max()
    record = done[0]
    assert record.removed == ("sparse-kernel_C4", "factored_C4") and record.merged == ("sparse-kernel_free",)
    model.net[0].sites["factored_C4"].reset_parameters(silent=False)
    beside = harden(model)
    assert type(beside.net[0].convolution) is MergedConvolution and list(beside.net[0].sites) == ["factored_C4"]
    assert (beside(x) - model(x)).abs().max() < EXACT
    assert 0 < beside.net[0].energies()["factored_C4"] < 1
    again = harden(beside)
    assert (again(x) - model(x)).abs().max() < EXACT


def test_harden_beside_what_is_relaxed_mixed_or_sparse():
    x = torch.randn(2, 1, 6, 6)
    relaxed = shaken(relax_translation(relax(net()), x, [("sparse-kernel", "free")]))
    merged = harden(relaxed)
    assert type(merged.net[0]) is MergedConvolution and (merged(x) - relaxed(x)).abs().max() < EXACT
    mixed = shaken(relax_translation(mix(net(), [2, 1]), x, [("sparse-kernel", "free")]))
    kept = harden(mixed)
    assert isinstance(kept.net[0], RelaxedTranslation) and torch.equal(kept(x), mixed(x))
    whole = harden(merge(mixed))
    assert type(whole.net[0]) is MergedConvolution and (whole(x) - mixed(x)).abs().max() < EXACT
    sparse = shaken(relax_translation(sparse_net(), x, [("sparse-kernel", "free"), "factored"]))
    sparse.net[0].sites["factored_C4"].reset_parameters()
    with torch.no_grad():
        for p in sparse.net[0].sites["factored_C4"].parameters():
            p.zero_()
    assert type(harden(sparse).net[0]) is MergedConvolution and (harden(sparse)(x) - sparse(x)).abs().max() < EXACT


def test_average_copies_and_state():
    x = torch.randn(2, 1, 6, 6)
    model = net()
    averaged = relax_translation(model, x, ["sparse-kernel", "dense"], average=True, layers="net.0").net[0]
    signal = averaged.in_type(x)
    assert (3 * averaged(signal).tensor - model.net[0](signal).tensor).abs().max() < EXACT
    a, b = (relax_translation(net(), x, [("sparse-kernel", "free")], silent=False, seed=s) for s in (0, 1))
    assert (a(x) - b(x)).abs().max() > 1e-3
    b.load_state_dict(a.state_dict())
    for copied in (b, copy.deepcopy(a), pickle.loads(pickle.dumps(a)), copy.deepcopy(a).eval()):
        with torch.no_grad():
            assert (copied(x) - a(x)).abs().max() < EXACT
            assert (copied(x) - a(x)).abs().max() < EXACT  # now from what was kept, if anything is
    evaluated = copy.deepcopy(a).eval()
    with torch.no_grad():
        before = evaluated(x)
        evaluated.net[0].sites["sparse-kernel_free"].convolution.weights.add_(0.1)
        assert (evaluated(x) - before).abs().max() > 1e-3
    assert (copy.deepcopy(a).float()(x.float()).double() - a(x)).abs().max() < 1e-4


def sparse_net(**options):
    gray, hidden = enn.FieldType(C4, [C4.trivial_repr]), fields(C4)
    layers = [
        SparseR2Conv(gray, hidden, 3, padding=1, **options),
        enn.IdentityModule(hidden),
        SparseR2Conv(hidden, gray, 3),
    ]
    return Tensors(enn.SequentialModule(*layers), gray)


def test_pathways_beside_sparse_convolutions():
    model, x = sparse_net(), torch.randn(2, 1, 6, 6)
    relaxed = relax_translation(model, x, ["factored", ("sparse-kernel", "free")])
    assert torch.equal(relaxed(x), model(x)) and type(relaxed.net[0].convolution) is SparseR2Conv
    assert sum(relaxed.net[0].energies().values()) == pytest.approx(1)
    hardened = harden(shaken(relaxed))
    assert (hardened(x) - relaxed(x)).abs().max() < EXACT
    assert harden(relax_translation(model, x)).net[0].weights.shape == model.net[0].weights.shape


RESTRICTIONS = [
    (C4, 2, "group", "C2"),
    (C4, 1, "group", "trivial"),
    (C4, 2, "free", "trivial"),
    (C8, 4, 8, "C4"),
    (D4, (None, 4), "group", "C4"),
    (D4, (0, 1), "group", None),
    (SO2, 4, "group", "C4"),
    (O2, (None, -1), "group", "C4"),
    (SO2, 3, "group", "trivial"),
    (MIRROR, 1, "group", "trivial"),
    pytest.param(OCTA, (False, 4), "group", None, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("space", "id", "kept", "name"), RESTRICTIONS)
def test_restricted(space, id, kept, name):
    """The same function on H's types, and what it keeps of H holds whatever becomes of its weights."""
    type = fields(space)
    if space is OCTA:
        type = enn.FieldType(space, [space.trivial_repr, space.irreps[1]])
    make = SparseR2Conv if type.gspace.dimensionality == 2 else SparseR3Conv
    layer = make(type, type, 3, padding=1, subgroup=kept, learn_omega=True)
    with torch.no_grad():
        layer.bias.normal_()
        layer.anchors.log_omega.fill_(0.1)
    layer.weights.requires_grad_(False)
    small = restrict(layer.eval(), id)
    h = subgroup(space, id)
    assert small.in_type.gspace.fibergroup.order() == h.order
    x = torch.randn(2, type.size, *(5,) * layer.d)
    assert (small(small.in_type(x)).tensor - layer(type(x)).tensor).abs().max() < INTERPOLATED * 1e-3
    shared = h.order if layer.subgroup.order < 0 else sum(h.contains(e) for e in layer.subgroup.elements)
    assert small.subgroup.order == shared and (name is None or small.subgroup.name == name)
    assert len(small.weights) == len(layer.weights) * layer.subgroup.order // shared
    assert not small.weights.requires_grad and small.bias.requires_grad and not small.training
    fresh = shaken(small)
    if shared > 1 and space is not C8:
        assert error(fresh, small.in_type, small.subgroup.elements, 5)[0] < INTERPOLATED
    broken = [g for g in layer.subgroup.elements if not h.contains(g)]
    if broken and space is not C8:
        assert error(lambda t: type_of(layer, fresh, t), type, broken, 5)[0] > 0.01


def type_of(layer, small, input):
    """What the restricted layer computes, as fields of the larger group."""
    return layer.out_type(small(small.in_type(input.tensor)).tensor)


def test_restricted_networks_and_subclasses():
    model, x = sparse_net(), torch.randn(2, 1, 6, 6)
    small = restrict(model.net, 2)
    assert (small(small.in_type(x)).tensor.flatten(1) - model(x)).abs().max() < EXACT
    assert [layer.subgroup.name for layer in (small[0], small[2])] == ["C2", "C2"]
    anew = SparseR2Conv(small[0].in_type, small[0].out_type, 3, padding=1, subgroup=2, seed=5)
    anew.load_state_dict(small[0].state_dict())  # orbits are in the same order
    assert (anew(small.in_type(x)).tensor - small[0](small.in_type(x)).tensor).abs().max() < EXACT

    class Own(SparseR2Conv):
        pass

    gray = model.in_type
    with pytest.raises(UnsupportedModuleError, match="Own has weights of its own"):
        restrict(enn.SequentialModule(Own(gray, gray, 3)), 2)


def test_relax_mix_and_project_say_what_they_cannot_do():
    gray, hidden = enn.FieldType(C4, [C4.trivial_repr]), fields(C4)

    def both(kept="group"):
        return nn.Sequential(strict(gray, hidden), SparseR2Conv(hidden, hidden, 3, subgroup=kept))

    for refused in (lambda m: relax(m), lambda m: mix(m, [2, 1]), lambda m: mix(m, lambda name, module: [2])):
        with pytest.raises(UnsupportedModuleError, match=r"^1: .*it keeps C4; leave .* out by layers=.*sparse-kernel"):
            refused(both())
    assert type(relax(both(), layers=["0"])[1]) is SparseR2Conv and type(mix(both(), {"0": [2]})[1]) is SparseR2Conv
    assert type(relax(both("free"))[1]) is SparseR2Conv  # there is no symmetry to break
    with pytest.raises(ArgumentError, match="no layer that can be relaxed is named"):
        relax(both(), layers=["1"])
    beside = relax_translation(strict(gray, hidden), gray(torch.zeros(1, 1, 5, 5)), ["sparse-kernel"])
    assert list(relax(beside).sites) == ["sparse-kernel_C4"]  # a pathway is no layer

    relaxed = relax(both(), layers=["0"])
    assert type(project(relaxed)[1]) is SparseR2Conv
    with pytest.raises(UnsupportedModuleError, match=r"^1: .*it keeps C2 of C4; project the parts"):
        project(relax(both(2), layers=["0"]))
    whole = enn.SequentialModule(*both())
    with pytest.raises(UnsupportedModuleError, match=r"^1: .*it keeps C4 of C4"):
        project(restrict(whole, 2), like=whole)


def test_bad_input():
    gray = enn.FieldType(C4, [C4.trivial_repr])
    x = gray(torch.zeros(1, 1, 6, 6))
    layer = strict(gray, gray)
    with pytest.raises(ArgumentError, match="pathways out of .*sparse-kernel"):
        relax_translation(layer, x, ["sparse_kernel"])
    with pytest.raises(ArgumentError, match="asked for twice"):
        relax_translation(layer, x, ["sparse-kernel", ("sparse-kernel", 4)])
    with pytest.raises(ArgumentError, match="one orbit of C4 has 4 anchors"):
        relax_translation(strict(gray, gray, 1), x, ["sparse-kernel"])
    with pytest.raises(SubgroupError):
        relax_translation(layer, x, [("sparse-kernel", 3)])
    with pytest.raises(UnsupportedModuleError, match="no convolution in it"):
        relax_translation(enn.R2ConvTransposed(gray, gray, 3), x, ["sparse-kernel"])
    with pytest.raises(ArgumentError, match="one size of kernel"):
        SparseR2Conv(gray, gray, (3, 3))


def by_units(function, size):
    """The matrix of a linear function, a column for each unit vector."""
    return np.stack([function(unit).detach().flatten().numpy() for unit in torch.eye(size)], axis=1)


@pytest.mark.parametrize("kept", ["free", "group"])
def test_fitted_kernels_are_the_least_squares_fit(kept):
    one = enn.FieldType(C4, [C4.trivial_repr])
    layer = SparseR2Conv(one, one, 3, subgroup=kept)
    torch.manual_seed(3)
    layer.reset_parameters(fitted=True)
    torch.manual_seed(3)
    drawn = torch.empty(9 if kept == "free" else 3).uniform_(-math.sqrt(6 / 9), math.sqrt(6 / 9))
    wanted = drawn if kept == "free" else drawn[[0, 1, 0, 1, 2, 1, 0, 1, 0]]  # corners, edges, centre

    def kernel(weights):
        return torch.func.functional_call(Kernel(layer), {"layer.weights": weights})

    design = by_units(kernel, len(layer.weights))
    solution = np.linalg.lstsq(design, wanted.numpy(), rcond=None)[0]
    assert np.abs(solution - layer.weights.detach().numpy()).max() < EXACT * max(1, np.abs(solution).max())
    left = wanted.numpy() - design @ solution
    assert np.linalg.norm(left) > 1e-3  # fewer anchors than pixels
    layer.reset_parameters()
    assert np.abs(solution - layer.weights.detach().numpy()).max() > 1e-3


class Kernel(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self):
        return self.layer.expand_parameters()[0]


def test_fitted_kernels_of_a_group_that_leaves_the_grid():
    layer = SparseR2Conv(fields(C8), fields(C8), 5, subgroup=8)
    layer.reset_parameters(fitted=True)
    kernel = layer.expand_parameters()[0]
    assert 0.1 < float(kernel.square().mean()) * kernel[0].numel() / 2 < 1.5  # in units of He's variance


@pytest.mark.parametrize(("space", "id"), [(C4, 1), (C4, 4), (D4, (0, 4))])
def test_fitted_factors_are_the_least_squares_fit(space, id):
    type = enn.FieldType(space, [space.irreps[-1], space.irreps[-1]])
    kept = subgroup(space, id)
    pathway = FactoredPathway(type, type, (4, 4), (3, 3), kept, fraction=0.9)
    size, width = pathway.source.turned[0].size, pathway.into[0].inputs
    torch.manual_seed(5)
    pathway.reset_parameters(silent=False)
    shapes = [(*linear.weight.shape[:2], size, 16) for linear in pathway.into]
    (u,) = (_drawn(shape, size * 16) for shape in shapes)
    v = _drawn((pathway.onto[0].groups, pathway.onto[0].inputs, size, 9), pathway.onto[0].inputs * kept.order)
    torch.manual_seed(5)
    pathway.reset_parameters(silent=False, fitted=True)
    order = kept.order
    read = by_units(lambda w: pathway.source.spread(0, w.view(1, 1, width, order)), width * order)
    written = pathway.onto[0].outputs
    write = by_units(lambda w: pathway.target.spread(0, w.view(1, 1, written, order)), written * order)
    # the kernel of the first hidden element, as the matrices of the layer have it
    rows = pathway.into[0].matrices().unflatten(1, (-1, order))[:, :, 0].detach()  # (fields, outputs, width * order)
    columns = pathway.onto[0].matrices().unflatten(2, (-1, order))[..., 0].transpose(1, 2).detach()
    for design, found, target in ((read, rows, u), (write, columns, v)):
        wanted = np.linalg.lstsq(design, target.flatten(2).flatten(0, 1).numpy().T, rcond=None)[0]
        assert np.abs(found.flatten(0, 1).numpy().T - wanted).max() < 1e-8 * np.abs(wanted).max()
    pathway.reset_parameters(fitted=True)
    x = torch.randn(2, type.size, 4, 4)
    assert pathway(x).abs().max() == 0  # silent, but for the part that reads
    copied = pathway.into[0].weight.clone()
    pathway.reset_parameters()
    assert not torch.equal(copied, pathway.into[0].weight)


def _drawn(shape, summed):
    return torch.empty(shape).uniform_(-math.sqrt(3 / summed), math.sqrt(3 / summed))


def test_relax_translation_starts_fitted():
    x = torch.randn(2, 1, 6, 6)
    for kind in ("sparse", "sparse-kernel"):
        plain, fitted = (
            relax_translation(net(), x, [(kind, "free")], silent=False, fitted=f, layers="net.0") for f in (False, True)
        )
        assert (plain(x) - fitted(x)).abs().max() > 1e-3
    silent = relax_translation(net(), x, ["sparse", "sparse-kernel"], fitted=True)
    assert all(m.breaking_energy == 0 for m in silent.modules() if isinstance(m, RelaxedTranslation))
    assert all(p.energy() == 0 for p in silent.modules() if isinstance(p, KernelPathway))


def test_former_names_work_and_say_so():
    one = enn.FieldType(C4, [C4.trivial_repr])
    with pytest.warns(DeprecationWarning, match=r"SparseR2Conv\(subgroup=\)"):
        free = SparseR2Conv(one, one, 3, bias=False, kept="free")
    with pytest.warns(DeprecationWarning, match="KernelPathway.subgroup"):
        assert KernelPathway(free, (6, 6)).kept == free.subgroup and free.subgroup.order == 1
    with pytest.raises(ArgumentError, match="no argument 'fractions'; did you mean 'fraction'"):
        SparseR2Conv(one, one, 3, fractions=0.5)


@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_it_convolves_by_the_base_that_all_expanded_kernels_have(mode):
    """Geometry, shapes and export are those of a steerable layer with pathways, from one and the same code."""
    sparse = SparseR2Conv(fields(C4), fields(C4), 3, padding=[2, 1], stride=2, padding_mode=mode)
    relaxed = relax(strict(fields(C4), fields(C4), padding=1, stride=2))
    for layer in each([sparse, relaxed], 2):
        assert isinstance(layer, ExpandedConvolution)
        assert type(layer).forward is ExpandedConvolution.forward
        x = torch.randn(2, layer.in_type.size, 8, 8)
        out = layer(layer.in_type(x)).tensor
        assert layer.evaluate_output_shape(x.shape) == out.shape
        assert (layer.export()(x) - out).abs().max() < EXACT
        with pytest.raises(ArgumentError, match=r"expected a shape \(batch, 5, \*2 dimensions\)"):
            layer.evaluate_output_shape((2, 1, 8, 8))
