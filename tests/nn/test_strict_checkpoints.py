"""Checkpoints: of strict networks into relaxed ones and back, of other machines and versions, and as flat tensors.

Symptom: ``relaxed.load_state_dict(strict.state_dict())`` named every key of the network as missing or unexpected.
"""

import importlib.util
import re

import pytest
import torch
from escnn import gspaces
from escnn import nn as enn
from escnn.group import cyclic_group
from nonempty import each

import escnn_relax
from escnn_relax.nn import MixedR2Conv, MixedR3Conv, RelaxedR2Conv, RelaxedR3Conv
from escnn_relax.nn.strict_state import VERSION

#: float32 rounding of a few hundred products.
ROUNDING = 2e-5


def network(space=None):
    space = space or gspaces.rot2dOnR2(4)
    gray, mixed = (
        enn.FieldType(space, [space.trivial_repr]),
        enn.FieldType(space, 2 * [space.regular_repr] + [space.irrep(1)]),
    )
    return enn.SequentialModule(
        enn.R2Conv(gray, mixed, 5), enn.R2Conv(mixed, mixed, 3), enn.R2ConvTransposed(mixed, gray, 3)
    )


def randomise(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return model


def images(seed=1):
    return torch.randn(2, 1, 9, 9, generator=torch.Generator().manual_seed(seed))


def outputs(model, x):
    with torch.no_grad():
        return model(model.in_type(x)).tensor


def assert_same(a, b, x):
    y, z = outputs(a, x), outputs(b, x)
    assert float((y - z).norm() / y.norm()) < ROUNDING


@pytest.mark.parametrize("training", [True, False])
def test_strict_checkpoint_loads_into_the_relaxed_copy(training):
    relaxed = randomise(escnn_relax.relax(network()), 3)  # residual weights that have to go
    strict = randomise(network()).train(training)
    found = relaxed.load_state_dict(strict.state_dict())
    assert not found.missing_keys and not found.unexpected_keys
    assert_same(strict, relaxed, images())
    assert relaxed[0].breaking_energy == 0.0
    randomise(relaxed, 5)
    with pytest.raises(AssertionError):
        assert_same(strict, relaxed, images())


def test_strict_means_strict_for_the_rest():
    relaxed, state = escnn_relax.relax(network()), dict(randomise(network()).state_dict())
    del state["1.weights"], state["2.bias"]
    state["head.weight"] = torch.zeros(1)
    found = relaxed.load_state_dict(state, strict=False)
    assert sorted(found.missing_keys) == ["1.weights", "2.bias"] and found.unexpected_keys == ["head.weight"]
    with pytest.raises(RuntimeError, match=r"(?s)1\.weights.*head\.weight"):
        relaxed.load_state_dict(state)
    state = dict(network().state_dict())
    state["0.weights"] = state["0.weights"][:-1]
    with pytest.raises(RuntimeError, match=r"size mismatch for 0?\.?weights"):
        relaxed.load_state_dict(state)


def test_kernels_of_another_machine_come_along():
    """Clebsch-Gordan coefficients are determined up to signs, so the stored kernels count, not the machine's."""
    strict = randomise(network())
    state = {k: v.clone() for k, v in strict.state_dict().items()}
    key = next(k for k in state if k.startswith("1._basisexpansion") and "'irrep_1', 'regular'" in k)
    expected = outputs(strict, images())
    state[key] = -state[key]  # kernels of the other sign, and weights to match
    block = escnn_relax._escnn.weight_range(strict[1].basisexpansion, ("irrep_1", "regular"))
    state["1.weights"][block[0] : block[1]] *= -1
    relaxed = escnn_relax.relax(network())
    relaxed.load_state_dict(state)
    assert float((outputs(relaxed, images()) - expected).norm() / expected.norm()) < ROUNDING
    state[key] = torch.randn_like(state[key])
    with pytest.raises(RuntimeError, match="span another space"):
        relaxed.load_state_dict(state)


@pytest.mark.parametrize("training", [True, False])
def test_the_equivariant_part_goes_back(training):
    relaxed = randomise(escnn_relax.relax(network()), 3)
    strict = network().train(training)
    strict.load_state_dict(escnn_relax.equivariant_state(relaxed, like=strict))
    for layer, plain in each(zip(relaxed, strict, strict=True)):
        assert torch.equal(layer.weights["equivariant"], plain.weights)
        for p in layer.pathways:
            if p.breaks:
                layer.weights[p.name].data.zero_()
    assert_same(relaxed, strict.train(), images())


def test_linear_layers_and_the_trivial_group():
    space = gspaces.no_base_space(cyclic_group(3))
    fields = enn.FieldType(space, 2 * [space.regular_repr])
    strict = enn.Linear(fields, fields)
    relaxed = escnn_relax.relax(strict)
    strict.weights.data.normal_()
    relaxed.load_state_dict(strict.state_dict())
    x = torch.randn(4, 6)
    assert torch.allclose(strict(fields(x)).tensor, relaxed(fields(x)).tensor, atol=ROUNDING)
    trivial = gspaces.trivialOnR2()
    plain = enn.FieldType(trivial, 3 * [trivial.trivial_repr])
    strict = randomise(enn.R2Conv(plain, plain, 3))
    relaxed = escnn_relax.relax(strict)
    assert [p.name for p in relaxed.pathways] == ["equivariant"]
    relaxed.load_state_dict(strict.state_dict())
    x = torch.randn(2, 3, 7, 7)
    assert torch.allclose(strict(plain(x)).tensor, relaxed(plain(x)).tensor, atol=ROUNDING)


def test_relaxed_states_of_other_versions():
    relaxed = randomise(escnn_relax.relax(network()), 3)
    state = relaxed.state_dict()
    assert state._metadata["0"]["version"] == VERSION
    older = {k: v for k, v in state.items() if not k.endswith(("log_precision", "effective_dimension"))}
    again = escnn_relax.relax(network())
    again.load_state_dict(older)
    assert_same(relaxed, again, images())
    state._metadata["0"]["version"] = VERSION + 1
    with pytest.raises(RuntimeError, match="later escnn_relax"):
        again.load_state_dict(state)


#: How names of layout 1 follow from today's: numbers in the names of buffers, where there are dictionaries now.
LAYOUT_1 = (
    (r"\bbases\.(\d+)$", r"basis_\1"), (r"\bgraded\.(\d+)\.change", r"sectioned_\1.change"),
    (r"\bgraded\.(\d+)\.(order|sections)", r"sectioned_\1.\2"), (r"\bgraded\.(\d+)\.", r"composed_\1."),
    (r"\bsections\.(\d+)$", r"section_\1"), (r"\bmatrices\.(\d+)$", r"matrix_\1"),
    (r"\b(?:block_)?tables\.(\d+_\d+_\d+)", r"table_\1"),
)  # fmt: skip


def of_layout_1(state):
    """A state dict as it was written before."""
    older = {}
    for name, value in state.items():
        for pattern, before in LAYOUT_1:
            name = re.sub(pattern, before, name)
        older[name] = value
    return older


LAYERS = {
    "by sections": (
        lambda s, f, g: RelaxedR2Conv(f, f, 5),
        lambda: gspaces.rot2dOnR2(8),
        ("sectioned_0.section_0", "basis_0"),
    ),
    "by pairs of irreps": (
        lambda s, f, g: RelaxedR3Conv(f, f, 3),
        gspaces.octaOnR3,
        ("composed_0.products.matrix_0", "basis_0"),
    ),
    "mixture": (
        lambda s, f, g: MixedR2Conv(f, f, 3, subgroups=[2, 1]),
        lambda: gspaces.rot2dOnR2(4),
        ("table_0_0_0", "union.basis_0"),
    ),
    "mixture by pairs": (
        lambda s, f, g: MixedR3Conv(f, f, 3, subgroups=[(False, 4)]),
        gspaces.octaOnR3,
        ("table_1_0_1.matrix_0",),
    ),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_states_of_layout_1(kind):
    """Written with numbers in the names of the buffers; another process is to compute the same from them."""
    make, space, names = LAYERS[kind]
    space = space()
    gray, fields = (enn.FieldType(space, [r]) for r in (space.trivial_repr, space.regular_repr))
    layer, again = (randomise(make(space, fields, gray), seed) for seed in (3, 4))
    state = of_layout_1(layer.state_dict())
    assert all(f"kernel.{name}" in state for name in names) and not any("bases" in key for key in state)
    found = again.load_state_dict(state)
    assert not found.missing_keys and not found.unexpected_keys
    x = torch.randn(1, layer.in_type.size, *(5,) * space.dimensionality)
    assert torch.equal(outputs(layer, x), outputs(again, x))
    moved = {name: value + 1 if name == f"kernel.{names[-1]}" else value for name, value in state.items()}
    again.load_state_dict(moved)
    assert not torch.equal(outputs(layer, x), outputs(again, x))
    state["kernel.basis_77"] = torch.zeros(1)  # of a pair that this layer has not
    with pytest.raises(RuntimeError, match=r"kernel\.bases\.77|77"):
        again.load_state_dict(state)


def test_states_are_flat_tensors_without_shared_storage():
    state = escnn_relax.relax(network(gspaces.rot2dOnR2(8))).state_dict()
    assert len(state) > 10 and all(isinstance(v, torch.Tensor) and v.is_contiguous() for v in state.values())
    storages = [v.untyped_storage().data_ptr() for v in state.values()]
    assert len(set(storages)) == len(storages)
    assert all(v.untyped_storage().nbytes() == v.numel() * v.element_size() for v in state.values())


@pytest.mark.skipif(importlib.util.find_spec("safetensors") is None, reason="safetensors is not installed")
def test_safetensors(tmp_path):
    from safetensors.torch import load_file, load_model, save_file, save_model

    strict = randomise(network())
    state = {k: v.contiguous() for k, v in strict.state_dict().items()}  # escnn's own kernels may lie in another order
    save_file(state, tmp_path / "strict.safetensors")
    relaxed = escnn_relax.relax(network())
    relaxed.load_state_dict(load_file(tmp_path / "strict.safetensors"))
    assert_same(strict, relaxed, images())
    save_model(randomise(relaxed, 4), str(tmp_path / "relaxed.safetensors"))
    again = escnn_relax.relax(network())
    load_model(again, str(tmp_path / "relaxed.safetensors"))
    assert_same(relaxed, again, images())
    save_file(escnn_relax.equivariant_state(relaxed, like=strict), tmp_path / "back.safetensors")
    strict.load_state_dict(load_file(tmp_path / "back.safetensors"))
    assert torch.equal(strict[0].weights, relaxed[0].weights["equivariant"])
