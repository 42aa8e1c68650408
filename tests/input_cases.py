"""Loaders, targets and networks of many kinds, and their Gauss-Newton matrices by brute force, for the matrix of
inputs."""

from __future__ import annotations

import math
from collections import namedtuple
from dataclasses import dataclass
from typing import Any
from collections.abc import Callable

import torch
from escnn import gspaces
from escnn import nn as enn
from torch import nn
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from escnn_relax import Batches, relax
from escnn_relax.curvature.likelihood import Bernoulli, Categorical, Gaussian, Heteroscedastic

#: Samples, classes or outputs, side of an image of outputs.
N, C, SIDE = 7, 3, 2

# --- networks -------------------------------------------------------------------------------------------------------

C4 = gspaces.rot2dOnR2(4)
GRAY = enn.FieldType(C4, [C4.trivial_repr])
FIELDS = enn.FieldType(C4, [C4.regular_repr])


class Perceptron(nn.Module):
    inputs: dict[str, tuple[int, ...]] = {"x": (4,)}
    space: tuple[int, ...] = ()

    def __init__(self, outputs):
        super().__init__()
        self.first, self.last = nn.Linear(4, 3), nn.Linear(3, outputs)

    def forward(self, x):
        return self.last(self.first(x).tanh())


class Steerable(nn.Module):
    """On images, with pathways that break its symmetry."""

    inputs = {"x": (1, 4, 4)}
    space: tuple[int, ...] = ()

    def __init__(self, outputs):
        super().__init__()
        self.first, self.last = enn.R2Conv(GRAY, FIELDS, 3), nn.Linear(4, outputs)

    def features(self, x):
        return self.first(x if isinstance(x, enn.GeometricTensor) else GRAY(x)).tensor.tanh()

    def forward(self, x):
        return self.last(self.features(x).mean((-2, -1)))


class Pixels(Steerable):
    space = (SIDE, SIDE)

    def __init__(self, outputs):
        super().__init__(outputs)
        self.last = nn.Conv2d(4, outputs, 1)

    def forward(self, x):
        return self.last(self.features(x))


class Normalised(Steerable):
    def __init__(self, outputs):
        super().__init__(outputs)
        self.norm = enn.InnerBatchNorm(FIELDS)

    def features(self, x):
        return self.norm(self.first(x if isinstance(x, enn.GeometricTensor) else GRAY(x))).tensor.tanh()


class TwoInputs(Steerable):
    inputs = {"x": (1, 4, 4), "extra": (4,)}

    def forward(self, x, extra):
        return self.last(self.features(x).mean((-2, -1)) * extra)


class Frames(Perceptron):
    inputs = {"x": (3, 4)}

    def forward(self, x):
        h = self.first(x.transpose(0, 1).flatten(0, 1)).unflatten(0, (3, len(x)))
        return self.last((h.tanh() * torch.arange(1, 4).to(h).view(3, 1, 1)).sum(0).tanh())


class Sequences(Perceptron):
    """The batch comes second in what the layer reads."""

    inputs = {"x": (3, 4)}

    def forward(self, x):
        return self.last(self.first(x.transpose(0, 1)).square().sum(0).tanh())


class Shared(Perceptron):
    def __init__(self, outputs):
        super().__init__(outputs)
        self.first = nn.Linear(4, 4)
        self.last = nn.Linear(4, outputs)

    def forward(self, x):
        return self.last(self.first(self.first(x).tanh()).tanh())


class Adapter(Perceptron):
    def __init__(self, outputs):
        super().__init__(outputs)
        self.down, self.up = nn.Linear(4, 2, bias=False), nn.Linear(2, 3, bias=False)
        self.first.requires_grad_(False)

    def forward(self, x):
        return self.last((self.first(x) + self.up(self.down(x))).tanh())


@dataclass
class Output:
    logits: torch.Tensor


class Published(Perceptron):
    def forward(self, x):
        return Output(super().forward(x))


class Several(Perceptron):
    """Several outputs, and nobody says which."""

    def forward(self, x):
        return super().forward(x), x


class Mixing(Perceptron):
    def forward(self, x):
        h = self.first(x)
        return self.last((h - h.mean(0)).tanh())


