"""Batches and networks as people have them: the same data in another form give the same numbers, in ``fit``,
``Evidence``, ``symmetry_test``, ``survivors`` and ``report`` alike, or an error of ours."""

from __future__ import annotations

import copy
import math
from collections import namedtuple
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from curvature_oracles import own_filters  # noqa: F401
from escnn import gspaces
from escnn import nn as enn
from nonempty import each
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from escnn_relax import Batches, Evidence, fit, relax, report, survivors, symmetry_test
from escnn_relax.curvature.likelihood import Categorical
from escnn_relax.errors import ArgumentError, DataError, LikelihoodError

#: float64; two orders of the same sums
ROUNDING = 1e-10
COUNT, BATCH = 160, 8

C4 = gspaces.rot2dOnR2(4)
GRAY = enn.FieldType(C4, [C4.trivial_repr])
FIELDS = enn.FieldType(C4, 2 * [C4.regular_repr])


class Net(nn.Module):
    """An image, and two numbers that no turn changes."""

    def __init__(self):
        super().__init__()
        self.first, self.act = enn.R2Conv(GRAY, FIELDS, 3, padding=1), enn.ReLU(FIELDS)
        self.head = nn.Linear(4, 3)

    def features(self, image):
        image = image if isinstance(image, enn.GeometricTensor) else GRAY(image)
        fields = self.act(self.first(image)).tensor.unflatten(1, (2, 4))  # escnn's own group pooling rounds to float32
        return fields.amax(2).mean((-2, -1))

    def forward(self, image, extra=None):
        h = self.features(image)
        return self.head(torch.cat([h, torch.zeros_like(h) if extra is None else extra], 1))


def network(kind=Net):
    torch.manual_seed(1)
    return relax(kind().double())


def data(count=COUNT, seed=3):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 1, 5, 5, generator=g, dtype=torch.float64)
    x = x * torch.rand(count, 1, 1, 1, generator=g, dtype=torch.float64)
    return x, torch.randn(count, 2, generator=g, dtype=torch.float64), torch.arange(count).remainder(3)


def cut(make):
    """Batches of the data, each made by a function of image, numbers, labels and the indices of its samples."""
    x, e, y = data()
    return [
        make(*(t[start : start + BATCH] for t in (x, e, y, torch.arange(COUNT)))) for start in range(0, COUNT, BATCH)
    ]


Named = namedtuple("Named", ["image", "label", "index"])


@dataclass
class Output:
    """As of transformers' models."""

    logits: torch.Tensor
    loss: object = None


class Published(Net):
    """Returns an object, with the loss in it if it is told the labels."""

    def forward(self, pixel_values, labels=None):
        logits = super().forward(pixel_values)
        return Output(logits, None if labels is None else F.cross_entropy(logits, labels))


class Mapped(Net):
    def forward(self, image):
        return {"logits": super().forward(image), "features": None}


class Lightning(Net):
    """``forward`` says what is predicted; a training step of its own is nobody else's business."""

    def training_step(self, batch, index):
        return F.cross_entropy(self(batch[0]), batch[1])


class Several(Net):
    def forward(self, image):
        return super().forward(image), self.features(image)


class Asking(Net):
    def forward(self, *anything):
        raise AssertionError("ask encode instead")

    def encode(self, image):
        return Net.forward(self, image)


