"""Whole networks on subgroups: escnn's tutorial, a wide residual network by depth, voxels."""

import time

import pytest
import torch
from escnn import gspaces, nn
from nonempty import each

from escnn_relax.errors import UnsupportedModuleError
from escnn_relax.morphism.restrict.relabel import Relabel
from escnn_relax.morphism.restrict.network import restrict
from escnn_relax.symmetry.equivariance.model_error import equivariance_error, kernel_equivariance_error

#: relative L2 distance of logits after some ten layers
FLOAT32, FLOAT64 = 1e-4, 1e-10


def distance(a, b):
    return ((a - b).norm() / a.norm()).item()


class Steerable(torch.nn.Module):
    """The network of escnn's introduction: 6 blocks of regular fields, two antialiased pools, invariant features."""

    def __init__(self, space, widths=(6, 8, 8, 12, 12, 8)):
        super().__init__()
        self.input_type = nn.FieldType(space, [space.trivial_repr])
        size, fields = 7, self.input_type
        self.mask = nn.MaskModule(fields, 29, margin=1)
        blocks = []
        for i, width in enumerate(widths):
            after = nn.FieldType(space, width * [space.regular_repr])
            conv = nn.R2Conv(fields, after, size, padding=1 if i == 0 else 2, bias=False, recompute=True)
            blocks.append(nn.SequentialModule(conv, nn.InnerBatchNorm(after), nn.ReLU(after, inplace=True)))
            if i in (1, 3):
                blocks.append(nn.PointwiseAvgPoolAntialiased2D(after, sigma=0.66, stride=2))
            size, fields = 5, after
        self.blocks = torch.nn.ModuleList(blocks)
        self.pool = nn.PointwiseAvgPoolAntialiased2D(fields, sigma=0.66, stride=1, padding=0)
        self.invariant = nn.GroupPooling(fields)
        channels = self.invariant.out_type.size
        self.head = torch.nn.Sequential(
            torch.nn.Linear(channels, 16), torch.nn.BatchNorm1d(16), torch.nn.ELU(), torch.nn.Linear(16, 10)
        )

    def features(self, x):
        x = self.mask(nn.GeometricTensor(x, self.input_type))
        for block in self.blocks:
            x = block(x)
        return self.pool(x)

    def forward(self, x):
        return self.head(self.invariant(self.features(x)).tensor.mean((2, 3)))


def test_tutorial_network():
    space = gspaces.rot2dOnR2(8)
    net = Steerable(space)
    x, y = torch.randn(8, 1, 29, 29), torch.randint(0, 10, (8,))
    net(x)
    for id in (4, 1):
        start = time.monotonic()
        on_h = restrict(net, id)
        print(f"C8 -> C{id}: {time.monotonic() - start:.1f} s")
        assert on_h.input_type.gspace.fibergroup.order() == id
        assert on_h.head[0].weight is not net.head[0].weight
        for mode in (False, True):
            assert distance(net.train(mode)(x), on_h.train(mode)(x)) < FLOAT32
        assert distance(net.eval()(x), on_h.eval()(x)) < FLOAT32, "running statistics went apart"
        net.train(), on_h.train()
        before = on_h(x).detach()
        optimiser = torch.optim.SGD(on_h.parameters(), lr=0.1)
        torch.nn.functional.cross_entropy(on_h(x), y).backward()
        optimiser.step()
        assert distance(before, on_h(x)) > 1e-3
    assert equivariance_error(on_h.eval(), torch.randn(2, 1, 29, 29), in_type=on_h.input_type).max < 1e-4


def test_tutorial_network_in_double_precision():
    net = Steerable(gspaces.rot2dOnR2(8), widths=(3, 4, 4, 4, 4, 4)).double()
    x = torch.randn(4, 1, 29, 29, dtype=torch.float64)
    net.features(x)
    on_h = restrict(net, 2)
    for mode in (True, False):  # escnn's GroupPooling, which follows, rounds to float32
        assert distance(net.train(mode).features(x).tensor, on_h.train(mode).features(x).tensor) < FLOAT64


