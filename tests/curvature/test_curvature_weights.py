"""What samples count enters both factors of a Kronecker form: the mean over input rows is the weighted one.

Symptom: a sample with weight 3 counted three times in B and once in A, so that the curvature was not that of the same
data with the sample repeated, not even where Kronecker forms are exact. There :math:`H = \\sum_n w_n\\, S \\otimes a_n
a_n^\\top = (\\sum_n w_n S) \\otimes \\sum_n w_n a_n a_n^\\top / \\sum_n w_n`, for output gradients S that are the same
for all samples.
"""

import pytest
import torch
from curvature_oracles import own_filters  # noqa: F401
from escnn import gspaces
from escnn import nn as enn
from nonempty import each
from torch import nn

from escnn_relax import Batches, Evidence, relax
from escnn_relax.curvature.sums import field_moments, row_reservoir
from escnn_relax.curvature.approximation import Batch
from escnn_relax.curvature.curvature import Curvature
from escnn_relax.curvature.likelihood import Categorical, Gaussian
from escnn_relax.curvature.layers.known_layers import linear_map

#: float64; the two sides sum the same numbers in another order
ROUNDING = 1e-10
N = 6
TIMES = torch.tensor([1, 3, 1, 2, 5, 1])


def weighted(x, y, weight):
    return Batches([(x[:4], y[:4], weight[:4]), (x[4:], y[4:], weight[4:])], lambda batch: batch)


def factors(model, likelihood, kind, data):
    return {n: of for n, of in Curvature(model, likelihood, kind, samples=None)(data).factors.items()}


def apart(found, expected):
    """Largest relative difference of any factor."""
    assert found.keys() == expected.keys() and found
    pairs = [(a.dense(), b.dense()) for n in found for a, b in zip(found[n], expected[n], strict=True)]
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


@pytest.mark.parametrize("kind", ["expand", "reduce", "eigenvalue-corrected", "sketched"])
def test_exact_where_output_gradients_are_constant(kind):
    """One linear layer under a Gaussian likelihood has the same columns for every sample, and one place."""
    torch.manual_seed(0)
    model, x, y = nn.Linear(4, 3).double(), torch.randn(N, 4).double(), torch.randn(N, 3).double()
    weight = torch.tensor([0.2, 1.0, 4.0, 0.5, 3.0, 0.0]).double()
    found = factors(model, Gaussian(), kind, weighted(x, y, weight))["weight"][0].dense()
    oracle = torch.kron(torch.eye(3).double(), torch.einsum("n,ni,nj->ij", weight, x, x))
    unweighted = weight.sum() * torch.kron(torch.eye(3).double(), x.T @ x / N)
    assert (found - oracle).norm() < ROUNDING * oracle.norm()
    assert (unweighted - oracle).norm() > 0.1 * oracle.norm()  # what it was


class Network(nn.Module):
    def __init__(self, outputs=3):
        super().__init__()
        space = gspaces.rot2dOnR2(4)
        self.gray, fields = enn.FieldType(space, [space.trivial_repr]), enn.FieldType(space, [space.regular_repr])
        self.first, self.second = enn.R2Conv(self.gray, fields, 3), enn.R2Conv(fields, fields, 3, padding=1)
        self.act, self.last = enn.ELU(fields), nn.Linear(4, outputs)

    def forward(self, x):
        return self.last(self.second(self.act(self.first(self.gray(x)))).tensor.mean((2, 3)))


@pytest.mark.parametrize("kind", ["expand", "reduce", "diagonal", "exact"])
@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
def test_a_weight_is_a_repetition(kind, likelihood):
    torch.manual_seed(0)
    model, x = relax(Network(), example=False).double(), torch.randn(N, 1, 6, 6).double()
    y = torch.arange(N) % 3 if likelihood == "categorical" else torch.randn(N, 3).double()
    likelihood = Categorical() if likelihood == "categorical" else Gaussian()
    repeated = [(x.repeat_interleave(TIMES, 0), y.repeat_interleave(TIMES, 0))]
    expected = factors(model, likelihood, kind, repeated)
    found = factors(model, likelihood, kind, weighted(x, y, TIMES.double()))
    assert apart(found, expected) < 100 * ROUNDING
    assert apart(factors(model, likelihood, kind, [(x, y)]), expected) > 0.05


