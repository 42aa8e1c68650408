"""The symmetry test: gradients turn as they should, the null is exact, planted subgroups are found, nothing is
touched."""

import copy
import sys

import pytest
import torch
from escnn import gspaces
from escnn import nn as enn
from nonempty import each
from scipy.stats import binom, kstest
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

import escnn_relax
from escnn_relax import symmetry_test
from escnn_relax.curvature.likelihood import likelihood
from escnn_relax.diagnosis import judgement
from escnn_relax.diagnosis.action import LayerAction
from escnn_relax.diagnosis.exact_group import exact_group
from escnn_relax.diagnosis.gradients import Probe
from escnn_relax.diagnosis.randomisation import factor, randomise
from escnn_relax.errors import ArgumentError, DataError, UnsupportedModuleError
from escnn_relax.symmetry.grid.field_action import transform_field

module = sys.modules["escnn_relax.diagnosis.symmetry_test"]
#: Float64, but kernels that escnn samples in float32.
SAMPLED = 2e-5

C4, C8, D4 = gspaces.rot2dOnR2(4), gspaces.rot2dOnR2(8), gspaces.flipRot2dOnR2(4)
O2 = gspaces.flipRot2dOnR2(-1, maximum_frequency=2)


class Net(nn.Module):
    """Three layers and a head that is invariant, or a field of its own."""

    def __init__(self, space, hidden=None, outputs=3, out=None, middle=None, fields=2, **options):
        super().__init__()
        self.gray = enn.FieldType(space, [space.trivial_repr])
        hidden = hidden or [space.regular_repr]
        kind = enn.FieldType(space, fields * hidden)
        regular = not space.fibergroup.continuous
        act = enn.ELU if regular else enn.NormNonLinearity
        conv = {2: enn.R2Conv, 3: enn.R3Conv}[space.dimensionality]
        self.first = conv(self.gray, kind, 3, padding=1)
        self.middle = (middle or conv)(kind, kind, 3, padding=1, **options)
        self.act = act(kind)
        self.out_type = enn.FieldType(space, out or [space.trivial_repr] * outputs)
        self.last = conv(kind, self.out_type, 3, padding=1)

    def forward(self, x):
        x = self.act(self.middle(self.act(self.first(self.gray(x)))))
        return self.last(x).tensor.flatten(2).mean(2)


class Dense(nn.Module):
    """Maps between representations, no space."""

    def __init__(self, group_space):
        super().__init__()
        self.into = enn.FieldType(group_space, [group_space.regular_repr])
        self.hidden = enn.FieldType(group_space, 3 * [group_space.regular_repr])
        self.one, self.act = enn.Linear(self.into, self.hidden), enn.ELU(self.hidden)
        self.two = enn.Linear(self.hidden, enn.FieldType(group_space, 2 * [group_space.trivial_repr]))

    def forward(self, x):
        return self.two(self.act(self.one(self.into(x)))).tensor


CASES = {
    "C4": lambda: (Net(C4), "gray", None),
    "C8": lambda: (Net(C8), "gray", None),
    "D4": lambda: (Net(D4), "gray", None),
    "reflection": lambda: (Net(gspaces.flip2dOnR2()), "gray", None),
    "D3, one axis on the grid": lambda: (Net(gspaces.flipRot2dOnR2(3)), "gray", None),
    "O(2), irreps": lambda: (Net(O2, [O2.irrep(0, 0), O2.irrep(1, 1), O2.irrep(1, 2)]), "gray", None),
    "quotient": lambda: (Net(D4, [D4.quotient_repr((0, 2))]), "gray", None),
    "groups": lambda: (Net(C4, groups=2), "gray", None),
    "dilation": lambda: (Net(C4, dilation=2), "gray", None),
    "stride on an odd size": lambda: (Net(C4, stride=2), "gray", None),
    "transposed": lambda: (Net(C4, middle=enn.R2ConvTransposed), "gray", None),
    "transposed, groups, stride": lambda: (Net(C4, middle=enn.R2ConvTransposed, groups=2, stride=2), "gray", None),
    "vector target": lambda: (Net(C4, out=[C4.irrep(1)]), "gray", "out_type"),
    "linear C3": lambda: (Dense(gspaces.no_base_space(gspaces.rot2dOnR2(3).fibergroup)), "into", None),
    "linear D6": lambda: (Dense(gspaces.no_base_space(gspaces.flipRot2dOnR2(6).fibergroup)), "into", None),
    "wide": lambda: (Net(C4, fields=9), "gray", None),
    "inversion in space": lambda: (Net(gspaces.invOnR3()), "gray", None),
}  # fmt: skip


