"""A sample that is drawn again says nothing new: N is the number of different samples, and the curvature is scaled
to it."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from curvature_oracles import own_filters  # noqa: F401
from evidence_cases import dataset, network
from nonempty import each
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Sampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from escnn_relax import Batches, Evidence, fit
from escnn_relax.curvature.curvature import Curvature
from escnn_relax.training.loaders import data_size

#: float64; the two sides sum the same numbers in another order
ROUNDING = 1e-10

with torch.random.fork_rng():
    torch.manual_seed(0)
    DATA = dataset(count=12)
WEIGHTS = torch.tensor([0.0, 0.0, *10 * [1.0]])


class Twice(Sampler):
    """A sampler of someone's own."""

    def __iter__(self):
        return iter([0, 1, 2, 0, 1, 2, 3])


class Pairs(Sampler):
    """Of batches, each sample once."""

    def __iter__(self):
        return iter([[0, 1], [2, 3], [4, 5]])


FIRST, SECOND = DATA[:3], DATA[3:5]

#: the number of different samples, and a loader
LOADERS = {
    "shuffled": (12, DataLoader(DATA, 5, shuffle=True)),
    "with replacement": (12, DataLoader(DATA, 5, sampler=RandomSampler(DATA, replacement=True, num_samples=300))),
    "weighted": (10, DataLoader(DATA, 5, sampler=WeightedRandomSampler(WEIGHTS, 300))),
    "a few of many": (12, DataLoader(DATA, 5, sampler=RandomSampler(DATA, num_samples=5))),
    "batches with replacement": (
        12,
        DataLoader(DATA, batch_sampler=BatchSampler(RandomSampler(DATA, replacement=True, num_samples=300), 5, False)),
    ),
    "repeated data set": (12, DataLoader(ConcatDataset([DATA] * 20), 5, shuffle=True)),
    "repeated parts": (5, DataLoader(ConcatDataset([Subset(DATA, range(3)), Subset(DATA, [2, 3, 4, 4])]), 5)),
    "subset that repeats": (2, DataLoader(Subset(DATA, [0, 1] * 30), 5)),
    "subset sampler": (4, DataLoader(DATA, 5, sampler=SubsetRandomSampler([0, 1, 2, 3]))),
    "one of several processes": (
        11,
        DataLoader(Subset(DATA, range(11)), 2, sampler=DistributedSampler(Subset(DATA, range(11)), 4, 0)),
    ),
    "read by a function": (12, Batches(DataLoader(ConcatDataset([DATA] * 20), 5), lambda batch: tuple(batch))),
    "batch sampler of one's own": (6, DataLoader(DATA, batch_sampler=Pairs())),
    "list in which a batch comes again": (5, [FIRST, SECOND, FIRST, FIRST]),
}


@pytest.mark.parametrize("which", LOADERS)
def test_number_of_different_samples(which):
    expected, loader = LOADERS[which]
    assert data_size(loader) == expected
    evidence = Evidence(network())
    terms = evidence.refresh(loader)
    assert terms.num_data == evidence.num_data == expected
    assert Evidence(network(), num_data=77).refresh(loader).num_data == 77, "what is asked for stays"


def test_a_sampler_of_ones_own_that_repeats_is_named():
    loader = DataLoader(DATA, 4, sampler=Twice())
    with pytest.warns(UserWarning, match="Twice draws some samples several times.*4 different ones.*num_data="):
        assert data_size(loader) == 4


class Stream(IterableDataset):
    """Says neither how many samples it has nor which; x times each."""

    def __init__(self, times, shift=0.0):
        self.times, self.shift = times, shift

    def __iter__(self):
        return ((x + self.shift * n, y) for n in range(self.times) for x, y in DATA)