class Stray(Perceptron):
    def forward(self, x):
        return super().forward(x) + (x @ self.first.weight.T).sum(1).view(-1, 1)


MODELS: dict[str, type] = {
    "perceptron": Perceptron,
    "steerable": Steerable,
    "pixels": Pixels,
    "normalised": Normalised,
    "two inputs": TwoInputs,
    "frames": Frames,
    "sequences": Sequences,
    "shared layer": Shared,
    "adapter": Adapter,
    "object": Published,
    "several outputs": Several,
    "mixing": Mixing,
    "stray weight": Stray,
}
#: Those that are refused, whatever they are fed.
REFUSED = {"several outputs", "mixing", "stray weight"}


def network(kind: str, outputs: int) -> nn.Module:
    torch.manual_seed(1)
    model = MODELS[kind](outputs)
    model = relax(model) if isinstance(model, Steerable) else model
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.5 * torch.randn_like(p))
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return model.double()


# --- targets --------------------------------------------------------------------------------------------------------


@dataclass
class Target:
    """Targets of N samples, what each counts, and the summed loss of all outputs by torch alone.

    Attributes:
        target: from the places of an output to targets.
        weight: likewise; ``None`` counts each once.
        loss: of outputs, targets and weights; ``None`` where the evidence has to refuse.
        hessian: its expected Hessian where the loss is not convex.
        outputs: of the network.
    """

    likelihood: Any
    target: Callable[[tuple[int, ...]], torch.Tensor]
    loss: Callable[..., torch.Tensor] | None
    weight: Callable[[tuple[int, ...]], torch.Tensor] | None = None
    hessian: Callable[..., torch.Tensor] | None = None
    outputs: int = C


def _random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(space):
    return (torch.arange(N * math.prod(space)) * 2 + 1).remainder(C).view(N, *space)


def ignored(space):
    y = labels(space)
    y.view(-1)[::3] = 255
    return y


def real(space):
    return _random(5, N, C, *space)


def soft(space):
    return real(space).softmax(1)


def yes(space):
    return (real(space) > 0).double()


def mask(space):
    return (_random(6, N, C, *space) > -0.3).double()


def holes(space):
    return real(space).masked_fill(mask(space) == 0, math.nan)


def each(space):
    return torch.arange(N).remainder(3).double()


def ce(f, y, w, **options):
    found = F.cross_entropy(f, y, reduction="none", **options)
    return found.sum() if w is None else (found * w.view(-1, *(1,) * (found.dim() - 1))).sum()


def square(f, y, w):
    if w is None:
        return 0.5 * (f - y).square().sum()
    w = w.view(-1, *(1,) * (f.dim() - 1)) if w.dim() == 1 else w
    return 0.5 * (w * (f - y.nan_to_num()).square()).sum()


def normal(f, y, w):
    mean, s = f.chunk(2, 1)
    return -torch.distributions.Normal(mean, (s / 2).exp()).log_prob(y).sum()


def fisher(f):
    """Of a Gaussian in its mean and its log variance."""
    mean, s = f.chunk(2, 1)
    return torch.diag(torch.cat([(-s).exp(), torch.full_like(s, 0.5)], 1).flatten())


WEIGHTS = torch.tensor([0.5, 2.0, 1.5]).double()
TARGETS = {
    "labels": Target("categorical", labels, ce),
    "labels, some ignored": Target(
        Categorical(ignore_index=255), ignored, lambda f, y, w: ce(f, y, w, ignore_index=255)
    ),
    "a loss of torch's": Target(
        nn.CrossEntropyLoss(WEIGHTS, label_smoothing=0.1),
        labels,
        lambda f, y, w: ce(f, y, w, weight=WEIGHTS, label_smoothing=0.1),
    ),
    "probabilities": Target("categorical", soft, ce),
    "several labels": Target(
        Bernoulli(), yes, lambda f, y, w: F.binary_cross_entropy_with_logits(f, y, reduction="sum")
    ),
    "regression": Target(Gaussian(), real, square),
    "regression with holes": Target("gaussian", holes, square, mask),
    "weighed labels": Target("categorical", labels, ce, each),
    "heteroscedastic": Target(Heteroscedastic(), real, normal, hessian=fisher, outputs=2 * C),
    "labels as real numbers": Target("categorical", lambda space: labels(space).double(), None),
    "labels out of range": Target("categorical", lambda space: labels(space) + 1, None),
    "holes without weights": Target("gaussian", holes, None),
    "whole numbers": Target("gaussian", lambda space: labels(space), None),
    "labels of another shape": Target("categorical", lambda space: labels((*space, 2)), None),
}

