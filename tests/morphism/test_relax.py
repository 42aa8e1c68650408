"""relax: any tree of modules, the same function, and the caller's model left alone."""

import collections

import pytest
import torch
from escnn import gspaces
from escnn import nn as enn
from escnn.nn import R2Conv, SequentialModule
from fields import ROUNDING, SINGLE, distance, field_type, image, kinds, randomise
from hypothesis import given, settings
from hypothesis import strategies as st

from escnn_relax import harden, relax
from escnn_relax.errors import ArgumentError, EmptyBasisError, SubgroupError, UnsupportedModuleError
from escnn_relax.nn import RelaxedR2Conv

SCALARS = {name: field_type(name, "trivial") for name in ("C1", "C2", "C4", "C8", "D1", "D2", "D4")}


def sequence(name="C4", kind="regular"):
    """Two convolutions with a norm, a nonlinearity and a pooling around."""
    scalar, fields = SCALARS[name], field_type(name, kind)
    return SequentialModule(
        R2Conv(scalar, fields, 5, padding=2),
        enn.IIDBatchNorm2d(fields),
        enn.NormNonLinearity(fields, "n_relu"),
        R2Conv(fields, fields, 3, padding=1, bias=False),
        enn.NormPool(fields),
    )


class Residual(torch.nn.Module):
    """Python in forward, a shared module, modules reached through lists and dictionaries."""

    def __init__(self, name="C4"):
        super().__init__()
        self.scalar, self.fields = SCALARS[name], field_type(name, "regular", 2)
        self.lift = R2Conv(self.scalar, self.fields, 3, padding=1)
        self.first = R2Conv(self.fields, self.fields, 3, padding=1)
        self.again = self.first
        self.relu = enn.ReLU(self.fields, inplace=False)
        self.body = torch.nn.ModuleList([self.relu, R2Conv(self.fields, self.fields, 3, padding=1)])
        self.order = [self.first, self.body[0], (self.body[1],)]
        self.table = collections.OrderedDict(pool=enn.GroupPooling(self.fields))
        self.pool = self.table["pool"]
        self.head = torch.nn.Linear(2, 3)

    def forward(self, pixels):
        x = self.lift(self.scalar(pixels))
        y = self.order[2][0](self.order[1](self.order[0](x)))
        if pixels.shape[-1] > 4:
            y = x + self.again(self.relu(y))
        return self.head(self.table["pool"](y).tensor.mean((2, 3)))


def snapshot(model):
    """Every parameter and buffer, and the modules and types they belong to."""
    tensors = {name: value.clone() for name, value in model.state_dict(keep_vars=False).items()}
    return tensors, [id(m) for m in model.modules()], [m.training for m in model.modules()]


def same(a, b):
    return a[0].keys() == b[0].keys() and all(torch.equal(a[0][k], b[0][k]) for k in a[0]) and a[1:] == b[1:]


@settings(max_examples=12)
@given(st.data())
def test_function_weights_and_model_stay(data):
    name = data.draw(st.sampled_from(["C2", "C4", "C8", "D1", "D2", "D4"]))
    kind = data.draw(st.sampled_from([k for k in kinds(name) if k != "trivial"]))
    model = sequence(name, kind).train(data.draw(st.booleans()))
    before = snapshot(model)
    x = image(SCALARS[name])
    basis = "band-limited" if name in ("C8", "D4") else data.draw(st.sampled_from(["band-limited", "pixel"]))
    relaxed = relax(model, basis=basis)
    assert same(snapshot(model), before)
    assert distance(relaxed(x).tensor, model(x).tensor) < SINGLE
    for i in (0, 3):
        assert type(relaxed[i]) is RelaxedR2Conv
        assert torch.equal(relaxed[i].weights["equivariant"], model[i].weights)
        assert relaxed[i].weights["equivariant"].data_ptr() != model[i].weights.data_ptr()
        assert relaxed[i].training is model.training


