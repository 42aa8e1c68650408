"""Networks of others: each weight has the dense oracle's curvature, or is listed as uncovered with the reason, or the
network is refused before anything is trained."""

from __future__ import annotations

import pytest
import torch
from curvature_oracles import dense_ggn, own_filters  # noqa: F401
from nonempty import each
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from escnn_relax import Evidence
from escnn_relax.curvature.curvature import Curvature
from escnn_relax.curvature.jacobian import jacobian
from escnn_relax.errors import CoverageError, DataError, UnsupportedModuleError

#: float64; the two sides sum the same numbers in another order
ROUNDING = 1e-10


class Two(nn.Module):
    """Two layers, and something between."""

    def __init__(self, first=None):
        super().__init__()
        self.first = nn.Linear(4, 4) if first is None else first
        self.last = nn.Linear(4, 3)

    def between(self, h):
        return h.tanh()

    def forward(self, x):
        return self.last(self.between(self.first(x)))


class OwnNorm(nn.Module):
    """A root-mean-square norm of someone's own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return self.scale * x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()


class WithNorm(Two):
    def __init__(self):
        super().__init__()
        self.norm = OwnNorm()

    def between(self, h):
        return self.norm(h).tanh()


class WithScale(Two):
    """A parameter that the module itself holds."""

    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(0.7))

    def between(self, h):
        return (h * self.temperature).tanh()


class Shared(Two):
    def between(self, h):
        return self.first(h.tanh()).tanh()


class Tied(Two):
    def __init__(self):
        super().__init__()
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def between(self, h):
        return self.second(h.tanh()).tanh()


class Adapter(nn.Module):
    """A frozen layer and a product of two narrow ones."""

    def __init__(self):
        super().__init__()
        self.base, self.down, self.up = nn.Linear(4, 4), nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False)
        self.base.requires_grad_(False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


class AdapterOfTensors(nn.Module):
    """The same with plain parameters."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(4, 4).requires_grad_(False)
        self.A, self.B = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.randn(4, 2))

    def forward(self, x):
        return self.base(x) + x @ self.A.T @ self.B.T


class Dictionary(Two):
    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleDict({"left": nn.Linear(4, 4), "right": nn.Linear(4, 4)})

    def between(self, h):
        return sum(branch(h).tanh() for branch in self.branches.values())


class Symmetric(nn.Module):
    def forward(self, w):
        return (w + w.T) / 2


def parametrized():
    net = Two()
    parametrize.register_parametrization(net.first, "weight", Symmetric())
    return net


def spectral():
    net = Two()
    parametrizations.spectral_norm(net.first)
    return net


def weight_norm():
    net = Two()
    parametrizations.weight_norm(net.first)
    return net


def lazy():
    net = Two(nn.LazyLinear(4))
    net(torch.zeros(1, 4))
    return net


LAST = {"last.weight", "last.bias"}
FIRST = {"first.weight", "first.bias"}
BRANCHES = {f"branches.{name}.{kind}" for name in ("left", "right") for kind in ("weight", "bias")}
BASE = {"first.base.weight": "frozen", "first.base.bias": "frozen"}
PARAMETRIZED = "first.parametrizations.weight.original"
#: a network, the weights that must be covered, and a word of the reason for each that may not be
NETWORKS = {
    "plain": (Two, FIRST | LAST, {}),
    "norm of one's own": (WithNorm, FIRST | LAST, {"norm.scale": "OwnNorm"}),
    "parameter of the module itself": (WithScale, FIRST | LAST, {"temperature": "WithScale"}),
    "one layer used twice": (Shared, FIRST | LAST, {}),
    "tied weights": (Tied, FIRST | LAST | {"second.bias"}, {}),
    "adapter": (lambda: Two(Adapter()), {"first.down.weight", "first.up.weight"} | LAST, BASE),
    "adapter of tensors": (
        lambda: Two(AdapterOfTensors()),
        LAST,
        {"first.A": "AdapterOfTensors", "first.B": "AdapterOfTensors"} | BASE,
    ),
    "dictionary of modules": (Dictionary, FIRST | LAST | BRANCHES, {}),
    "parametrized": (parametrized, {"first.bias"} | LAST, {PARAMETRIZED: "not known"}),
    "spectral norm": (spectral, {"first.bias"} | LAST, {PARAMETRIZED: "not known"}),
    "weight norm": (
        weight_norm,
        {"first.bias"} | LAST,
        dict.fromkeys((f"{PARAMETRIZED}{k}" for k in "01"), "not known"),
    ),
    "lazy": (lazy, FIRST | LAST, {}),
}