#: A network, batches, and what is equal to (network, pairs of image and label).
FORMS = {
    "pairs in a list": (Net, lambda x, e, y, i: [x, y]),
    "dictionary": (Net, lambda x, e, y, i: {"image": x, "label": y}),
    "dictionary with indices": (Net, lambda x, e, y, i: {"index": i, "image": x, "label": y}),
    "named tuple": (Net, lambda x, e, y, i: Named(x, y, i)),
    "geometric tensor": (Net, lambda x, e, y, i: (GRAY(x), y)),
    "geometric tensor in a dictionary": (Net, lambda x, e, y, i: {"image": GRAY(x), "target": y}),
    "several inputs in a tuple": (Net, lambda x, e, y, i: ((x, torch.zeros_like(e)), y)),
    "several inputs by name": (Net, lambda x, e, y, i: {"image": x, "extra": torch.zeros_like(e), "y": y}),
    "geometric tensor and numbers": (Net, lambda x, e, y, i: ((GRAY(x), torch.zeros_like(e)), y)),
    "weights that are all one": (
        Net,
        lambda x, e, y, i: {"image": x, "label": y, "weight": torch.ones(len(y)).double()},
    ),
    "an object with logits": (Published, lambda x, e, y, i: {"pixel_values": x, "labels": y}),
    "a dictionary with logits": (Mapped, lambda x, e, y, i: (x, y)),
    "lightning": (Lightning, lambda x, e, y, i: (x, y)),
}
#: The same with a function that reads, or asks.
READ = {
    "three entries": (Net, lambda x, e, y, i: (x, y, i), {"read": lambda b: (b[0], b[1])}),
    "names of one's own": (Net, lambda x, e, y, i: {"a": x, "b": y}, {"read": lambda b: (b["a"], b["b"])}),
    "several outputs": (Several, lambda x, e, y, i: (x, y), {"forward": lambda model, x: model(x)[0]}),
    "another method": (Asking, lambda x, e, y, i: {"image": x, "y": y}, {"forward": lambda model, x: model.encode(x)}),
    "both": (
        Several,
        lambda x, e, y, i: (i, y, x),
        {"read": lambda b: (b[2], b[1]), "forward": lambda model, x: model(x)[0]},
    ),
}


def case(which):
    if which in FORMS:
        kind, make = FORMS[which]
        return kind, cut(make)
    kind, make, how = READ[which]
    return kind, Batches(cut(make), **how)


ALL = [*FORMS, *READ]
#: Those that the quick tests try.
FEW = ("several inputs by name", "an object with logits", "another method")


def some(which):
    return [form if form in which else pytest.param(form, marks=pytest.mark.slow) for form in ALL]


def plain():
    return cut(lambda x, e, y, i: (x, y))


@cache
def tested():
    torch.manual_seed(1)
    return symmetry_test(network(), plain(), draws=99, progress=False)


@cache
def fitted():
    torch.manual_seed(5)
    return fit(network(), plain(), epochs=2, burn_in=1, refresh_every=1, lr=1e-2, progress=False)


def broken(kind=Net):
    model = network(kind)
    with torch.no_grad():
        model.first.weights["irrep_1"].normal_()
    return model


def surviving(kind, batches):
    evidence = Evidence(broken(kind))
    evidence.refresh(batches)
    return survivors(evidence.model, evidence, data=batches).network


@cache
def refreshed():
    return Evidence(network()).refresh(plain()), surviving(Net, plain())


@pytest.mark.parametrize("which", ALL)
def test_evidence(which):
    kind, batches = case(which)
    found = Evidence(network(kind)).refresh(batches)
    assert found.num_data == refreshed()[0].num_data == COUNT
    assert math.isclose(found.total, refreshed()[0].total, rel_tol=ROUNDING)


@pytest.mark.parametrize("which", some(FEW))
def test_survivors(which):
    kind, batches = case(which)
    one, other = refreshed()[1], surviving(kind, batches)
    assert one.subgroup == other.subgroup and one.losses
    assert set(one.losses) == set(other.losses) and all(
        math.isclose(one.losses[n], other.losses[n], abs_tol=1e-9) for n in one.losses
    )


@pytest.mark.parametrize("which", some(FEW))
def test_symmetry_test(which):
    kind, batches = case(which)
    wanted = tested()
    torch.manual_seed(1)
    found = symmetry_test(network(kind), batches, draws=99, progress=False)
    assert [(t.layer, t.pathway) for t in found.tests] == [(t.layer, t.pathway) for t in wanted.tests] != []
    for one, other in each(zip(wanted.tests, found.tests, strict=True)):
        assert math.isclose(one.statistic, other.statistic, rel_tol=1e-6) and one.p_value == other.p_value
    assert found.num_data == COUNT


