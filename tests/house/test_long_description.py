"""What a package index shows has no links that only work in a checkout (setup.py)."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RELATIVE = re.compile(r"\]\((?!https://)[^)]+\)")
HOME = "https://example.org/a/b"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("setup_script", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def readme():
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_links_are_absolute_where_the_repository_is_known(script, readme):
    assert len(RELATIVE.findall(readme)) >= 10
    text = script.absolute(readme, HOME + "/")
    assert RELATIVE.findall(text) == []
    assert f"]({HOME}/raw/HEAD/examples/figures/demo.png)" in text
    assert f"[Concepts]({HOME}/blob/HEAD/examples/site/concepts.md)" in text
    assert len(re.findall(r"\]\(", text)) == len(re.findall(r"\]\(", readme))


def test_text_remains_where_it_is_not(script, readme):
    text = script.absolute(readme, None)
    assert RELATIVE.findall(text) == [] and "![" not in text
    assert "Concepts: why it works" in text and "](https://github.com/QUVA-Lab/escnn)" in text


def test_snippets_stay_as_they_are(script, readme):
    fences = re.compile(r"^```.*?^```$", re.M | re.S)
    assert fences.findall(script.absolute(readme, None)) == fences.findall(readme)
    assert script.absolute("```\na[b](c)\n```", None) == "```\na[b](c)\n```" != script.absolute("a[b](c)", None)


def test_the_repository_is_that_of_pyproject(script):
    assert script.repository("[project]\nname = 'a'") is None
    assert script.repository(f"[project.urls]\nRepository = '{HOME}'") == HOME