@pytest.mark.parametrize("kind", ["expand", "reduce"])
def test_weights_of_classes_and_ignored_labels(kind):
    torch.manual_seed(0)
    model, x, y = Network().double(), torch.randn(N, 1, 6, 6).double(), torch.arange(N) % 3
    times = torch.tensor([1, 4, 2])
    repeated = [(x.repeat_interleave(times[y], 0), y.repeat_interleave(times[y], 0))]
    expected = factors(model, Categorical(), kind, repeated)
    assert apart(factors(model, Categorical(times.double()), kind, [(x, y)]), expected) < 100 * ROUNDING
    ignored = factors(model, Categorical(ignore_index=2), kind, [(x, y)])
    assert apart(ignored, factors(model, Categorical(), kind, [(x[y != 2], y[y != 2])])) < 100 * ROUNDING


def test_outputs_apart_and_masks_of_outputs():
    """A sample counts as often as its outputs do on average."""
    torch.manual_seed(0)
    model, x, y = Network().double(), torch.randn(N, 1, 6, 6).double(), torch.randn(N, 3).double()
    repeated = [(x.repeat_interleave(TIMES, 0), y.repeat_interleave(TIMES, 0))]
    masks = TIMES.double().unsqueeze(1).expand(N, 3)
    found, expected = (Curvature(model, Gaussian(), "expand", apart=True)(d) for d in (weighted(x, y, masks), repeated))
    for one, other in each(zip(found.outputs, expected.outputs, strict=True)):
        assert apart(one.factors, other.factors) < 100 * ROUNDING


def test_a_sample_of_the_rows_is_one_of_the_weighted_rows(monkeypatch):
    """All rows: exactly; few of them: the trace is exact, and the mean of many samples is the whole."""
    torch.manual_seed(0)
    layer = linear_map(nn.Conv2d(2, 3, 3).double())
    x, counts = (
        torch.randn(8, 2, 7, 7).double() * torch.arange(1.0, 9).view(-1, 1, 1, 1),
        3 / torch.arange(1.0, 9).double(),
    )
    patches = layer.patches(x).flatten(1, 2)
    assert patches.shape == (8, 18, 25)
    oracle = torch.einsum("n,nir,njr->ij", counts, patches, patches) / (counts.sum() * patches.shape[-1])
    plain = torch.einsum("nir,njr->ij", patches, patches) / (len(x) * patches.shape[-1])
    whole = []
    for size, seeds in ((10**6, 1), (40, 200)):
        total = torch.zeros_like(oracle)
        for seed in range(seeds):
            rows = row_reservoir.RowReservoir(layer, size, seed)
            for part, of in zip(Batch(layer, [x]).inputs[0].split(3), counts.split(3)):
                rows.add([part], of)
            found = rows.group(0)
            total += found.T @ found / len(found) / seeds
        whole.append(float((total - oracle).norm() / oracle.norm()))
    assert whole[0] < ROUNDING and whole[1] < 0.1 < float((plain - oracle).norm() / oracle.norm())
    fields = field_moments.FieldMoments(layer, layer.blocks)
    fields.add(Batch(layer, [x]).inputs, counts)
    assert fields.trace(layer.blocks[0]) == pytest.approx(float(oracle.trace()), rel=1e-10)


def test_evidence_of_weighted_samples_is_that_of_repeated_ones():
    torch.manual_seed(0)
    model, x, y = relax(Network(), example=False).double(), torch.randn(N, 1, 6, 6).double(), torch.arange(N) % 3
    found, plain = (Evidence(model, "categorical", curvature="expand", num_data=N) for _ in range(2))
    terms = [e.refresh(d) for e, d in ((found, weighted(x, y, TIMES.double())), (plain, [(x, y)]))]
    repeated = Evidence(model, "categorical", curvature="expand", num_data=int(TIMES.sum()))
    other = repeated.refresh([(x.repeat_interleave(TIMES, 0), y.repeat_interleave(TIMES, 0))])
    assert terms[0].complexity == pytest.approx(other.complexity, rel=1e-9)
    assert terms[0].data_fit == pytest.approx(other.data_fit, rel=1e-9)
    assert terms[1].complexity != pytest.approx(other.complexity, rel=1e-3)