def law(model, in_type, out_type, broken=False):
    """The largest departure of turned samples' gradients from the matrices' claim, over elements and layers."""
    model = escnn_relax.relax(model).double()
    probe = Probe(model, likelihood("gaussian"))
    group = exact_group(*(layer.space for layer in probe.layers.values()))
    generator = torch.Generator().manual_seed(0)
    actions = {n: LayerAction(m, group.counterparts(m.space), generator) for n, m in probe.layers.items()}
    x = torch.randn(3, in_type.size, *(7,) * in_type.gspace.dimensionality, dtype=torch.float64)
    y = torch.randn_like(probe.forward(x))

    def features(x, y):
        found = probe.gradients(probe.loss(probe.forward(x), y))
        return {name: action.features(found[name]) for name, action in actions.items()}

    here, worst, moves = features(x, y), 0.0, 0.0
    assert group.order > 1 and sum(len(a.names) for a in actions.values())
    for n, g in enumerate(group.elements):
        there = features(transform_field(x, in_type, g), y if out_type is None else transform_field(y, out_type, g))
        largest = max(float(b.norm()) for layer in actions for key in actions[layer].names for b in there[layer][key])
        for name, action in actions.items():
            claimed = here[name] if broken else action.move(here[name], n)
            for key in action.names:
                for a, b in zip(claimed[key], there[name][key]):
                    worst = max(worst, float((a - b).norm()) / largest)
                    moves += float(b.norm())
    assert moves > 0
    return worst


@pytest.mark.parametrize("case", CASES)
def test_gradients_turn_as_the_matrices_say(case):
    model, source, target = CASES[case]()
    in_type, out_type = getattr(model, source), target and getattr(model, target)
    assert law(copy.deepcopy(model), in_type, out_type) < SAMPLED
    assert law(model, in_type, out_type, broken=True) > 0.1


def test_law_needs_an_equivariant_network():
    assert law(Net(C4, stride=4), enn.FieldType(C4, [C4.trivial_repr]), None) > 1e-2


