"""The symmetry test on planted symmetries of many groups, and what it says of inputs, pixels, repeats and faults of
a pipeline."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from nonempty import each
from planted_symmetries import PLANTED, Images, blobs
from test_symmetry_test import C4, C8, Net, loader, pictures
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, RandomSampler, TensorDataset

import escnn_relax
from escnn_relax import symmetry_test
from escnn_relax.errors import ArgumentError, DataError


@pytest.mark.parametrize("name", PLANTED)
def test_planted_symmetry_is_found(name):
    torch.manual_seed(1)
    planted = PLANTED[name](1)
    found = symmetry_test(planted.model, planted.loader, progress=False, seed=1, **planted.options)
    assert sum(t.testable for t in found.tests) >= 2 and found.equivariance_error < 1e-4
    assert [t for t in found.tests if t.testable and t.broken != (t.pathway in planted.broken)] == []
    assert found.network.name == planted.left


@pytest.mark.parametrize("name", ["C4 in C12", "C4 in SO(2)"])
def test_what_pixels_explain(name):
    """Frequency 4 is in the question, which turns by 30 degrees do not leave alone: more than pixels explain."""
    torch.manual_seed(1)
    planted = PLANTED[name](1)
    found = symmetry_test(planted.model, planted.loader, progress=False, seed=1, **planted.options)
    beyond = [t for t in found.tests if t.pathway == "irrep_4"]
    assert len(beyond) == 3 and not any(t.testable or t.exact or t.broken for t in beyond)
    assert all(t.inexact_effect > 2 * t.explained_effect and math.isnan(t.p_value) for t in beyond)
    assert all(math.isnan(t.explained_effect) for t in found.tests if t.exact)
    assert "explained" in str(found)


def test_pixels_explain_what_is_left_of_symmetric_data():
    """Images turned by multiples of 45 degrees, between the pixels' lines too: what is found is found after another
    turn."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    angles = torch.randint(8, (1000,), generator=generator) * math.pi / 4
    y = torch.randint(2, (1000,), generator=generator)
    x = blobs(angles, generator, noise=0.1) * (0.5 + y.view(-1, 1, 1, 1))
    found = symmetry_test(Images(C8), loader((x, y)), progress=False)
    beyond = [t for t in found.tests if t.pathway == "irrep_4"]
    assert len(beyond) == 3 and found.network.name == "C4"
    assert all(t.inexact_effect < 2 * max(t.explained_effect, 0) + 3 / 1000 for t in beyond)


def measured(data, groups, **options):
    torch.manual_seed(0)
    model = Net(C4, outputs=2, fields=1)
    found = symmetry_test(model, loader(data), progress=False, groups=groups, draws=99, gains=True, **options)
    return {(t.layer, t.pathway): t for t in found.tests}


def test_effects_do_not_depend_on_the_groups():
    data = pictures(1200, "C2", 1)
    few, many = (measured(data, groups) for groups in (30, 120))
    for key in each(few):
        broken = key[1] == "irrep_2"
        assert few[key].broken == many[key].broken == broken
        if broken:
            assert few[key].effect == pytest.approx(many[key].effect, rel=0.4) and few[key].effect > 0.05
            assert few[key].gain == pytest.approx(many[key].gain, rel=0.5)
            assert many[key].ratio > 2 * few[key].ratio, "the ratio does"
        else:
            assert abs(few[key].effect) < 0.01


