"""From a call of the curvature to a sum over the data: each hand that a minibatch passes does something to it."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import escnn_relax
from escnn_relax.curvature import Curvature
from escnn_relax.curvature.sums.moments import Moments

PACKAGE = Path(escnn_relax.__file__).parent

#: One pass, one minibatch, one layer, one approximation, and how its patches are summed.
WAY = ["Curvature.__call__", "DataPass.run", "DataPass.add", "LayerCurvature.add"]


def way_to(code, run):
    """The package's functions on the stack where ``code`` is entered for the first time by ``run()``."""
    found = []

    def watch(frame, event, argument):
        if event == "call" and frame.f_code is code and not found:
            while frame is not None:
                if PACKAGE in Path(frame.f_code.co_filename).parents:
                    found.insert(0, frame.f_code.co_qualname)
                frame = frame.f_back

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        run()
    finally:
        sys.setprofile(before)
    return found


def case():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(18, 2))
    return model, [(torch.randn(4, 1, 5, 5), torch.randint(2, (4,)))]


@pytest.mark.parametrize(
    ("approximation", "rest"),
    [
        ("expand", ["Expand.read", "PatchMoments.add"]),
        ("reduce", ["Expand.read", "MeanPatchMoments.add"]),
        ("sketched", ["Sketched.read", "FieldMoments.add", "PatchMoments.add"]),
    ],
)
def test_way_of_a_minibatch(approximation, rest):
    model, data = case()
    way = way_to(Moments.add.__code__, lambda: Curvature(model, approximation=approximation)(data))
    assert way[: len(WAY)] == WAY
    assert way[len(WAY) : len(WAY) + len(rest)] == rest
    assert len(way) <= len(WAY) + len(rest) + 2  # how patches of this shape are summed, and the sum itself
    assert way[-1] == "Moments.add"
