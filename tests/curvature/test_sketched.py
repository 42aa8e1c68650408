"""Sketched input factors against explicit ones: matrices, operators, samples of rows, whole networks, what refuses."""

from __future__ import annotations

import math

import pytest
import torch
from curvature_oracles import Tensors, own_filters  # noqa: F401  # a fixture for all tests here
from escnn import gspaces
from escnn import nn as enn
from nonempty import each
from torch import nn

from escnn_relax import Evidence
from escnn_relax.curvature import approximation_choice as recipe
from escnn_relax.curvature.sums import field_moments, row_operator, row_reservoir, sketched
from escnn_relax.curvature.approximation import Batch
from escnn_relax.curvature.curvature import Curvature
from escnn_relax.curvature.sums.contraction import contract
from escnn_relax.curvature.sums.row_summands import summands, undivided
from escnn_relax.curvature.layers.known_layers import linear_map
from escnn_relax.curvature.layers.linear_map import Piece, WeightBlock
from escnn_relax.curvature.sums.patch_moments import PatchMoments
from escnn_relax.curvature.factors.sketch import AXES, Sketch, decompose, direct_sum, sketch, sketch_blocks
from escnn_relax.curvature.factors import SketchedFactor
from escnn_relax.errors import ArgumentError, RelaxError
from escnn_relax.evidence import CurvatureSettings, NoiseSettings
from escnn_relax.nn import RelaxedLinear, RelaxedR2Conv, RelaxedR3Conv

C4 = gspaces.rot2dOnR2(4)


def regular(space, count):
    return enn.FieldType(space, count * [space.regular_repr])


def decaying(size, power, seed=0):
    generator = torch.Generator().manual_seed(seed)
    U = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator))[0]
    values = torch.arange(1, size + 1, dtype=torch.float64) ** -power
    return values, (U * values) @ U.T


def sketched_matrix(A, seed=0):
    return sketch(lambda v: A @ v, len(A), float(A.trace()), torch.Generator().manual_seed(seed))


def dimension(values, delta):
    return float((values / (values + delta)).sum())


@pytest.mark.parametrize("size", [1, 3, AXES])
def test_small_matrices_are_exact(size):
    values, A = decaying(size, 1.0)
    assert torch.allclose(sketched_matrix(A).values, values, atol=1e-12)


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_trace_bounds_and_effective_dimension(power, seed):
    values, A = decaying(600, power, seed)
    found = sketched_matrix(A, seed)
    assert float(found.values.sum()) == pytest.approx(float(values.sum()), rel=1e-10)
    assert (found.top <= values[:AXES] * (1 + 1e-10)).all()  # Ritz values interlace
    assert (found.axes.T @ found.axes - torch.eye(AXES)).abs().max() < 1e-12
    for delta in (1e-1, 1e-2, 1e-3, 1e-4):
        assert dimension(found.values, delta) == pytest.approx(dimension(values, delta), rel=0.05)


def two_blocks():
    """Of 300 and 400 rows that take turns, and the products that are asked for."""
    (first, A), (second, B) = decaying(300, 1.0, 0), decaying(400, 0.5, 1)
    places = torch.randperm(700, generator=torch.Generator().manual_seed(2)).split([300, 400])
    whole, widths = torch.zeros(700, 700, dtype=torch.float64), []
    for block, at in zip((A, B), places):
        whole[at[:, None], at] = block

    def product(vectors):
        widths.append(vectors.shape[1])
        return whole @ vectors

    return product, places, (first, second), widths


def test_blocks_share_their_products():
    product, places, values, widths = two_blocks()
    traces = [float(v.sum()) for v in values]
    found = sketch_blocks(product, places, traces, torch.Generator().manual_seed(0), 12, 2)
    assert widths == [12] * 3 + [2] * 10
    for result, expected in each(zip(found, values)):
        assert float(result.values.sum()) == pytest.approx(float(expected.sum()), rel=1e-10)
        assert (result.top <= expected[:12] * (1 + 1e-10)).all()
        for delta in (1e-1, 1e-2, 1e-3):
            assert dimension(result.values, delta) == pytest.approx(dimension(expected, delta), rel=0.05)


