"""The curvature with its cross blocks, against the evidences of linear models on the data and dense derivatives."""

import math

import pytest
import torch
from escnn import gspaces
from escnn import nn as enn
from nonempty import each
from test_subgroup_cost import Map, at_the_mode, demanding, linear, log_evidence, planar, precisions
from scipy.optimize import minimize
from torch import nn

from escnn_relax import Evidence, relax, survivors
from escnn_relax.errors import ArgumentError, DataError
from escnn_relax.evidence import NoiseSettings, PriorSettings
from escnn_relax.evidence.verdicts.subgroup_cost import Demands
from escnn_relax.evidence.verdicts.joint_curvature import JointCurvature
from escnn_relax.evidence.verdicts.restricted_evidence import evidence_of_coupled
from escnn_relax.nn.measured.kernel_symmetry import KernelSymmetry
from escnn_relax.symmetry.groups.lattice import subgroups

#: Nats, of sums of some tens; escnn samples its kernels in float32, which the oracle moves and we do not.
EXACT = 1e-4


def few(make, name, seed, n=8, strict=False, penalty="all"):
    """A linear model on so few samples of no symmetry that they do not tell its pathways apart."""
    torch.manual_seed(seed)
    layer, x = make(name)
    x = torch.randn(n, *x.shape[1:])
    target = None
    if strict:
        nn.init.normal_(layer.weights["equivariant"], std=0.5)
        target = Map(layer).double()(x.double()).detach()
    model, evidence, X, y = at_the_mode(layer, x, "exact", target=target, penalty=penalty)
    return model, evidence, X, y, [(x.double(), y.view(n, *model(x.double()).shape[1:]))]


@pytest.mark.parametrize("penalty", ["breaking", "all"])
@pytest.mark.parametrize("make, name", [(linear, "D4"), (planar, "C4")])
def test_exact_for_linear_models(make, name, penalty):
    """Whichever weights felt their prior in the training."""
    off = []
    for seed in range(2):
        model, evidence, X, y, data = few(make, name, seed, penalty=penalty)
        delta = precisions(model, evidence)
        free = log_evidence(X, y, torch.diag(1 / delta), 0.3)
        symmetry = KernelSymmetry(model.layer, "layer")
        joint = JointCurvature(evidence, data)
        arguments = symmetry, evidence.estimate.factors, evidence.log_precision, evidence.scale
        coupled, apart = Demands(*arguments, joint=joint), Demands(*arguments)
        assert coupled.coupled and not apart.coupled
        for kept in each(list(subgroups(symmetry.layer.space))[1:]):
            wanted = log_evidence(X, y, demanding(model, kept, delta), 0.3) - free
            assert coupled.gain(kept) == pytest.approx(wanted, abs=EXACT, rel=EXACT), kept.name
            off.append(abs(apart.gain(kept) - wanted))
    assert len(off) >= 4 and sum(off) / len(off) > 1, "independent pathways are wrong by nats"


def test_signs_where_nothing_is_broken():
    """Eight samples of an equivariant map and noise: the gain of the whole group, coupled and with independent
    pathways."""
    off, signs = [], []
    for seed in range(8):
        model, evidence, X, y, data = few(linear, "C4", seed, strict=True)
        delta = precisions(model, evidence)
        whole = list(subgroups(model.layer.space))[-1]
        wanted = log_evidence(X, y, demanding(model, whole, delta), 0.3) - log_evidence(
            X, y, torch.diag(1 / delta), 0.3
        )
        arguments = (
            KernelSymmetry(model.layer, "layer"),
            evidence.estimate.factors,
            evidence.log_precision,
            evidence.scale,
        )
        apart = Demands(*arguments).gain(whole)
        assert Demands(*arguments, joint=JointCurvature(evidence, data)).gain(whole) == pytest.approx(wanted, abs=EXACT)
        off.append(abs(apart - wanted))
        signs.append(apart * wanted < 0)
    assert sum(off) / len(off) > 1 and any(signs)


def test_the_best_precisions():
    """Where they may move, either side is at the top of its evidence, which has it at the present ones below."""
    model, evidence, *_, data = few(linear, "C4", 0)
    names = ["layer.weights.irrep_1", "layer.weights.irrep_2"]
    known = JointCurvature(evidence, data).marginal(names)
    whole = dict(zip(names, torch.eye(len(known.linear), dtype=torch.float64).split(list(known.sizes), dim=1)))

    def at(logs, bounds=None):
        return evidence_of_coupled(known.curvature, known.linear, whole, dict(zip(names, logs)), bounds)

    present = [evidence.log_precision[n] for n in names]
    best = minimize(lambda logs: -at(logs), present, method="Nelder-Mead", options={"xatol": 1e-3, "fatol": 1e-5})
    assert -best.fun - 0.02 < at(present, (-10.0, 10.0)) <= -best.fun + 1e-4 and at(present) < -best.fun - 0.1
    assert evidence_of_coupled(known.curvature, known.linear, {names[0]: torch.zeros(0, 3)}, {}) == 0
    with pytest.raises(ArgumentError, match="coupled coefficients, expected at most 5000"):
        evidence_of_coupled(known.curvature, known.linear, {names[0]: torch.zeros(5001, 1)}, {})


