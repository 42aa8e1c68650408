"""Networks as they leave Python: torch.export, and ONNX run by onnxruntime where that is installed."""

import io
import warnings

import pytest
import torch
from escnn import nn as enn
from fields import SINGLE, field_type, space
from nonempty import each
from torch import nn

import escnn_relax
from escnn_relax import harden, prepare_export, relax, restrict
from escnn_relax.errors import UnsupportedModuleError
from escnn_relax.nn.torch_layer import TorchLayer

GRAY, FIELDS = field_type("D4", "trivial"), field_type("D4", copies=2)
#: The first dimension may have any size.
BATCH = ({0: torch.export.Dim("batch", min=2, max=64)},)


class Net(nn.Module):
    """Whatever stands between two convolutions, and Python on geometric tensors."""

    def __init__(self, *middle, fields=FIELDS):
        super().__init__()
        self.gray = GRAY
        inside = middle[0].in_type if middle else fields
        self.first, self.middle = enn.R2Conv(GRAY, inside, 5, padding=2), enn.SequentialModule(*middle)
        self.last = enn.R2Conv(middle[-1].out_type if middle else inside, fields, 3, padding=1)
        self.pool, self.linear = enn.GroupPooling(fields), nn.Linear(2, 3)

    def forward(self, x):
        x = self.first(self.gray(x))
        x = self.last(self.middle(x) if len(self.middle) else x)
        return self.linear(self.pool(x + x).tensor.mean((-2, -1)))


def learned(model):
    """Relaxed, with weights in every pathway of its last layer and running statistics that are not those of a start."""
    torch.manual_seed(0)
    relaxed = relax(model)
    with torch.no_grad():
        for weight in relaxed.last.weights.values():
            weight.normal_(std=0.3)
        relaxed(torch.randn(8, 1, 9, 9))
    return relaxed.eval()


def middles():
    scalars = enn.FieldType(space("D4"), 2 * [space("D4").trivial_repr] + 2 * [space("D4").regular_repr])
    return {
        "nothing": (),
        "batch norm": (enn.InnerBatchNorm(FIELDS), enn.ReLU(FIELDS), enn.PointwiseMaxPool2D(FIELDS, 2)),
        "antialiased": (enn.IIDBatchNorm2d(FIELDS), enn.ELU(FIELDS), enn.PointwiseAvgPoolAntialiased2D(FIELDS, 0.6, 2)),
        "norms": (enn.NormNonLinearity(FIELDS), enn.FieldDropout(FIELDS)),
        "gates": (enn.GatedNonLinearity1(scalars),),
        "upsampling": (enn.R2Upsampling(FIELDS, 2), enn.MaskModule(FIELDS, 18)),
    }


FORMS = {
    "relaxed": lambda model: model,
    "hardened": harden,
    "on a subgroup": lambda model: harden(model, to={"first": "C4", "last": "C4"}),
    "restricted": lambda model: harden(relax(restrict(Net(), (None, 2))).eval()),
}


def exported(model, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(model, (x,), dynamic_shapes=BATCH).module()


def by_onnxruntime(model, x):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(model, (x,), dynamo=True, dynamic_shapes=BATCH, verbose=False)
    program.save(file := io.BytesIO())
    session = runtime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def same(form, model, x):
    with torch.no_grad():
        wanted, found = model(x), form(x)
    scale = float(wanted.abs().max())
    assert scale > 0.01
    assert float((found - wanted).abs().max()) <= SINGLE * scale


@pytest.mark.parametrize("way", [exported, by_onnxruntime])
@pytest.mark.parametrize("middle", middles())
def test_whatever_stands_between_the_layers(middle, way):
    model = harden(learned(Net(*middles()[middle])))
    x = torch.randn(5, 1, 9, 9)
    same(way(prepare_export(model), x[:2]), model, x)


@pytest.mark.parametrize("way", [exported, by_onnxruntime])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_network(form, way):
    model = FORMS[form](learned(Net(*middles()["batch norm"]))).eval()
    x = torch.randn(5, 1, 9, 9)
    same(way(prepare_export(model), x[:2]), model, x)


def test_other_weights_are_told_apart():
    """The twin: an exported network is not that of other weights."""
    model = harden(learned(Net()))
    form = exported(prepare_export(model), torch.zeros(2, 1, 9, 9))
    with torch.no_grad():
        model.linear.weight.mul_(1.01)
    with pytest.raises(AssertionError):
        same(form, model, torch.randn(5, 1, 9, 9))


def test_the_model_is_left_alone():
    model = relax(Net(*middles()["norms"])).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kinds = [type(module) for module in model.modules()]
    result = prepare_export(model)
    assert model.training and not result.training and [type(m) for m in model.modules()] == kinds
    for name, value in each(model.state_dict().items()):
        assert torch.equal(value, before[name]) or value.isnan().all(), name
    assert sum(isinstance(module, TorchLayer) for module in result.modules()) == 3  # both convolutions and the pooling
    again = prepare_export(result)
    same(again, result, torch.randn(2, 1, 9, 9))
    layer = next(module for module in result.modules() if isinstance(module, TorchLayer))
    assert layer.evaluate_output_shape((2, 1, 9, 9)) == (2, 16, 9, 9)
    assert torch.equal(layer.export()(torch.ones(1, 1, 9, 9)), layer(GRAY(torch.ones(1, 1, 9, 9))).tensor)


def test_what_would_compute_something_else_is_refused(monkeypatch):
    net = Net()
    monkeypatch.setattr(enn.GroupPooling, "export", lambda self: nn.AvgPool3d((8, 1, 1)))
    with pytest.raises(UnsupportedModuleError, match="prepared for export"):
        prepare_export(net, example=torch.randn(2, 1, 9, 9))
    assert escnn_relax.prepare_export is prepare_export
