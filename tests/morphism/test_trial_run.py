"""What a morphism made is run beside what it was made of, before it is returned.

Symptom: networks whose own code looks into their layers came back relaxed, mixed, merged, projected or hardened without
a word, and died, or computed something else, at their first forward pass.
"""

import copy
import random

import numpy as np
import pytest
import torch
from escnn import gspaces
from escnn import nn as enn
from fields import SINGLE
from torch import nn

from escnn_relax import harden, merge, mix, project, relax, relax_translation, restrict
from escnn_relax.errors import ArgumentError, UnsupportedModuleError
from escnn_relax.morphism.trial_run import Trial

SPACE = gspaces.rot2dOnR2(4)
GRAY, FIELDS = enn.FieldType(SPACE, [SPACE.trivial_repr]), enn.FieldType(SPACE, 2 * [SPACE.regular_repr])


def image(side=16):
    return torch.randn(2, 1, side, side, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Three convolutions; what the network's own code does with them is the subclass's."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.gray = GRAY
        self.first = enn.R2Conv(GRAY, FIELDS, 3, padding=1)
        self.second = enn.R2Conv(FIELDS, FIELDS, 3, padding=1)
        self.norm = enn.InnerBatchNorm(FIELDS)
        self.third = enn.R2Conv(FIELDS, FIELDS, 3, padding=1)
        self.last = nn.Linear(8, 2)

    def forward(self, x):
        y = self.look(self.norm(self.second(self.first(self.gray(x)))))
        return self.last(self.third(y).tensor.mean((2, 3)))

    def look(self, y):
        return y


class Asks(Net):
    """Knows escnn's class only."""

    def look(self, y):
        if not isinstance(self.second, enn.R2Conv):
            raise RuntimeError("a convolution?")
        return y


class Reads(Net):
    """Kept something of the shape of the weights."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.ones(self.second.weights.shape))

    def look(self, y):
        return y if (self.second.weights * self.mask).isfinite().all() else None


class Doubles(Net):
    """Runs, but does something else for another class."""

    def look(self, y):
        return y if isinstance(self.second, enn.R2Conv) else enn.GeometricTensor(9 * y.tensor, y.type)


class Trains(Net):
    """Asks in training only."""

    def look(self, y):
        return y if not self.training or isinstance(self.second, enn.R2Conv) else None


class Mixed(Net):
    """Knows a mixture only."""

    def look(self, y):
        return y if hasattr(self.second, "mixture") else None


def relaxed(net, **options):
    model = relax(net, example=False, **options)
    with torch.no_grad():
        for n in ("first", "second"):
            getattr(model, n).weights["irrep_2"].normal_(std=0.3)
    return model


def free(net):
    """Mixed with shares of its own for every group."""
    return mix(net, [2], start="independent", example=False)


class Relaxed(Net):
    """Knows relaxed layers only."""

    def look(self, y):
        return y if hasattr(self.second, "pathways") else None


#: The morphism, networks it is to refuse, what is said of them, and the way out.
CASES = {
    "relax": (lambda m, **o: relax(m, **o), (Asks, Doubles, Trains), "relaxed", "layers="),
    "mix": (lambda m, **o: mix(m, [2], **o), (Asks, Doubles, Trains), "mixed", "layers="),
    "relax_translation": (
        lambda m, **o: relax_translation(m, image(), **o),
        (Asks, Doubles, Trains),
        "relaxed",
        "layers=",
    ),
    "merge": (lambda m, **o: merge(free(m), **o), (Mixed,), "merged", "keep the layers mixed"),
    "harden": (lambda m, **o: harden(relaxed(m), **o), (Reads, Relaxed), "hardened", "keep the layers relaxed"),
    "project": (lambda m, **o: project(relaxed(m), **o), (Relaxed,), "projected", "expand_parameters"),
}
REFUSED = [
    pytest.param(name, net, id=f"{name}-{net.__name__}") for name, (_, nets, *_) in CASES.items() for net in nets
]


@pytest.mark.parametrize("name, net", REFUSED)
def test_a_result_that_would_not_do_is_refused(name, net):
    morphism, _, made, way = CASES[name]
    model = net()
    with pytest.raises(UnsupportedModuleError) as caught:
        morphism(model)
    said = str(caught.value)
    assert f"{net.__name__}.second: the {made} network would" in said and way in said.split(";")[-1]
    if name != "relax_translation":
        morphism(model, example=False)  # what was refused is the result, not the way there


@pytest.mark.parametrize("name", CASES)
def test_a_network_that_asks_nothing_is_taken(name):
    morphism = CASES[name][0]
    for training in (True, False):
        result = morphism(Net().train(training))
        assert result.training == training and result(image()).isfinite().all()


def test_the_layer_at_fault_is_found_among_many():
    class Deep(nn.Module):
        def __init__(self, guilty):
            super().__init__()
            self.layers = nn.ModuleList(enn.R2Conv(FIELDS, FIELDS, 3, padding=1) for _ in range(9))
            self.in_type, self.guilty = FIELDS, guilty

        def forward(self, x):
            x = FIELDS(x)
            for n, layer in enumerate(self.layers):
                x = layer(x if n != self.guilty or type(layer) is enn.R2Conv else None)
            return x.tensor

    for guilty in range(9):
        with pytest.raises(UnsupportedModuleError, match=rf"Deep\.layers\.{guilty}: "):
            relax(Deep(guilty))
        left = [f"layers.{n}" for n in range(9) if n != guilty]
        assert type(relax(Deep(guilty), layers=left).layers[guilty]) is enn.R2Conv  # the way out


def test_what_may_compute_something_else_only_has_to_run():
    class Other(Doubles):
        def look(self, y):
            return y if isinstance(self.second, enn.R2Conv) else enn.GeometricTensor(y.tensor + 1, y.type)

    assert mix(Other(), [2], start="independent")(image()).isfinite().all()
    with pytest.raises(UnsupportedModuleError, match="something else"):
        mix(Other(), [2], start="strict")
    model = relaxed(Net())
    assert harden(model, energy=0.9, return_report=True)[1][0].removed_energy > 0.01
    assert project(model, return_report=True)[1][0].lost > 0.1


class Traces(Net):
    """Leaves traces wherever it can."""

    def __init__(self):
        super().__init__()
        self.calls, self.log, self.count = 0, [], nn.Parameter(torch.zeros(()))
        self.register_buffer("moved", torch.zeros(1))
        self.lazy = nn.LazyLinear(3)
        self.drop = nn.Dropout(0.5)

    def look(self, y):
        self.calls += 1
        self.log.append(self.calls)
        self.moved = self.moved + 1  # another tensor, not another value
        self.count.data += 1
        self.last.weight.data /= self.last.weight.data.norm()
        random.random(), np.random.rand(), torch.rand(1)
        self.lazy(self.drop(y.tensor.mean((2, 3))))
        return y

    def forward(self, x):
        x.add_(0.1)
        return super().forward(x)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("given", [True, False])
def test_nothing_is_left_behind(training, given):
    net, x, seen = Traces().train(training), image(), []
    net.second.register_forward_hook(lambda *_: seen.append(1))
    net.last.weight.grad = torch.ones_like(net.last.weight)
    kept = {k: v.clone() for k, v in net.state_dict().items() if not k.startswith("lazy")}
    parameters, buffers = dict(net.named_parameters()), dict(net.named_buffers())
    given = {"example": x} if given else {}
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    drawn = torch.rand(1).item(), random.random(), np.random.rand()
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    results = [relax(net, **given), restrict(net, 2, from_layer="second", **given)]
    results += [project(results[0], **given), harden(results[0], **given)]
    assert drawn == (torch.rand(1).item(), random.random(), np.random.rand()) and torch.equal(x, image()) and not seen
    for part in (net, *results):
        assert part.calls == 0 and part.log == [] and float(part.count.detach()) == 0 and float(part.moved) == 0
        assert isinstance(part.lazy.weight, nn.parameter.UninitializedParameter)
        assert all(m.training == training for m in part.modules())
        assert int(part.norm.batch_norm_[1].num_batches_tracked if hasattr(part.norm, "batch_norm_") else 0) == 0
    assert all(p is parameters[n] for n, p in net.named_parameters()) and all(
        b is buffers[n] for n, b in net.named_buffers()
    )
    assert all(torch.equal(net.state_dict()[k], v) for k, v in kept.items()) and bool((net.last.weight.grad == 1).all())
    assert torch.is_grad_enabled()
    net(image())  # the twin: a run of the network itself does leave traces
    assert net.calls == 1 and float(net.moved) == 1 and seen == [1]


COUNT = [0]


class Counts(Net):
    def look(self, y):
        COUNT[0] += 1
        return y


def test_a_trial_can_be_left_out_and_without_an_example_may_be():
    for example, runs in ((None, True), (False, False), (image(9), True)):
        for morphism in (lambda m: relax(m, example=example), lambda m: restrict(m, 2, example=example),
                         lambda m: mix(m, [2], example=example)):  # fmt: skip
            COUNT[0] = 0
            morphism(Counts().eval())
            assert COUNT[0] == (2 if runs else 0)

    class Two(Asks):
        def forward(self, x, factor):
            return super().forward(x) * factor

    model = relax(Two())  # no input is known: nothing is tried
    assert type(model.second) is not enn.R2Conv
    with pytest.raises(UnsupportedModuleError, match=r"Two\.second"):
        relax(Two(), example=(image(), 2.0))
    with pytest.raises(ArgumentError, match=r"does not run on the example.*TypeError"):
        relax(Two(), example=image())


class Formats(Net):
    def forward(self, x):
        return super().forward(x).float()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_number_formats(dtype):
    # of copies, or escnn's memory of kernels takes the format too
    model = relax(copy.deepcopy(Formats()).to(dtype).eval())
    assert Trial.prepare(model, None) is not None and model.last.weight.dtype == dtype
    with pytest.raises(UnsupportedModuleError, match="something else"):
        relax(copy.deepcopy(Doubles()).to(dtype).eval())


def test_the_meta_device():
    """There are no kernels there to relax."""
    net = copy.deepcopy(enn.R2Conv(GRAY, FIELDS, 3)).to(
        "meta"
    )  # a copy, or escnn's memory of kernels goes there with it
    for morphism in (relax, lambda m: mix(m, [2])):
        with pytest.raises(UnsupportedModuleError, match="meta.*; load"):
            morphism(net)


def test_networks_that_draw_random_numbers_are_not_blamed():
    """Their mixed or relaxed form may draw others: here as many as there are parameters."""

    class Draws(Net):
        def look(self, y):
            torch.rand(sum(1 for _ in self.parameters()))
            return enn.GeometricTensor(y.tensor + torch.randn_like(y.tensor), y.type)

    assert relax(Draws().eval())(image()).isfinite().all()


def test_networks_that_differentiate_are_tried():
    class Force(Asks):
        def forward(self, x):
            x = x.detach().requires_grad_()
            return torch.autograd.grad(super().forward(x).square().sum(), x, create_graph=True)[0]

    with torch.no_grad(), pytest.raises(UnsupportedModuleError, match=r"Force\.second"):
        relax(Force())


def test_hooks_that_the_network_needs_are_kept():
    """Spectral norm works by a hook, and so may a step of the user's own."""
    net = Asks()
    net.last = nn.utils.spectral_norm(net.last)
    with pytest.raises(UnsupportedModuleError, match=r"Asks\.second"):
        relax(net)
    net = Asks()
    net.last = nn.Linear(9, 2)
    net.last.register_forward_pre_hook(lambda module, x: (torch.cat([x[0], x[0][:, :1]], 1),))
    with pytest.raises(UnsupportedModuleError, match=r"Asks\.second"):
        relax(net)


def test_compiled_networks_run_as_they_are_written():
    net = Asks()
    compiled = torch.compile(net, backend=lambda *_: pytest.fail("it was compiled"))
    with pytest.raises(UnsupportedModuleError, match="second"):
        relax(compiled)


def test_kernels_are_not_copied_and_sizes_are_those_of_the_data():
    """Large constants are shared with the copies; a network of one size is tried on it; one with pathways between
    images on theirs."""

    class Fixed(Asks):
        def __init__(self, side):
            super().__init__()
            self.last, self.side = nn.Linear(8 * side**2, 2), side

        def forward(self, x):
            y = self.look(self.second(self.first(self.gray(x))))
            return self.last(y.tensor.flatten(1))

    for side in (16, 28, 29, 32, 33, 64):
        with pytest.raises(UnsupportedModuleError, match=r"Fixed\.second"):
            relax(Fixed(side))
    relax(Fixed(11))  # none of those
    beside = relax_translation(Net(), image(11), layers=["first"])
    assert Trial.prepare(beside, None).example.shape[-1] == 11
    from escnn_relax.morphism.isolated_run import apart

    model = relax(Net())
    copied = apart(model)
    for name in ("first", "second", "third"):
        assert model.get_submodule(name).kernel is copied.get_submodule(name).kernel
    assert (
        model.norm is not copied.norm
        and all(m.training for m in model.modules())
        and not apart(model, eval=True).training
    )
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(model.parameters(), copied.parameters()))


def test_tuples_for_translations():
    class Two(Net):
        def forward(self, x, factor):
            return super().forward(x) * factor

    net, x = Two().eval(), (image(), torch.tensor(3.0))
    made = relax_translation(net, x)
    assert float((made(*x) - net(*x)).norm() / net(*x).norm()) < SINGLE