def test_function_stays_in_float64():
    fields = field_type("D4", "interleaved")
    blocks = {"recompute": True}  # so that .double() stays with this model
    model = SequentialModule(
        R2Conv(SCALARS["D4"], fields, 5, **blocks), enn.NormNonLinearity(fields), R2Conv(fields, fields, 3, **blocks)
    ).double()
    x = image(SCALARS["D4"], dtype=torch.float64)
    relaxed = relax(model)
    assert distance(relaxed(x).tensor, model(x).tensor) < ROUNDING
    randomise(relaxed[2], "irrep_1,0", scale=1e-6)  # the twin
    assert distance(relaxed(x).tensor, model(x).tensor) > ROUNDING


@pytest.mark.parametrize("training", [True, False])
def test_any_torch_module_with_python_in_forward(training):
    model = Residual().train(training)
    before = snapshot(model)
    relaxed = relax(model)
    x = torch.randn(2, 1, 7, 7)
    assert distance(relaxed(x), model(x)) < SINGLE
    assert same(snapshot(model), before)
    kinds_found = {name: type(m) for name, m in relaxed.named_modules()}
    assert [n for n, k in kinds_found.items() if k is RelaxedR2Conv] == ["lift", "first", "body.1"]
    # what was one module still is, wherever it is referred to
    assert relaxed.again is relaxed.first is relaxed.order[0] and relaxed.order[2][0] is relaxed.body[1]
    assert relaxed.table["pool"] is relaxed.pool is not model.pool
    assert relaxed.fields is model.fields
    # a residual in one layer shows, and in the copy only
    expected = model(x)
    randomise(relaxed.first)
    assert torch.equal(model(x), expected) and distance(relaxed(x), expected) > 1e-3


def test_training_the_copy_leaves_the_original():
    model = Residual()
    relaxed, before = relax(model), snapshot(model)
    optimiser = torch.optim.SGD(relaxed.parameters(), lr=0.1)
    relaxed(torch.randn(2, 1, 7, 7)).square().sum().backward()
    optimiser.step()
    assert same(snapshot(model), before)
    assert all(p.grad is None for p in model.parameters())
    assert all(m.weights["irrep_1"].abs().max() > 0 for m in relaxed.modules() if isinstance(m, RelaxedR2Conv))


def test_eval_mode_with_cached_filters():
    """In eval mode escnn's layers hold filters with a graph, which Python refuses to copy."""
    model = sequence().eval()
    x = image(SCALARS["C4"])
    assert model[0].filter.grad_fn is not None
    relaxed = relax(model, layers=["3"])
    assert not relaxed.training and type(relaxed[0]) is R2Conv and type(relaxed[3]) is RelaxedR2Conv
    assert distance(relaxed(x).tensor, model(x).tensor) < SINGLE
    assert model[0].filter.grad_fn is not None


def test_layers_by_name_or_function():
    model = Residual()
    for layers in (["body.1"], "body.1", lambda name, module: name == "body.1", lambda n, m: m is model.body[1]):
        relaxed = relax(model, layers=layers)
        assert [n for n, m in relaxed.named_modules() if isinstance(m, RelaxedR2Conv)] == ["body.1"]
    with pytest.raises(ArgumentError, match=r"layers: no layer.*'body\.0'; did you mean 'body\.1'"):
        relax(model, layers=["body.1", "body.0"])


def test_options_reach_every_layer():
    relaxed = relax(sequence("D4"), subgroups=[(None, 1), (None, 4)], basis="pixel")
    for i in (0, 3):
        assert [p.name for p in relaxed[i].pathways] == ["equivariant", "off_band", "C4", "trivial"]


def test_one_layer_alone():
    layer = R2Conv(SCALARS["C4"], field_type("C4"), 5)
    x = image(SCALARS["C4"])
    assert distance(relax(layer)(x).tensor, layer(x).tensor) < SINGLE


def test_relaxing_twice_keeps_what_is_relaxed():
    once = relax(sequence(), layers=["0"])
    randomise(once[0])
    twice = relax(once)
    assert type(twice[3]) is RelaxedR2Conv and twice[0] is not once[0]
    again = twice[0].state_dict()
    assert all(torch.equal(again[k], v) or v.isnan().all() for k, v in once[0].state_dict().items())


