"""Strides that are not even on an image: exactly those that do not turn with it, against turning it."""

import itertools

import pytest
import torch
from escnn import gspaces
from escnn import nn as enn
from nonempty import each
from torch import nn

from escnn_relax import equivariance_error
from escnn_relax.symmetry.grid.strides import watch_strides

C4 = gspaces.rot2dOnR2(4)
GRAY = enn.FieldType(C4, [C4.trivial_repr])
SIZES = list(itertools.product((7, 8, 9), (1, 2, 3), (2, 3), (0, 1), (1, 2)))


def layers(kernel, stride, padding, dilation):
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    torch.manual_seed(0)
    convolution = nn.Conv2d(1, 1, kernel, **options)
    with torch.no_grad():  # invariant under turns
        convolution.weight.copy_(sum(torch.rot90(convolution.weight, k, (-2, -1)) for k in range(4)))
    yield convolution
    if padding <= kernel // 2:
        yield nn.MaxPool2d(kernel, **options)


@pytest.mark.parametrize("side", (7, 8, 9))
def test_uneven_strides_are_those_that_do_not_turn(side):
    x, seen, named = torch.randn(2, 1, side, side), set(), []
    for _, stride, kernel, padding, dilation in each(case for case in SIZES if case[0] == side):
        for layer in each(layers(kernel, stride, padding, dilation)):
            with watch_strides(layer) as found, torch.no_grad():
                y = layer(x)
            with torch.no_grad():
                turns = all(
                    torch.allclose(layer(torch.rot90(x, k, (-2, -1))), torch.rot90(y, k, (-2, -1)), atol=1e-5)
                    for k in range(4)
                )
            assert turns == (not found), (stride, kernel, padding, dilation, found)
            seen.add(turns)
            words = [word for text in found.values() for word in text.split("even on ")[1].rstrip(")").split(" or ")]
            named += [(layer, int(word)) for word in words]
    assert seen == {True, False}
    for layer, n in each(named):
        with watch_strides(layer) as again, torch.no_grad():
            layer(torch.randn(1, 1, n, n))
        assert not again, "the sides that are named are even"


def test_the_error_names_the_stride():
    net = nn.Sequential(enn.R2Conv(GRAY, GRAY, 3, padding=1), enn.R2Conv(GRAY, GRAY, 3, stride=2, padding=1))
    odd, even = (equivariance_error(net, enn.GeometricTensor(torch.randn(2, 1, n, n), GRAY)) for n in (9, 8))
    assert odd.max < 1e-5 and not odd.uneven and "stride" not in str(odd)
    assert even.max > 0.1 and even.uneven[0][0] == "1" and "1: stride 2 on 8 pixels" in str(even)
    assert not [hook for module in net.modules() for hook in module._forward_pre_hooks], "nothing stays behind"