class Block(nn.EquivariantModule):
    """A residual block of a wide residual network."""

    def __init__(self, in_type, out_type, stride=1):
        super().__init__()
        self.in_type, self.out_type = in_type, out_type
        self.norm1, self.relu1 = nn.InnerBatchNorm(in_type), nn.ReLU(in_type, inplace=False)
        self.conv1 = nn.R2Conv(in_type, out_type, 3, padding=1, stride=stride, recompute=True)
        self.norm2, self.relu2 = nn.InnerBatchNorm(out_type), nn.ReLU(out_type, inplace=True)
        self.conv2 = nn.R2Conv(out_type, out_type, 3, padding=1, recompute=True)
        self.short = None
        if stride > 1 or in_type != out_type:
            self.short = nn.R2Conv(in_type, out_type, 1, stride=stride, bias=False, recompute=True)

    def forward(self, x):
        y = self.relu1(self.norm1(x))
        z = self.conv2(self.relu2(self.norm2(self.conv1(y))))
        return z + (x if self.short is None else self.short(y))

    def evaluate_output_shape(self, shape):
        return self.conv1.evaluate_output_shape(shape)


class WideResidual(torch.nn.Module):
    def __init__(self, space, widths=(2, 3, 4)):
        super().__init__()
        types = [nn.FieldType(space, w * [space.regular_repr]) for w in (widths[0], *widths)]
        self.gray = nn.FieldType(space, [space.trivial_repr])
        self.stem = nn.R2Conv(self.gray, types[0], 5, padding=2, recompute=True)
        self.layer1 = nn.SequentialModule(Block(types[0], types[1]), Block(types[1], types[1]))
        self.layer2 = nn.SequentialModule(Block(types[1], types[2], 2), Block(types[2], types[2]))
        self.layer3 = nn.SequentialModule(Block(types[2], types[3], 2), Block(types[3], types[3]))
        self.final = nn.SequentialModule(nn.InnerBatchNorm(types[3]), nn.ReLU(types[3]), nn.GroupPooling(types[3]))

    def forward(self, x):
        x = self.stem(nn.GeometricTensor(x, self.gray))
        return self.final(self.layer3(self.layer2(self.layer1(x)))).tensor.mean((2, 3))


@pytest.mark.slow
def test_wide_residual_network_by_depth():
    """D8 in the stem and layer 1, then D4, C4 and no symmetry at all: still the same function."""
    net = WideResidual(gspaces.flipRot2dOnR2(8))
    x = torch.randn(4, 1, 17, 17)
    net(x)
    graded = restrict(net, (0, 4), from_layer="layer2")
    graded = restrict(graded, (None, 2), from_layer="layer3")
    assert graded.gray.gspace.fibergroup.order() == 16, "the input keeps its group"
    orders = {name: module.weights.numel() for name, module in graded.named_modules() if isinstance(module, nn.R2Conv)}
    original = {name: m.weights.numel() for name, m in net.named_modules() if isinstance(m, nn.R2Conv)}
    growth = [round(orders[new] / original[old]) for new, old in zip(orders, original)]
    assert growth == sorted(growth) and growth[0] == 1 and growth[-1] > 2
    for mode in (False, True):
        assert distance(net.train(mode)(x), graded.train(mode)(x)) < FLOAT32


def stages(net):
    """The parts of a network restricted by depth that live on one group each."""
    members = lambda part: [m for m in part.children() if not isinstance(m, Relabel)]
    first, second = members(net.layer1)
    last = [p[-1] if isinstance(p, nn.SequentialModule) else p for p in (net.layer2, net.layer3)]
    return [first, second, *(members(p)[-1] if isinstance(p, nn.SequentialModule) else p for p in last)]


def check_depths(space, ladder, orders, widths, side, dtype, tolerance):
    """Restrict stage by stage in one model; then give every weight another value."""
    net = WideResidual(space, widths)
    net.final = torch.nn.Identity()
    net.final.forward = lambda x: x  # GroupPooling rounds to float32
    net = net.to(dtype)
    x = torch.randn(3, 1, side, side, dtype=dtype)
    net(x)
    graded = net
    for stage, id in ladder.items():
        graded = restrict(graded, id, from_layer=stage)
    for mode in (True, False):
        assert distance(net.train(mode)(x), graded.train(mode)(x)) < tolerance
    with torch.no_grad():
        for p in graded.train().parameters():
            p.normal_(std=0.2)
    assert distance(net.train()(x), graded(x)) > 0.1
    for order, block in each(zip(orders, stages(graded), strict=True)):
        assert block.in_type.fibergroup.order() == block.out_type.fibergroup.order() == order
        error = equivariance_error(block.eval(), size=5)
        assert error.exact and error.max < 1e-4
        # without the identity; the others of D8 move no grid to itself
        assert len(error.elements) == max(min(order, 8) - 1, 1)
    # the broken twin: what lives on turns has given up the reflections
    given_up, before = stages(graded)[2], stages(net)[2]
    reflection = before.in_type.fibergroup.element((1, 0))
    kernel = given_up.conv1.expand_parameters()[0]
    error = kernel_equivariance_error(kernel, before.conv1.in_type, before.conv1.out_type, elements=[reflection])
    assert error.max > 0.1