def pictures(count, planted="none", seed=0, side=5, strength=3.0):
    """Noise with a bar at a random side; the label is whether it is upright, the side, or nothing that can be seen."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 1, side, side, generator=generator)
    side_of = torch.randint(4, (count,), generator=generator)
    x[:, :, side // 2, -1] += strength
    x[:, :, 0, -1] += strength / 2  # neither of the reflections leaves it in place
    x = torch.stack([torch.rot90(image, int(k), (-2, -1)) for image, k in zip(x, side_of)])
    noise = torch.randint(2, (count,), generator=generator)
    return x, {"none": noise, "C2": side_of % 2, "C1": side_of}[planted]


def loader(data, size=20, **options):
    return DataLoader(TensorDataset(*data), size, **options)


def examined(data, space=C4, size=20, seed=0, **options):
    torch.manual_seed(seed)
    model = Net(space, outputs=max(2, int(data[1].max()) + 1))
    return symmetry_test(model, loader(data, size), progress=False, seed=seed, **options)


@pytest.mark.parametrize("planted, network", [("none", "C4"), ("C2", "C2"), ("C1", "trivial")])
def test_planted_subgroup_is_found_at_random_weights(planted, network):
    found = [examined(pictures(600, planted, seed), seed=seed, inputs=True) for seed in range(3)]
    assert [f.network.name for f in found] == 3 * [network]
    broken = {"C4": set(), "C2": {"irrep_2"}, "trivial": {"irrep_1", "irrep_2"}}[network]
    for f in found:
        assert {t.pathway for t in f.tests if t.broken} == broken and len(f.tests) == 6
        assert min(t.input_p_value for t in f.tests) > 0.003, "the inputs alone are symmetric"
        assert f.equivariance_error < 1e-4 and f.num_data == 600


def test_reflection_and_its_axis_in_d4():
    x, y = pictures(600, "none")
    mirrored = torch.randint(2, (600,), generator=torch.Generator().manual_seed(5))
    x = torch.stack([image.flip(-1) if m else image for image, m in zip(x, mirrored)])
    assert examined((x, mirrored), D4).network.name == "C4"
    x = torch.randn(600, 1, 5, 5)
    x[:, :, 2, 4] += 3 * y.view(-1, 1)  # to the right: left in place by the reflection of the vertical axis alone
    found = examined((x, y), D4).network
    point = torch.tensor([1.0, 0.0])
    assert found.order == 2
    assert all(
        torch.allclose(torch.tensor(D4.basespace_action(g)).float() @ point, point, atol=1e-6) for g in found.elements
    )


def test_inputs_alone():
    x, y = torch.randn(600, 1, 5, 5), torch.randint(2, (600,))
    x[:, :, 2, 4] += 2  # always to the right, and nothing to do with the label
    found = examined((x, y), inputs=True)
    assert any(t.input_p_value <= 0.01 for t in found.tests)


def test_vector_target_that_turns():
    torch.manual_seed(0)
    x = torch.randn(600, 1, 7, 7)
    model, teacher = Net(C4, out=[C4.irrep(1)]), Net(C4, out=[C4.irrep(1)])
    y = teacher(x).detach()
    options = {"likelihood": "gaussian", "out_type": model.out_type, "progress": False}
    kept = symmetry_test(model, loader((x, y)), **options)
    assert kept.network.name == "C4" and kept.equivariance_error < 1e-4
    y = y + 2 * y.std() * torch.tensor([1.0, 0.0])  # a wind from the west
    assert symmetry_test(model, loader((x, y)), **options).network.name == "trivial"


def test_own_loss_and_several_initialisations():
    data = pictures(600, "C2")
    loss = nn.functional.cross_entropy
    found = examined(data, loss=loss, initialisations=2)
    assert {t.pathway for t in found.tests if t.broken} == {"irrep_2"}
    assert examined(pictures(600), initialisations=2).network.name == "C4"


def p_values(fault="", runs=500, groups=20):
    """Of features of C4, far from symmetric, each moved by a random element; two pathways, without a network."""
    generator = torch.Generator().manual_seed(1)
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    actions = [torch.stack([torch.linalg.matrix_power(turn, k) for k in range(4)])]
    actions.append(torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64).view(4, 1, 1))
    claimed = actions
    if fault == "no action":  # matrices of other turns: by 0, 45, 90, 135 degrees
        half = torch.tensor([[0.5, -0.5], [0.5, 0.5]], dtype=torch.float64) * 2**0.5
        claimed = [torch.stack([torch.linalg.matrix_power(half, k) for k in range(4)]), actions[1]]
    values, adjusted = [], []
    for _ in range(runs):
        member = torch.randint(4, (groups,), generator=generator)
        moved = []
        for action, claim in zip(actions, claimed):
            base = torch.randn(groups, 3, action.shape[-1], generator=generator, dtype=torch.float64) + 2.0
            features = torch.einsum("bij,brj->bri", action[member], base)
            if fault == "seen":  # whatever has been fitted to the samples as they lie
                features = features + 0.3 * features.abs()
            moved.append(torch.stack([(features @ m.T).flatten(1) for m in claim]))
        found = randomise(moved, range(4), 99, generator)
        values.append(found.p_values)
        adjusted.append(found.adjusted)
    return torch.stack(values), torch.stack(adjusted)


def test_factor_keeps_inner_products():
    """Against moved features as they are; the tables' draws against sums over all pairs."""
    generator = torch.Generator().manual_seed(0)
    psi = [torch.as_tensor(D4.irrep(1, 1)(g)) for g in D4.fibergroup.elements]
    position = {g: n for n, g in enumerate(D4.fibergroup.elements)}
    quotients = torch.tensor([[position[~g @ h] for h in position] for g in position])
    features = torch.randn(20, 9, 2, generator=generator, dtype=torch.float64)
    moved = torch.stack([(features @ m.T).flatten(1) for m in psi])
    table = torch.stack([moved[0] @ m.T for m in moved])
    found = factor(table, quotients)
    assert found.shape[-1] == 18
    assert torch.allclose(
        found.flatten(0, 1) @ found.flatten(0, 1).T, moved.flatten(0, 1) @ moved.flatten(0, 1).T, rtol=1e-10
    )
    one, two = (randomise([of], range(8), 99, torch.Generator().manual_seed(1)) for of in (moved, found))
    assert torch.allclose(one.statistics, two.statistics, rtol=1e-10) and torch.equal(one.p_values, two.p_values)
    drawn = torch.randint(8, (99, 20), generator=torch.Generator().manual_seed(1))
    squares = [sum(moved[h, b] for b, h in enumerate(of)).square().sum() for of in drawn]
    observed = moved[0].sum(0).square().sum()
    assert one.p_values.item() == pytest.approx((1 + sum(bool(t >= observed) for t in squares)) / 100)
    mean = features.square().sum()  # of T* over the group, which leaves no feature in place
    assert one.statistics.item() == pytest.approx(float(observed / mean))
    assert one.largest.item() == pytest.approx(float(max(squares) / mean))
    alone = randomise([moved], range(8), 1, torch.Generator().manual_seed(1))
    assert alone.largest.item() == pytest.approx(float(squares[0] / mean)), "of a single draw, that one"