def data():
    return [(torch.randn(7, 4).double(), torch.randint(3, (7,)))]


@pytest.mark.parametrize("which", NETWORKS)
def test_covered_like_the_oracle_or_listed(which):
    make, covered, uncovered = NETWORKS[which]
    model, batch = make().double(), data()
    curvature = Curvature(model, "categorical", "exact")
    assert set(curvature.covered) == covered
    assert set(curvature.uncovered) == set(uncovered)
    assert all(word in curvature.uncovered[name] for name, word in uncovered.items()), curvature.uncovered
    model.eval()  # the estimates of a spectral norm move in training mode
    expected = dense_ggn(model, batch, "categorical")
    for name, (factor,) in each(curvature(batch).factors.items()):
        assert (factor.dense() - expected[name]).norm() < ROUNDING * expected[name].norm(), name
        assert expected[name].norm() > 1e-8


class Attentive(nn.Module):
    """Sequences of vectors of eight, the batch first or second."""

    def __init__(self, first):
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=first)
        self.last, self.first = nn.Linear(8, 3), first

    def forward(self, x):
        return self.last(self.encoder(x if self.first else x.transpose(0, 1)).mean(1 if self.first else 0))


@pytest.mark.parametrize("first", [True, False])
def test_transformers(first):
    """In evaluation mode torch would fuse such a layer into one operation."""
    model, batch = Attentive(first).double(), [(torch.randn(5, 4, 8).double(), torch.randint(3, (5,)))]
    curvature = Curvature(model, "categorical", "exact")
    attention = [name for name in curvature.uncovered if name.startswith("encoder.self_attn.")]
    assert len(attention) == 4 and all(
        "MultiheadAttention uses it as a tensor" in curvature.uncovered[name] for name in attention
    )
    assert {name.rpartition(".")[0] for name in curvature.covered} == {"encoder.linear1", "encoder.linear2", "last"}
    found = curvature(batch).factors
    expected = dense_ggn(model.eval(), batch, "categorical")
    for name, (factor,) in each(found.items()):
        assert (factor.dense() - expected[name]).norm() < ROUNDING * expected[name].norm(), name
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("inputs", [torch.zeros(5, 4), torch.zeros(5, 4, dtype=torch.long)])
def test_another_precision(inputs):
    with pytest.raises(
        DataError, match="^forward of Two: .*expected inputs of torch.float64, got torch.(float32|int64); give both"
    ):
        Evidence(Two().double(), relaxed_only=False).refresh([(inputs, torch.randint(3, (5,)))])


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.hidden, self.last = nn.Embedding(11, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, input_ids, attention_mask):
        h = self.hidden(self.embedding(input_ids)).tanh() * attention_mask.unsqueeze(-1)
        return self.last(h.mean(1))


def test_tokens_and_masks_by_name():
    ids, mask, y = torch.randint(11, (5, 6)), torch.randint(2, (5, 6)), torch.randint(3, (5,))
    model = Tokens().double()
    curvature = Curvature(model, "categorical", "exact")
    assert curvature.uncovered == {"embedding.weight": "no curvature is known for Embedding"}
    found = curvature([{"input_ids": ids, "attention_mask": mask, "labels": y}]).factors
    values = {name: model.get_parameter(name).detach() for name in curvature.covered}
    J = torch.func.jacrev(lambda p: torch.func.functional_call(model, p, (ids, mask)).flatten())(values)
    H = torch.block_diag(*(torch.diag(p) - torch.outer(p, p) for p in model(ids, mask).detach().softmax(1)))
    for name, (factor,) in each(found.items()):
        rows = J[name].flatten(1)
        assert (factor.dense() - rows.T @ H @ rows).norm() < ROUNDING * factor.dense().norm(), name


def test_lazy_layers_without_a_shape():
    with pytest.raises(CoverageError, match="^first.weight: a lazy layer.*run the model once"):
        Evidence(Two(nn.LazyLinear(4)), relaxed_only=False)


class Stray(Two):
    """Adds the layer's own weight to the features."""

    def between(self, h):
        return (h + F.linear(h, self.first.weight)).tanh()


