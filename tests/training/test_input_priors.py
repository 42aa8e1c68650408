"""What people add to the loss, or to the data, beside the prior of the evidence."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from evidence_cases import dataset, network
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from escnn_relax import Batches, Evidence, fit, symmetry_test
from escnn_relax.curvature.likelihood import Categorical

SHORT = {"epochs": 2, "burn_in": 1, "refresh_every": 1, "progress": False}


@pytest.mark.parametrize("optimizer", ["AdamW", "Adam", "SGD"])
def test_weight_decay_counts_the_prior_twice(optimizer):
    model, kind = network(), getattr(torch.optim, optimizer)
    with pytest.warns(UserWarning, match=rf"^{optimizer} decays \d+ weights \(.*counts twice; pass weight_decay=0"):
        fit(model, DataLoader(dataset(), 6), optimizer=lambda p: kind(p, lr=1e-3, weight_decay=0.1), **SHORT)


def test_decay_of_what_has_no_prior_is_nobody_elses_business():
    model = network()
    scales = [p for n, p in model.named_parameters() if n.startswith("norm")]
    others = [p for n, p in model.named_parameters() if not n.startswith("norm")]
    assert scales and others
    groups = [{"params": scales, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*counts twice")
        fit(model, DataLoader(dataset(), 6), optimizer=torch.optim.AdamW(groups, lr=1e-3), **SHORT)


def test_label_smoothing_is_in_loss_and_data_fit():
    model, data = network(), dataset()
    x, y = data.tensors
    evidence = Evidence(model, Categorical(label_smoothing=0.1), num_data=len(y))
    own = evidence.loss(model(x), y) - evidence.penalty()
    assert torch.allclose(own, F.cross_entropy(model(x), y, label_smoothing=0.1), rtol=1e-12)
    model.eval()
    fitted = evidence.refresh(DataLoader(data, 5)).data_fit
    assert math.isclose(-fitted / len(y), float(F.cross_entropy(model(x), y, label_smoothing=0.1)), rel_tol=1e-10)
    assert not math.isclose(-fitted / len(y), float(F.cross_entropy(model(x), y)), rel_tol=1e-3)


def test_mixup_gives_probabilities():
    """Mixed images with mixed labels, as a collate function makes them."""

    def mixed(batch):
        x, y = batch
        y = F.one_hot(y, 3).double()
        return 0.7 * x + 0.3 * x.flip(0), 0.7 * y + 0.3 * y.flip(0)

    model, data = network().eval(), dataset()
    loader = Batches(DataLoader(data, 12), mixed)
    x, y = mixed(data.tensors)
    terms = Evidence(model).refresh(loader)
    assert terms.num_data == 12
    assert math.isclose(-terms.data_fit, float(F.cross_entropy(model(x), y, reduction="sum")), rel_tol=1e-10)


def test_dropout_passes_all_in_the_curvature():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3)).double()
    without = nn.Sequential(plain[0], plain[1], nn.Identity(), plain[3])
    data = [(torch.randn(12, 4).double(), torch.randint(3, (12,)))]
    one, other = (Evidence(m, relaxed_only=False).refresh(data).total for m in (plain.train(), without))
    assert one == other and plain.training


def test_augmentation_in_the_loader_is_named_where_two_passes_must_agree():
    from escnn_relax.errors import DataError

    model, data = network(), dataset()
    noisy = Batches(DataLoader(data, 12), lambda batch: (batch[0] + torch.randn_like(batch[0]), batch[1]))
    with pytest.raises(DataError, match="second pass.*random augmentation"):
        Evidence(model, curvature="eigenvalue-corrected").refresh(noisy)


def test_augmentation_of_samples_that_come_again():
    """Each draw looks like a sample of its own, and is none: told by its number, it counts with the others of it."""
    x, y = torch.randn(60, 1, 6, 6).double(), torch.arange(60) % 3
    x = x * torch.rand(60, 1, 1, 1).double()
    data, model = TensorDataset(x, y), network()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "irrep" in name:
                p.zero_()

    def noisy(batch):
        return batch[0] + 0.01 * torch.randn_like(batch[0]), batch[1]

    repeated = DataLoader(data, 20, sampler=RandomSampler(data, replacement=True, num_samples=300))
    for loader in (repeated, Batches(repeated, noisy), Batches(DataLoader(data, 20), noisy)):
        test = symmetry_test(model, loader, draws=99, progress=False)
        assert test.tests and 50 < test.num_data <= 60


def test_augmentation_leaves_the_number_of_samples():
    """However they are changed on the way, they are as many as the data set has."""
    model, data = network(), dataset()
    noisy = Batches(DataLoader(data, 5), lambda batch: (batch[0] + 0.1 * torch.randn_like(batch[0]), batch[1]))
    evidence = Evidence(model)
    assert {evidence.refresh(noisy).num_data for _ in range(3)} == {12}
    history = fit(model, noisy, gates=False, **SHORT)
    assert history.evidence.num_data == 12 and len(history.records) == 2