@pytest.mark.parametrize("which", some(FEW))
def test_fit_and_report(which):
    wanted, (kind, batches) = fitted(), case(which)
    torch.manual_seed(5)
    model = network(kind)
    history = fit(model, batches, epochs=2, burn_in=1, refresh_every=1, lr=1e-2, progress=False)
    assert history.evidences and "first" in str(report(model, history.evidence))
    assert len(history.records) == 2
    assert all(math.isclose(a.loss, b.loss, rel_tol=1e-6) for a, b in zip(history.records, wanted.records))


def test_weights_are_honoured_everywhere():
    """A sample of weight two counts as two, of weight zero as none."""
    x, e, y = data(40)
    weight = torch.arange(40).remainder(3).double()
    repeated = torch.repeat_interleave(torch.arange(40), weight.long())
    weighed = Batches([(x[:20], y[:20], weight[:20]), (x[20:], y[20:], weight[20:])], lambda b: b)
    model = network()
    one, other = (Evidence(model, curvature="exact", num_data=n) for n in (40, len(repeated)))
    one.refresh(weighed), other.refresh([(x[repeated], y[repeated])])
    assert one.estimate.num_data == 40 and other.estimate.num_data == len(repeated)
    assert math.isclose(one.terms().data_fit, other.terms().data_fit, rel_tol=ROUNDING)
    assert math.isclose(one.terms().total, other.terms().total, rel_tol=ROUNDING)
    loss = one.loss(model(x), y, weight) - one.penalty()
    assert math.isclose(float(loss.detach()) * 40, -one.terms().data_fit, rel_tol=ROUNDING)


@pytest.mark.parametrize("curvature", ["expand", "reduce", "eigenvalue-corrected", "exact"])
def test_what_has_no_weight_tells_nothing(curvature):
    """Whatever its inputs are: as if it were left out, but for N."""
    x, _, y = data(40)
    weight = (torch.arange(40) % 3 > 0).double()
    strange = torch.where(weight.view(-1, 1, 1, 1) > 0, x, 100 * torch.ones_like(x))
    model = network()
    loader = [
        {"image": strange[s : s + 10], "label": y[s : s + 10], "weight": weight[s : s + 10]} for s in range(0, 40, 10)
    ]
    one, other = Evidence(model, curvature=curvature, num_data=40), Evidence(model, curvature=curvature, num_data=40)
    found, wanted = one.refresh(loader), other.refresh([(x[weight > 0], y[weight > 0])])
    share = int(weight.sum()) / 40  # the other scales what it has seen up to N
    assert math.isclose(found.data_fit, wanted.data_fit * share, rel_tol=ROUNDING) and one.estimate.num_data == 40
    assert set(one.eigenvalues) == set(other.eigenvalues) != set()
    for name, values in each(one.eigenvalues.items()):
        right = other.eigenvalues[name] * share
        assert (values.sort().values - right.sort().values).abs().max() < 1e-9 * right.max(), name
    if curvature != "eigenvalue-corrected":
        slope, step, values = one.hypergradient(loader, [model.head.bias])[0], 1e-5, []
        for shift in (step, -2 * step):
            with torch.no_grad():
                model.head.bias[1] += shift
            values.append(one.refresh(loader).total)
        assert math.isclose(float(slope[1]), (values[0] - values[1]) / (2 * step), rel_tol=1e-4, abs_tol=1e-6)