class Decoder(Two):
    """Reads a weight of another layer transposed, as an autoencoder with tied weights does."""

    def forward(self, x):
        return super().forward(x @ self.first.weight.T @ self.first.weight)


class Centred(Two):
    def between(self, h):
        return (h - h.mean(0)).tanh()


class Running(Two):
    def between(self, h):
        return h.cumsum(0).tanh()


class Rolled(Two):
    def between(self, h):
        return h + h.roll(1, 0)


class Attention(Two):
    """With the dimensions of batch and sequence mistaken for each other."""

    def between(self, h):
        return (h @ h.T).softmax(1) @ h


@pytest.mark.parametrize("make", [Stray, Decoder])
@pytest.mark.parametrize("curvature", ["expand", "exact"])
def test_a_weight_used_beside_its_layer_is_refused(make, curvature):
    model = make().double()
    with pytest.raises(
        UnsupportedModuleError, match="^first.weight: the network uses this weight as a tensor too.*call the layer"
    ):
        Curvature(model, "categorical", curvature)(data())
    assert all(p.requires_grad for p in model.parameters()) and "forward" not in vars(model.first)
    model.first.weight.requires_grad_(False)
    assert "first.weight" not in Curvature(model, "categorical", curvature)(data()).factors


@pytest.mark.parametrize("make", [Centred, Running, Rolled, Attention])
def test_samples_that_know_of_each_other_are_refused(make):
    with pytest.raises(UnsupportedModuleError, match="^model: the output of a sample depends on other samples"):
        Evidence(make().double(), relaxed_only=False).refresh(data())


@pytest.mark.parametrize("shift", [2, -2])
def test_mixtures_that_neighbours_do_not_show(shift):
    """The gradients show them: what is made of sample 0 reaches the output of sample 2, and of no odd one."""

    class Apart(Two):
        def between(self, h):
            return h + torch.cat([h[2:], h[:2] * 0]) if shift < 0 else h + torch.cat([h[:2] * 0, h[:-2]])

    batch = [(torch.randn(8, 4).double(), torch.randint(3, (8,)))]
    with pytest.raises(
        UnsupportedModuleError, match="^first: what it makes of a sample changes the outputs of other samples"
    ):
        Evidence(Apart().double(), relaxed_only=False).refresh(batch)


class Frames(Two):
    """All frames of all samples go through one encoder as one batch."""

    def __init__(self, order):
        super().__init__()
        self.order = order

    def forward(self, x):
        samples, frames = x.shape[:2]
        weigh = torch.arange(1, frames + 1).to(x).view(1, -1, 1)
        if self.order == "sample by sample":
            h = self.first(x.flatten(0, 1)).unflatten(0, (samples, frames))
        elif self.order == "frame by frame":
            h = self.first(x.transpose(0, 1).flatten(0, 1)).unflatten(0, (frames, samples)).transpose(0, 1)
        else:
            h = self.first(x.transpose(0, 1)).transpose(0, 1)
        return self.last((h.tanh() * weigh).sum(1).tanh())


@pytest.mark.parametrize("samples, frames", [(5, 3), (3, 3), (1, 3), (2, 2), (4, 1)])
@pytest.mark.parametrize("order", ["sample by sample", "frame by frame", "batch second"])
def test_frames_that_share_an_encoder(order, samples, frames):
    model = Frames(order).double()
    batch = [(torch.randn(samples, frames, 4).double(), torch.randint(3, (samples,)))]
    expected = dense_ggn(model, batch, "categorical")
    curvature = Curvature(model, "categorical", "exact")
    found = curvature(batch)
    assert found.num_data == samples and len(found.factors) == 4
    for name, (factor,) in each(found.factors.items()):
        assert (factor.dense() - expected[name]).norm() < ROUNDING * expected[name].norm(), name
    outputs, derivatives = jacobian(curvature, batch[0][0])
    wanted = torch.func.jacrev(lambda p: torch.func.functional_call(model, p, (batch[0][0],)))(
        dict(model.named_parameters())
    )
    for name, rows in each(derivatives.items()):
        assert (rows - wanted[name].flatten(2)).norm() < ROUNDING * rows.norm(), name