def test_other_rows_for_a_block_are_noticed():
    """The broken twin: the first 300 rows for those of the first block."""
    product, places, values, _ = two_blocks()
    wrong, traces = torch.arange(700).split([300, 400]), [float(v.sum()) for v in values]
    found = sketch_blocks(product, wrong, traces, torch.Generator().manual_seed(0), 12, 2)
    assert abs(float(found[0].top[0]) / float(values[0][0]) - 1) > 0.05


def test_together_or_by_themselves_summands_are_the_same(monkeypatch):
    """Sketched together, with as many axes as there are coefficients: the exact eigenvalues."""
    network, found = Net(), {}
    for together, axes in ((10**6, 1), (1, 1000)):
        monkeypatch.setattr(sketched, "TOGETHER", together)
        monkeypatch.setattr(sketched, "AXES_EACH", axes)
        torch.manual_seed(0)
        estimate = Curvature(network, "categorical", "sketched", None)(data())
        found[together] = {name: estimate.eigenvalues(name).sort().values for name in estimate.factors}
    for name, values in each(found[1].items()):
        assert torch.allclose(values, found[10**6][name], atol=1e-5 * float(values.max()))


def test_a_sketch_without_quadrature_would_be_far_off():
    """The broken twin: what is left spread evenly."""
    values, A = decaying(600, 1.0)
    found = sketched_matrix(A)
    even = torch.cat([found.top, torch.full_like(found.rest, found.level)])
    assert abs(dimension(even, 1e-3) / dimension(values, 1e-3) - 1) > 0.05