def test_weights_in_the_symmetry_test():
    """Samples without weight have no say: their labels may be anything."""
    x, _, y = data(400)
    weight = torch.ones(400).double()
    weight[::4] = 0
    noise = y.clone()
    noise[::4] = (noise[::4] + 1) % 3
    tests = []
    for labels in (y, noise):
        loader = [
            {"image": x[s : s + 50], "label": labels[s : s + 50], "weight": weight[s : s + 50]}
            for s in range(0, 400, 50)
        ]
        tests.append(symmetry_test(network(), loader, draws=99, progress=False).tests)
    assert tests[0] and all(math.isclose(a.statistic, b.statistic, rel_tol=1e-9) for a, b in zip(*tests))
    with pytest.raises(ArgumentError, match="^loss: the batches hold weights"):
        symmetry_test(network(), loader, loss=F.cross_entropy, draws=99, progress=False)


def test_a_broken_network_is_found_with_several_inputs():
    """The law of the gradients is checked where one image can be turned and the rest stays."""

    class Broken(Net):
        def forward(self, image, extra=None):
            return super().forward(image * torch.linspace(1, 3, 5).to(image), extra)

    loader = cut(lambda x, e, y, i: {"image": x, "extra": e, "label": y})
    test = symmetry_test(network(Broken), loader, draws=99, progress=False)
    assert test.tests and all("not equivariant" in t.reason for t in test.tests)
    sound = symmetry_test(network(), loader, draws=99, progress=False)
    assert sound.tests and not any(t.reason for t in sound.tests)


@pytest.mark.parametrize(
    "loss, wanted",
    [
        (nn.CrossEntropyLoss(label_smoothing=0.1, ignore_index=2), Categorical(label_smoothing=0.1, ignore_index=2)),
        (nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0]), reduction="sum"), Categorical([1.0, 2.0, 3.0])),
        (F.cross_entropy, Categorical()),
        (Categorical, Categorical()),
    ],
)
def test_losses_of_torch(loss, wanted):
    model = network()
    one, other = Evidence(model, loss), Evidence(model, wanted)
    assert one.refresh(plain()) == other.refresh(plain())


def test_log_probabilities():
    class Normalised(Net):
        def forward(self, image):
            return super().forward(image).log_softmax(1)

    one, other = Evidence(network(Normalised), nn.NLLLoss()).refresh(plain()), Evidence(network()).refresh(plain())
    assert math.isclose(one.total, other.total, rel_tol=ROUNDING)


@pytest.mark.parametrize(
    "loss, words",
    [
        (nn.BCELoss(), "got BCELoss; return log odds"),
        (nn.BCEWithLogitsLoss(pos_weight=torch.ones(3)), "weights of its own; weigh"),
        (nn.GaussianNLLLoss(), "heteroscedastic"),
        (nn.HuberLoss(), "curvature is not known, got HuberLoss; subclass"),
        (lambda output, target: 0.0, "curvature is not known, got <lambda>; subclass"),
        ("crossentropy", "expected one of"),
    ],
)
def test_losses_that_are_no_likelihood(loss, words):
    with pytest.raises(LikelihoodError, match=words):
        Evidence(network(), loss)


class ReturnsLoss(Net):
    def forward(self, image):
        return super().forward(image).logsumexp(1).mean()


class ReturnsFeatures(Net):
    def forward(self, image):
        return {"features": self.features(image), "boxes": None}


def loader_of(make):
    return lambda: cut(make)


BAD = {
    "a loss": (ReturnsLoss, lambda x, e, y, i: (x, y), LikelihoodError, "one number, as if it were a loss"),
    "several outputs": (Several, lambda x, e, y, i: (x, y), LikelihoodError, r"got tuple; .*Batches\(loader, forward="),
    "other names": (
        ReturnsFeatures,
        lambda x, e, y, i: (x, y),
        LikelihoodError,
        r"got dict of features, boxes; .*forward=",
    ),
    "three entries": (
        Net,
        lambda x, e, y, i: (x, y, i),
        DataError,
        r"pair \(input, target\), got tuple of 3; wrap the loader",
    ),
    "no target": (
        Net,
        lambda x, e, y, i: {"image": x, "klass": y},
        DataError,
        r"got entries \['image', 'klass'\]; wrap the loader",
    ),
    "names that forward has not": (
        Net,
        lambda x, e, y, i: {"image": x, "colour": e, "y": y},
        DataError,
        "colour.*wrap the loader",
    ),
    "too many inputs": (Net, lambda x, e, y, i: ((x, e, e), y), DataError, "3 tensors"),
    "strings": (Net, lambda x, e, y, i: (x, ["a"] * len(x)), DataError, r"expected tensors, got \(Tensor\), list"),
    "one tensor": (Net, lambda x, e, y, i: x, DataError, "a pair"),
    "other numbers": (Net, lambda x, e, y, i: (x, y[:-1]), (DataError, LikelihoodError), "expected"),
}


