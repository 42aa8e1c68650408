"""The configurations of the layer-wise-equivariance paper have the published numbers of parameters."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from translation_networks import Network  # noqa: E402

PUBLISHED = {"FC": 133_635_690, "CONV": 338_770, "F-FC": 1_542_625, "S-CONV": 287_910, "S-FC": 831_820}


@pytest.mark.parametrize("kinds", PUBLISHED)
def test_published_numbers_of_parameters(kinds):
    assert sum(p.numel() for p in Network(kinds, channels=3).parameters()) == PUBLISHED[kinds]


def test_a_prediction_does_not_depend_on_its_batch_mates():
    torch.manual_seed(0)
    model, x = Network("F-FC+CONV", alpha=1).eval(), torch.randn(4, 1, 32, 32)
    assert torch.allclose(model(x)[:1], model(x[:1]), atol=1e-6)