def test_three_steps_by_depth():
    ladder = {"layer1.1": (0, 2), "layer2": (None, 2), "layer3": (None, 1)}
    check_depths(gspaces.flipRot2dOnR2(4), ladder, (8, 4, 2, 1), (1, 1, 1), 9, torch.float32, FLOAT32)


@pytest.mark.slow
def test_three_steps_by_depth_in_a_wide_network():
    ladder = {"layer1.1": (0, 4), "layer2": (None, 4), "layer3": (None, 1)}
    check_depths(gspaces.flipRot2dOnR2(8), ladder, (16, 8, 4, 1), (2, 3, 4), 17, torch.float64, FLOAT64)


def check_chain(space, ids, direct):
    """A chain equals its last step, whole networks included: same function, as many coefficients."""
    net = WideResidual(space, (1, 1, 1))
    x = torch.randn(3, 1, 9, 9)
    net(x)
    chain, once = net, restrict(net, direct)
    for id in ids:
        chain = restrict(chain, id)
    for mode in (True, False):
        a, b, c = (m.train(mode)(x) for m in (net, chain, once))
        assert max(distance(a, b), distance(a, c), distance(b, c)) < FLOAT32
    sizes = [[p.numel() for p in model.parameters()] for model in (net, chain, once)]
    assert sizes[1] == sizes[2] and sum(sizes[1]) > sum(sizes[0])
    assert chain.gray.gspace == once.gray.gspace


def test_steps_in_one_go():
    check_chain(gspaces.flipRot2dOnR2(2), [(None, 2), 1], (None, 1))


@pytest.mark.slow
def test_steps_in_one_go_from_sixteen_elements():
    check_chain(gspaces.flipRot2dOnR2(8), [(0, 4), (None, 4), 1], (None, 1))


@pytest.mark.slow
def test_voxels():
    """Octahedral fields on 24^3 voxels, restricted to turns about an axis, and trained a step."""
    space = gspaces.octaOnR3()
    density, regular = nn.FieldType(space, [space.trivial_repr]), nn.FieldType(space, 2 * [space.regular_repr])
    vectors = nn.FieldType(space, [*2 * [space.trivial_repr], *2 * [space.irrep(1)]])
    net = nn.SequentialModule(
        nn.R3Conv(density, regular, 3, padding=1, stride=2, initialize=False, recompute=True),
        nn.InnerBatchNorm(regular),
        nn.ReLU(regular),
        nn.PointwiseAvgPoolAntialiased3D(regular, 0.66, stride=2),
        nn.R3Conv(regular, vectors, 3, padding=1, initialize=False, recompute=True),
        nn.NormNonLinearity(vectors),
    )
    for conv in (net[0], net[4]):
        torch.nn.init.normal_(conv.weights, std=0.1)
    x = torch.randn(2, 1, 24, 24, 24)
    for id in ((False, 4), (True, 3)):
        on_h = restrict(net, id)
        same = lambda: distance(net(density(x)).tensor, on_h(on_h.in_type(x)).tensor)
        assert same() < FLOAT32
        optimiser = torch.optim.SGD(on_h.parameters(), lr=0.01)
        on_h(on_h.in_type(x)).tensor.square().mean().backward()
        optimiser.step()
        assert same() > 1e-5
        # an odd side, so that strided layers keep the centre
        assert equivariance_error(on_h.eval(), size=25).max < 1e-3


def test_parts_of_a_foreign_group_are_refused():
    a, b = gspaces.rot2dOnR2(4), gspaces.flipRot2dOnR2(6)
    first, second = (nn.FieldType(s, [s.regular_repr]) for s in (a, b))
    model = torch.nn.ModuleList([nn.ReLU(first), nn.ReLU(second)])
    with pytest.raises(UnsupportedModuleError, match="nothing relates"):
        restrict(model, 2)
