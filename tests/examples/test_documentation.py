"""Every public name is documented, with an example that runs as a doctest."""

import doctest
import inspect

import pytest

import escnn_relax
import escnn_relax.evidence
import escnn_relax.nn
import escnn_relax.search
import escnn_relax.symmetry

ROOMS = [escnn_relax, escnn_relax.nn, escnn_relax.evidence, escnn_relax.search]
NAMES = {f"{room.__name__}.{name}": getattr(room, name) for room in ROOMS for name in room.__all__}


def documented(thing) -> bool:
    return bool(doctest.DocTestParser().get_examples(inspect.getdoc(thing) or ""))


@pytest.mark.parametrize("name", [n for n, thing in NAMES.items() if callable(thing)])
def test_public_names_have_an_example(name):
    assert documented(NAMES[name]), f"{name} has no example"


def test_a_name_without_an_example_is_found():
    def bare():
        """Says what, but not how."""

    assert not documented(bare)
