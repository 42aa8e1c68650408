"""What rounding chooses no longer decides: eigenbases of equal eigenvalues, and float32 beside float64."""

import copy

import pytest
import torch
from curvature_oracles import dense_ggn, own_filters  # noqa: F401
from escnn import gspaces
from escnn import nn as enn
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from escnn_relax import Evidence
from escnn_relax.curvature import Curvature
from escnn_relax.curvature.sums import eigenvalue_corrected as corrected
from escnn_relax.curvature.factors.eigenvalue_clusters import MOST, TOGETHER, clusters
from escnn_relax.curvature.sums.eigenvalue_corrected import _Second
from escnn_relax.curvature.factors import EigenFactor, KroneckerFactor
from escnn_relax.nn import RelaxedR2Conv

#: Of the evidence's complexity in nats, and of effective dimensions and log precisions: what inputs, weights and
#: gradients in float32 (6e-8 each) carry through a network of three layers.
SINGLE = 1e-6


class Network(nn.Module):
    def __init__(self, space):
        super().__init__()
        self.gray, fields = enn.FieldType(space, [space.trivial_repr]), enn.FieldType(space, 3 * [space.regular_repr])
        self.first, self.act = RelaxedR2Conv(self.gray, fields, 5, padding=1), enn.ReLU(fields)
        self.second = RelaxedR2Conv(fields, fields, 3, padding=1)
        self.linear = nn.Linear(fields.size, 4)

    def forward(self, x):
        return self.linear(self.second(self.act(self.first(self.gray(x)))).tensor.relu().mean((-2, -1)))


def case(turns=4):
    torch.manual_seed(0)
    model = Network(gspaces.rot2dOnR2(turns))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.4 * torch.randn_like(p))
    return model, torch.randn(60, 1, 9, 9), torch.randint(4, (60,))


def found(model, x, y, dtype):
    evidence = Evidence(
        copy.deepcopy(model).to(dtype),
        "categorical",
        num_data=len(x),
        curvature="eigenvalue-corrected",
        relaxed_only=False,
    )
    evidence.refresh(DataLoader(TensorDataset(x.to(dtype), y), batch_size=20))
    nats, gammas = evidence.terms().complexity, evidence.effective_dimension()
    evidence.step(5)
    return nats, gammas, evidence.log_precision


def differences(model, x, y):
    one, other = found(model, x, y, torch.float32), found(model, x, y, torch.float64)
    nats = abs(one[0] - other[0]) / abs(other[0])
    assert set(one[1]) == set(other[1]) != set()
    gammas = max(abs(one[1][n] - other[1][n]) / max(1.0, other[1][n]) for n in other[1])
    precisions = max(abs(one[2][n] - other[2][n]) for n in other[2])
    return nats, gammas, precisions


@pytest.mark.parametrize("turns", [4, pytest.param(8, marks=pytest.mark.slow)])
def test_single_precision_finds_what_double_finds(turns, monkeypatch):
    model, x, y = case(turns)
    assert max(differences(model, x, y)[:2]) < SINGLE
    assert differences(model, x, y)[2] < 10 * SINGLE  # a sum of differences of logarithms over 5 steps
    # the broken twin: whatever LAPACK found among equal eigenvalues
    monkeypatch.setattr(corrected, "clusters", lambda values: [torch.arange(len(values)).unsqueeze(1)])
    nats, gammas, precisions = differences(model, x, y)
    assert nats > 10 * SINGLE and gammas > 1000 * SINGLE and precisions > 1000 * SINGLE


def test_steerable_layers_have_equal_eigenvalues():
    """Why it matters: in float64 as well, half of the axes of this layer are a matter of the last digits."""
    model, x, y = case()
    factors = Curvature(model.double(), "categorical", "expand")([(x.double(), y)]).factors
    values = factors["second.weights.equivariant"][0].eigenvalues[0]
    assert int((values.diff() < 1e-12 * values[-1]).sum()) >= len(values) // 4 > 0


def rotated_within(values, seed):
    """A random orthogonal matrix that mixes only equal eigenvalues."""
    generator, Q = torch.Generator().manual_seed(seed), torch.eye(len(values), dtype=torch.float64)
    for value in values.unique():
        where = (values == value).nonzero().flatten()
        Q[where[:, None], where] = torch.linalg.qr(torch.randn(len(where), len(where), generator=generator).double())[0]
    return Q


