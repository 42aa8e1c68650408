"""Whether the tests notice a fault: small faults, one at a time, in the rooms that the verdicts rest on.

    python tests/benchmarks/bench_mutation.py --minutes 60      # goes on with the stored run of the same sources
    python tests/benchmarks/bench_mutation.py --again FILE:LINE --tests tests/...    # one survivor, other tests
    python tests/benchmarks/bench_mutation.py --page

A seeded sample of faults: a comparison, a sum or a product turned round, a number or truth value changed, a condition
turned round, a result that is None, a statement that is gone. Each is put into a copy of the tree, and tried by the
file's own doctests, the two quick test files that name most of what the file offers, and the room's own. A fault is
*killed* if one of them fails, or takes three times the time that the sound tree takes.
"""

from __future__ import annotations

import argparse
import ast
import compileall
import json
import math
import os
import random
import re
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
RUNS, PAGE = Path(__file__).with_name("mutation.jsonl"), Path(__file__).with_name("mutation.md")
#: By room, how many faults are drawn and which test file tries all of them.
ROOMS = {
    "evidence": (40, "tests/evidence/test_evidence_gradient.py"),
    "curvature": (40, "tests/curvature/test_curvature_exact.py"),
    "diagnosis": (20, "tests/diagnosis/test_symmetry_test.py"),
}
COMPARISONS = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In},
}
SUMS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}


class Fault(NamedTuple):
    path: str
    line: int
    operator: str
    before: str
    after: str
    start: int
    end: int


def faults(path: str, source: str) -> Iterator[Fault]:
    """All that can be put into one file, by the offsets of the text that each replaces."""
    lines = source.encode().splitlines(keepends=True)
    starts = [sum(map(len, lines[:k])) for k in range(len(lines) + 1)]
    for node in meaningful(ast.parse(source)):
        for operator, after in changes(node):
            start = starts[node.lineno - 1] + node.col_offset
            end = starts[node.end_lineno - 1] + node.end_col_offset
            yield Fault(path, node.lineno, operator, source.encode()[start:end].decode(), after, start, end)


