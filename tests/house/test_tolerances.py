"""What is allowed for rounding is no guess: emulated sums reach it within its order, and never exceed it."""

from __future__ import annotations

import pytest
import torch
from tolerances import accumulated, autocast


def one_after_the_other(terms: torch.Tensor) -> torch.Tensor:
    """As a processor with registers of this format alone would add."""
    total = torch.zeros((), dtype=terms.dtype)
    for term in terms:
        total = total + term
    return total


@pytest.mark.parametrize("dtype, terms", [(torch.bfloat16, 64), (torch.float16, 256), (torch.float32, 1024)])
def test_no_order_of_summation_exceeds_the_bound(dtype, terms):
    errors = []
    for _ in range(20):
        values = torch.rand(terms).to(dtype)
        exact = float(values.double().sum())
        errors.append(abs(float(one_after_the_other(values)) - exact) / exact)
    bound = accumulated(dtype, terms)
    assert bound / 300 < max(errors) < bound


def test_an_operation_under_autocast():
    layer, x = torch.nn.Linear(400, 50, bias=False), torch.rand(8, 400)
    with torch.no_grad():
        layer.weight.abs_()
        exact = layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            low = layer(x)
    error = float(((low - exact) / exact).abs().max())
    assert autocast(torch.bfloat16, 1) / 10 < error < autocast(torch.bfloat16, 1)
    assert error > accumulated(torch.float16, 3), "another format would be another error"


def test_more_roundings_than_digits():
    with pytest.raises(AssertionError, match="nothing is left"):
        accumulated(torch.bfloat16, 200)