def uniform(values):
    """The least p-value of a Kolmogorov-Smirnov test for each column of p-values that are multiples of 1/100."""
    shaken = values - torch.rand(values.shape, generator=torch.Generator().manual_seed(0)) / 100
    return min(kstest(shaken[:, n].numpy(), "uniform").pvalue for n in range(values.shape[1]))


def test_level_is_exact():
    values, adjusted = p_values()
    assert uniform(values) > 0.01
    errors = int((adjusted.min(1).values <= 0.05).sum())
    assert binom.ppf(0.01, 500, 0.05) <= errors <= binom.ppf(0.99, 500, 0.05)


@pytest.mark.parametrize("fault", ["no action", "seen"])
def test_level_of_the_broken_twins(fault):
    assert uniform(p_values(fault)[0]) < 1e-6


def level(runs, weights):
    """p-values of a whole network on symmetric data, and in how many runs anything was found; random weights, weights
    trained strictly on the very data, or with open pathways, which see how the samples lie."""
    values, errors = [], 0
    for seed in range(runs):
        x, y = pictures(40, "none", seed)
        torch.manual_seed(seed)
        model = Net(C4, outputs=2, fields=1)
        if weights == "seen":
            model = escnn_relax.relax(model)
        if weights != "random":
            descent = torch.optim.Adam(model.parameters(), lr=1e-2)
            for _ in range(20):
                descent.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                descent.step()
        found = symmetry_test(model, loader((x, y)), progress=False, draws=99, seed=seed, groups=20)
        values.append([t.p_value for t in found.tests])
        errors += any(t.broken for t in found.tests)
    return torch.tensor(values, dtype=torch.float64), errors