def test_low_rank_is_found_with_zeros():
    rows = torch.randn(5, 300, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = sketched_matrix(rows.T @ rows)
    assert torch.allclose(found.top[:5], torch.linalg.eigvalsh(rows @ rows.T).flip(0), rtol=1e-10)
    assert float(found.rest.sum()) < 1e-9


def layers():
    gray = enn.FieldType(C4, [C4.trivial_repr])
    mixed = enn.FieldType(C4, [C4.trivial_repr, C4.regular_repr, C4.irrep(1), C4.regular_repr])
    octa = gspaces.octaOnR3()
    solid = enn.FieldType(octa, [octa.trivial_repr, octa.irrep(1)])
    point = gspaces.no_base_space(C4.fibergroup)
    fibre = enn.FieldType(point, 3 * [point.regular_repr])
    return {
        "first": (RelaxedR2Conv(gray, regular(C4, 2), 3, padding=1), (4, 1, 7, 7)),
        "mixed": (RelaxedR2Conv(mixed, mixed, 3, stride=2), (4, 11, 7, 7)),
        "grouped": (RelaxedR2Conv(regular(C4, 4), regular(C4, 2), 3, groups=2, padding=1), (4, 16, 6, 6)),
        "space": (RelaxedR3Conv(solid, solid, 3), (2, 4, 5, 5, 5)),
        "fibre": (RelaxedLinear(fibre, fibre), (9, 12)),
        "plain": (nn.Conv2d(4, 6, 3, padding=1), (4, 4, 6, 6)),
        "linear": (nn.Linear(5, 3), (4, 7, 5)),
    }


@pytest.mark.parametrize("name", list(layers()))
def test_operator_and_traces_are_those_of_the_formed_factor(name, monkeypatch):
    monkeypatch.setattr(field_moments, "WORTH", math.inf)
    torch.manual_seed(0)
    module, shape = layers()[name]
    module, x = module.double(), torch.randn(*shape).double()
    layer = linear_map(module)
    batch = Batch(layer, [x])
    rows = row_reservoir.RowReservoir(layer, 10**6, 0)
    moments, fields = PatchMoments(layer), field_moments.FieldMoments(layer, layer.blocks)
    for part in (rows, moments, fields):
        part.add(batch.inputs)
    assert rows.rows == moments.rows and layer.blocks
    summed = 1e-10 if name in ("plain", "linear") else 1e-5  # kernels of different copies differ by escnn's sampling
    for block in layer.blocks:
        A = contract(moments.mean[block.group], block, average=False)
        patches = rows.group(block.group)
        whole, trace = torch.zeros_like(A), 0.0
        for summand in each(summands(block, patches)):
            operator = row_operator.RowOperator(summand, patches, block.channels.shape[1])
            formed = operator.formed()
            assert (operator(torch.eye(operator.size, dtype=torch.float64)) - formed).abs().max() < 1e-9
            for copy in summand.positions:
                whole[copy[:, None], copy] += formed
                trace += operator.trace()
        assert (whole - A).abs().max() < summed * float(A.diagonal().max()) + 1e-13
        assert trace == pytest.approx(float(A.trace()), rel=summed)
        assert fields.trace(block) == pytest.approx(float(A.trace()), rel=1e-10)


@pytest.mark.parametrize("change, copies", [(0.0, [2]), (0.1, [1, 1])])
def test_a_direct_sum_has_the_spectrum_of_the_whole(change, copies):
    """Two copies of one set of kernels in a turned output field; where they differ, they are no copies."""
    torch.manual_seed(0)
    kernels, frame = torch.randn(3, 2, 4), torch.linalg.qr(torch.randn(2, 2))[0]
    stack = torch.zeros(6, 2, 2, 4)  # (K, o, i, S) along the frame
    stack[:3, 0], stack[3:, 1] = kernels, kernels + change * torch.randn(3, 2, 4)
    piece = Piece(torch.arange(10).view(5, 2), torch.einsum("ot,ktis->kois", frame, stack))
    block = WeightBlock("w", 0, torch.arange(4).view(2, 2), (piece,), torch.arange(60).view(2, 30), frame.double())
    patches = torch.randn(100, 40)
    terms = summands(block, patches)
    assert [len(term.positions) for term in terms] == copies
    whole = row_operator.RowOperator(undivided(block, patches), patches, 2).formed()
    blocks = [decompose(row_operator.RowOperator(term, patches, 2).formed()) for term in terms]
    total = direct_sum(blocks, [term.positions for term in terms], len(whole))
    assert torch.allclose(total.values, torch.linalg.eigvalsh(whole).flip(0), atol=1e-5 * float(total.top[0]))
    assert torch.allclose(whole @ total.axes, total.axes * total.top, atol=1e-5 * float(total.top[0]))


def test_the_sample_does_not_depend_on_how_the_data_are_cut():
    layer = linear_map(nn.Conv2d(3, 2, 3, padding=1))
    x = torch.randn(40, 3, 9, 9)
    samples = []
    for size in (40, 7, 1):
        samples.append(row_reservoir.RowReservoir(layer, 100, seed=3))
        for part in x.split(size):
            samples[-1].add([part])
    first = samples[0].group(0)
    assert first.shape == (100, 27) and samples[0].rows == 40 * 81
    assert all(torch.equal(first, other.group(0)) for other in samples[1:])


def test_every_place_is_as_likely():
    layer = linear_map(nn.Linear(1, 1))
    counts = torch.zeros(50)
    for seed in range(400):
        sample = row_reservoir.RowReservoir(layer, 10, seed)
        for part in torch.arange(50.0).view(5, 10, 1).split(1):
            sample.add([part])
        counts[sample.group(0).flatten().long()] += 1
    assert counts.sum() == 4000
    assert ((counts - 80).abs() < 5 * 8).all()  # five standard deviations of 400 draws at one fifth


@pytest.mark.parametrize("dtype, size", [(torch.float32, 4), (torch.float64, 8)], ids=str)
def test_bytes_of_a_number_in_the_sample(dtype, size):
    """Before the first minibatch, by which room is planned, those of torch's default."""
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        sample = row_reservoir.RowReservoir(linear_map(nn.Linear(2, 1)), 10, 0)
        assert sample.item_size == size and sample.growth() == (0, 0)
    finally:
        torch.set_default_dtype(before)
    sample.add([torch.ones(3, 2, dtype=dtype)])
    assert sample.item_size == size
    assert sample.growth() == (12 * 2 * size, (15 + 10) * 2 * size), "15 places at most, sorted into 10"


class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        gray, fields = enn.FieldType(C4, [C4.trivial_repr]), regular(C4, width)
        self.gray = gray
        self.body = enn.SequentialModule(
            *(RelaxedR2Conv(gray, fields, 3, padding=1), enn.ReLU(fields), RelaxedR2Conv(fields, fields, 3, padding=1))
        )
        self.linear = nn.Linear(4 * width, 3)

    def forward(self, x):
        return self.linear(self.body(self.gray(x)).tensor.relu().mean((-2, -1)))


def data(count=24):
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(count, 1, 8, 8, generator=generator), torch.randint(3, (count,), generator=generator))]


