"""No test passes because there was nothing to look at: what a loop with an assertion goes through is there for certain.

That is a display or a range that is not empty, a name for one, what is made of such (``zip``, ``product``, a
comprehension without a condition), what was asserted before not to be empty, or :func:`nonempty.each`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from nonempty import each

TESTS = Path(__file__).parents[1]
SOURCES = [path for path in sorted(TESTS.rglob("*.py")) if "benchmarks" not in path.parts]
#: Calls that return as many values as their first argument, or some if all of their arguments are.
SAME = {"enumerate", "sorted", "list", "tuple", "set", "reversed", "dict", "iter", "zip", "product", "chain"}
VIEWS = {"items", "values", "keys"}


def doubtful_loops(source: str) -> list[int]:
    """Lines of the loops that assert, or call what asserts, and may go through nothing."""
    tree = ast.parse(source)
    return sorted({line for scope in scopes(tree) for line in doubtful_in(scope, tree)})


def scopes(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def doubtful_in(scope: ast.FunctionDef, tree: ast.Module) -> Iterator[int]:
    known = bound_once(tree.body) | bound_once(list(own(scope)))
    for node in own(scope):
        if isinstance(node, ast.For) and any(map(asserts, own(ast.Module(node.body, [])))):
            if not certain(node.iter, known) and ast.unparse(node.iter) not in asserted_before(scope, node.lineno):
                yield node.lineno


def own(node: ast.AST) -> Iterator[ast.AST]:
    """A node and what is in it, without functions and classes that it defines."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.ClassDef, ast.Lambda)):
            yield from own(child)


def asserts(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Name(id=name)):
            return name.startswith(("assert_", "check"))
        case ast.Call(func=ast.Attribute(attr=name)):
            return name.startswith("assert_") or name == "raises"
    return isinstance(node, ast.Assert)


def bound_once(nodes: list[ast.AST]) -> dict[str, ast.expr]:
    """Names that are assigned one value and never changed, with that value."""
    values = [
        (n.targets[0].id, n.value) for n in nodes if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Name)
    ]
    names = [name for name, _ in values]
    return {name: value for name, value in values if names.count(name) == 1}


def certain(node: ast.expr, known: dict[str, ast.expr]) -> bool:
    """Whether an expression has values whatever its names stand for."""
    match node:
        case ast.Tuple(elts=parts) | ast.List(elts=parts) | ast.Set(elts=parts):
            return any(not isinstance(part, ast.Starred) or certain(part.value, known) for part in parts)
        case ast.Dict(keys=keys, values=values):
            return any(key is not None or certain(value, known) for key, value in zip(keys, values, strict=True))
        case ast.Constant(value=str(text)):
            return bool(text)
        case ast.Name(id=name) if name in known:
            return certain(known[name], {k: v for k, v in known.items() if k != name})
        case ast.BinOp(left=left, op=ast.Add() | ast.BitOr(), right=right):
            return certain(left, known) or certain(right, known)
        case ast.ListComp(generators=loops) | ast.DictComp(generators=loops) | ast.SetComp(generators=loops):
            return all(certain(loop.iter, known) and not loop.ifs for loop in loops)
        case ast.GeneratorExp(generators=loops):
            return all(certain(loop.iter, known) and not loop.ifs for loop in loops)
        case ast.Call(func=ast.Name(id="range"), args=bounds):
            return all(isinstance(bound, ast.Constant) for bound in bounds) and bool(eval(ast.unparse(node)))
        case ast.Call(func=ast.Name(id="each")):
            return True
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=parts) if name in SAME and parts:
            return all(certain(part, known) for part in parts)
        case ast.Call(func=ast.Attribute(value=value, attr=view)) if view in VIEWS:
            return certain(value, known)
    return False


def asserted_before(scope: ast.FunctionDef, line: int) -> set[str]:
    """What an assertion above said to be there: itself, or that its length is, or is at least, a number."""
    there = set()
    for node in own(scope):
        if isinstance(node, ast.Assert) and node.lineno < line:
            both = isinstance(node.test, ast.BoolOp) and isinstance(node.test.op, ast.And)
            for part in node.test.values if both else [node.test]:
                match part:
                    case ast.Compare(
                        left=ast.Call(func=ast.Name(id="len"), args=[value]),
                        ops=[ast.Eq() | ast.GtE()],
                        comparators=[ast.Constant(value=int(number))],
                    ) if number:
                        there.add(ast.unparse(value))
                    case ast.Name() | ast.Attribute():
                        there.add(ast.unparse(part))
    return there


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(TESTS).as_posix())
def test_no_assert_in_a_loop_that_may_be_empty(path):
    assert doubtful_loops(path.read_text(encoding="utf-8")) == []


def test_there_are_loops_to_look_at():
    text = [path.read_text(encoding="utf-8") for path in SOURCES]
    assert len(text) > 100 and sum("in each(" in source for source in text) > 50


#: Each asserts nothing if what it goes through is empty, and may be.
DOUBTFUL = (
    "def test(): \n for name in estimate.factors: assert name",
    "def test(): \n for a, b in zip((1, 2), found): assert a == b",
    "def test(): \n for x in [y for y in (1, 2) if y > 2]: assert x",
    "def test(): \n for x in range(len(found)): assert x",
    "def test(): \n for x in range(3, 3): assert x",
    "def test(): \n for x in (): assert x",
    "def test(): \n for x in (*found,): assert x",
    "def test(): \n for x in found: \n  for y in (1, 2): assert x == y",
    "def test(): \n for x in found: torch.testing.assert_close(x, 1)",
    "def test(): \n for x in found: \n  with pytest.raises(ValueError): x()",
    "CASES = {}\ndef test(): \n for case in CASES: assert case",
    "def test(): \n found = [1]\n found = some()\n for x in found: assert x",
    "def test(): \n for x in found: assert x\n assert len(found) == 3",
    "def test(): \n assert len(found) >= 0\n for x in found: assert x",
    "def test(): \n assert found or other\n for x in found: assert x",
)
#: Each has something to assert, or is no loop with an assertion.
CERTAIN = (
    "def test(): \n for name in each(estimate.factors): assert name",
    "def test(): \n for k, x in enumerate(each(found)): assert x",
    "def test(): \n for k, x in zip(range(3), (1, 2, 3), strict=True): assert x",
    "def test(): \n for x in (*found, 1): assert x",
    "def test(): \n for x in sorted({1: 2} | found): assert x",
    "def test(): \n for x in (y + 1 for y in (1, 2)): assert x",
    "CASES = {f'{k}': k for k in range(3)}\ndef test(): \n for name, k in CASES.items(): assert name == str(k)",
    "def test(): \n assert len(found) == 3 and found[0]\n for x in found: assert x",
    "def test(): \n assert found\n for x in found: assert x",
    "def test(): \n for x in found: torch.rand(x)",
    "def test(): \n for x in found: \n  def later(): assert x",
    "def test(): \n for x, y in itertools.product((1, 2), 'ab'): assert x",
)


@pytest.mark.parametrize("source", DOUBTFUL)
def test_what_may_be_empty_is_flagged(source):
    assert len(doubtful_loops(source)) == 1


@pytest.mark.parametrize("source", CERTAIN)
def test_what_is_there_is_not(source):
    assert doubtful_loops(source) == []


def test_each_asks_for_something():
    assert list(each(x for x in (1, 2))) == [1, 2] and list(each("ab", 2)) == ["a", "b"]
    with pytest.raises(AssertionError, match="nothing"):
        list(each([]))
    with pytest.raises(AssertionError, match="2 instead of 3"):
        list(each([1, 2], 3))