@pytest.mark.parametrize("which", BAD)
@pytest.mark.parametrize("where", ["fit", "Evidence", "symmetry_test"])
def test_what_cannot_be_read_is_named_before_anything_moves(where, which):
    kind, make, error, words = BAD[which]
    model = network(kind)
    before = copy.deepcopy(dict(model.named_parameters()))
    with pytest.raises(error, match=words):
        if where == "fit":
            fit(model, cut(make), epochs=2, burn_in=1, progress=False)
        elif where == "Evidence":
            Evidence(model).refresh(cut(make))
        else:
            symmetry_test(model, cut(make), draws=99, progress=False)
    assert before and all(torch.equal(value, before[name]) for name, value in model.named_parameters())


@pytest.mark.parametrize(
    "loader, words",
    [
        (None, "^loader: expected something that yields batches, a DataLoader or a list, got NoneType"),
        (3, "^loader: expected something that yields batches.*got int"),
        ([], "yields no batch"),
        ([(data()[0].to_sparse(), data()[2])], "^batch 0: sparse tensors; convert them by .to_dense"),
        ([(data()[0][:0], data()[2][:0])], "^batch 0: no samples in it"),
        ([(data()[0], torch.tensor(1))], "^batch 0: no samples in it"),
        ([(data()[0] * math.nan, data()[2])], "^batch 0: NaN or infinite inputs"),
        ([{}], "^batch 0: .*one entry named as in"),
    ],
)
@pytest.mark.parametrize("where", ["fit", "Evidence", "symmetry_test"])
def test_loaders_that_are_none(where, loader, words):
    with pytest.raises(DataError, match=words):
        if where == "fit":
            fit(network(), loader, epochs=1, burn_in=0, progress=False)
        elif where == "Evidence":
            Evidence(network()).refresh(loader)
        else:
            symmetry_test(network(), loader, draws=99, progress=False)


def test_where_nothing_is_observed():
    """N samples of which none counts would be an evidence of N samples that say nothing."""
    x, _, y = data(20)
    for batch in ((x, torch.full_like(y, -100)), {"image": x, "label": y, "weight": torch.zeros(20).double()}):
        with pytest.raises(
            DataError, match="^targets: none of them counts: all are ignored, or have no weight; look at"
        ):
            Evidence(network()).refresh([batch])
    found = Evidence(network()).refresh([(x, torch.full_like(y, -100)), (x, y)])
    assert found.num_data == 40 and found.data_fit < 0


def test_large_batches_are_halved_whatever_their_form():
    """The peak is that of training: no layer sees more than half of a large batch."""
    x, e, y = data(128)
    for batch in ({"image": x, "extra": e, "y": y}, ((GRAY(x), e), y), ((x, e), y), (x, y)):
        model, seen = network(), []
        model.first.register_forward_pre_hook(lambda module, given: seen.append(len(given[0].tensor)))
        found = Evidence(model).refresh([batch])
        assert found.num_data == 128 and max(seen) == 64


def test_a_data_loader_of_dictionaries():
    x, e, y = data()
    rows = [{"image": x[n], "extra": e[n], "label": int(y[n]), "id": n} for n in range(COUNT)]
    one = Evidence(network()).refresh(DataLoader(rows, 32))
    assert math.isclose(
        one.total, Evidence(network()).refresh(cut(lambda x, e, y, i: ((x, e), y))).total, rel_tol=ROUNDING
    )