def test_a_network_decides_as_with_expand():
    torch.manual_seed(0)
    model = Net()
    one, two = (Curvature(model, "categorical", kind, None)(data()) for kind in ("expand", "sketched"))
    names = [n for n in one.factors if "weight" in n]
    assert len(names) == 7
    for name in names:
        a, b = one.eigenvalues(name), two.eigenvalues(name)
        assert float(b.sum()) == pytest.approx(float(a.sum()), rel=1e-5)
        for delta in (1e-1, 1.0, 10.0):
            assert dimension(b, delta) == pytest.approx(dimension(a, delta), rel=0.05, abs=1e-3)


def test_precisions_move_the_same_way_as_with_expand():
    """Whether the evidence wants a precision to rise: where the effective dimension exceeds the precision times the
    squared norm."""
    torch.manual_seed(0)
    model, same = Net(), []
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    one, two = (Curvature(model, "categorical", kind, None)(data()) for kind in ("expand", "sketched"))
    for name, parameter in model.named_parameters():
        square = float(parameter.detach().double().square().sum())
        for log_delta in torch.linspace(-4, 9, 27).tolist():
            delta = math.exp(log_delta)
            rises = [dimension(of.eigenvalues(name), delta) > delta * square for of in (one, two)]
            same.append(rises[0] == rises[1])
    assert len(same) > 200
    assert sum(same) >= 0.97 * len(same)


def test_the_curvature_of_a_part_cut_in_other_ways_is_the_same():
    torch.manual_seed(0)
    model, ((x, y),) = Net(), data()
    curvature = Curvature(model, "categorical", "sketched", None)
    one, two = curvature([(x, y)]), curvature(list(zip(x.split(5), y.split(5))))
    for name in each(one.factors):
        assert torch.allclose(one.eigenvalues(name), two.eigenvalues(name), rtol=1e-3, atol=1e-6)


def test_evidence_with_it_steps_and_predicts():
    torch.manual_seed(0)
    model = Net()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    evidence = Evidence(model, curvature="sketched")
    before = evidence.refresh(data()).total
    assert evidence.step().total >= before
    probabilities = evidence.posterior().predict(data()[0][0])
    assert torch.allclose(probabilities.sum(1), torch.ones(24, dtype=probabilities.dtype))
    with pytest.raises(ArgumentError, match="sketched"):
        evidence.hypergradient(data(), [model.linear.weight])