def test_what_comes_again_from_a_stream_is_asked_about():
    """Symptom: 20 passes over 12 samples in one counted as 240 samples, without a word."""
    again = [DataLoader(Stream(20), 7), [tuple(part.clone() for part in DATA[:]) for _ in range(20)]]
    again.append(Batches(again[0], lambda batch: tuple(batch)))
    again.append([{"image": x, "label": y, "id": torch.arange(len(y))} for x, y in again[1]])
    for loader in again:
        with pytest.warns(UserWarning, match="yields 240 samples, 12 different ones.*num_data=12"):
            assert data_size(loader) == 240
        for curvature in ("expand", "eigenvalue-corrected"):  # which goes over the data twice
            with pytest.warns(UserWarning, match="yields 240 samples, 12 different ones"):
                assert Evidence(network(), curvature=curvature).refresh(loader).num_data == 240
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert Evidence(network(), num_data=12).refresh(again[0]).num_data == 12  # the answer
        assert (
            data_size(DataLoader(Stream(1), 7)) == 12
            and Evidence(network()).refresh(DataLoader(Stream(1), 7)).num_data == 12
        )
        assert data_size(DataLoader(Stream(3, shift=0.1), 7)) == 36  # others
    model = network()
    once, given = (Evidence(model, num_data=12).refresh(loader) for loader in (DataLoader(DATA, 5), again[0]))
    assert math.isclose(given.complexity, once.complexity, rel_tol=ROUNDING)


def test_a_repeated_data_set_is_the_data_set():
    model = network()
    once = Evidence(model).refresh(DataLoader(DATA, 5))
    repeated = Evidence(model).refresh(DataLoader(ConcatDataset([DATA] * 7), 5))
    counted = Evidence(model, num_data=7 * len(DATA)).refresh(DataLoader(ConcatDataset([DATA] * 7), 5))
    for term in ("data_fit", "complexity", "prior"):
        assert math.isclose(getattr(repeated, term), getattr(once, term), rel_tol=ROUNDING), term
    assert counted.complexity > 1.2 * once.complexity, "the broken twin: draws as data"


def test_weighted_draws_are_weights_on_average():
    r"""M draws with probabilities p, scaled by N / M, are the samples with weights N p, in loss and curvature."""
    model, share, draws = network(), torch.arange(1.0, 13).double(), 3000
    p = share / share.sum()
    x, y = DATA.tensors
    weighted = Curvature(model, "categorical", "exact")(Batches([(x, y, 12 * p)], lambda batch: batch))
    sampler = WeightedRandomSampler(p, draws, generator=torch.Generator().manual_seed(1))
    drawn = Curvature(model, "categorical", "exact")(DataLoader(DATA, 500, sampler=sampler))
    uniform = Curvature(model, "categorical", "exact")(DataLoader(DATA, 12))
    # the mean over draws strays by one over the root of their number
    assert abs(drawn.loss * 12 / draws - weighted.loss) < 4 * weighted.loss / draws**0.5
    assert abs(uniform.loss - weighted.loss) > 0.01 * weighted.loss
    apart = []
    for name, (factor,) in each(weighted.factors.items()):
        H = factor.dense()
        assert (drawn.factors[name][0].dense() * 12 / draws - H).norm() < 4 * H.norm() / draws**0.5, name
        apart.append(float((uniform.factors[name][0].dense() - H).norm() / H.norm()))
    assert apart and max(apart) > 8 / draws**0.5, "the broken twin: every sample once"


@pytest.mark.slow
def test_pure_noise_breaks_no_symmetry():
    """Labels that say nothing, drawn fifty times: the breaking pathways stay undetermined, as when each comes once."""
    torch.manual_seed(1)
    options = {"epochs": 6, "burn_in": 1, "refresh_every": 1, "progress": False}
    data = torch.utils.data.TensorDataset(torch.randn(40, 1, 6, 6).double(), torch.randint(3, (40,)))
    sampler = WeightedRandomSampler(torch.ones(40), 2000)

    def broken(**more):
        torch.manual_seed(2)
        history = fit(network(), DataLoader(data, 100, sampler=sampler), **options, **more)
        return sum(g for n, g in history.evidence.effective_dimension().items() if "irrep_1" in n or "irrep_2" in n)

    assert broken() < 0.2 * broken(num_data=2000)
