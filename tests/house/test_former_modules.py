"""Paths of the last version import for one more release."""

import importlib
import json
import pickle
from pathlib import Path
from types import ModuleType

import pytest
import torch
from escnn import gspaces
from escnn import nn as enn
from nonempty import each

import escnn_relax
from escnn_relax import Evidence, nn, relax, search
from escnn_relax.curvature import CurvatureEstimate, DiagonalFactor
from escnn_relax.errors import DataError, SubgroupError
from escnn_relax.former_modules import FORMER_MODULES
from escnn_relax.former_names import FORMER_NAMES

#: By its path below the package what each module of the last version exported.
LAST_VERSION = {
    path: names.split()
    for path, names in json.loads(Path(__file__).parents[1].joinpath("former_names.json").read_text()).items()
}
#: Parts of the inside without a like today: what took an ``Evidence`` takes plain data, and ladders are methods.
GONE = {
    "curvature.accumulation": "Accumulator",
    "curvature.averaging": "averaged parts tensors",
    "curvature.combination": "combine shares",
    "curvature.corrected": "Corrected",
    "curvature.layers": "linear_map",  # the module of this name hides it
    "curvature.outputwise": "Outputwise",
    "curvature.recipe": "draws",
    "curvature.wrappers": "eager",
    "evidence.ascent": "move",
    "evidence.gating": "follow gateable starts",
    "evidence.state": "pack unpack",
    "search.phase": "Phase",
    "search.phase_checkpoint": "resume save",
}
C4 = gspaces.rot2dOnR2(4)


@pytest.mark.parametrize("path", sorted(FORMER_MODULES))
def test_every_home_exists_and_is_no_former_one(path):
    homes = FORMER_MODULES[path].split()
    assert homes and not set(homes) & set(FORMER_MODULES)
    for home in homes:
        assert importlib.import_module(f"escnn_relax.{home}").__name__ == f"escnn_relax.{home}"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("nn.convolution", "RelaxedR2Conv"),
        ("nn.relaxed", "RelaxedConvolution"),
        ("evidence.fit", "fit"),
        ("evidence.survival", "survivors"),
        ("morphism.walk", "replace_modules"),
        ("symmetry.grid_loss", "grid_loss"),
        ("symmetry.kernel_cache", "clear"),
        ("symmetry.subgroups", "subgroups"),
        ("nn.certificate", "certify"),
    ],
)
def test_old_paths_give_the_same_thing_with_a_warning(path, name):
    former = importlib.import_module(f"escnn_relax.{path}")
    with pytest.warns(DeprecationWarning, match=f"escnn_relax.{path}.{name} is an old spelling"):
        thing = getattr(former, name)
    (home,) = [h for h in FORMER_MODULES[path].split() if hasattr(importlib.import_module(f"escnn_relax.{h}"), name)]
    assert thing is getattr(importlib.import_module(f"escnn_relax.{home}"), name)


def forget_former_file(room, name):
    """The callable file of a function's own name hides the function once it is imported, which another test may have
    done in this process."""
    if f"{room.__name__.partition('.')[2]}.{name}" in FORMER_MODULES and isinstance(vars(room).get(name), ModuleType):
        delattr(room, name)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("evidence", "fit"),
        ("evidence", "History"),
        ("morphism.restrict", "restrict"),
        ("morphism.harden", "harden"),
        ("symmetry.equivariance", "equivariance_error"),
    ],
)
def test_paths_that_are_rooms_now_give_what_their_file_gave(path, name):
    room = importlib.import_module(f"escnn_relax.{path}")
    forget_former_file(room, name)
    with pytest.warns(DeprecationWarning, match=name):
        assert getattr(room, name) is getattr(escnn_relax, name)


def test_an_old_pickle_loads():
    new = pickle.dumps(escnn_relax.History, protocol=0)
    old = new.replace(b"escnn_relax.training.history", b"escnn_relax.evidence.history")
    assert old != new
    with pytest.warns(DeprecationWarning):
        assert pickle.loads(old) is escnn_relax.History


def test_what_never_was_is_not_found():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("escnn_relax.nn.absent")
    with pytest.raises(AttributeError, match="absent"):
        importlib.import_module("escnn_relax.nn.convolution").absent


def test_a_path_that_hides_a_function_can_be_called():
    importlib.import_module("escnn_relax.search.differentiate")
    from escnn_relax import search

    with pytest.warns(DeprecationWarning), pytest.raises(TypeError, match="positional argument"):
        search.differentiate()


def names_of_the_last_version():
    pairs = [(path, name) for path, names in LAST_VERSION.items() for name in names]
    return [(path, name) for path, name in pairs if name not in GONE.get(path, "").split()]


def test_there_are_names_to_check():
    assert len(names_of_the_last_version()) > 500
    assert all(set(names.split()) <= set(LAST_VERSION[path]) for path, names in GONE.items())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("path", "name"), names_of_the_last_version())
