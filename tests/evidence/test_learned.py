"""Whether a network is known to be better than a constant output, and what is said where it is not."""

from dataclasses import replace

import torch

from escnn_relax.curvature.likelihood.categorical import Categorical
from escnn_relax.evidence.noise import Noise
from escnn_relax.evidence.spectrum import Spectrum


def test_a_doubt_says_what_was_compared():
    """A little likelier than a constant, by less than its weights could gain from noise."""
    spectrum = Spectrum({"w": torch.full((40,), 3.0)}, torch.tensor([90.0]), 60, 2.0, torch.tensor([100.0]))
    noise, precisions = Noise(Categorical(), "shared", 0.0, 1.0), {"w": 0.0}
    assert not spectrum.learned(noise, precisions)
    assert "not known" in (said := spectrum.doubt(noise, precisions)) and "by 10 nats" in said and "of 30 and" in said
    assert "no better" in replace(spectrum, losses=torch.tensor([101.0])).doubt(noise, precisions)
    assert replace(spectrum, losses=torch.tensor([60.0])).learned(noise, precisions)