def test_level_of_a_few_trained_networks():
    values, errors = level(40, "trained")
    assert uniform(values) > 1e-3 and errors <= binom.ppf(0.99, 40, 0.05)


def test_weights_that_have_seen_the_samples(monkeypatch):
    """The twin: open pathways tested by elements that they do not keep."""
    monkeypatch.setattr(module, "stabiliser", lambda layers, group: list(range(group.order)))
    monkeypatch.setattr(judgement, "STRICT", torch.inf)
    assert uniform(level(40, "seen")[0]) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["random", "trained"])
def test_level_of_a_network(weights):
    values, errors = level(500, weights)
    assert uniform(values) > 1e-3
    assert binom.ppf(0.005, 500, 0.03) <= errors <= binom.ppf(0.99, 500, 0.05), errors


def test_open_pathways_leave_the_test_of_a_subgroup():
    model = escnn_relax.relax(Net(C4, outputs=2))
    with torch.no_grad():
        model.first.weights["irrep_2"].normal_()
    found = symmetry_test(model, loader(pictures(600, "C2")), progress=False)
    assert found.exact_order == 2 and found.equivariance_error < 1e-4
    assert all(t.testable == (t.pathway == "irrep_1") and (t.testable or "open" in t.reason) for t in found.tests)
    assert not any(t.broken for t in found.tests)


def test_zero_residuals_are_strict():
    torch.manual_seed(0)
    strict = Net(C4, outputs=2)
    data = loader(pictures(600, "C2"))
    one, two = (symmetry_test(m, data, progress=False) for m in (strict, escnn_relax.relax(strict)))
    assert [t.p_value for t in one.tests] == [t.p_value for t in two.tests]


def test_off_the_grid_only_an_effect():
    found = examined(pictures(600, "C1"), C8)
    assert found.exact_order == 4
    fourth = [t for t in found.tests if t.pathway == "irrep_4"]
    assert fourth and not any(t.testable or t.broken for t in fourth) and all("grid" in t.reason for t in fourth)
    assert {t.pathway for t in found.tests if t.broken} == {"irrep_1", "irrep_2", "irrep_3"}


def test_irreps_that_exact_elements_cannot_tell_apart_are_named():
    """By quarter turns, frequencies 1 and 3 of C8 turn as one vector does, or its mirror image."""
    found = examined(pictures(600, "C1"), gspaces.rot2dOnR2(8))
    assert {"irrep_1", "irrep_3"} & {t.pathway for t in found.tests if t.broken}
    sentence = "Exact elements move alike irrep_1 and irrep_3: through the pixels one of them may show"
    assert sentence in " ".join(str(found).split())
    assert "move alike" not in str(examined(pictures(600, "C1"))), "quarter turns are all of C4"


def test_strides_that_break_the_symmetry_are_named():
    found = symmetry_test(Net(C4, outputs=2, stride=4), loader(pictures(600, side=7)), progress=False)
    assert found.equivariance_error > 0.01 and not any(t.testable for t in found.tests)
    assert "middle: stride 4 on 7 pixels leaves 2 over on one side" in str(found)


def test_no_path_to_the_output_is_not_testable():
    class Blind(Net):
        def forward(self, x):
            return super().forward(x) + 0 * self.middle(self.first(self.gray(x))).tensor.mean()

    model = Blind(C4, outputs=2)
    with torch.no_grad():
        model.last.weights.zero_()
    found = symmetry_test(model, loader(pictures(600)), progress=False)
    for t in each(found.tests):
        assert t.testable == (t.layer == "last") and (t.testable or "path" in t.reason)
    for decision in each(found.decisions.layers):
        said = [reason for reason in decision.reasons if "could not test" in reason]
        assert said == [] if decision.layer == "last" else "path" in said[0]


def test_off_centre_images_are_named():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 1, 6, 6, generator=generator)
    blob = torch.zeros(1, 1, 6, 6)
    blob[..., 2:4, 2:4] = 3
    found = examined((nn.functional.pad(x + blob, (0, 1, 0, 1)), torch.randint(2, (600,), generator=generator)))
    assert any(t.broken and t.pathway == "irrep_1" for t in found.tests)


