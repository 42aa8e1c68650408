"""Closed pathways cost a refresh nothing: no block, no factor, none of their kernels is formed; the others'
curvature stays."""

import math

import pytest
import torch
from escnn import gspaces
from escnn import nn as enn
from nonempty import each
from torch import nn

from escnn_relax import Evidence, relax
from escnn_relax.curvature.curvature import Curvature
from escnn_relax.curvature.layers.known_layers import linear_map
from escnn_relax.nn.kernels.pathway_sum import PathwaySum


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        space = gspaces.rot2dOnR2(4)
        self.gray, fields = enn.FieldType(space, [space.trivial_repr]), enn.FieldType(space, 2 * [space.regular_repr])
        self.body = enn.SequentialModule(
            relax(enn.R2Conv(self.gray, fields, 3, padding=1)), enn.ReLU(fields), relax(enn.R2Conv(fields, fields, 3))
        )

    def forward(self, x):
        return self.body(self.gray(x)).tensor.mean((-2, -1))[:, :3]


@pytest.fixture
def case():
    torch.manual_seed(0)
    return Net(), [(torch.randn(6, 1, 6, 6), torch.arange(6) % 3)]


def close(model):
    for index in (0, 2):
        layer = model.body[index]
        layer.close(*(p.name for p in layer.pathways if p.breaks))


@pytest.mark.parametrize("approximation", ["expand", "exact", "sketched", "diagonal", "eigenvalue-corrected"])
def test_the_open_ones_have_the_curvature_that_they_had(case, approximation):
    model, loader = case
    model.requires_grad_(True)
    before = Curvature(model, "categorical", approximation, samples=None)(loader)
    close(model)
    after = Curvature(model, "categorical", approximation, samples=None)(loader)
    assert set(after.factors) == {n for n in before.factors if "irrep" not in n} != set(before.factors)
    for name in each(after.factors):
        # the same sums in the same order
        assert torch.equal(before.eigenvalues(name), after.eigenvalues(name)), name


def test_no_kernel_of_theirs_is_formed(case, monkeypatch):
    model, loader = case
    close(model)
    formed, basis = [], PathwaySum.basis
    monkeypatch.setattr(PathwaySum, "basis", lambda self, b: formed.append(b) or basis(self, b))
    Curvature(model, "categorical", "expand")(loader)
    own = [b for index in (0, 2) for b in model.body[index].kernel.blocks["equivariant"]]
    assert formed and all(b in own for b in formed)


def test_what_opens_has_curvature_again(case):
    model, loader = case
    evidence = Evidence(model, num_data=6)
    evidence.close(["body.2.weights.irrep_1"])
    assert not any(b.parameter == "weights.irrep_1" for b in linear_map(model.body[2]).blocks)
    evidence.refresh(loader)
    assert "body.2.weights.irrep_1" not in evidence.estimate.factors
    layer = model.body[2]
    shut = list(layer.pathway_weights()).index("irrep_1")
    assert layer.log_precision[shut] == math.inf and layer.effective_dimension[shut] == 0, "data determine none of it"
    assert layer.effective_dimension.isfinite().all() and layer.effective_dimension.sum() > 0
    evidence.open({"body.2.weights.irrep_1": 2.0})
    evidence.refresh(loader)
    assert float(evidence.estimate.eigenvalues("body.2.weights.irrep_1").max()) > 0
