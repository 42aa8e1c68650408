"""Names of the package are nouns and verbs of the field: neither prepositions nor participles stand alone as one."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "escnn_relax"

#: The rooms that have been looked through.
ROOMS = ("curvature", "morphism", "nn", "report", "diagnosis", "symmetry")

#: What says nothing about what is in it.
EMPTY = {"of", "own", "kept", "held", "found", "one", "given", "wanted"}
#: Names of others.
FOREIGN = {
    "ones_like",
    "new_ones",
    "one_hot",
    "ones",
    "change_of_basis",
    "change_of_basis_inv",
    "constant_loss_of",
    "sum_of_squares_constituents",
}

SOURCES = sorted(path for room in ROOMS for path in (PACKAGE / room).rglob("*.py"))


def names(tree):
    """Line and name of whatever a source calls something."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute):
            yield node.lineno, node.attr
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg


def empty_names(source):
    """Those of which a part is such a word, with their lines."""
    pairs = names(ast.parse(source))
    return [(line, name) for line, name in pairs if name not in FOREIGN and EMPTY & set(name.strip("_").split("_"))]


def test_there_are_sources_to_check():
    assert len(SOURCES) > 30


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_names_are_words_of_the_field(path):
    assert empty_names(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source", ["of = 1", "def own_rows(): pass", "x.kept", "f(lambda held: 0)", "[y for _one in z]"]
)
def test_checker_finds_them(source):
    assert len(empty_names(source)) == 1


#: Words that meant several things, each with the places where it has the meaning that it has now.
ONE_MEANING = {
    "part": (  # one tensor of an input
        *("curvature/batch_format.py", "curvature/checked_batches.py", "curvature/jacobian.py"),
        *("curvature/layers/probe.py", "curvature/memory_budget.py", "evidence/recurring_samples.py"),
        "diagnosis/",
    ),
    "scale": ("curvature/factors/", "evidence/"),  # h, what one unit of the likelihood counts
    "given": (),
    "wanted": (),
}
EVERYWHERE = sorted(PACKAGE.rglob("*.py"))


def ambiguous_names(source, place):
    """Names that are such a word, or its plural, beyond the places of its meaning, with their lines."""
    words = {word for word, places in ONE_MEANING.items() if not place.startswith(places)}
    return [
        (line, name) for line, name in names(ast.parse(source)) if name.strip("_").lower().removesuffix("s") in words
    ]


@pytest.mark.parametrize("path", EVERYWHERE, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_word_has_one_meaning(path):
    assert ambiguous_names(path.read_text(encoding="utf-8"), path.relative_to(PACKAGE).as_posix()) == []


def test_checker_finds_several_meanings():
    assert len(EVERYWHERE) > 250
    assert ambiguous_names("parts = 1\nSCALE = 2", "nn/x.py") == [(1, "parts"), (2, "SCALE")]
    assert ambiguous_names("scale = part = 1", "evidence/x.py") == [(1, "part")]


#: Errors get their layer's name where they pass (``errors.naming``), and none is handed down for them.
HANDED_DOWN = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "errors.py")


def handed_down(source):
    """Lines of functions that take a name for their errors."""
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    strings = [(f, a) for f in functions for a in (*f.args.args, *f.args.kwonlyargs) if a.arg == "where"]
    return [f.lineno for f, a in strings if a.annotation is None or "str" in ast.unparse(a.annotation)]


@pytest.mark.parametrize("path", HANDED_DOWN, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_name_is_handed_down_for_errors(path):
    assert handed_down(path.read_text(encoding="utf-8")) == []


def test_checker_finds_what_is_handed_down():
    assert len(HANDED_DOWN) > 250
    assert handed_down("def f(x, where=''): pass\ndef g(*, where): pass") == [1, 2]
