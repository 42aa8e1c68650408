"""Every snippet of README and of the site's pages runs as it stands, and prints what stands below it."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from nonempty import each

ROOT = Path(__file__).parents[2]
SITE = ROOT / "examples" / "site"
NUMBER = re.compile(r"(?<!\w)[-+]?\d+(\.\d+)?(e[-+]?\d+)?%?")
BLOCK = re.compile(
    r"```python\n(?P<code>.*?)```|```\{literalinclude\} (?P<file>\S+)\n```|```text\n(?P<text>.*?)```", re.S
)
MARK = "---- next block ----"

#: Pages with snippets. Those of ``QUICK`` run in ``make test``, the others in ``make test-all``.
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [ROOT / "README.md", *SITE.rglob("*.md")]
    if "```python" in path.read_text(encoding="utf-8")
)
QUICK = ("README.md", "examples/site/guide/diagnose.md", "examples/site/guide/restrict.md")


def blocks(page: str) -> list[tuple[str, str | None]]:
    """The code blocks of a page, each with what the page says that it prints, if it does."""
    path, result = ROOT / page, []
    for match in BLOCK.finditer(path.read_text(encoding="utf-8")):
        if match["text"] is not None:
            result[-1] = (result[-1][0], match["text"])
        elif match["file"] is not None:
            result.append(((path.parent / match["file"]).read_text(encoding="utf-8"), None))
        else:
            result.append((match["code"], None))
    return result


def printed(page: str) -> list[str]:
    """What each block of a page prints, all of them run one after the other as one script."""
    script = f"\nprint({MARK!r})\n".join(code for code, _ in blocks(page))
    command = [sys.executable, "-W", "ignore", "-c", script]
    environment = {**os.environ, "MPLBACKEND": "Agg"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.split(MARK + "\n")


#: A page whose snippets need more than the package says so in a line like "Needs: `lightning`, `tensorboard`", and is
#: run where all of these are installed.
NEEDS = re.compile(r"^Needs: (.+)$", re.M)


def needed(page: str) -> list[str]:
    """The packages that a page says that it needs."""
    lines = NEEDS.findall((ROOT / page).read_text(encoding="utf-8"))
    return [name for line in lines for name in re.findall(r"`([\w.]+)`", line)]


def imported(page: str) -> set[str]:
    """The packages that its snippets import."""
    trees = [ast.parse(code) for code, _ in blocks(page)]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    return {"tensorboard" if name == "torch.utils.tensorboard" else name.split(".")[0] for name in names}


def words(text):
    """Without numbers (but C2 and irrep_2 stay) and spaces, which differ a little from machine to machine."""
    return [re.sub(r"[\s–-]+", " ", NUMBER.sub("#", line)).strip() for line in text.strip().splitlines()]


def test_there_are_pages():
    assert set(QUICK) <= set(PAGES) and len(PAGES) >= 10


@pytest.mark.parametrize("page", [p if p in QUICK else pytest.param(p, marks=pytest.mark.slow) for p in PAGES])
def test_page_runs_and_prints_what_it_says(page):
    for package in needed(page):
        pytest.importorskip(package)
    outputs = printed(page)
    expected = [text for _, text in blocks(page)]
    assert len(outputs) == len(expected) > 0
    for output, text in each(zip(outputs, expected, strict=True)):
        assert text is None or words(output) == words(text)


@pytest.mark.parametrize("page", PAGES)
def test_pages_say_what_they_need(page):
    everywhere = {"escnn_relax", "escnn", "torch", "numpy", "sys", "start", "matplotlib"}
    assert imported(page) - everywhere <= set(needed(page))


def test_some_pages_need_more():
    assert "lightning" in needed("examples/site/guide/lightning.md") and not needed("README.md")
    assert "onnxruntime" in imported("examples/site/guide/export.md")


def test_another_output_would_be_seen():
    text = next(text for _, text in blocks("examples/site/quickstart.md") if text)
    assert words(text.replace("C2", "C4")) != words(text) and words(text.replace("irrep_2", "irrep")) != words(text)


def test_readme_is_one_screen():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert 400 <= len(text.split()) <= 700
    assert sum(line.strip() != "" for code, _ in blocks("README.md") for line in code.splitlines()) <= 10


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *PAGES])
def test_links_lead_somewhere(page):
    path = ROOT / page
    targets = re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8"))
    assert [t for t in targets if not (path.parent / t).exists()] == []


def test_the_map_of_the_house_is_true():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rooms = "symmetry|nn|morphism|curvature|diagnosis|evidence|training|search|tests"
    named = set(re.findall(rf"`((?:{rooms})/[\w/.]+)`", text))
    assert len(named) > 30
    forms = [(top, end) for top in ("", "escnn_relax") for end in ("", ".py")]
    assert {n for n in named if not any((ROOT / top / f"{n}{end}").exists() for top, end in forms)} == set()
