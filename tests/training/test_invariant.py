"""A network that may break its symmetry has at least the evidence of every strict network in it, after the default fit.

With infinite precisions a relaxed network is any of them, so its best evidence cannot be lower. What training ends
with can be: opened at random weights, everything that upright digits break was learned, though the evidence charges
more for it than it is worth.
"""

import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from escnn_relax import Evidence, fit, relax, restrict, symmetry_test

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

#: What may be lost (fraction): trainings that differ by rounding differ by about as much.
LOST = 0.005
COUNT, EPOCHS = 650, 100


def trained(question, seed, subgroup=None, untrained=False):
    """Minus the log evidence of a sample (nats) after a fit: the default one of the relaxed network, one that is opened
    by a test of its untrained weights, or that of a strict network."""
    from digits import DigitNet, task

    data = task(question, seed)
    torch.manual_seed(seed)
    net = DigitNet(data.classes, 3)
    parts = [t[:COUNT] for t in data.train]
    loader = DataLoader(TensorDataset(*parts), 50, shuffle=True, generator=torch.Generator().manual_seed(seed))
    options = {"epochs": EPOCHS, "progress": False}
    if subgroup is None:
        net = relax(net)
    elif subgroup != 4:
        net = restrict(net, subgroup)
    if subgroup is not None or untrained:
        options["evidence"] = evidence = Evidence(net, num_data=COUNT, relaxed_only=False)
    if untrained:
        test = symmetry_test(net, loader, groups=32, level=0.01, progress=False)
        evidence.close()
        assert len(evidence.open(test)) == 6
    return -fit(net, loader, **options).evidence.log_marginal_likelihood() / COUNT


def best(question, seed):
    return min(trained(question, seed, subgroup) for subgroup in (4, 2, 1))


@pytest.mark.slow
@pytest.mark.parametrize("question, seed", [("upright", 0), ("upright", 1), ("rot", 0), ("turn", 0), ("half-turn", 0)])
def test_evidence_is_at_least_that_of_every_strict_network_inside(question, seed):
    assert trained(question, seed) <= (1 + LOST) * best(question, seed)


@pytest.mark.slow
def test_the_twin_that_opens_at_random_weights_falls_short():
    assert trained("upright", 0, untrained=True) > (1 + LOST) * trained("upright", 0, 2)