def test_three_minibatches_do_as_well_as_thirty():
    """They are split into the same groups of samples; only the noise against ties in pooling differs."""
    three, thirty = (examined(pictures(600, "C2"), size=size) for size in (200, 20))
    assert {t.pathway for t in three.tests if t.broken} == {"irrep_2"}
    assert [t.statistic for t in three.tests] == pytest.approx([t.statistic for t in thirty.tests], rel=1e-3)


def test_repeated_samples_share_their_element():
    x, y = pictures(60, "none", 3)
    data = TensorDataset(x, y)
    sampler = RandomSampler(data, replacement=True, num_samples=1200, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    found = symmetry_test(Net(C4, outputs=2), DataLoader(data, 20, sampler=sampler), progress=False)
    assert found.num_data == 60 and found.repeated == 1140
    assert not any(t.broken for t in found.tests), "noise that comes twenty times is noise"
    assert "came again" in str(found)


def test_the_caller_finds_everything_as_it_was():
    torch.manual_seed(3)
    model = escnn_relax.relax(Net(C4, outputs=2)).train()
    generator = torch.Generator().manual_seed(1)
    data = loader(pictures(200), shuffle=True, generator=generator)
    before = copy.deepcopy(model.state_dict()), torch.get_rng_state(), generator.get_state()
    symmetry_test(model, data, progress=False)
    assert model.training and all(p.grad is None and p.requires_grad for p in model.parameters())
    after = model.state_dict()
    assert all(torch.equal(v, after[k]) or bool(v.isnan().all()) for k, v in before[0].items())
    assert torch.equal(before[1], torch.get_rng_state()) and torch.equal(before[2], generator.get_state())


def test_errors():
    x, y = pictures(200)
    with pytest.raises(DataError, match="all the same"):
        examined((x, torch.zeros_like(y)))
    with pytest.raises(DataError, match="19 different samples make 19 groups, too few.*at least 20; pass more data$"):
        examined((x[:19], y[:19]))
    with pytest.raises(DataError, match="make 13 groups, too few.*at least 20; pass a DataLoader or a list"):
        symmetry_test(Net(C4), iter([(x[:100], y[:100])]), progress=False)
    with pytest.raises(DataError, match="one orbit"):
        examined((torch.stack([torch.rot90(x[0], k % 4, (-2, -1)) for k in range(200)]), y))
    with pytest.raises(DataError, match="NaN"):
        examined((x * torch.nan, y))
    with pytest.raises(DataError, match="no batch"):
        symmetry_test(Net(C4), [], progress=False)
    for wrong in ({"draws": 0}, {"groups": 5}, {"level": 1.5}, {"initialisations": 0}):
        with pytest.raises(ArgumentError):
            examined((x, y), **wrong)


def test_mixtures_are_refused():
    mixed = escnn_relax.mix(Net(C4, outputs=2, fields=1), [4, 1])
    with pytest.raises(UnsupportedModuleError, match="first.*mixes"):
        symmetry_test(mixed, loader(pictures(100)), progress=False)


def test_records_and_figure():
    import matplotlib

    matplotlib.use("Agg")
    found = examined(pictures(600, "C2"), gains=True)
    record = found.to_dict()
    wanted = {"layer", "pathway", "p_value", "adjusted_p_value", "gain", "log_precision", "testable"}
    assert len(record["tests"]) == 6 and all(wanted <= set(t) for t in record["tests"])
    assert record["network"] == "C2" and all(t["gain"] > 5 for t in record["tests"] if t["broken"])
    ax = found.plot()
    assert [t.get_text() for t in ax.get_yticklabels()] == ["first", "middle", "last"]
    assert sum(t.get_text().endswith("*") for t in ax.texts) == 3
