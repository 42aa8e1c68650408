"""Refresh after refresh: nothing is left behind."""

from __future__ import annotations

import gc

import pytest
import torch
from backpack import extend
from backpack.context import CTX
from escnn import gspaces
from escnn import nn as enn
from torch import nn

from escnn_relax import Evidence
from escnn_relax.nn import RelaxedR2Conv


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        space = gspaces.rot2dOnR2(4)
        self.gray, fields = enn.FieldType(space, [space.trivial_repr]), enn.FieldType(space, [space.regular_repr])
        self.first, self.act = RelaxedR2Conv(self.gray, fields, 3), enn.ReLU(fields)
        self.second = RelaxedR2Conv(fields, fields, 3)
        self.linear = nn.Linear(4, 2)

    def forward(self, x):
        return self.linear(self.second(self.act(self.first(self.gray(x)))).tensor.mean((-2, -1)))


def alive():
    """Tensors that the collector knows of, and hooks that BackPACK does."""
    gc.collect()
    return sum(isinstance(o, torch.Tensor) for o in gc.get_objects()), len(CTX.hook_handles)


@pytest.mark.parametrize("curvature", ["expand", pytest.param("eigenvalue-corrected", marks=pytest.mark.slow)])
def test_two_hundred_refreshes(curvature):
    evidence = Evidence(Net(), curvature=curvature)
    data = [(torch.randn(6, 1, 6, 6), torch.randint(2, (6,)))]

    def refresh(times):
        for _ in range(times):
            evidence.refresh(data)
            evidence.step(1)

    refresh(5)
    before = alive()
    refresh(195)
    assert alive() == before


def test_two_hundred_evidences():
    """Of one model, one after the other: neither tensors nor hooks, in the model or in BackPACK, are left of any."""
    model, data = Net(), [(torch.randn(2, 1, 6, 6), torch.randint(2, (2,)))]

    def hooks():
        kinds = ("_forward_hooks", "_backward_hooks", "_forward_pre_hooks", "_backward_pre_hooks")
        return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)

    before, own = None, hooks()
    for count in range(200):
        Evidence(model).refresh(data)
        if count == 4:
            before = alive()
    assert alive() == before and hooks() == own


def test_hooks_removed_by_others_do_no_harm():
    """BackPACK can take all hooks away at once, those of a user's own extended modules too."""
    model, data = Net(), [(torch.randn(2, 1, 6, 6), torch.randint(2, (2,)))]
    evidence = Evidence(model)
    first = evidence.refresh(data)
    CTX.remove_hooks()
    assert evidence.refresh(data) == first


def test_hooks_of_the_users_own_stay():
    model, data = Net(), [(torch.randn(2, 1, 6, 6), torch.randint(2, (2,)))]
    extended, before = extend(nn.Linear(2, 2)), list(CTX.hook_handles)
    Evidence(model).refresh(data)
    assert CTX.hook_handles == before and len(extended._forward_hooks) == 1


def test_hypergradients_leave_no_graph_behind():
    model = Net()
    evidence = Evidence(model)
    data = [(torch.randn(6, 1, 6, 6), torch.randint(2, (6,)))]
    for _ in range(2):
        evidence.hypergradient(data, [model.linear.weight])
    before = alive()
    for _ in range(10):
        evidence.hypergradient(data, [model.linear.weight])
    assert alive() == before
