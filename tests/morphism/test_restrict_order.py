"""``restrict`` from a layer on, in networks whose layers are no chain; and results that are tried before they are
returned.

Symptom: on a U-Net ``restrict(from_layer=)`` returned silently what died in a bare AssertionError of escnn at its first
forward pass; networks with convolutions of their own came back with nothing restricted.
"""

import warnings

import pytest
import torch
from escnn import gspaces
from escnn import nn as enn
from nonempty import each
from torch import nn

import escnn_relax
from escnn_relax import RelaxError, restrict
from escnn_relax.errors import ArgumentError, UnsupportedModuleError
from escnn_relax.morphism.restrict.relabel import Relabel

import networks  # noqa: E402

#: float32 rounding through some ten layers, relative.
ROUNDING = 1e-4


def image(side=16, seed=0):
    return torch.randn(2, 1, side, side, generator=torch.Generator().manual_seed(seed))


def assert_same(a, b, *x):
    with torch.no_grad():
        y, z = a.eval()(*x), b.eval()(*x)
    for p, q in each(zip(*(v if isinstance(v, tuple) else (v,) for v in (y, z)), strict=True)):
        assert float((p - q).norm() / p.norm()) < ROUNDING


def groups(model):
    kinds = (enn.R2Conv, enn.R2ConvTransposed, enn.Linear)
    return {n: m.in_type.gspace.fibergroup.order() for n, m in model.named_modules() if isinstance(m, kinds)}


def test_unet_after_the_last_skip():
    net = networks.UNet()
    late = restrict(net, 2, from_layer="merge1", example=image())
    assert_same(net, late, image())
    assert {n for n, order in groups(late).items() if order == 2} == {"merge1.1.0", "head"}


@pytest.mark.parametrize("start, early", [("bottom", "second"), ("up2", "second"), ("merge2", "first")])
def test_unet_across_a_skip_names_both_layers(start, early):
    """Concatenated fields must be on one group; ``early`` is made by down1 or down2, which stay on C4."""
    maker = {"first": "down1", "second": "down2"}[early]
    with pytest.raises(UnsupportedModuleError) as caught:
        restrict(networks.UNet(), 2, from_layer=start, example=image())
    assert maker in str(caught.value) and "from_layer" in str(caught.value)
    with pytest.raises(RelaxError):  # without an example one is made of the first type
        restrict(networks.UNet(), 2, from_layer=start)


def test_whole_unet_and_residual_network():
    for net in (networks.UNet(), networks.ResidualNet()):
        id = 2 if isinstance(net, networks.UNet) else (None, 4)
        on_h = restrict(net, id, example=image())
        assert_same(net, on_h, image())
        assert set(groups(on_h).values()) == {2 if id == 2 else 4}


def test_residual_network_step_by_step():
    net = networks.ResidualNet()
    graded = restrict(net, (None, 4), from_layer="stage2", example=image())
    graded = restrict(graded, (None, 2), from_layer="stage3", example=image())
    assert_same(net, graded, image())
    found = groups(graded)
    assert {found["stem"], found["stage1.body.0"]} == {8} and found["stage2.1.shortcut"] == 4
    assert found["stage3.1.body.3"] == 2


class Registered(nn.Module):
    """Calls its layers in another order than it registers them in, and feeds two branches with one tensor."""

    def __init__(self, shared=False):
        super().__init__()
        space = gspaces.rot2dOnR2(4)
        self.gray, fields = enn.FieldType(space, [space.trivial_repr]), enn.FieldType(space, 2 * [space.regular_repr])
        self.last = enn.R2Conv(fields, self.gray, 3, padding=1)
        self.left, self.right = (enn.R2Conv(fields, fields, 3, padding=1) for _ in range(2))
        self.first = enn.R2Conv(self.gray, fields, 3, padding=1)
        self.act = enn.ReLU(fields)
        self.shared = shared

    def forward(self, x):
        y = self.act(self.first(self.gray(x)))
        left, right = self.left(y), self.right(y)
        z = left + right
        return self.last(self.act(z) if self.shared else z).tensor


def test_order_of_calls_not_of_registration():
    net = Registered()
    late = restrict(net, 2, from_layer="left", example=image())
    assert_same(net, late, image())
    assert groups(late) == {"last": 2, "left.1": 2, "right.1": 2, "first": 4}
    assert sum(isinstance(m, Relabel) for m in late.modules()) == 2  # one for each branch that is fed from before


def test_a_module_on_both_sides_is_refused_by_name():
    with pytest.raises(UnsupportedModuleError, match=r"Registered\.act.*ReLU.*before 'left' and again"):
        restrict(Registered(shared=True), 2, from_layer="left", example=image())


def test_without_an_example_that_runs_the_caller_is_warned():
    class Odd(Registered):
        def forward(self, x):
            assert x.shape[-1] == 11
            return super().forward(x)

    with pytest.warns(UserWarning, match="example="):
        restrict(Odd(), 2, from_layer="last")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        restrict(Odd(), 2, from_layer="last", example=image(11))
        restrict(Odd(), 2)
    with pytest.raises(ArgumentError, match="does not run on the example"):
        restrict(Odd(), 2, example=image(12))


class OwnConvolution(nn.Module):
    def __init__(self, in_type, out_type):
        super().__init__()
        self.in_type, self.out_type = in_type, out_type
        self.weight = nn.Parameter(torch.randn(out_type.size, in_type.size, 1, 1))

    def forward(self, x):
        return enn.GeometricTensor(nn.functional.conv2d(x.tensor, self.weight), self.out_type)


def test_a_convolution_of_ones_own_is_refused_by_name():
    space = gspaces.rot2dOnR2(4)
    gray, fields = enn.FieldType(space, [space.trivial_repr]), enn.FieldType(space, [space.regular_repr])
    net = nn.Sequential(enn.R2Conv(gray, fields, 3), OwnConvolution(fields, fields))
    with pytest.raises(UnsupportedModuleError, match=r"Sequential\.1: OwnConvolution has weights of its own"):
        restrict(net, 2)


def test_types_named_in_forward_are_found_out():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.gspace = gspaces.rot2dOnR2(4)
            gray, self.fields = (
                enn.FieldType(self.gspace, [r]) for r in (self.gspace.trivial_repr, self.gspace.regular_repr)
            )
            self.conv, self.gray = enn.R2Conv(self.fields, self.fields, 3, padding=1), gray

        def forward(self, x):
            return self.conv(enn.FieldType(self.gspace, [self.gspace.regular_repr])(x)).tensor

    x = torch.randn(1, 4, 8, 8)
    with pytest.raises(UnsupportedModuleError, match="would not run.*out_type"):
        restrict(Named(), 2, example=x)


def test_the_trial_leaves_everything_as_it_was():
    net = networks.ResidualNet().train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    torch.manual_seed(5)
    drawn = torch.randn(3)
    torch.manual_seed(5)
    on_c4 = restrict(net, (None, 4), from_layer="stage2", example=image())
    assert torch.equal(torch.randn(3), drawn) and net.training and on_c4.training
    after = net.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in [*net.modules(), *on_c4.modules()])


def test_actor_critic_with_two_inputs():
    net, x = networks.ActorCritic(), (image(9), torch.randn(2, 2))
    relaxed = escnn_relax.relax(net)
    relaxed.load_state_dict(net.state_dict())
    assert_same(net, relaxed, *x)
    assert_same(net, restrict(net, 2, example=x), *x)