def second(A, B, gradients, turn_a, turn_b, monkeypatch):
    """The factor, where the decomposition returned these turns of its own axes."""
    factor = KroneckerFactor("w", A, B, torch.arange(len(A) * len(B)).view(len(B), len(A)))
    U_A, U_B = factor.eigenbases
    monkeypatch.setattr(KroneckerFactor, "eigenbases", property(lambda self: (U_A @ turn_a, U_B @ turn_b)))
    moments = _Second(factor)
    for part in gradients.split(7):
        moments.add(part)
    monkeypatch.undo()
    return EigenFactor("w", *moments.diagonal())


def test_no_turn_of_equal_eigenvalues_changes_anything(monkeypatch):
    """Clusters on both sides, against the second moment of the gradients formed as one matrix."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.tensor([0.1, 0.5, 0.5, 1.0, 1.0, 1.0, 2.0]).double(), torch.tensor([0.3, 0.3, 0.7]).double()
    W_A, W_B = (torch.linalg.qr(torch.randn(len(v), len(v), generator=generator).double())[0] for v in (a, b))
    A, B = (W * v @ W.T for W, v in ((W_A, a), (W_B, b)))
    gradients = torch.randn(30, 3, 7, generator=generator).double() * torch.linspace(1, 3, 7).double()
    H = torch.einsum("nod,npe->odpe", gradients, gradients)
    found = [second(A, B, gradients, rotated_within(a, s), rotated_within(b, s), monkeypatch) for s in range(3)]
    for factor in found:
        U = torch.kron(factor.U_B, factor.U_A)
        assert torch.allclose(factor.values.flatten(), ((H.reshape(21, 21) @ U) * U).sum(0), rtol=1e-12)
        assert torch.allclose(factor.U_A.T @ A @ factor.U_A, a.diag(), atol=1e-12) and torch.allclose(
            factor.U_B.T @ B @ factor.U_B, b.diag(), atol=1e-12
        )
        # within a cluster what is summed over the other side is diagonal
        of_a = factor.U_A.T @ H.diagonal(dim1=0, dim2=2).sum(-1) @ factor.U_A
        of_b = factor.U_B.T @ H.diagonal(dim1=1, dim2=3).sum(-1) @ factor.U_B
        for matrix, values in ((of_a, a), (of_b, b)):
            within = (values[:, None] == values) & ~torch.eye(len(values), dtype=torch.bool)
            assert within.any() and float(matrix[within].abs().max()) < 1e-12 * float(matrix.max())
        assert torch.allclose(factor.values, found[0].values, rtol=1e-10)
    # the broken twin: axes as they come
    values = []
    for s in range(2):
        monkeypatch.setattr(corrected, "clusters", lambda values: [torch.arange(len(values)).unsqueeze(1)])
        values.append(second(A, B, gradients, rotated_within(a, s), rotated_within(b, s), monkeypatch).values)
    assert not torch.allclose(*values, rtol=1e-2)


def test_it_comes_closer_to_the_block():
    """By Hadamard's inequality the diagonal bounds the determinant from above, in these axes more tightly."""
    model, x, y = case()
    model, batch = model.double(), [(x.double(), y)]
    exact = dense_ggn(model, batch, "categorical")
    estimate = Curvature(model, "categorical", "eigenvalue-corrected")(batch)
    name = "second.weights.equivariant"
    for delta in (0.01, 1.0):
        true = torch.linalg.slogdet(exact[name] + delta * torch.eye(len(exact[name])))[1]
        assert float((estimate.eigenvalues(name) + delta).log().sum()) >= float(true) - 1e-8
    assert float(estimate.eigenvalues(name).sum()) == pytest.approx(float(exact[name].trace()), rel=1e-10)


def test_clusters_are_cut():
    values = torch.cat(
        [torch.zeros(3 * MOST), torch.ones(4) + 0.1 * TOGETHER * torch.arange(4), torch.tensor([2.0])]
    ).double()
    of = clusters(values)
    members = torch.cat([where.flatten() for where in of]).sort().values
    assert torch.equal(members, torch.arange(len(values)))
    assert max(where.shape[1] for where in of) <= MOST
    assert [range(3 * MOST, 3 * MOST + 4)] == [
        range(int(w[0]), int(w[-1]) + 1) for g in of for w in g if len(w) == 4 and w[0] >= 3 * MOST
    ]
    assert len(clusters(torch.tensor([1.0]).double())) == 1