@pytest.mark.slow
def test_gains_against_the_curvature():
    """Dense Gauss-Newton block of each pathway, gradient in its eigenbasis, the best precision on a grid."""
    x, y = pictures(300, "C2")
    found = measured((x, y), 60)
    torch.manual_seed(0)
    model = escnn_relax.relax(Net(C4, outputs=2, fields=1)).eval()
    weights = {k: v.detach() for k, v in model.named_parameters()}
    for (layer, pathway), test in each(found.items()):
        key = f"{layer}.weights.{pathway}"

        def outputs(flat, key=key):
            changed = {**weights, key: flat.view_as(weights[key])}
            return torch.func.functional_call(model, changed, (x,))

        jacobian = torch.autograd.functional.jacobian(outputs, weights[key].flatten(), vectorize=True).double()
        p = outputs(weights[key].flatten()).double().softmax(1)
        hessian = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        values, basis = torch.linalg.eigh(torch.einsum("ncp,ncd,ndq->pq", jacobian, hessian, jacobian))
        values = values.clamp(min=0)
        of_sample = torch.einsum("ncp,nc->np", jacobian, p - nn.functional.one_hot(y, 2))
        dispersion = float(of_sample.square().sum() / values.sum())
        q = (basis.T @ of_sample.sum(0)).square() / dispersion
        grid = torch.linspace(-8, 12, 81, dtype=torch.float64).exp().view(-1, 1)
        gains = 0.5 * ((grid / (grid + values)).log() + q / (grid + values)).sum(1)
        assert test.over_dispersion == pytest.approx(dispersion, rel=0.3)
        if pathway == "irrep_2":
            assert 0.5 * float(gains.max()) < test.gain < 2 * float(gains.max())
            assert abs(test.log_precision - float(grid[gains.argmax()].log())) < 2.5
        else:
            assert test.gain < 3 and float(gains.max()) < 3


class Augmented(Dataset):
    """Ten images whose pixels are others each time."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index] + 0.1 * torch.randn_like(self.x[index]), self.y[index]


def repeated(units=None, hide=False, copies=20):
    """30 images, each twenty times, with other noise; of few images anything looks broken if copies count as
    samples."""
    x, y = pictures(30, "none", 5)
    torch.manual_seed(0)
    data = Augmented(x, y)
    sampler = RandomSampler(data, replacement=True, num_samples=30 * copies, generator=torch.Generator().manual_seed(0))
    whole = DataLoader(data, 20, sampler=sampler)
    if hide:
        whole = list(whole)
    return symmetry_test(Net(C4, outputs=2), whole, progress=False, units=units, groups=30)


def test_augmented_copies_share_their_element():
    found = repeated()
    assert found.num_data == 30 and found.repeated == 570 and found.groups == 30
    assert not any(t.broken for t in found.tests)
    blind = repeated(hide=True)
    assert blind.num_data == 600 and any(t.broken for t in blind.tests), "the twin: nothing tells that they are copies"


def test_units():
    x, y = pictures(30, "none", 5)
    units = [n for n in range(30) for _ in range(20)]
    shaken = x.repeat_interleave(20, 0) + 0.1 * torch.randn(600, 1, 5, 5)
    frames = TensorDataset(shaken, y.repeat_interleave(20))
    for data in (DataLoader(frames, 20, shuffle=True), list(DataLoader(frames, 20))):
        torch.manual_seed(0)
        found = symmetry_test(Net(C4, outputs=2), data, progress=False, units=units, groups=30)
        assert found.num_data == 600 and found.groups == 30 and not any(t.broken for t in found.tests)
    torch.manual_seed(0)
    alone = symmetry_test(Net(C4, outputs=2), DataLoader(frames, 20, shuffle=True), progress=False)
    assert any(t.broken for t in alone.tests), "the twin: frames taken for samples"
    with pytest.raises(ArgumentError, match="units"):
        symmetry_test(Net(C4, outputs=2), DataLoader(frames, 20), progress=False, units=units[:300])
    with pytest.raises(DataError, match="10 units"):
        symmetry_test(Net(C4, outputs=2), DataLoader(frames, 20), progress=False, units=[n % 10 for n in range(600)])


def test_the_same_batches_with_numbers_and_without():
    from escnn_relax.diagnosis.sample_numbers import number_samples

    data = TensorDataset(torch.arange(10.0), torch.arange(10))
    twice = DataLoader(ConcatDataset([data, data]), 4, shuffle=True, generator=torch.Generator().manual_seed(0))
    plain = list(twice)
    twice.generator.manual_seed(0)
    again, numbers = number_samples(twice)
    names = []
    for (x, y), (wanted, _) in each(zip(again, plain, strict=True)):
        assert torch.equal(x, wanted) and [number[1] for _, number in numbers.last] == y.tolist()
        names += [number for _, number in numbers.last]
    assert len(set(names)) == 10 and number_samples(plain) == (plain, None)


def test_spins_of_one_norm_are_different_samples():
    torch.manual_seed(0)
    x, y = torch.randint(2, (400, 1, 5, 5)) * 2.0 - 1, torch.randint(2, (400,))
    assert symmetry_test(Net(C4, outputs=2), loader((x, y)), progress=False).num_data == 400


@pytest.mark.parametrize("network", [True, False])
def test_one_orbit(network):
    """With the input's type known, and where a network does not tell it."""
    x = pictures(1)[0]
    x = torch.cat([torch.rot90(x, k % 4, (-2, -1)) for k in range(200)])
    model = Net(C4, outputs=2)
    if not network:
        model = Flat(model)
        x = x.flatten(1)
    with pytest.raises(DataError, match="one orbit"):
        symmetry_test(model, loader((x, torch.arange(200) % 2)), progress=False)