@pytest.mark.parametrize("order", ["sample by sample", "frame by frame", "batch second"])
def test_frames_under_a_hypergradient(order):
    model, batch = Frames(order).double(), [(torch.randn(5, 3, 4).double(), torch.randint(3, (5,)))]
    evidence = Evidence(model, curvature="expand", relaxed_only=False)
    (slope,) = evidence.hypergradient(batch, [model.first.bias])
    step = torch.zeros_like(slope)
    step[1] = 1e-5
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            model.first.bias += sign * step
        values.append(evidence.refresh(batch).total)
        with torch.no_grad():
            model.first.bias -= sign * step
    difference = (values[0] - values[1]) / 2e-5
    assert abs(float(slope[1]) - difference) < 1e-4 * abs(difference) + 1e-6


def test_frames_that_come_as_rows():
    """The loader itself folds the frames of a sample into its batch: five for each label."""

    class Folded(Two):
        def forward(self, x):
            return self.last(self.first(x).tanh().unflatten(0, (-1, 5)).sum(1).tanh())

    model = Folded().double()
    x, y = torch.randn(40, 5, 4).double(), torch.randint(3, (40,))
    found = Curvature(model, "categorical", "exact")([(x.flatten(0, 1), y)])
    assert found.num_data == 40 and len(found.factors) == 4
    J = torch.func.jacrev(lambda p: torch.func.functional_call(model, p, (x.flatten(0, 1),)))(
        dict(model.named_parameters())
    )
    p = model(x.flatten(0, 1)).detach().softmax(1)
    for name, (factor,) in each(found.factors.items()):
        rows = J[name].flatten(2)
        right = sum(r.T @ (torch.diag(q) - torch.outer(q, q)) @ r for r, q in zip(rows, p))
        assert (factor.dense() - right).norm() < ROUNDING * right.norm(), name


@pytest.mark.parametrize(
    "lengths", [[(4, 2), (4, 5), (4, 1)], [(4, 1), (4, 3)], [(1, 3), (4, 3)], [(3, 3), (2, 5), (5, 2)]]
)
def test_frames_as_many_as_they_come(lengths):
    """Videos of other lengths in other batches; the first may not tell what is what."""
    model = Frames("frame by frame").double()
    data = [(torch.randn(count, frames, 4).double(), torch.randint(3, (count,))) for count, frames in lengths]
    expected = dense_ggn(model, data, "categorical")
    for name, (factor,) in each(Curvature(model, "categorical", "exact")(data).factors.items()):
        assert (factor.dense() - expected[name]).norm() < ROUNDING * expected[name].norm(), name


def test_frames_of_which_one_is_used():
    """Two samples of two frames each: what is not used tells nothing."""

    class First(Frames):
        def forward(self, x):
            h = self.first(x.transpose(0, 1).flatten(0, 1)).unflatten(0, (x.shape[1], len(x)))
            return self.last(h[0].tanh())

    model, batch = First("frame by frame").double(), [(torch.randn(2, 2, 4).double(), torch.randint(3, (2,)))]
    expected = dense_ggn(model, batch, "categorical")
    for name, (factor,) in each(Curvature(model, "categorical", "exact")(batch).factors.items()):
        assert (factor.dense() - expected[name]).norm() < ROUNDING * expected[name].norm(), name


def test_frames_in_no_order():
    class Shuffled(Frames):
        def forward(self, x):
            order = torch.tensor([0, 5, 2, 7, 1, 4, 3, 6])
            h = self.first(x.flatten(0, 1)[order])[order.argsort()]
            return self.last(h.unflatten(0, x.shape[:2]).sum(1).tanh())

    batch = [(torch.randn(4, 2, 4).double(), torch.randint(3, (4,)))]
    with pytest.raises(UnsupportedModuleError, match="^first: the layer sees 8 samples where the network has 4"):
        Curvature(Shuffled("any").double(), "categorical")(batch)


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_any_number_of_samples_is_tried(count):
    batch = [(torch.randn(count, 4).double(), torch.randint(3, (count,)))]
    assert Evidence(Two().double(), relaxed_only=False).refresh(batch).num_data == count
    if count > 1:
        with pytest.raises(UnsupportedModuleError):
            Evidence(Centred().double(), relaxed_only=False).refresh(batch)


def test_what_a_network_draws_is_not_taken_for_a_mixture():
    class Noisy(Two):
        def between(self, h):
            return (h + torch.randn_like(h)).tanh()

    torch.manual_seed(3)
    model, batch = Noisy().double(), data()
    torch.manual_seed(4)
    first = Evidence(model, relaxed_only=False).refresh(batch)
    torch.manual_seed(4)
    assert Evidence(model, relaxed_only=False).refresh(batch) == first
