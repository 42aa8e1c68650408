"""Paths of the last version import for one more release."""

import importlib
import pickle
import sys

import pytest

import escnn_relax
from escnn_relax.former_modules import FORMER_MODULES


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
    room = sys.modules[importlib.import_module(f"escnn_relax.{path}").__name__]
    if name in vars(room):  # the file of this name in the room, which another test has imported
        delattr(room, name)
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
