"""Two processes with a share of the data each, against one with all of it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from nonempty import each
import escnn_relax  # noqa: E402, F401, I001  # before escnn, which may need what it brings
from escnn import gspaces
from escnn import nn as enn
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from escnn_relax import Evidence, fit
from escnn_relax.curvature.checked_batches import batches
from escnn_relax.curvature.distributed import drop_padding
from escnn_relax.curvature.layers.wrappers import unwrap
from escnn_relax.errors import ArgumentError, RelaxError, UnsupportedModuleError
from escnn_relax.evidence import CurvatureSettings
from escnn_relax.nn import RelaxedR2Conv

COUNT = 21  # odd, so that one process has more than the other

#: Sums in another order: float64 relative; the network's passes are float64 too.
TOLERANCE = 1e-6

CURVATURES = ("expand", "reduce", "exact", "diagonal", "eigenvalue-corrected", "auto", "sketched")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        space = gspaces.rot2dOnR2(4)
        gray, fields = enn.FieldType(space, [space.trivial_repr]), enn.FieldType(space, 2 * [space.regular_repr])
        self.gray = gray
        self.body = enn.SequentialModule(
            *(RelaxedR2Conv(gray, fields, 3, padding=1), enn.ReLU(fields), RelaxedR2Conv(fields, fields, 3, padding=1))
        )
        self.linear = nn.Linear(8, 3)

    def forward(self, x):
        return self.linear(self.body(self.gray(x)).tensor.relu().mean((-2, -1)))


def model():
    torch.manual_seed(0)
    net = Net().double()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net


def dataset():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(COUNT, 1, 7, 7, generator=generator, dtype=torch.float64)
    return TensorDataset(x, torch.randint(3, (COUNT,), generator=generator))


def refreshed(net, loader, curvature):
    evidence = Evidence(net, curvature=CurvatureSettings(curvature, samples=None))
    terms = evidence.refresh(loader)
    evidence.step()
    values = {name: v.sort().values for name, v in evidence.eigenvalues.items()}
    return terms, values, dict(evidence.log_precision), evidence.num_data


class Invariant(Net):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x):
        fields = self.body(self.gray(x)).tensor.relu().unflatten(1, (2, 4))
        return self.linear(fields.amax(2).mean((-2, -1)))


def turned():
    """A line from the centre to one of four sides; the label says along which axis."""
    torch.manual_seed(0)
    x, turns = 0.3 * torch.randn(240, 1, 7, 7, dtype=torch.float64), torch.randint(4, (240,))
    x[:, :, 3, 4:] += 2
    return TensorDataset(torch.stack([image.rot90(int(k), (-2, -1)) for image, k in zip(x, turns)]), turns % 2)


def gated(rank):
    """What a strict start keeps closed where half of the turns count, on data of which each process sees half."""
    data = turned()
    loader = DataLoader(data, 30, sampler=DistributedSampler(data, 2, rank, seed=0))
    torch.manual_seed(0)
    net = DistributedDataParallel(Invariant().double(), find_unused_parameters=True)
    history = fit(net, loader, epochs=3, burn_in=1, refresh_every=1, progress=False)
    weights = sum(float(p.detach().sum()) for p in net.parameters())
    return history.evidence.closed, history.records[1].note, weights


def state(net):
    """Weights, buffers, gradients, modes and what is trained."""
    tensors = {name: t.detach().clone() for name, t in net.state_dict().items()}
    gradients = [p.grad is None for p in net.parameters()]
    return tensors, gradients, [m.training for m in net.modules()], [p.requires_grad for p in net.parameters()]


def same(one, other):
    tensors, wanted = one[0], other[0]
    alike = tensors.keys() == wanted.keys() and one[1:] == other[1:]
    return alike and all(torch.equal(t.nan_to_num(), wanted[name].nan_to_num()) for name, t in tensors.items())


def worker(rank, port, results):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    data = dataset()
    sampler = DistributedSampler(data, 2, rank, shuffle=False)
    loader, found = DataLoader(data, batch_size=4, sampler=sampler), {}
    for curvature in CURVATURES:
        wrapped = DistributedDataParallel(model())
        found[curvature] = refreshed(wrapped, loader, curvature)
    errors, kept = [], []
    other = model()
    with torch.no_grad():
        other.linear.weight += rank
    short = {"epochs": 1, "burn_in": 0, "refresh_every": 1, "progress": False}
    for net, seen in ((other, loader), (model(), loader if rank else [])):
        for ask in (lambda net, seen: Evidence(net).refresh(seen), lambda net, seen: fit(net, seen, **short)):
            before = state(net)
            try:
                ask(net, seen)
            except RelaxError as error:
                errors.append(str(error))
            kept.append(same(state(net), before))
    options = {"epochs": 2, "burn_in": 0, "refresh_every": 1, "progress": False}
    try:
        fit(DistributedDataParallel(model()), loader, **options)
    except ArgumentError as error:
        errors.append(str(error))
    history = fit(DistributedDataParallel(model(), find_unused_parameters=True), loader, **options)
    precisions, losses = [record.log_precision for record in history.records], [r.loss for r in history.records]
    results[rank] = found, errors, precisions, losses, gated(rank), history.evidence.slopes.read(), kept
    del wrapped  # before the group, see examples/several_processes.py
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with multiprocessing.get_context("spawn").Manager() as manager:
        results = manager.dict()
        multiprocessing.spawn(worker, (port, results), nprocs=2)
        return dict(results)


@pytest.mark.parametrize("curvature", CURVATURES)
def test_the_same_numbers_as_one_process_and_the_same_bits_in_each(found, curvature):
    one = refreshed(model(), DataLoader(dataset(), batch_size=COUNT), curvature)
    first, second = (found[rank][0][curvature] for rank in (0, 1))
    assert first[0] == second[0] and first[2] == second[2]
    assert first[1] and all(torch.equal(first[1][name], second[1][name]) for name in first[1])
    assert first[3] == second[3] == one[3] == COUNT
    # a sketch's vectors meet the rows in another order
    tolerance = {"sketched": 5e-2}.get(curvature, TOLERANCE)
    for part in ("total", "data_fit", "complexity", "prior"):
        assert getattr(first[0], part) == pytest.approx(getattr(one[0], part), rel=tolerance)
    assert first[2] == pytest.approx(one[2], rel=tolerance, abs=tolerance)
    for name, values in each(one[1].items()):
        assert float((first[1][name] - values).abs().max()) <= tolerance * float(values.max())


def test_a_process_alone_would_find_other_numbers():
    """The broken twin: half of the data without the other half's sums."""
    half = [tuple(t[::2] for t in dataset().tensors)]
    whole = [dataset().tensors]
    one, other = (refreshed(model(), loader, "expand") for loader in (whole, half))
    assert one[2] != pytest.approx(other[2], rel=1e-3)


