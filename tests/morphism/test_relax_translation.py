"""Pathways that break translation: dense, factored and sparse; and sparse kernels."""

import copy
import math
import pickle

import pytest
import torch
from curvature_oracles import Tensors, dense_ggn, own_filters  # noqa: F401
from escnn import gspaces
from escnn import nn as enn
from fields import SINGLE
from nonempty import each
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from escnn_relax import Evidence, harden, project, relax, relax_translation, report, restrict
from escnn_relax.curvature.curvature import Curvature
from escnn_relax.errors import ArgumentError, FieldTypeError, SubgroupError, UnsupportedModuleError
from escnn_relax.nn import DensePathway, FactoredPathway, RelaxedTranslation, SparseR2Conv, SparseR3Conv
from escnn_relax.symmetry.grid.field_action import transform_field
from escnn_relax.symmetry.grid.sites import largest_grid_subgroup
from escnn_relax.symmetry.groups.lattice import subgroups

EXACT = 1e-10
#: escnn samples its kernels, and we keep positions of anchors, in float32; interpolation between crowded anchors
#: amplifies.
SAMPLED, INTERPOLATED = 1e-6, 1e-4
C4, C8, D4 = gspaces.rot2dOnR2(4), gspaces.rot2dOnR2(8), gspaces.flipRot2dOnR2(4)
OCTA, MIRROR = gspaces.octaOnR3(), gspaces.invOnR3()


def trivial(space):
    return next(h for h in subgroups(space) if h.order == 1)


def mixed(space):
    two = next(r for r in space.irreps if r.size > 1) if len(space.irreps) > 2 else space.irreps[-1]
    return enn.FieldType(space, [space.regular_repr, two, space.trivial_repr, two])


def shaken(model):
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.5)
    return model.double()