def meaningful(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes that run; neither annotations and decorators nor texts and what is raised."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, (ast.expr, ast.stmt)) and not isinstance(child, ast.JoinedStr):
                yield child
            if isinstance(child, ast.AST) and not isinstance(child, (ast.JoinedStr, ast.Raise)):
                yield from meaningful(child)


def changes(node: ast.AST) -> Iterator[tuple[str, str]]:
    """Name and new text of each fault of one node."""
    match node:
        case ast.Compare(ops=[operator]) if type(operator) in COMPARISONS:
            yield "comparison", ast.unparse(ast.Compare(node.left, [COMPARISONS[type(operator)]()], node.comparators))
        case ast.BinOp(op=operator) if type(operator) in SUMS:
            yield "arithmetic", ast.unparse(ast.BinOp(node.left, SUMS[type(operator)](), node.right))
        case ast.Constant(value=bool(value)):
            yield "constant", str(not value)
        case ast.Constant(value=int(value)):
            yield "constant", str(value + 1)
        case ast.Constant(value=float(value)):
            yield "constant", str(2 * value or 1.0)
        case ast.UnaryOp(op=ast.Not()):
            yield "condition", f"bool({ast.unparse(node.operand)})"
        case ast.IfExp():
            yield "condition", ast.unparse(ast.IfExp(node.test, node.orelse, node.body))
        case ast.Return(value=value) if value and ast.unparse(value) != "None":
            yield "result", "return None"
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Raise() | ast.Continue():
            yield "statement", "pass"
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield "statement", "pass"


def sample() -> list[Fault]:
    """The rooms' faults in one order, so that a run that ends early has seen something of each."""
    drawn: list[tuple[float, Fault]] = []
    for room, (count, _) in ROOMS.items():
        paths = sorted((ROOT / "escnn_relax" / room).rglob("*.py"))
        all_of_it = [f for p in paths for f in faults(p.relative_to(ROOT).as_posix(), p.read_text("utf-8"))]
        picked = random.Random(room).sample(all_of_it, count)
        drawn += [(k / count, fault) for k, fault in enumerate(picked)]
    return [fault for _, fault in sorted(drawn, key=lambda pair: pair[0])]


def relevant(path: str) -> list[str]:
    """The file itself for its doctests, two test files that name most of what it offers, and the room's own."""
    room, source = path.split("/")[1], (ROOT / path).read_text("utf-8")
    names = [n.name for n in ast.parse(source).body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    words = re.compile(rf"\b({'|'.join([*names, Path(path).stem])})\b")
    here = sorted((ROOT / "tests" / room).glob("test_*.py"))
    named = {p.relative_to(ROOT).as_posix(): len(words.findall(p.read_text("utf-8"))) for p in here}
    most = sorted((p for p in named if named[p]), key=lambda p: -named[p])[:2]
    return [path, *dict.fromkeys([*most, ROOMS[room][1]])]


class Told:
    """Of a run of pytest in a process of its own: the first test that fails, and one cache of kernels for all."""

    def __init__(self, kernels: str, pipe: int) -> None:
        self.kernels, self.pipe = kernels, pipe

    def pytest_collection_finish(self) -> None:
        os.environ["ESCNN_RELAX_CACHE"] = self.kernels  # the rooms in question build no kernels

    def pytest_runtest_logreport(self, report) -> None:
        if report.failed:
            os.write(self.pipe, f"{report.nodeid}\n".encode())


def tried(tree: Path, tests: list[str], kernels: str, limit: float) -> tuple[str, str, float]:
    """Outcome, the test that told, and processor seconds."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.chdir(tree)
        sys.path.insert(0, str(tree))
        resource.setrlimit(resource.RLIMIT_CPU, (int(limit) + 1, int(limit) + 2))
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1), os.dup2(silent, 2)
        import pytest

        options = ["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", "-W", "ignore"]
        code = pytest.main([*options, *tests], plugins=[Told(kernels, writer)])
        os._exit(code if code != 5 else 0)
    os.close(writer)
    _, status, used = os.wait4(child, 0)
    told = os.read(reader, 10000).decode().split("\n")[0]
    os.close(reader)
    spent = used.ru_utime + used.ru_stime
    if os.WIFSIGNALED(status):
        return ("time" if spent >= limit else "killed"), "signal", spent
    return ("killed" if os.WEXITSTATUS(status) else "survived"), told or "collection", spent


def page(lines: list[dict]) -> str:
    drawn = sum(count for count, _ in ROOMS.values())
    head = f"""# Faults that the tests notice

Made by `bench_mutation.py`, which says which faults and which tests; every fault that was tried is a line of
`mutation.jsonl`: {len(lines)} of {drawn} that are drawn, so shares are rough. *Killed*: by the few tests that it is
tried on, or by taking three times as long. What survived these is told below: *new* is killed by a test that was added
for it, *elsewhere* by one of other files, *harmless* changes nothing that a result depends on.

| room | faults | killed | new | elsewhere | harmless | open |
|---|---|---|---|---|---|---|
"""
    rows = []
    for room in [*ROOMS, "all"]:
        of_room = [x for x in lines if room in ("all", x["path"].split("/")[1])]
        counts = Counter(x.get("since") or x["outcome"] for x in of_room)
        killed = counts["killed"] + counts["time"]
        rows.append(
            f"| {room} | {len(of_room)} | {killed} | {counts['new']} | {counts['elsewhere']} "
            f"| {counts['harmless']} | {counts['survived']} |"
        )
    kinds: dict[str, list[dict]] = defaultdict(list)
    for line in lines:
        kinds[line["operator"]].append(line)
    rows += ["", "| fault | faults | killed at first |", "|---|---|---|"]
    rows += [f"| {k} | {len(v)} | {sum(x['outcome'] != 'survived' for x in v)} |" for k, v in sorted(kinds.items())]
    rows += ["", "## Survivors of the first run", "", "| where | fault | what of it |", "|---|---|---|"]
    shown = lambda text: "`" + " ".join(text.split()).replace("|", "¦")[:70] + "`"
    for x in lines:
        if x["outcome"] == "survived":
            where = f"`{x['path'].removeprefix('escnn_relax/')}`"
            rows.append(f"| {where} | {shown(x['before'])} → {shown(x['after'])} | {x.get('note', '')} |")
    return head + "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--again", help="FILE:LINE of a stored survivor")
    parser.add_argument("--tests", nargs="*")
    parser.add_argument("--page", action="store_true")
    given = parser.parse_args()
    lines = [json.loads(line) for line in RUNS.read_text().splitlines()] if RUNS.exists() else []
    if not given.page:
        import hypothesis, matplotlib.pyplot, pytest, scipy.stats, torch, torch.utils.data  # noqa: E401, F401

        torch.set_num_threads(1)
        sys.dont_write_bytecode = True
        with tempfile.TemporaryDirectory() as folder:
            work(given, lines, Path(folder) / "tree", Path(folder) / "kernels")
    PAGE.write_text(page(lines), encoding="utf-8")


def work(given: argparse.Namespace, lines: list[dict], tree: Path, kernels: Path) -> None:
    wanted = ("escnn_relax", "tests", "examples", "pyproject.toml", "README.md")
    for name in wanted:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tree.mkdir(exist_ok=True) or tree / name)
    compileall.compile_dir(tree / "escnn_relax", quiet=2)
    end, sound = time.monotonic() + 60 * given.minutes, {}
    done = {(x["path"], x["line"], x["operator"], x["after"]) for x in lines}
    for fault in sample():
        again = given.again == f"{fault.path}:{fault.line}"
        if time.monotonic() > end or (not again if given.again else fault[:3] + (fault.after,) in done):
            continue
        tests = given.tests or relevant(fault.path)
        for test in tests:
            if test not in sound:
                outcome, told, sound[test] = tried(tree, [test], str(kernels), 600)
                if outcome != "survived":
                    print(f"{test} fails without any fault: {told}", flush=True)
                    sound[test] = math.nan
        usable, path = [t for t in tests if not math.isnan(sound[t])], tree / fault.path
        source = path.read_bytes()
        path.write_bytes(source[: fault.start] + fault.after.encode() + source[fault.end :])
        limit = 10 + 3 * sum(sound[t] for t in usable)
        outcome, told, spent = tried(tree, usable, str(kernels), limit)
        path.write_bytes(source)
        line = {k: v for k, v in fault._asdict().items() if k not in ("start", "end")}
        line |= {"outcome": outcome, "by": told if outcome == "killed" else "", "tests": usable, "cpu": round(spent, 1)}
        print(json.dumps(line), flush=True)
        if not again:
            lines.append(line)
            with RUNS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