class Net(nn.Module):
    def __init__(self, space):
        super().__init__()
        gray, fields = enn.FieldType(space, [space.trivial_repr]), enn.FieldType(space, [space.regular_repr])
        self.first, self.relu, self.second = enn.R2Conv(gray, fields, 3), enn.ELU(fields), enn.R2Conv(fields, gray, 3)
        self.linear = nn.Linear(1, 3)

    def forward(self, x):
        return self.linear(self.second(self.relu(self.first(self.first.in_type(x)))).tensor.mean((-2, -1)))


def half_seen(likelihood, penalty="all"):
    """A relaxed network, its evidence on half of ten samples in two batches, with a noise for each output, and these
    samples."""
    torch.manual_seed(0)
    model = relax(Net(gspaces.rot2dOnR2(4))).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    x = torch.randn(5, 1, 7, 7, dtype=torch.float64)
    y = torch.randint(3, (5,)) if likelihood == "categorical" else torch.randn(5, 3, dtype=torch.float64)
    noises = {"noise": NoiseSettings("output", log_noise=[0.0, 0.5, -0.5])} if likelihood == "gaussian" else {}
    evidence = Evidence(model, likelihood, num_data=10, prior=PriorSettings(penalty=penalty), **noises)
    data = [(x[:2], y[:2]), (x[2:], y[2:])]
    evidence.refresh(data)
    return model, evidence, data, x, y


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
def test_dense_gauss_newton_matrix_of_a_network(likelihood):
    model, evidence, data, x, y = half_seen(likelihood)
    joint = JointCurvature(evidence, data)
    names = [n for n, _ in model.named_parameters() if n in evidence.log_precision]
    J = torch.autograd.functional.jacobian(
        lambda *values: torch.func.functional_call(model, dict(zip(names, values)), (x,)),
        tuple(model.get_parameter(n).detach() for n in names),
    )
    J = torch.cat([j.flatten(2) for j in J], dim=2)
    probabilities = model(x).softmax(1).detach()
    if likelihood == "categorical":
        S = torch.diag_embed(probabilities) - probabilities[:, :, None] * probabilities[:, None]
    else:
        S = torch.diag(evidence.noise.scales).expand(5, 3, 3)
    H = 2 * torch.einsum("ncp,ncd,ndq->pq", J, S, J)  # for 10 samples
    own = [n for n in names if n.startswith("first.weights") and "equivariant" not in n]
    columns = torch.cat([torch.full((model.get_parameter(n).numel(),), n in own) for n in names])
    delta = torch.cat(
        [torch.full((model.get_parameter(n).numel(),), math.exp(evidence.log_precision[n])) for n in names]
    ).double()
    mode = torch.cat([model.get_parameter(n).detach().flatten() for n in names])
    found = joint.marginal(own)
    # the posterior's marginal, from the inverse of the whole precision
    covariance = torch.linalg.inv(H + torch.diag(delta))[columns][:, columns]
    assert found.names == tuple(own) and sum(found.sizes) == int(columns.sum())
    wanted = torch.linalg.inv(covariance) - torch.diag(delta[columns])
    assert torch.allclose(found.curvature, wanted, atol=1e-8 * float(wanted.abs().max()))
    assert torch.allclose(
        torch.linalg.solve(found.curvature + torch.diag(delta[columns]), found.linear), mode[columns], atol=1e-9
    )
    assert joint.marginal(["nothing"]) is None
    layerwise = JointCurvature(evidence, data, together=len(mode) - 1)
    assert layerwise.marginal(own) is not None and layerwise.marginal([own[0], "linear.weight"]) is None
    assert float((layerwise.marginal(own).curvature - found.curvature).norm()) > 1e-3 * float(found.curvature.norm())
    assert JointCurvature(evidence, data, together=3).marginal(own) is None
    with pytest.raises(DataError, match="it yields no batch"):
        JointCurvature(evidence, iter(()))


def test_survivors_with_data_use_it_and_say_so():
    torch.manual_seed(0)
    model = relax(Net(gspaces.rot2dOnR2(4)))
    with torch.no_grad():
        model.first.weights["irrep_2"].normal_(std=0.5)
    data = [(torch.randn(30, 1, 7, 7), torch.randint(3, (30,)))]
    evidence = Evidence(model, num_data=30)
    evidence.refresh(data)
    alone, measured = survivors(model, evidence), survivors(model, evidence, data=data)
    assert not alone.layers[0].coupled and measured.layers[0].coupled and measured.network.coupled
    (word,) = [r for r in alone.decisions.record("first").reasons if "the evidence" in r]
    assert word.endswith("its pathways taken as independent")
    assert not any("taken as independent" in r for r in measured.decisions.record("first").reasons)
    assert measured.layers[0].gain != alone.layers[0].gain