def net(space, hidden=None, size=3):
    gray = enn.FieldType(space, [space.trivial_repr])
    hidden = hidden or enn.FieldType(space, [space.regular_repr, space.trivial_repr])
    layers = [enn.R2Conv(gray, hidden, size, padding=size // 2), enn.ReLU(hidden), enn.R2Conv(hidden, gray, size)]
    return Tensors(enn.SequentialModule(*layers), gray)


PATHWAYS = [
    (kind, space, before, after)
    for kind in (DensePathway, FactoredPathway)
    for space, before, after in ((D4, (5, 5), (3, 3)), (C8, (4, 4), (4, 4)), (MIRROR, (2, 3, 2), (2, 2, 2)))
]


@pytest.mark.parametrize("fraction", [None, 0.9])
@pytest.mark.parametrize(("kind", "space", "before", "after"), PATHWAYS)
def test_pathways_are_equivariant_about_the_centre(kind, space, before, after, fraction):
    fields, kept = mixed(space), largest_grid_subgroup(space, before)
    pathway = shaken(kind(fields, fields, before, after, kept, fraction=fraction))
    free = shaken(kind(fields, fields, before, after, trivial(space), fraction=fraction))
    x = torch.randn(2, fields.size, *before).double()

    def error(of, elements):
        moved = [of(transform_field(x, fields, g)) - transform_field(of(x), fields, g) for g in elements]
        return max(float(m.abs().max() / of(x).abs().max()) for m in moved)

    assert kept.order > 1 and error(pathway, kept.elements) < (EXACT if fraction is None else INTERPOLATED)
    assert error(free, kept.elements) > 0.1


@pytest.mark.parametrize("fraction", [None, 0.9])
@pytest.mark.parametrize(("kind", "space", "before", "after"), PATHWAYS)
def test_energy_is_the_norm_of_the_whole_map(kind, space, before, after, fraction):
    fields = mixed(space)
    pathway = shaken(kind(fields, fields, before, after, largest_grid_subgroup(space, before), fraction=fraction))
    size = fields.size * math.prod(before)
    units = torch.eye(size).double().view(size, fields.size, *before)
    matrix = (pathway(units) - pathway(torch.zeros_like(units[:1]))).flatten(1)
    assert pathway.energy() == pytest.approx(float(matrix.square().sum()), rel=1e-6)


def test_factored_is_the_published_formula():
    three, two = (enn.FieldType(C4, n * [C4.trivial_repr]) for n in (3, 2))
    pathway = shaken(FactoredPathway(three, two, (2, 3), (2, 2), trivial(C4)))
    x = torch.randn(5, 3, 2, 3).double()
    U = pathway.into[0].weight.squeeze(-1)  # (c, c', x)
    V = pathway.onto[0].weight.squeeze(-1)  # (c', x', c)
    inner = torch.einsum("cox,ncx->noc", U, x.flatten(2)) + pathway.into[0].bias[:, None]
    expected = torch.einsum("oyc,noc->noy", V, inner) + pathway.onto[0].bias
    assert (pathway(x).flatten(2) - expected).abs().max() < EXACT
    assert (pathway(x).flatten(2) - expected + pathway.onto[0].bias).abs().max() > 0.1


@pytest.mark.parametrize("pathways", ["factored", "dense", "sparse", ["sparse", ("dense", "free"), ("factored", 2)]])
def test_function_is_preserved_and_the_model_left_alone(pathways):
    model, x = net(C4), torch.randn(3, 1, 6, 6)
    before = copy.deepcopy(model.state_dict())
    relaxed = relax_translation(model, x, pathways)
    assert torch.equal(relaxed(x), model(x))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    layers = [m for m in relaxed.modules() if isinstance(m, RelaxedTranslation)]
    assert len(layers) == 2 and all(m.breaking_energy == 0 for m in layers)
    assert not torch.equal(shaken(relaxed)(x.double()), shaken(model)(x.double()))


def test_translations_are_broken_and_the_group_kept():
    model = net(C4)
    x = torch.randn(2, 1, 6, 6)
    kept, free = (shaken(relax_translation(model, x, [("factored", how)], layers="net.0")) for how in ("group", "free"))
    x = x.double()
    for relaxed, symmetric in ((kept, True), (free, False)):
        layer = relaxed.net[0]
        signal = layer.in_type(x)
        y = layer(signal).tensor
        turned = transform_field(
            layer(layer.in_type(torch.rot90(x, 1, (2, 3)))).tensor, layer.out_type, C4.fibergroup.element(3)
        )
        assert ((turned - y).abs().max() < SAMPLED * y.abs().max()) == symmetric
        shifted = layer(layer.in_type(x.roll(1, 3))).tensor[..., 2:5]
        assert (shifted - y.roll(1, 3)[..., 2:5]).abs().max() > 0.1


def test_average_divides_by_the_number_of_summands():
    model, x = net(C4), torch.randn(2, 1, 6, 6)
    layer = relax_translation(model, x, ["factored", "dense"], average=True, layers="net.0").net[0]
    x = layer.in_type(x)
    assert torch.allclose(3 * layer(x).tensor, model.net[0](x).tensor, atol=SINGLE)


def test_beside_a_relaxed_convolution():
    model, x = net(C4), torch.randn(3, 1, 6, 6)
    both = relax_translation(relax(model), x, ("factored", ("factored", "free")))
    assert torch.equal(both(x), relax(model)(x))
    names = set(dict(both.named_parameters()))
    assert {"net.0.convolution.weights.irrep_2", "net.0.sites.factored_C4.into.0.weight"} <= names


CURVATURES = [["factored", ("dense", "free")], ["sparse", ("sparse", "free")], ["dense", ("factored", 2)]]


@pytest.mark.parametrize("pathways", CURVATURES)
def test_exact_blocks_are_those_of_the_gauss_newton_matrix(pathways):
    x = torch.randn(3, 1, 5, 5)
    hidden = enn.FieldType(C4, [C4.regular_repr, C4.trivial_repr])
    model = shaken(relax_translation(net(C4, hidden), x, pathways, fraction=0.6))
    x = x.double()
    data = [(x, torch.zeros_like(model(x)).detach())]
    expected = dense_ggn(model, data, "gaussian")
    estimate = Curvature(model, "gaussian", "exact")(data)
    assert set(estimate.factors) == set(expected)
    for name, (factor,) in each(estimate.factors.items()):
        assert (factor.dense() - expected[name]).norm() < EXACT * expected[name].norm(), name


def test_factors_have_the_size_of_one_group():
    """The published blocks: A_U is S x S for each input channel, A_V is C x C for each output channel.

    B is kept for each channel as well, where the published factors share one B_U and one B_V among all of them.
    """
    three, two = (enn.FieldType(C4, n * [C4.trivial_repr]) for n in (3, 2))
    pathway = shaken(FactoredPathway(three, two, (4, 4), (3, 3), trivial(C4)))
    x = torch.randn(6, 3, 4, 4).double()
    model = nn.Sequential(pathway, nn.Flatten())
    estimate = Curvature(model, "gaussian")([(x, torch.zeros(6, 18).double())])
    U, V = estimate.factors["0.into.0.weight"], estimate.factors["0.onto.0.weight"]
    assert [(len(f.A), len(f.B)) for f in U] == 3 * [(16, 2)] and [(len(f.A), len(f.B)) for f in V] == 2 * [(3, 9)]
    for channel, factor in enumerate(each(U)):
        read = x[:, channel].flatten(1)
        assert (factor.A - read.T @ read / 6).abs().max() < EXACT
        # what is sent back to the hidden numbers of this input channel: V's columns
        sent = pathway.onto[0].weight[..., channel, 0]  # (c', x')
        assert (factor.B - 6 * torch.diag(sent.square().sum(1))).abs().max() < EXACT
    hidden = torch.einsum("cox,ncx->onc", pathway.into[0].weight.squeeze(-1), x.flatten(2))
    hidden = hidden + pathway.into[0].bias[:, None, None]
    for channel, factor in enumerate(each(V)):
        assert (factor.A - hidden[channel].T @ hidden[channel] / 6).abs().max() < EXACT
        assert (factor.B - 6 * torch.eye(9)).abs().max() < EXACT


def test_evidence_covers_all_pathways():
    x = torch.randn(8, 1, 6, 6)
    model = relax_translation(relax(net(C4)), x, ["factored", ("sparse", "free")])
    flat = nn.Sequential(model, nn.Linear(16, 3))
    evidence = Evidence(flat, num_data=8)
    assert not [n for n in evidence.uncovered if "sites" in n]
    evidence.refresh(DataLoader(TensorDataset(x, torch.randint(3, (8,))), 4))
    assert math.isfinite(evidence.step().total)


SPARSE = [(SparseR2Conv, D4, 5), (SparseR2Conv, C8, 4), (SparseR3Conv, OCTA, 3)]


@pytest.mark.parametrize(("kind", "space", "size"), SPARSE)
def test_sparse_kernels_are_equivariant(kind, space, size):
    fields = enn.FieldType(space, [space.trivial_repr, space.irreps[1]])
    layer = shaken(kind(fields, fields, size, padding=size // 2))
    free = shaken(kind(fields, fields, size, padding=size // 2, subgroup="free"))
    x = torch.randn(2, fields.size, *(size + 2,) * layer.d).double()

    def error(of):
        apply = lambda tensor: of(fields(tensor)).tensor
        moved = [
            apply(transform_field(x, fields, g)) - transform_field(apply(x), fields, g) for g in layer.subgroup.elements
        ]
        return max(float(m.abs().max() / apply(x).abs().max()) for m in moved)

    assert layer.subgroup.order > 1 and error(layer) < INTERPOLATED and error(free) > 0.05
    assert layer.evaluate_output_shape(x.shape) == layer(fields(x)).tensor.shape
    assert (layer.export()(x) - layer(fields(x)).tensor).abs().max() < EXACT


def test_sparse_kernels_of_a_group_that_leaves_the_grid():
    """Anchors may be turned by 45 degrees where pixels may not: the kernel is then equivariant between the pixels."""
    gray, fields = enn.FieldType(C8, [C8.trivial_repr]), enn.FieldType(C8, [C8.regular_repr])
    layer = shaken(SparseR2Conv(gray, fields, 7, subgroup=8, omega=0.6))
    kernel = layer.expand_parameters()[0]
    assert (kernel[2, 0] - torch.rot90(kernel[0, 0], 1, (0, 1))).abs().max() < INTERPOLATED  # two steps: a quarter turn
    anchors = layer.kernel({"equivariant": layer.weights})[:, 0]
    assert (
        anchors[1].sort().values - anchors[0].sort().values
    ).abs().max() < EXACT  # one step: the same values elsewhere


@pytest.mark.parametrize("kept", ["group", "free"])
def test_sparse_convolution_has_exact_blocks(kept):
    gray, fields = enn.FieldType(C4, [C4.trivial_repr]), enn.FieldType(C4, [C4.regular_repr])
    layers = [
        SparseR2Conv(gray, fields, 3, subgroup=kept),
        enn.ReLU(fields),
        SparseR2Conv(fields, gray, 3, subgroup=kept, bias=False),
    ]
    model = shaken(Tensors(nn.Sequential(*layers), gray))
    x = torch.randn(3, 1, 6, 6).double()
    data = [(x, torch.zeros_like(model(x)).detach())]
    expected = dense_ggn(model, data, "gaussian")
    estimate = Curvature(model, "gaussian", "exact")(data)
    for name, (factor,) in each(estimate.factors.items()):
        assert (factor.dense() - expected[name]).norm() < EXACT * expected[name].norm(), name


def scaled():
    gray, fields = enn.FieldType(C4, [C4.trivial_repr]), enn.FieldType(C4, [C4.regular_repr])
    layers = [SparseR2Conv(gray, fields, 3, learn_omega=True), enn.ReLU(fields), enn.R2Conv(fields, gray, 3)]
    model = Tensors(nn.Sequential(*layers), gray)
    model = relax_translation(model, torch.zeros(1, 1, 7, 7), "sparse", learn_omega=True, layers="net.2")
    scales = [p for n, p in model.named_parameters() if "omega" in n]
    assert len(scales) == 3
    model = shaken(model)
    with torch.no_grad():
        for p in scales:
            p.fill_(-0.3)
    return model, scales


def test_length_scales_have_the_gradient_of_the_evidence():
    model, scales = scaled()
    x = torch.randn(4, 1, 7, 7).double()
    loader = DataLoader(TensorDataset(x, torch.randn(4, 9).double()), 3)
    evidence = Evidence(model, "gaussian", num_data=4, relaxed_only=False)
    assert {n for n in evidence.uncovered if "omega" in n} == {n for n, _ in model.named_parameters() if "omega" in n}
    found = evidence.hypergradient(loader, scales)
    for p, gradient in each(zip(scales, found, strict=True)):
        values = []
        for shift in (1e-4, -1e-4):
            with torch.no_grad():
                p.add_(shift)
                values.append(evidence.refresh(loader).total)
                p.sub_(shift)
        assert float(gradient) == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-4)
        assert abs(float(gradient)) > 1e-3


def test_state_moves_between_copies():
    x = torch.randn(2, 1, 6, 6)
    a, b = (relax_translation(net(C4), x, ["factored", "sparse"], silent=False, seed=s) for s in (0, 1))
    assert not torch.equal(a(x), b(x))
    b.load_state_dict(a.state_dict())
    assert torch.allclose(a(x), b(x), atol=SINGLE)
    for copied in (copy.deepcopy(a), pickle.loads(pickle.dumps(a)), copy.deepcopy(a).eval()):
        assert torch.allclose(copied(x), a(x), atol=SINGLE)
    assert torch.allclose(copy.deepcopy(a).double()(x.double()).float(), a(x), atol=1e-5)


def test_bad_input():
    model, x = net(C4), torch.randn(2, 1, 6, 6)
    relaxed = relax_translation(model, x)
    with pytest.raises(ArgumentError, match=r"another spatial size.*expected \(6, 6\).*got \(7, 7\)"):
        relaxed(torch.randn(2, 1, 7, 7))
    with pytest.raises(FieldTypeError):
        relaxed.net[0](x)
    with pytest.raises(ArgumentError, match="no more anchors than sites"):
        relax_translation(model, x, "sparse", fraction=1.5)
    with pytest.raises(ArgumentError, match="pathways out of"):
        relax_translation(model, x, "dens")
    with pytest.raises(ArgumentError, match="asked for twice"):
        relax_translation(model, x, ["dense", ("dense", 4)])
    with pytest.raises(SubgroupError, match="does not permute"):
        relax_translation(net(C8), x, [("factored", 8)])
    with pytest.raises(ArgumentError, match="layers: no convolution is named .*; did you mean"):
        relax_translation(model, x, layers="net.1")
    with pytest.raises(UnsupportedModuleError, match="no convolution in it"):
        relax_translation(nn.Linear(2, 2), torch.zeros(1, 2))
    with pytest.raises(UnsupportedModuleError, match="relaxed already"):
        relax_translation(relaxed, x)
    with pytest.raises(ArgumentError, match="harden"):
        relaxed.net[0].export()
    with pytest.raises(ArgumentError, match="finite subgroup"):
        space = gspaces.rot2dOnR2(-1)
        gray = enn.FieldType(space, [space.trivial_repr])
        SparseR2Conv(gray, gray, 3, subgroup=-1)


def test_layers_used_with_two_sizes_or_never():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.gray = enn.FieldType(C4, [C4.trivial_repr])
            self.used, self.unused = (enn.R2Conv(self.gray, self.gray, 3) for _ in range(2))

        def forward(self, x):
            return self.used(self.used(self.gray(x))).tensor

    with pytest.raises(UnsupportedModuleError, match=r"inputs of \(8, 8\) and of \(6, 6\)"):
        relax_translation(Twice(), torch.zeros(1, 1, 8, 8), layers="used")
    with pytest.raises(UnsupportedModuleError, match="does not reach"):
        relax_translation(net_with_unused(), torch.zeros(1, 1, 8, 8))


def net_with_unused():
    model = net(C4)
    model.spare = enn.R2Conv(model.in_type, model.in_type, 3)
    return model


def test_evidence_starts_them_as_residual_and_the_report_shows_them(monkeypatch):
    monkeypatch.setattr(Evidence, "learned", True)  # random weights
    x = torch.randn(8, 1, 6, 6)
    model = relax_translation(relax(net(C4)), x, ["factored", ("dense", "free")], silent=False)
    flat = nn.Sequential(model, nn.Linear(16, 3))
    evidence = Evidence(flat, num_data=8)
    assert evidence.log_precision["0.net.0.sites.factored_C4.into.0.weight"] == 3.0
    assert evidence.log_precision["0.net.0.convolution.weights.equivariant"] == 0.0
    evidence.refresh(DataLoader(TensorDataset(x, torch.randint(3, (8,))), 4))
    layer, gammas = model.net[0], evidence.effective_dimension()
    names = [f"0.net.0.{n}" for n in layer.pathway_weights()["factored_C4"]]
    assert float(layer.effective_dimension[1]) == pytest.approx(sum(gammas[n] for n in names))
    seen = {entry.name: entry for entry in report(flat, evidence).layers}
    shown = seen["0.net.0"]
    assert [p.name for p in shown.pathways] == ["convolution", "factored_C4", "dense_free"]
    assert (
        shown.breaking_energy == pytest.approx(sum(p.energy for p in shown.pathways if p.breaks))
        and shown.breaking_energy > 0
    )
    assert seen["0.net.0.convolution"].survivor == "trivial"  # dense_free is alive
    assert "factored_C4" in str(report(flat, evidence))


@pytest.mark.parametrize("average", [False, True])
def test_harden_leaves_a_convolution_where_the_pathways_died(average):
    x = torch.randn(3, 1, 6, 6)
    model = relax_translation(relax(net(C4)), x, ["factored", ("dense", "free")], average=average)
    hardened, done = harden(model, return_report=True)
    assert type(hardened.net[0]) is enn.R2Conv and type(hardened.net[2]) is enn.R2Conv
    assert torch.allclose(hardened(x), model(x), atol=SINGLE)
    assert done[1].removed == ("factored_C4", "dense_free")
    with torch.no_grad():
        model.net[0].sites["dense_free"].reset_parameters(silent=False)
    partly = harden(model)
    assert list(partly.net[0].sites) == ["dense_free"] and type(partly.net[0].convolution) is enn.R2Conv
    assert torch.allclose(partly(x), model(x), atol=SINGLE) and not torch.allclose(hardened(x), model(x), atol=1e-3)


def test_other_morphisms_refuse_pathways_between_images():
    model = relax_translation(net(C4), torch.randn(3, 1, 6, 6))
    with pytest.raises(UnsupportedModuleError, match="pathways between whole images.*harden"):
        restrict(model.net, 2)
    with pytest.raises(UnsupportedModuleError, match="pathways between whole images.*harden"):
        project(model.net)
