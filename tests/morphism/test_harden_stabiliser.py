"""A relaxed network as plain escnn layers on what survived: same outputs as with the kernels projected, and nothing
more."""

import copy
import pickle

import pytest
import torch
from escnn import gspaces
from escnn import nn as enn
from nonempty import each
from torch import nn

from escnn_relax import harden, relax
from escnn_relax.errors import ArgumentError, EmptyBasisError, UnsupportedModuleError
from escnn_relax.nn import RelaxedR2Conv
from escnn_relax.nn.measured.kernel_symmetry import KernelSymmetry
from escnn_relax.symmetry.groups.lattice import subgroup, subgroups

#: Of outputs in float64, relative to the largest. escnn's own equivariance is that of its float32 samples.
EXACT, SAMPLED = 1e-11, 1e-5


def planar(name):
    n, kind = int(name[1:]), name[0]
    return gspaces.rot2dOnR2(n) if kind == "C" else gspaces.flipRot2dOnR2(n)


def sequence(space, dtype=torch.float64):
    torch.manual_seed(0)
    gray = enn.FieldType(space, [space.trivial_repr])
    mixed = enn.FieldType(space, [space.regular_repr, space.trivial_repr])
    layers = [enn.R2Conv(gray, mixed, 3, padding=1), enn.ReLU(mixed), enn.R2Conv(mixed, mixed, 3, padding=1)]
    layers += [enn.ReLU(mixed), enn.R2Conv(mixed, gray, 3, padding=1)]
    return relax(enn.SequentialModule(*layers)).to(dtype).eval()


