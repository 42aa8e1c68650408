"""Models on an accelerator, data anywhere: the same numbers as on the CPU. Without one, only the first half of each
pair runs."""

import copy

import pytest
import torch
from escnn import gspaces
from escnn import nn as enn
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import escnn_relax
from escnn_relax import Evidence

C4 = gspaces.rot2dOnR2(4)
#: float64, sums in another order.
SAME = 1e-9

HAVE = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=HAVE)]


class Net(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.gray, fields = enn.FieldType(C4, [C4.trivial_repr]), enn.FieldType(C4, [C4.regular_repr])
        strict = enn.SequentialModule(
            enn.R2Conv(self.gray, fields, 3), enn.InnerBatchNorm(fields), enn.ELU(fields), enn.R2Conv(fields, fields, 3)
        )
        self.features = how(strict, self.gray)
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        return self.linear(self.features(self.gray(x)).tensor.mean((-2, -1)))


HOWS = {
    "relaxed": lambda strict, gray: escnn_relax.relax(strict),
    "mixed": lambda strict, gray: escnn_relax.mix(strict, [2, 1]),
    "translation": lambda strict, gray: escnn_relax.relax_translation(
        strict, gray(torch.zeros(2, 1, 8, 8)), ["factored", "dense"]
    ),
}


def network(how):
    torch.manual_seed(0)
    model = Net(HOWS[how]).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def data(device="cpu"):
    torch.manual_seed(1)
    x, y = torch.randn(12, 1, 8, 8).double(), torch.randint(3, (12,))
    return DataLoader(TensorDataset(x.to(device), y.to(device)), 6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("how", HOWS)
def test_evidence_is_that_of_the_cpu(how, device):
    here = network(how)
    there = copy.deepcopy(here).to(device)
    ours, theirs = Evidence(here), Evidence(there)
    expected, got = ours.refresh(data()), theirs.refresh(data())  # data on another device than the model
    assert got.total == pytest.approx(expected.total, rel=SAME)
    ours.step(3), theirs.step(3)
    assert theirs.log_precision == pytest.approx(ours.log_precision, rel=SAME)
    assert theirs.refresh(data(device)).total == pytest.approx(ours.refresh(data()).total, rel=SAME)
    x = next(iter(data()))[0]
    assert torch.allclose(theirs.posterior().predict(x).cpu(), ours.posterior().predict(x).cpu(), rtol=SAME, atol=SAME)


class Killed(Exception):
    pass


def kill_in_epoch_1(record):
    if record.epoch == 1:
        raise Killed


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("how", HOWS)
def test_training_goes_on_from_a_checkpoint_of_the_device(how, device, tmp_path):
    """With a running average, whose stored curvature comes back from the disk on the CPU."""
    options = {"burn_in": 0, "refresh_every": 1, "keep": 0.5, "lr": 1e-3, "progress": False}
    whole, parts = network(how).to(device), network(how).to(device)
    at_once = escnn_relax.fit(whole, data(), epochs=3, **options)
    with pytest.raises(Killed):
        escnn_relax.fit(parts, data(), epochs=3, checkpoint=tmp_path / "run.pt", callback=kill_in_epoch_1, **options)
    resumed = escnn_relax.fit(network(how).to(device), data(), epochs=3, checkpoint=tmp_path / "run.pt", **options)
    assert resumed.evidence.log_precision == pytest.approx(at_once.evidence.log_precision, rel=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("how", HOWS)
def test_what_is_hardened_there_computes_the_same_here(how, device):
    here = network(how)
    there = copy.deepcopy(here).to(device).eval()
    here.eval()
    plain = escnn_relax.merge(there) if how == "mixed" else escnn_relax.harden(there)
    x = next(iter(data()))[0]
    assert all(p.device.type == device for p in plain.parameters())
    assert torch.allclose(plain(x.to(device)).cpu(), here(x), rtol=SAME, atol=SAME)
