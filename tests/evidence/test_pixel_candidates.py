"""Larger subgroups that the evidence refutes by no more than what the pixels may have lost."""

from __future__ import annotations

import math

import pytest
import torch
from nonempty import each
import escnn_relax  # noqa: E402, F401, I001  # before escnn, which may need what it brings
from escnn import gspaces
from escnn import nn as enn
from torch.utils.data import DataLoader, TensorDataset

from escnn_relax import fit, relax, survivors
from escnn_relax.evidence import CurvatureSettings, NoiseSettings
from escnn_relax.evidence.verdicts.pixel_candidates import budget


class Tensors(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(enn.GeometricTensor(x, self.layer.in_type)).tensor


def spread(x, degrees, wind=0.0, rates=(0.9, 0.225)):
    """A step of diffusion along and across fibres, and of wind, on a torus, exact for each Fourier mode: no grid has
    its symmetry."""
    k = 2 * math.pi * torch.fft.fftfreq(x.shape[-1], dtype=torch.float64)
    ky, kx = torch.meshgrid(-k, k, indexing="ij")
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    along, across = c * kx + s * ky, c * ky - s * kx
    decay = torch.exp(-rates[0] * along**2 - rates[1] * across**2 - 1j * wind * along)
    return torch.fft.ifft2(torch.fft.fft2(x.double()) * decay).real.float()


def learned(degrees, wind=0.0, samples=60, seen=(0.15, 0.15)):
    torch.manual_seed(0)
    x = spread(torch.randn(samples, 1, 16, 16), 0.0, rates=seen)  # no detail finer than a filter resolves
    y = spread(x, degrees, wind)
    y = y + 0.05 * torch.randn_like(y)
    space = gspaces.flipRot2dOnR2(-1, maximum_frequency=4)
    scalar = enn.FieldType(space, [space.trivial_repr])
    strict = enn.R2Conv(scalar, scalar, 7, padding=3, padding_mode="circular", bias=False)
    model = Tensors(relax(strict, frequencies=4))
    options = {
        "likelihood": "gaussian",
        "lr": 2e-2,
        "burn_in": 5,
        "refresh_every": 2,
        "curvature": CurvatureSettings(samples=8),
    }
    options["noise"] = NoiseSettings(log_noise=-1.0)
    loader = DataLoader(TensorDataset(x, y), 10, shuffle=True)
    history = fit(model, loader, epochs=60, progress=False, gates=False, **options)
    return survivors(model, history.evidence).network


def named(found, kind, degrees, within=3.0):
    """Whether this kind of subgroup, at this axis, is the answer or one of its candidates."""
    close = []
    for h in (found.subgroup, *found.candidates):
        if h.name.split("_")[0] == kind and "deg" in h.name:
            axis = float(h.name.split("_")[1].removesuffix("deg").replace("p", "."))
            period = 180 / (h.order // 2)
            close.append(min((axis - degrees) % period, (degrees - axis) % period) < within)
    return any(close)


@pytest.mark.parametrize("wind, kind, smaller", [(0.0, "D2", "C2"), (0.4, "D1", "trivial")])
def test_a_process_in_the_plane_is_not_called_less_than_it_may_be(wind, kind, smaller):
    """The mirrors of a medium at 30 degrees are no symmetry of its pixels, which sixty pictures show by some nats."""
    found = learned(30.0, wind)
    assert named(found, kind, 30.0)
    assert found.subgroup.name.split("_")[0] in (kind, smaller)
    for h in each(found.blurred):  # what would be a wrong name without
        assert h in found.candidates and found.costs[h.name] > 5
        assert min(c for n, c in found.costs.items() if n != h.name) > 20 * found.costs[h.name]
    assert found.subgroup.name.split("_")[0] == kind or found.blurred and "cannot tell" in found.doubts[0]


def test_the_pixels_own_mirrors_are_told():
    """The twin: upright fibres, whose mirrors move pixels to pixels, leave nothing to doubt."""
    found = learned(0.0)
    assert named(found, "D2", 0.0) and not found.candidates and not found.blurred
    assert found.subgroup.name.split("_")[0] == "D2"


def test_budget():
    assert budget([0.05], [100.0, 400.0]) == pytest.approx(5.0)
    assert budget([0.05, 0.01], [100.0]) == pytest.approx(1.0)  # the layer that sees best
    assert budget([], [100.0]) == budget([0.0], [100.0]) == budget([1.0], [100.0]) == budget([0.05], []) == 0.0


def test_the_evidence_finds_the_axis_where_energy_does_not():
    """Inputs without detail along one axis leave directions of the kernel open, whose energy turns the axis by two
    degrees: there the evidence refuted the mirrors by 24 nats."""
    found = learned(0.0, seen=(0.9, 0.225))
    assert found.subgroup.name == "D2_0deg" and not found.candidates
    assert found.margin > 1000