def test_noises_of_single_outputs():
    torch.manual_seed(0)
    model, x = Net(), data()[0][0]
    found = {}
    for kind in ("expand", "sketched"):
        evidence = Evidence(
            model,
            "gaussian",
            CurvatureSettings(kind, samples=None),
            noise=NoiseSettings("output", log_noise=[0.0, 0.5, -0.5]),
        )
        evidence.refresh([(x, torch.zeros(24, 3))])
        found[kind] = evidence.effective_dimension_of_outputs()
    assert torch.allclose(found["sketched"], found["expand"], rtol=0.05)


def test_whitening_is_the_inverse_of_the_dense_form():
    torch.manual_seed(0)
    axes = torch.linalg.qr(torch.randn(6, 2, dtype=torch.float64))[0]
    A = Sketch(axes, torch.tensor([5.0, 2.0]).double(), torch.full((4,), 0.5).double())
    rows = torch.randn(5, 3, dtype=torch.float64)
    factor = SketchedFactor("w", A, rows.T @ rows)
    v = torch.randn(2, 18, dtype=torch.float64)
    expected = v @ torch.linalg.inv(0.7 * factor.dense() + 0.3 * torch.eye(18)) @ v.T
    white = factor.whiten(v, 0.7, 0.3)
    assert torch.allclose(white @ white.T, expected)
    assert torch.allclose(torch.linalg.eigvalsh(factor.dense()), factor.spectrum.sort().values)


def test_modes_are_those_of_the_dense_form():
    """Eigenvalues as often as they occur, and what of b lies along each: b is told by its norms under the powers."""
    torch.manual_seed(0)
    axes = torch.linalg.qr(torch.randn(6, 2, dtype=torch.float64))[0]
    rows = torch.randn(5, 3, dtype=torch.float64)
    A = Sketch(axes, torch.tensor([5.0, 2.0]).double(), torch.full((4,), 0.5).double())
    factor = SketchedFactor("w", A, rows.T @ rows)
    weights, slope = torch.randn(2, 18, dtype=torch.float64)
    values, counts, squares = factor.modes(weights, slope, 0.7, 0.3)
    H = 0.7 * factor.dense()
    b = H @ weights + 0.3 * weights - slope
    assert torch.allclose(values.repeat_interleave(counts.long()).sort().values, torch.linalg.eigvalsh(H))
    for power in range(9):  # as many as there are distinct eigenvalues
        assert torch.allclose((values**power) @ squares, b @ torch.linalg.matrix_power(H, power) @ b, rtol=1e-10)


def test_auto_sketches_wide_layers_and_says_so(monkeypatch, caplog):
    model = Net()
    assert set(Curvature(model, approximation="auto").recipe.values()) == {"exact", "expand"}
    monkeypatch.setattr(recipe, "LARGEST_PATCH", 100)
    curvature = Curvature(model, approximation="auto")
    assert {n for n, of in curvature.recipe.items() if of == "sketched"} == {
        n for n in curvature.recipe if "body.2.w" in n
    }
    assert "body.2" in caplog.text and "sketched" in caplog.text
    assert {f.B.shape for n, of in curvature(data()).factors.items() if "body.2.w" in n for f in of} == {(4, 4)}


def test_many_outputs_are_sampled_with_a_message(caplog):
    model = Tensors(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 300)))
    batch = [(torch.randn(3, 4), torch.randint(300, (3,)))]
    torch.manual_seed(0)
    drawn = Curvature(model)(batch)
    assert "300 outputs" in caplog.text
    torch.manual_seed(0)
    one = Curvature(model, samples=1)(batch)
    assert torch.equal(drawn.eigenvalues("net.1.bias"), one.eigenvalues("net.1.bias"))
    assert not torch.allclose(
        drawn.eigenvalues("net.1.bias"), Curvature(model, samples=None)(batch).eigenvalues("net.1.bias")
    )
    with pytest.raises(RelaxError, match="'auto'"):
        Curvature(model, samples="many")


def test_running_averages_refuse_by_name():
    evidence = Evidence(Net(), curvature="sketched")
    with pytest.raises(ArgumentError, match="running average"):
        evidence.refresh(data(), keep=0.5)
