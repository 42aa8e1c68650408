"""An optimiser goes on where it was, after restriction and after relaxation."""

import copy

import pytest
import torch
from escnn import gspaces, nn

from escnn_relax.errors import ArgumentError
from escnn_relax.morphism.optimizer import carry_optimizer
from escnn_relax.morphism.relax import relax
from escnn_relax.morphism.restrict.network import restrict

C4 = gspaces.rot2dOnR2(4)
SCALAR, REGULAR = nn.FieldType(C4, [C4.trivial_repr]), nn.FieldType(C4, 2 * [C4.regular_repr])


def network():
    return nn.SequentialModule(
        nn.R2Conv(SCALAR, REGULAR, 3, padding=1, recompute=True),
        nn.InnerBatchNorm(REGULAR),
        nn.ELU(REGULAR),
        nn.R2Conv(REGULAR, REGULAR, 3, padding=1, recompute=True),
        nn.GroupPooling(REGULAR),
    )


X = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.randn(32, 2, generator=torch.Generator().manual_seed(1))


def loss(net):
    return (net(net.in_type(X)).tensor.mean((2, 3)) - Y).square().mean()


def train(net, optimiser, steps):
    values = []
    for _ in range(steps):
        optimiser.zero_grad()
        value = loss(net)
        value.backward()
        optimiser.step()
        values.append(value.item())
    return values


OPTIMISERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.003, momentum=0.5),
}


@pytest.mark.parametrize("morph", [lambda n: restrict(n, 2), lambda n: relax(n)], ids=["restrict", "relax"])
@pytest.mark.parametrize("name", OPTIMISERS)
def test_training_goes_on(name, morph):
    net = network()
    optimiser = OPTIMISERS[name](net.parameters())
    values = train(net, optimiser, 15)
    other = morph(net)
    untouched = copy.deepcopy(optimiser.state_dict()["state"])
    carried = carry_optimizer(optimiser, net, other)
    expected = {id(p) for p in other.parameters()}
    assert {id(p) for g in carried.param_groups for p in g["params"]} == expected
    on = train(other, carried, 15)
    reference = train(net, optimiser, 15)
    assert on[0] == pytest.approx(reference[0], rel=1e-4)
    assert max(on) < max(values[-1], reference[0]) * 1.3, "the first steps throw the network back"
    assert on[-1] < values[-1]
    assert untouched.keys() == {k for k in untouched}


@pytest.mark.parametrize("morph", [lambda n: restrict(n, 2), lambda n: relax(n)], ids=["restrict", "relax"])
def test_momentum_moves_the_function_alike(morph):
    """With zero gradients SGD moves by its momentum alone: the two functions must then stay equal, exactly."""
    net = network().double()
    optimiser = OPTIMISERS["SGD"](net.parameters())
    global X, Y
    single = X, Y
    X, Y = X.double(), Y.double()
    try:
        train(net, optimiser, 5)
        other = morph(net)
        carried = carry_optimizer(optimiser, net, other)
        start = loss(net).item()
        for model, by in ((net, optimiser), (other, carried)):
            for p in model.parameters():
                p.grad = torch.zeros_like(p)
            by.step()
        assert abs(loss(net).item() - start) > 1e-6, "the momentum moved nothing, so this proves nothing"
        assert loss(other).item() == pytest.approx(loss(net).item(), rel=1e-6)
    finally:
        X, Y = single


def test_steps_and_settings_are_carried():
    net = network()
    groups = [
        {"params": net[0].parameters(), "lr": 0.5},
        {"params": [p for m in list(net)[1:] for p in m.parameters()]},
    ]
    optimiser = torch.optim.Adam(groups, lr=0.1)
    train(net, optimiser, 3)
    on_h = restrict(net, 2)
    carried = carry_optimizer(optimiser, net, on_h)
    assert [g["lr"] for g in carried.param_groups] == [0.5, 0.1]
    state = carried.state[on_h[3].weights]
    assert int(state["step"]) == 3 and state["exp_avg"].shape == on_h[3].weights.shape
    assert (state["exp_avg_sq"] > 0).all()


def test_foreign_optimiser_is_refused():
    net = network()
    with pytest.raises(ArgumentError):
        carry_optimizer(torch.optim.SGD(network().parameters(), lr=0.1), net, restrict(net, 2))


def test_the_former_spelling_works_and_says_so():
    import escnn_relax

    with pytest.warns(DeprecationWarning, match="carry_optimizer"):
        assert escnn_relax.carry_optimiser is carry_optimizer


def test_the_former_keyword_does_for_one_more_release():
    net = torch.nn.Linear(2, 1)
    sgd = torch.optim.SGD(net.parameters(), 0.1)
    with pytest.warns(DeprecationWarning, match=r"carry_optimizer\(optimizer=\)"):
        former = carry_optimizer(optimiser=sgd, old=net, new=net)
    assert former.param_groups[0]["lr"] == 0.1
    with pytest.raises(TypeError, match="optimizer"):
        carry_optimizer(optimizing=sgd, old=net, new=net)