def test_every_name_of_the_last_version_imports(path, name):
    module = importlib.import_module(f"escnn_relax.{path}".rstrip("."))
    thing = getattr(module, name)
    assert not isinstance(thing, ModuleType) or callable(thing)


@pytest.mark.parametrize(("path", "name"), [(path, name) for path, names in FORMER_NAMES.items() for name in names])
def test_names_that_changed_say_what_they_are_now(path, name):
    home, _, new = FORMER_NAMES[path][name].partition(":")
    module = importlib.import_module(f"escnn_relax.{path}".rstrip("."))
    forget_former_file(module, name)
    with pytest.warns(DeprecationWarning, match=f"{name} is an old spelling .*{new}$"):
        thing = getattr(module, name)
    assert thing is getattr(importlib.import_module(f"escnn_relax.{home}".rstrip(".")), new)


def relaxed():
    fields = enn.FieldType(C4, [C4.regular_repr])
    return relax(enn.SequentialModule(enn.R2Conv(fields, fields, 3, bias=False)))


def test_former_methods():
    layer = relaxed()[0]
    kernel = layer.expand_parameters()[0].detach()
    with pytest.warns(DeprecationWarning, match="MergedConvolution.of is .* MergedConvolution.from_layer"):
        merged = nn.MergedConvolution.of(layer, kernel, None)
    assert torch.equal(merged.convolution.weight, kernel)
    with pytest.warns(DeprecationWarning, match="Conditions"):
        assert search.Conditions.of("evolve", {"epochs": 2}) == search.Conditions(epochs=2)
    estimate = CurvatureEstimate({}, 1.0, 3, 2)
    with pytest.warns(DeprecationWarning, match="CurvatureEstimate.of is .*weighted_sum"):
        assert CurvatureEstimate.of([estimate, estimate]).loss == 2


def test_former_methods_of_an_evidence():
    evidence = Evidence(relaxed(), "gaussian", num_data=4)
    input = evidence.model[0].in_type(torch.randn(4, 4, 3, 3))
    data = [(input, torch.randn(4, 4, 1, 1))]
    evidence.refresh(data)
    before = evidence.estimate
    with pytest.warns(DeprecationWarning, match="refresh_undone"), evidence.kept():
        evidence.refresh(data)
        assert evidence.estimate is not before
    assert evidence.estimate is before
    with pytest.warns(DeprecationWarning, match="differentiable_curvature"):
        loss, factors, count = next(evidence.curvature.differentiable(data, list(evidence.parameters.values())))
    assert loss.requires_grad and count == 4 and set(factors) == set(evidence.parameters)


def test_former_keywords_of_pathways():
    fields, shapes = enn.FieldType(C4, [C4.regular_repr]), 2 * [(4, 4)]
    group = escnn_relax.subgroup(C4, 2)
    for kind in (nn.DensePathway, nn.FactoredPathway):
        with pytest.warns(DeprecationWarning, match=rf"{kind.__name__}\(kept=\) .* {kind.__name__}\(subgroup=\)"):
            assert kind(fields, fields, *shapes, kept=group).subgroup == group
    sparse = nn.SparseR2Conv(fields, fields, 3, subgroup=4)
    with pytest.warns(DeprecationWarning, match=r"between\(kept=\)"):
        assert sparse.between(fields, fields, kept=group).subgroup == group


def test_where_still_names_the_layer():
    model = relaxed()
    with pytest.warns(DeprecationWarning, match=r"restrict\(where=\)"):
        with pytest.raises(SubgroupError, match="^features"):
            escnn_relax.restrict(model, 3, where="features")
    with pytest.warns(DeprecationWarning, match=r"subgroup\(where=\)"), pytest.raises(SubgroupError, match="^conv1"):
        escnn_relax.subgroup(C4, 3, where="conv1")
    with pytest.warns(DeprecationWarning, match=r"equivariance_error\(where=\)"):
        with pytest.raises(escnn_relax.errors.FieldTypeError, match="^head"):
            escnn_relax.equivariance_error(torch.nn.Linear(2, 2), where="head")
    with pytest.warns(DeprecationWarning, match=r"assert_equivariant\(where=\)"):
        with pytest.raises(escnn_relax.errors.FieldTypeError, match="^head"):
            escnn_relax.assert_equivariant(torch.nn.Linear(2, 2), where="head")
    (layer,) = each(m for m in model.modules() if isinstance(m, nn.RelaxedR2Conv))
    with pytest.warns(DeprecationWarning, match=r"energies\(where=\)"):
        assert layer.energies(where="features.0") == layer.energies()
    torch.nn.init.constant_(layer.weights["equivariant"], float("nan"))
    with pytest.warns(DeprecationWarning), pytest.raises(DataError, match="^features.0"):
        layer.energies(where="features.0")


def test_former_names_of_a_factor():
    with pytest.warns(DeprecationWarning, match=r"DiagonalFactor\(where=\)"):
        factor = DiagonalFactor(where="w", diagonal=torch.ones(2))
    with pytest.warns(DeprecationWarning, match="DiagonalFactor.where"):
        assert factor.where == factor.name == "w"