def test_errors_come_in_all_processes_by_name(found):
    for rank in (0, 1):
        *of_data, waiting = found[rank][1]
        assert "find_unused_parameters=True" in waiting
        different, trained, empty, untrained = of_data
        for message in (different, trained):
            assert "linear.weight" in message and "process 1" in message
        for message in (empty, untrained):
            assert "process 0 had no batch" in message
        assert found[rank][6] == 4 * [True]


def test_training_decides_alike(found):
    assert found[0][2] == found[1][2] and len(found[0][2]) == 2
    assert found[0][3] == found[1][3]


def test_slopes_are_the_same_in_all_processes(found):
    first, second = found[0][5], found[1][5]
    assert first and first.keys() == second.keys()
    assert all(torch.equal(slope, second[name]) and slope.abs().max() > 0 for name, slope in first.items())


@pytest.mark.parametrize("count", [5, 8, 9])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_what_a_sampler_repeats_is_left_out(count, size):
    data = TensorDataset(torch.arange(count), torch.arange(count))
    seen = []
    for rank in range(3):
        loader = DataLoader(data, batch_size=size, sampler=DistributedSampler(data, 3, rank, shuffle=False))
        seen += [int(y) for _, target in drop_padding(loader, batches(loader, torch.device("cpu"))) for y in target]
    assert sorted(seen) == list(range(count))


def test_only_one_wrapper_is_known():
    net = nn.Linear(2, 2)
    assert unwrap(net) is net
    with pytest.raises(UnsupportedModuleError, match="DistributedDataParallel"):
        unwrap(DataParallel(net))


def test_gates_are_the_same_in_all_processes(found):
    first, second = found[0][4], found[1][4]
    assert first == second
    closed, note, _ = first
    assert "opened" in note and "irrep_2" in note
    assert closed and all("irrep_1" in name for name in closed)


@pytest.mark.slow
def test_example_under_torchrun():
    example = Path(__file__).parents[2] / "examples" / "several_processes.py"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(example),
        "--epochs",
        "3",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    assert "2 processes, the same precisions" in done.stdout


def test_what_is_exchanged_stays_as_it_was(monkeypatch):
    """The tensor that is passed holds the summand of its own process afterwards, too."""
    from escnn_relax.curvature import distributed

    monkeypatch.setattr(distributed, "several", lambda: True)
    monkeypatch.setattr(distributed, "_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda tensor: tensor.mul_(2))  # two alike
    monkeypatch.setattr(distributed.dist, "broadcast", lambda tensor, source: tensor.fill_(source + 7.0))
    mine = torch.tensor([1.0, 2.0])
    assert distributed.sum_processes(mine).tolist() == [2.0, 4.0] and mine.tolist() == [1.0, 2.0]
    assert distributed.broadcast_first(mine).tolist() == [7.0, 7.0] and mine.tolist() == [1.0, 2.0]