# --- loaders --------------------------------------------------------------------------------------------------------


class Rows(Dataset):
    def __init__(self, columns):
        self.columns = columns

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index):
        return {"id": index, **{name: column[index] for name, column in self.columns.items()}}


class Stream(IterableDataset):
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return (self.rows[n] for n in range(len(self.rows)))


def _columns(x, y, w):
    return {**x, "target": y, **({} if w is None else {"weight": w})}


def _batch(columns, rows):
    return {name: column[rows] for name, column in columns.items()}


def _parts(x, y, w, size=3):
    count = len(next(iter(x.values())))
    return [_batch(_columns(x, y, w), slice(start, start + size)) for start in range(0, count, size)]


def _read(batch):
    """As tuples with an entry too many have to be read."""
    input = tuple(batch[name] for name in batch if name not in ("target", "weight"))
    found = input[0] if len(input) == 1 else input
    return (found, batch["target"], batch["weight"]) if "weight" in batch else (found, batch["target"])


def pairs(x, y, w):
    found = [_read(batch) for batch in _parts(x, y, w)]
    return found if w is None else Batches(found, lambda batch: batch)


def dictionaries(x, y, w):
    return _parts(x, y, w)


def named(x, y, w):
    kind = namedtuple("Batch", list(_columns(x, y, w)))
    return [kind(**part) for part in _parts(x, y, w)]


def one_batch(x, y, w):
    return _parts(x, y, w, N)


def tensor_data(x, y, w):
    columns = _columns(x, y, w)
    loader = DataLoader(TensorDataset(*columns.values()), 2, shuffle=True)
    return Batches(loader, lambda batch: _read(dict(zip(columns, batch))))


def rows(x, y, w):
    return DataLoader(Rows(_columns(x, y, w)), 3)


def stream(x, y, w):
    return DataLoader(Stream(Rows(_columns(x, y, w))), 3)


def repeated(x, y, w):
    """All samples three times: they say no more than once."""
    data = Rows(_columns(x, y, w))
    return DataLoader(ConcatDataset([data, Subset(data, range(len(data))), data]), 4)


def exhausted_later(x, y, w):
    """Can be gone through only once, which is enough here."""
    return iter(_parts(x, y, w))


def geometric(x, y, w):
    return [{**part, "x": GRAY(part["x"])} if part["x"].dim() == 4 else part for part in _parts(x, y, w)]


def asking(x, y, w):
    return Batches(
        _parts(x, y, w), forward=lambda model, input: model(**input) if isinstance(input, dict) else model(input)
    )


LOADERS = {
    f.__name__.replace("_", " "): f
    for f in (
        pairs,
        dictionaries,
        named,
        one_batch,
        tensor_data,
        rows,
        stream,
        repeated,
        exhausted_later,
        geometric,
        asking,
    )
}


def inputs(kind: str) -> dict[str, torch.Tensor]:
    return {name: _random(9 + n, N, *shape) for n, (name, shape) in enumerate(MODELS[kind].inputs.items())}


def dense(model: nn.Module, x: dict[str, torch.Tensor], hessian: torch.Tensor) -> dict[str, torch.Tensor]:
    """For each parameter its block of J^T H J, J of all outputs of all samples together."""
    values = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}

    def outputs(parameters):
        found = torch.func.functional_call(model, parameters, tuple(x.values()))
        return getattr(found, "logits", found).flatten()

    found = {}
    for name, J in torch.func.jacrev(outputs)(values).items():
        J = J.reshape(len(hessian), -1)
        found[name] = J.T @ hessian @ J
    return found