def test_layers_with_nothing_to_break_are_left_with_a_warning():
    scalar, fields = SCALARS["C4"], field_type("C4")
    model = SequentialModule(R2Conv(scalar, scalar, 1), R2Conv(scalar, fields, 3))
    with pytest.warns(UserWarning, match="left as it is: 0: no kernel of size 1"):
        relaxed = relax(model)
    assert [type(m) for m in relaxed] == [R2Conv, RelaxedR2Conv]
    with pytest.warns(UserWarning, match="left as it is: 0: the pathway of subgroup 1"):
        assert type(relax(model, subgroups=[1])[0]) is R2Conv
    with pytest.raises(EmptyBasisError, match="^0: .*subgroup 4 .*leave it out"):
        # between scalars, at frequencies below 4, a C8 layer has no kernel that only C4 keeps
        relax(SequentialModule(R2Conv(SCALARS["C8"], SCALARS["C8"], 3)), subgroups=[4, 1])


def test_subclasses_are_left_with_a_warning():
    class Special(R2Conv):
        pass

    fields = field_type("C4")
    model = SequentialModule(Special(fields, fields, 3), R2Conv(fields, fields, 3))
    with pytest.warns(UserWarning, match="0: left as it is, since a Special"):
        relaxed = relax(model)
    assert [type(m) for m in relaxed] == [Special, RelaxedR2Conv]


def test_layers_without_symmetry_are_left():
    class Both(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.plain = R2Conv(SCALARS["C1"], SCALARS["C1"], 3)
            self.turned = R2Conv(SCALARS["C4"], field_type("C4"), 3)

    relaxed = relax(Both())
    assert type(relaxed.plain) is R2Conv and type(relaxed.turned) is RelaxedR2Conv
    named = relax(Both(), layers=["plain"]).plain  # which has nothing to break, and may be asked for
    assert type(named) is RelaxedR2Conv and [p.name for p in named.pathways] == ["equivariant"]


def test_refusals_name_the_layer():
    with pytest.raises(UnsupportedModuleError, match="Sequential.*no layer.*R2Conv"):
        relax(torch.nn.Sequential(torch.nn.Conv2d(1, 1, 3)))
    with pytest.raises(SubgroupError, match="^0: .*C4.*got 3"):
        relax(sequence(), subgroups=[3])
    with pytest.raises(SubgroupError, match="^0: .*whole group C4"):
        relax(sequence(), subgroups=[4])
    with pytest.raises(ArgumentError, match="^0: .*'haar'"):
        relax(sequence(), basis="haar")
    fields = field_type("C4")
    strange = R2Conv(fields, fields, 5, basis_filter=lambda d: d["irrep:frequency"] != 1)
    with pytest.raises(UnsupportedModuleError, match="^1: .*basis_filter.*leave this layer out"):
        relax(SequentialModule(R2Conv(SCALARS["C4"], fields, 3), strange))


def test_what_cannot_be_copied_is_named():
    model = sequence()
    model.stream = (i for i in range(3))
    with pytest.raises(UnsupportedModuleError, match="SequentialModule.*cannot be copied.*generator"):
        relax(model)


def test_default_precision_of_the_process_does_not_matter():
    model, x = sequence("D2"), image(SCALARS["D2"])
    torch.set_default_dtype(torch.float64)
    try:
        relaxed = relax(model)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {p.dtype for p in relaxed.parameters()} == {torch.float32}
    assert distance(relaxed(x).tensor, model(x).tensor) < SINGLE


def test_hooks_are_carried():
    space = gspaces.rot2dOnR2(4)
    gray, fields = enn.FieldType(space, [space.trivial_repr]), enn.FieldType(space, [space.regular_repr])
    strict = enn.SequentialModule(enn.R2Conv(gray, fields, 3), enn.ReLU(fields))
    seen = []
    strict[0].register_forward_hook(lambda module, input, output: seen.append(type(module).__name__))
    harden(relax(strict))(gray(torch.randn(1, 1, 5, 5)))
    relax(strict)(gray(torch.randn(1, 1, 5, 5)))
    assert seen == ["R2Conv", "RelaxedR2Conv"]