class Flat(nn.Module):
    """Takes flattened images."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x.view(-1, 1, 5, 5))


def digits(padded):
    """Digits of 28 x 28 pixels, each turned by a random quarter turn before they are padded on one side."""
    archive = np.load(Path(__file__).parents[2] / "examples/data/digits8.npz", allow_pickle=False)
    x, y = torch.from_numpy(archive["x"]).float()[:800, None] / 16, torch.from_numpy(archive["y"]).long()[:800]
    x = nn.functional.interpolate(x, size=(20, 20), mode="bilinear", align_corners=False)
    x = nn.functional.pad(x, (4, 4, 4, 4))
    turns = torch.randint(4, (len(x),), generator=torch.Generator().manual_seed(0))
    x = torch.stack([torch.rot90(image, int(k), (-2, -1)) for image, k in zip(x, turns)])
    return nn.functional.pad(x, (0, 1, 0, 1)) if padded else x, y


def test_padding_on_one_side_is_explained():
    torch.manual_seed(0)
    model = Images(C8, outputs=10)
    found = symmetry_test(model, loader(digits(True), 50), progress=False)
    assert {t.layer for t in found.tests if t.broken and t.pathway == "irrep_1"} == {"one", "two", "three"}
    text = str(found)
    sits = re.search(r"sits (-0\.\d+), (-0\.\d+) pixels off the middle", text)
    assert sits and all(0.3 < -float(offset) < 0.7 for offset in sits.groups()) and "one-sided padding" in text
    assert "irrep_1 and irrep_3" in text
    found = symmetry_test(model, loader(digits(False), 50), progress=False)
    assert not any(t.broken for t in found.tests) and "off the middle" not in str(found)


def test_inputs_and_question_are_told_apart():
    torch.manual_seed(0)
    found = symmetry_test(Net(C4, outputs=2), loader(pictures(600, "C2")), progress=False, inputs=True)
    assert {t.cause for t in found.tests if t.broken} == {"question"} and "it is the question" in str(found)
    x, y = torch.randn(600, 1, 5, 5), torch.randint(2, (600,))
    x[:, :, 2, 4] += 2  # always to the right
    x[:, :, 1:4, 1:4] += y.view(-1, 1, 1, 1)
    model = Net(C4, outputs=2)
    found = symmetry_test(model, loader((x, y)), progress=False, inputs=True)
    broken = [t for t in found.tests if t.broken]
    assert broken and {t.cause for t in broken} == {"inputs or question"} and "train the strict network" in str(found)
    descent = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        descent.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        descent.step()
    trained = symmetry_test(model, loader((x, y)), progress=False, inputs=True)
    assert max(t.effect for t in trained.tests) < 0.2 * max(t.effect for t in broken), "the inputs' part goes away"
