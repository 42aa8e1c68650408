"""deepcopy, pickle and torch.save of what holds field types: escnn's own modules refuse all three, or some."""

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
from escnn import gspaces, group
from escnn import nn as enn
from escnn.nn import FieldType, R2Conv, SequentialModule
from fields import ROUNDING, distance, field_type, image, randomise
from nonempty import each

from escnn_relax import harden, relax
from escnn_relax.errors import FieldTypeError
from escnn_relax.nn import RelaxedR2Conv


def by_pickle(value):
    return pickle.loads(pickle.dumps(value))


def by_torch(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


WAYS = pytest.mark.parametrize("way", [copy.deepcopy, by_pickle, by_torch], ids=["deepcopy", "pickle", "torch.save"])

SPACES = [
    gspaces.rot2dOnR2(4), gspaces.rot2dOnR2(-1), gspaces.flipRot2dOnR2(3, axis=0.3), gspaces.flip2dOnR2(0.0),
    gspaces.flipRot2dOnR2(-1), gspaces.trivialOnR2(), gspaces.octaOnR3(),
    gspaces.conicalOnR3(4), gspaces.rot3dOnR3(), gspaces.no_base_space(group.octa_group()),
    gspaces.no_base_space(group.direct_product(group.cyclic_group(2), group.cyclic_group(3))),
]  # fmt: skip


@WAYS
@pytest.mark.parametrize("space", SPACES, ids=lambda s: s.name)
def test_field_types(way, space):
    fields = [*list(space.irreps)[:3]] + ([space.regular_repr] if space.fibergroup.order() > 0 else [])
    mixed = group.directsum(fields[:2], name="a sum that escnn does not list")
    kind = FieldType(space, [*fields, mixed, fields[-1]])
    again = way(kind)
    assert again == kind and again.gspace == space and again.fibergroup == kind.fibergroup
    if space.dimensionality:  # escnn cannot hash the others
        assert hash(again) == hash(kind) and again.gspace.name == space.name
    assert again != FieldType(space, fields)
    for g in each(space.testing_elements):
        assert way(g) == g
        assert abs(again.representation(way(g)) - kind.representation(g)).max() < ROUNDING


@WAYS
def test_field_types_still_fit_the_layers_of_the_process(way):
    kind = way(field_type("D4", "interleaved"))
    layer = RelaxedR2Conv(field_type("D4", "interleaved"), kind, 3)
    assert layer(image(kind)).type == field_type("D4", "interleaved")


@WAYS
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["relaxed", "merged", "strict"])
def test_modules(way, training, kind):
    scalar, fields = field_type("C4", "trivial"), field_type("C4", "interleaved")
    lift, mix = R2Conv(scalar, fields, 5), R2Conv(fields, fields, 3)
    relaxed = relax(SequentialModule(lift, enn.NormNonLinearity(fields), mix))
    if kind != "strict":
        randomise(relaxed[0]), randomise(relaxed[2])
    relaxed.train(training)  # and not later: eval() leaves a graph in escnn's own layers, where harden() leaves none
    model = relaxed if kind == "relaxed" else harden(relaxed)
    x = image(scalar)
    with torch.no_grad():
        expected = model(x).tensor.clone()  # and fill the caches
    again = way(model)
    assert type(again[0]) is type(model[0]) and again.training is training
    with torch.no_grad():
        assert torch.equal(again(x).tensor, expected)
        for p in again.parameters():
            p.zero_()
        again.train().train(training)  # escnn's own layers need to be told
        assert again(x).tensor.abs().max() == 0
        assert torch.equal(model(x).tensor, expected)


def test_a_copy_leaves_the_cached_kernel_behind():
    layer = randomise(RelaxedR2Conv(field_type("C4"), field_type("C4"), 3)).eval()
    with torch.no_grad():
        layer(image(layer.in_type))
    assert layer._cache is not None and copy.deepcopy(layer)._cache is None
    assert len(pickle.dumps(layer)) < 2 * sum(v.nbytes for v in layer.state_dict().values()) + 20_000


@WAYS
def test_modules_with_octahedral_fields(way):
    space = gspaces.octaOnR3()
    scalar = FieldType(space, [space.trivial_repr])
    layer = enn.R3Conv(scalar, FieldType(space, list(space.irreps)[:3]), 3, initialize=False)
    torch.nn.init.normal_(layer.weights)
    again = way(layer)
    x = torch.randn(1, 1, 3, 3, 3)
    assert torch.equal(again(scalar(x)).tensor, layer(scalar(x)).tensor)


def test_in_another_process(tmp_path):
    """Where nothing has been built yet."""
    layer = randomise(RelaxedR2Conv(field_type("D4", "quotient"), field_type("D4", "interleaved"), 3))
    x = image(layer.in_type)
    torch.save({"layer": layer, "x": x.tensor, "y": layer(x).tensor.detach()}, tmp_path / "layer.pt")
    code = (
        "import escnn_relax, torch\n"
        f"saved = torch.load({str(tmp_path / 'layer.pt')!r}, weights_only=False)\n"
        "layer = saved['layer']\n"
        "assert torch.equal(layer(layer.in_type(saved['x'])).tensor, saved['y'])\n"
        "from escnn import gspaces\n"
        "space = gspaces.flipRot2dOnR2(4)\n"
        "assert layer.in_type.representations[0] == space.quotient_repr((0, 1)) and layer.space == space\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_errors_travel_too():
    error = FieldTypeError("conv1", "odd", expected="C4", got="C8", remedy="restrict")
    again = by_pickle(error)
    assert type(again) is FieldTypeError and str(again) == str(error) and again.remedy == "restrict"


def test_state_dict_holds_the_bases():
    """Some of escnn's coefficients are determined up to sign only, so a checkpoint brings its own bases."""
    one, other = (randomise(RelaxedR2Conv(field_type("C4"), field_type("C4"), 3)) for _ in range(2))
    for name, buffer in one.kernel.named_buffers():
        if name.startswith("bases."):
            buffer.neg_()
    other.load_state_dict(one.state_dict())
    x = image(one.in_type)
    assert distance(other(x).tensor, one(x).tensor) == 0