def learn(layer, kept, noise=0.0):
    """Random weights of which only what a subgroup fixes stays, and some that it does not."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, w in layer.weights.items():
            if name != "equivariant":
                w.copy_(0.3 * torch.randn(w.shape, generator=generator, dtype=torch.float64))
        projected = KernelSymmetry(layer).projected_weights(kept)
        for name, w in layer.weights.items():
            extra = noise * torch.randn(w.shape, generator=generator, dtype=torch.float64)
            w.copy_(projected[name] + (extra if name != "equivariant" else 0))


def projected(model, kept):
    """The relaxed model with the kernel of each layer replaced by the part that its subgroup fixes."""
    model = copy.deepcopy(model)
    layers = dict(model.named_modules())
    with torch.no_grad():
        for name, group in kept.items():
            for pathway, weights in KernelSymmetry(layers[name]).projected_weights(group).items():
                layers[name].weights[pathway].copy_(weights)
    return model


def close(a, b, tolerance=EXACT):
    return float((a - b).abs().max() / b.abs().max()) < tolerance


def outputs(model, x):
    return model(enn.GeometricTensor(x, model.in_type)).tensor.detach()


CASES = [
    ("C4", (4, 2, 2), ["C4", "C2", "C2"]),
    pytest.param("C8", (8, 8, 4), ["C8", "C8", "C4"], marks=pytest.mark.slow),
    ("C8", (4, 2, 1), ["C4", "C2", "trivial"]),
    pytest.param("D4", ((0, 4), (None, 4), (None, 2)), ["D4", "C4", "C2"], marks=pytest.mark.slow),
    pytest.param("D4", ((1, 2), (1, 1), (1, 1)), ["D2_45deg", "D1_135deg", "D1_135deg"], marks=pytest.mark.slow),
    pytest.param("D6", ((0, 3), (0, 3), (0, 1)), None, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("group", "ids", "names"), CASES)
def test_by_depth_is_the_projected_network(group, ids, names):
    space = planar(group)
    model = sequence(space)
    kept = {name: subgroup(space, id) for name, id in zip("024", ids)}
    for name, of in kept.items():
        learn(model[int(name)], of, noise=1e-4)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    hardened, done = harden(model, to="stabiliser", return_report=True)
    assert [r.subgroup for r in done] == [k.name for k in kept.values()]
    if names is not None:
        assert [r.subgroup for r in done] == names
    x = torch.randn(2, 1, 9, 9, dtype=torch.float64)
    expected = outputs(projected(model, kept), x)
    assert close(outputs(hardened, x), expected)
    assert not close(outputs(model, x), expected, 1e-8), "the noise is gone from the hardened network only"
    assert all(torch.equal(before[k].nan_to_num(), v.nan_to_num()) for k, v in model.state_dict().items())
    kinds = {type(m) for m in hardened.modules() if isinstance(m, enn.EquivariantModule)}
    assert all(k.__module__.startswith("escnn.") or k.__name__ == "Relabel" for k in kinds)
    layers = [m for m in hardened.modules() if isinstance(m, enn.R2Conv)]
    assert [m.in_type.fibergroup.order() for m in layers] == [k.order for k in kept.values()]
    # its own coefficients: it may learn within H, and nothing outside; the last layer's group is the network's
    with torch.no_grad():
        for m in layers:
            m.weights.add_(0.1 * torch.randn_like(m.weights))
        hardened.train().eval()
    for g in each(kept["4"].elements):
        mirror = model.in_type(x).transform(g).tensor
        if kept["4"].gspace.fibergroup.name in ("C4", "D4") or kept["4"].order <= 4 and group == "C8":
            wanted = model.out_type(outputs(hardened, x)).transform(g).tensor
            assert close(outputs(hardened, mirror), wanted, SAMPLED)
    if group == "D4":
        outside = [g for g in space.fibergroup.elements if not kept["4"].contains(g)][0]
        moved = outputs(hardened, model.in_type(x).transform(outside).tensor)
        assert not close(moved, model.out_type(outputs(hardened, x)).transform(outside).tensor, 0.05)


@pytest.mark.slow
def test_per_layer_and_for_the_whole_network():
    space = planar("D4")
    model = sequence(space)
    kept = {"0": subgroup(space, (None, 4)), "2": subgroup(space, (0, 2)), "4": subgroup(space, (0, 4))}
    for name in ("0", "2"):
        learn(model[int(name)], kept[name])
    x = torch.randn(2, 1, 9, 9, dtype=torch.float64)
    own, done = harden(model, to="stabiliser", per="layer", return_report=True)
    assert [r.subgroup for r in done] == ["C4", kept["2"].name, "D4"] and type(own[4]) is enn.R2Conv
    assert close(outputs(own, x), outputs(model, x)), "nothing was lost"
    assert own[2].in_type == model[2].in_type and own[2][1].in_type.gspace.fibergroup.order() == 4
    whole, done = harden(model, to="stabiliser", per="network", return_report=True)
    assert [r.subgroup for r in done] == 3 * ["C2"] and whole.in_type.gspace.fibergroup.order() == 2
    assert close(outputs(whole, x), outputs(model, x))
    _, done = harden(model, to="stabiliser", return_report=True)
    assert [r.subgroup for r in done] == ["C4", "C2", "C2"]


def test_shared_activations_in_a_users_module():
    space = planar("C4")

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.gray, fields = (
                enn.FieldType(space, [space.trivial_repr]),
                enn.FieldType(space, 2 * [space.regular_repr]),
            )
            self.conv1 = enn.R2Conv(self.gray, fields, 3)
            self.conv2 = enn.R2Conv(fields, fields, 3)
            self.activation = enn.ReLU(fields)
            self.linear = nn.Linear(2, 3)

        def forward(self, x):
            x = self.activation(self.conv1(self.gray(x)))
            x = self.activation(self.conv2(x)).tensor
            return self.linear(x.unflatten(1, (2, 4)).amax(2).mean((-2, -1)))  # escnn's GroupPooling gives float32

    model = relax(Net()).double()
    learn(model.conv2, subgroup(space, 2))
    hardened = harden(model, to="stabiliser", per="network")
    x = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    assert close(hardened(x), model(x))
    # state: over modes, into a fresh one, through pickle, and it trains
    fresh = harden(relax_like(model), to={"conv1": 2, "conv2": 2}, per="network")
    fresh.load_state_dict(hardened.state_dict())
    assert close(fresh(x), model(x))
    pickle.loads(pickle.dumps(hardened.conv2))
    for other in (copy.deepcopy(hardened),):
        assert close(other.eval()(x), model(x)) and close(other.train()(x), model(x))
    hardened.train()(x).square().sum().backward()
    assert hardened.conv2.weights.grad.abs().max() > 0


def relax_like(model):
    fresh = copy.deepcopy(model)
    with torch.no_grad():
        for p in fresh.parameters():
            p.normal_()
    return fresh


KINDS = ["transposed", "grouped", "linear", pytest.param("volume", marks=pytest.mark.slow), "strided"]


@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_of_layers(kind):
    torch.manual_seed(1)
    if kind == "volume":
        space = gspaces.octaOnR3()
        gray, fields = (
            enn.FieldType(space, [space.trivial_repr]),
            enn.FieldType(space, [space.irrep(1), space.trivial_repr]),
        )
        id = next(s.id for s in subgroups(space) if s.order == 4)
        strict, size = enn.R3Conv(gray, fields, 3, padding=1), (2, 1, 5, 5, 5)
    elif kind == "linear":
        space, id = gspaces.no_base_space(planar("D4").fibergroup), (1, 1)
        fields = enn.FieldType(space, [space.regular_repr, space.trivial_repr])
        strict, size = enn.Linear(fields, fields), (4, fields.size)
    else:
        space, id = planar("D4"), (None, 2)
        fields = enn.FieldType(space, 4 * [space.regular_repr])
        options = {"grouped": {"groups": 2}, "strided": {"stride": 2, "padding_mode": "circular"}}.get(kind, {})
        cls = enn.R2ConvTransposed if kind == "transposed" else enn.R2Conv
        strict, size = cls(fields, fields, 3, padding=1, **options), (2, fields.size, 7, 7)
    model = relax(enn.SequentialModule(strict)).double().eval()
    kept = subgroup(space, id)
    learn(model[0], kept)
    x = torch.randn(*size, dtype=torch.float64)
    for per in ("depth", "layer"):
        hardened, (record,) = harden(model, to="stabiliser", per=per, return_report=True)
        assert record.subgroup == kept.name and record.removed_energy < 1e-12
        assert close(outputs(hardened, x), outputs(model, x))


@pytest.mark.parametrize(
    ("start", "ids", "names"),
    [
        ("SO2", (4, 2), ["C4", "C2"]),
        ("SO2", (-1, 3), ["SO2", "C3"]),
        ("O2", ((None, -1), (None, 4)), ["SO2", "C4"]),
        ("O2", ((0.0, 2), (0.0, 1)), None),
    ],
)
def test_continuous_groups(start, ids, names):
    space = (gspaces.rot2dOnR2 if start == "SO2" else gspaces.flipRot2dOnR2)(-1, maximum_frequency=4)
    vector = space.irrep(*((1,) if start == "SO2" else (1, 1)))
    both = enn.FieldType(space, [space.trivial_repr, vector])
    net = enn.SequentialModule(enn.R2Conv(both, both, 5, padding=2), enn.R2Conv(both, both, 5, padding=2))
    model = relax(net).double().eval()
    kept = [subgroup(space, id) for id in ids]
    for layer, of in zip(model, kept):
        learn(layer, of)
    hardened, done = harden(model, to="stabiliser", return_report=True)
    found = [r.subgroup for r in done]
    assert found == ([k.name for k in kept] if names is None else names)
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    assert close(outputs(hardened, x), outputs(model, x))


def test_where_lapack_gives_up(monkeypatch):
    """Divide and conquer now and then does not converge on harmless matrices; the result is the same."""
    model = sequence(planar("C4"))
    learn(model[2], subgroup(planar("C4"), 2))
    x = torch.randn(2, 1, 9, 9, dtype=torch.float64)
    wanted = outputs(model, x)
    divide_and_conquer, calls = torch.linalg.svd, []

    def gives_up(matrix, full_matrices=True):
        if full_matrices:
            return divide_and_conquer(matrix)
        calls.append(matrix.shape)
        raise torch.linalg.LinAlgError("failed to converge")

    monkeypatch.setattr(torch.linalg, "svd", gives_up)
    hardened = harden(model, to="stabiliser", per="layer")
    assert calls and close(outputs(hardened, x), wanted)


def test_what_is_refused():
    space = planar("C4")
    model = sequence(space)
    with pytest.raises(ArgumentError, match="per"):
        harden(model, to="stabiliser", per="channel")
    with pytest.raises(ArgumentError, match="stabiliser"):
        harden(model, to="normaliser")
    with pytest.raises(ArgumentError, match="each of"):
        harden(model, to={"0": 2})
    with pytest.raises(ArgumentError, match="^4: expected a subgroup of C2"):
        harden(model, to={"0": 2, "2": 2, "4": 4})
    with pytest.raises(ArgumentError, match="one subgroup"):
        harden(model, to={"0": 4, "2": 2, "4": 2}, per="network")
    with pytest.raises(UnsupportedModuleError, match="nothing to harden"):
        harden(nn.Linear(2, 2), to="stabiliser")
    gray = enn.FieldType(space, [space.trivial_repr])
    pixels = RelaxedR2Conv(gray, gray, 5, basis="pixel")
    with torch.no_grad():
        pixels.weights["off_band"].normal_()
        pixels.weights["irrep_2"].normal_()
    with pytest.raises(EmptyBasisError, match="lack a part"):
        harden(enn.SequentialModule(pixels), to="stabiliser")
